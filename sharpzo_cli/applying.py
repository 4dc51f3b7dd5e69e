"""`sharpzo classify` and `sharpzo evaluate`: a prompt file on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import percent, print_json, print_table
from sharpzo_engine.dataset import load_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sharpzo_engine import Backbone, Evaluation, Prediction, TunedPrompt

    #: Key in the JSON -> per image its predictions, best first.
    Answers = Mapping[str, Sequence[Sequence[Prediction]]]

#: Classes up to which a confusion matrix fits a terminal; --json always has it.
WIDEST_MATRIX = 12
#: What the table calls the classifiers that the JSON tells of.
HEADINGS = {"predictions": "label", "zero_shot": "zero-shot"}


@dataclass(frozen=True)
class Model:
    """A prompt file, and the backbone to use with it if not its own."""

    artifact: Path
    backbone: str | None
    pretrained: str | None
    device: str

    def load(self) -> tuple[TunedPrompt, Backbone]:
        """The prompt and the backbone.

        Raises:
            UsageProblem: the file is not there.
            ArtifactError: it is not a prompt.
            BackboneError: its backbone cannot be loaded.
        """
        if not self.artifact.is_file():
            raise UsageProblem(f"{self.artifact} does not exist", "give a file of `sharpzo tune`")
        from sharpzo_engine import TunedPrompt, load_backbone

        prompt = TunedPrompt.load(self.artifact)
        own = prompt.metadata["backbone"]
        name = self.backbone or own["name"]
        pretrained = self.pretrained or (None if self.backbone else own.get("pretrained"))
        return prompt, load_backbone(name, pretrained, self.device)


@dataclass(frozen=True)
class Shown:
    """What `classify` shows of its answers."""

    top_k: int
    calibrated: bool
    zero_shot: bool
    as_json: bool


def classify_images(model: Model, images: Sequence[Path], shown: Shown) -> None:
    """Label images and print the labels, beside those of the hand-written prompt if wanted.

    The temperature is the tuned prompt's: the hand-written one is never calibrated.
    """
    for image in images:
        if not image.is_file():
            raise UsageProblem(f"{image} does not exist", "give JPEG, PNG or WEBP files")
    prompt, backbone = model.load()
    from sharpzo_engine import PromptClassifier

    tuned = PromptClassifier(prompt, backbone)
    if shown.calibrated:
        prompt.require_temperature()  # before the work, not after it
    embeddings = tuned.embed(list(images))
    answers = {"predictions": tuned.rank(embeddings, shown.top_k, calibrated=shown.calibrated)}
    if shown.zero_shot:
        answers["zero_shot"] = tuned.zero_shot().rank(embeddings, shown.top_k)
    if shown.as_json:
        print_json({"results": _results(images, answers)})
    else:
        _print_answers(images, answers)


def evaluate_dataset(model: Model, dataset: Path, split: str, *, as_json: bool) -> None:
    """Measure a prompt on one split and print the figures.

    Raises:
        UsageProblem: the split is empty, or its classes are not the prompt's.
    """
    data = load_dataset(dataset)
    if not data.split(split):
        raise UsageProblem(f"{dataset} has no {split} images", "choose another --split")
    prompt, backbone = model.load()
    if tuple(data.class_names) != tuple(prompt.class_names):
        raise UsageProblem(
            f"the classes of {dataset} are not those of {model.artifact}",
            f"the prompt knows: {', '.join(prompt.class_names)}",
        )
    import torch

    from sharpzo_engine import PromptClassifier, evaluate
    from sharpzo_engine.features import extract_features

    PromptClassifier(prompt, backbone)  # refuses a backbone that is not the prompt's
    features = extract_features(data.split(split), backbone)
    weights, bias = torch.tensor(prompt.weights), torch.tensor(prompt.bias)
    evaluation = evaluate(weights, features, prompt.class_names, bias)
    if as_json:
        print_json(_figures(evaluation, split, prompt.class_names))
    else:
        _print_evaluation(evaluation, split, prompt.class_names)


def _results(images: Sequence[Path], answers: Answers) -> list[dict[str, object]]:
    """Per image the predictions of every classifier, under its key."""
    return [
        {
            "image": str(image),
            **{key: [asdict(p) for p in rows[index]] for key, rows in answers.items()},
        }
        for index, image in enumerate(images)
    ]


def _print_answers(images: Sequence[Path], answers: Answers) -> None:
    """A line per image and rank; each classifier has a column of labels and one of scores."""
    rows = [
        (
            str(image) if rank == 0 else "",
            *(cell for p in ranked for cell in (p.label, percent(p.score))),
        )
        for image, *columns in zip(images, *answers.values(), strict=True)
        for rank, ranked in enumerate(zip(*columns, strict=True))
    ]
    headings = [cell for key in answers for cell in (HEADINGS[key], "score")]
    print_table("", ("image", *headings), rows)


def _figures(evaluation: Evaluation, split: str, classes: Sequence[str]) -> dict[str, object]:
    return {
        "split": split,
        "images": evaluation.images,
        "accuracy": evaluation.accuracy,
        "per_class_accuracy": dict(evaluation.per_class),
        "classes": list(classes),
        "confusion_matrix": [list(row) for row in evaluation.confusion],
    }


def _print_evaluation(evaluation: Evaluation, split: str, classes: Sequence[str]) -> None:
    title = f"{split}: {percent(evaluation.accuracy)} of {evaluation.images} images"
    rows = [(name, percent(value)) for name, value in evaluation.per_class.items()]
    print_table(title, ("class", "accuracy"), rows)
    if len(classes) <= WIDEST_MATRIX:
        matrix = [
            (name, *(str(count) for count in row))
            for name, row in zip(classes, evaluation.confusion, strict=True)
        ]
        print_table("Confusion: true class by row", ("", *classes), matrix)
