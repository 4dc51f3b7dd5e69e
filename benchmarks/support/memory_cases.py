"""What `benchmarks.memory` measures, one case per process: prints the process's peak in MiB.

Imports are inside the functions: a case pays for what it uses itself.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpzo_engine import Backbone, Encoder, Objective

RANDOM = "ViT-B-32 (random weights)"  # the backbone where none is named
RANDOM_MODEL = "ViT-B-32"
BATCH = 32  # pictures at a time
SHOTS = 16  # training images per class; those beyond the pictures have random embeddings
STEPS = 4  # of a search
WORDS = ("red", "old", "small", "house", "park", "river", "crop", "road", "dog", "apple")


def load(backbone: str, pretrained: str | None) -> tuple[Any, Any, Any]:
    """An open_clip model in float32, its image transform and its tokenizer."""
    import open_clip

    from sharpzo_engine.tiny import PATH

    logging.getLogger().setLevel(logging.ERROR)  # that weights are random is no news here
    random = backbone == RANDOM
    name = RANDOM_MODEL if random else f"local-dir:{PATH}" if backbone == "tiny" else backbone
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, pretrained=pretrained, require_pretrained=not random
    )
    return model.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(name)


def class_names(count: int) -> list[str]:
    """Distinct names of one and two words."""
    names = [*WORDS, *map(" ".join, itertools.product(WORDS, WORDS))]
    return names[:count]


def infer(model: tuple[Any, Any, Any], classes: int, pictures: list[Path]) -> None:
    """Classify the pictures by open_clip alone."""
    import torch
    from PIL import Image

    clip, preprocess, tokenizer = model
    with torch.inference_mode():
        batches = [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]
        images = torch.cat(
            [
                clip.encode_image(torch.stack([preprocess(Image.open(p)) for p in batch]))
                for batch in batches
            ]
        )
        prompts = tokenizer([f"a photo of a {name}." for name in class_names(classes)])
        (images @ clip.encode_text(prompts).T).argmax(1)


def make_objective(model: tuple[Any, Any, Any], classes: int, pictures: list[Path]) -> Objective:
    """The loss on SHOTS images per class, the pictures among them."""
    return objective_of(wrap(model), classes, pictures)


def wrap(model: tuple[Any, Any, Any]) -> Backbone:
    """The model as the engine knows it."""
    from sharpzo_engine import Backbone

    clip, preprocess, tokenizer = model
    return Backbone(clip, preprocess, tokenizer, name="measured", pretrained=None)


def objective_of(backbone: Encoder, classes: int, pictures: list[Path]) -> Objective:
    """The same on any encoder."""
    import numpy as np

    from sharpzo_engine import Example, Features, Objective, PromptSpace, extract_features

    seen = extract_features([Example(path, 0) for path in pictures], backbone).images
    size = (max(0, SHOTS * classes - len(seen)), seen.shape[1])
    rest = np.random.default_rng(0).standard_normal(size, np.float32)
    images = np.concatenate([seen, rest / np.linalg.norm(rest, axis=1, keepdims=True)])
    features = Features(images, np.arange(len(images)) % classes)
    return Objective(PromptSpace(backbone, class_names(classes)), features)


def search(objective: Objective, **values: Any) -> None:  # noqa: ANN401 - hyperparameters
    """Some steps, validated on the training images."""
    from sharpzo_engine import Objective, TuningConfig
    from sharpzo_engine.search.loop import Search

    config = TuningConfig.parse({"total_steps": STEPS, **values})
    Search(config, objective, Objective(objective.space, objective.features)).run()


def backpropagate_plainly(objective: Objective) -> None:
    """The gradient through open_clip's own full forward, as CoOp takes it."""
    import torch
    from torch.nn import functional

    from sharpzo_engine import PromptConfig

    space, features = objective.space, objective.features
    tokens = space.backbone.tokenize(PromptConfig().context, space.class_names)
    encoder = space.backbone.plain_text_encoder(tokens)
    context = torch.from_numpy(space.initial_context).clone().requires_grad_()
    images, labels = torch.from_numpy(features.images), torch.from_numpy(features.labels)
    with torch.enable_grad():
        embeddings = encoder.encode(context[None])[0]
        logits = space.backbone.logit_scale * images @ embeddings.T
        functional.cross_entropy(logits, labels).backward()


def backpropagate_packed(objective: Objective) -> None:
    """The gradient through this project's encoder."""
    objective.gradient(objective.space.origin)


Case = Callable[["Objective"], object]
CASES: dict[str, Case | None] = {
    "inference": None,
    "tuning (default)": lambda objective: search(objective, change_point=1),
    "tuning (cma-es)": lambda objective: search(objective, method="cma-es"),
    "backpropagation (open_clip)": backpropagate_plainly,
    "backpropagation (packed)": backpropagate_packed,
}


#: Cases in ONNX Runtime, by the precision of the exported encoder; they load no torch.
EXPORTED = {f"tuning without torch ({precision})": precision for precision in ("fp32", "int8")}
EXPORT = "export"


def export(model: tuple[Any, Any, Any], folder: Path) -> None:
    """Write the model for the cases in ONNX Runtime."""
    from sharpzo_engine.clip.onnx.export import export_encoder

    for precision in ("fp32", "int8"):
        export_encoder(wrap(model), folder / precision, precision)


def tune_exported(folder: Path, classes: int, pictures: list[Path]) -> None:
    """Some steps on an exported encoder."""
    from sharpzo_engine import load_backbone

    search(objective_of(load_backbone(f"onnx-dir:{folder}"), classes, pictures), change_point=1)
    if "torch" in sys.modules:
        raise RuntimeError("torch was loaded")


def peak_mib() -> float:
    """This process's peak resident memory; Linux.

    Not getrusage's: that is inherited from the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Do one case and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[*CASES, *EXPORTED, EXPORT])
    parser.add_argument("classes", type=int)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--backbone", default=RANDOM)
    parser.add_argument("--pretrained")
    parser.add_argument("--encoders", type=Path, help="folder of the exported encoders")
    options = parser.parse_args()
    pictures = sorted(options.pictures.iterdir())
    if options.case in EXPORTED:
        tune_exported(options.encoders / EXPORTED[options.case], options.classes, pictures)
        print(peak_mib())
        return
    model = load(options.backbone, options.pretrained)
    if options.case == EXPORT:
        export(model, options.encoders)
    case = CASES.get(options.case)
    if case is None:
        infer(model, options.classes, pictures)
    else:
        case(make_objective(model, options.classes, pictures))
    print(peak_mib())


if __name__ == "__main__":
    main()
