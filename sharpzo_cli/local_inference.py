"""`sharpzo classify` and `sharpzo evaluate`: use a prompt file on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.formatting import interval_text
from sharpzo_cli.output import percent, print_json, print_table
from sharpzo_engine.data.dataset import load_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sharpzo_engine import Dataset, Encoder, Prediction, PromptClassifier, TunedPrompt
    from sharpzo_engine.data.layout import Part
    from sharpzo_engine.prompts.evaluation import Assessment
    from sharpzo_engine.reports.evaluation_report import EvaluationReport

    #: Key in the JSON -> for each image its predictions, best first.
    Answers = Mapping[str, Sequence[Sequence[Prediction]]]

#: Most classes for which the confusion matrix is printed; --json always has it.
WIDEST_MATRIX = 12
#: Key in the JSON -> heading in the table.
HEADINGS = {"predictions": "label", "zero_shot": "zero-shot"}


@dataclass(frozen=True)
class Model:
    artifact: Path
    backbone: str | None
    pretrained: str | None
    device: str

    def load(self) -> tuple[TunedPrompt, Encoder]:
        """Load the prompt and the backbone.

        Raises:
            UsageProblem: the file does not exist.
            ArtifactError: it is not a prompt.
            BackboneError: its backbone cannot be loaded.
        """
        if not self.artifact.is_file():
            fix = "give a file written by `sharpzo tune`"
            raise UsageProblem(f"{self.artifact} does not exist", fix)
        from sharpzo_engine import TunedPrompt, load_backbone
        from sharpzo_engine.prompts.classifier import other_precision

        prompt = TunedPrompt.load(self.artifact)
        own = prompt.metadata["backbone"]
        name = self.backbone or own["name"]
        pretrained = self.pretrained or (None if self.backbone else own.get("pretrained"))
        backbone = load_backbone(name, pretrained, self.device)
        if backbone.fingerprint == prompt.fingerprint and (
            note := other_precision(prompt, backbone)
        ):
            typer.echo(f"note: {note} (same weights, rounded differently)", err=True)
        return prompt, backbone


@dataclass(frozen=True)
class ClassifyOptions:
    top_k: int
    calibrated: bool
    zero_shot: bool
    as_json: bool


@dataclass(frozen=True)
class EvaluationData:
    dataset: str  #: a path, or a name of the catalogue
    root: Path | None
    split: str
    classes: Part | None  #: None: all, which must be classes of the prompt


def classify_images(model: Model, images: Sequence[Path], options: ClassifyOptions) -> None:
    """Label images and print the labels, with those of the hand-written prompt if requested.

    The temperature belongs to the tuned prompt; the hand-written one is never calibrated.
    """
    for image in images:
        if not image.is_file():
            raise UsageProblem(f"{image} does not exist", "give JPEG, PNG or WEBP files")
    prompt, backbone = model.load()
    from sharpzo_engine import PromptClassifier

    tuned = PromptClassifier(prompt, backbone)
    if options.calibrated:
        prompt.require_temperature()  # fails before the work, not after it
    embeddings = tuned.embed(list(images))
    answers = {"predictions": tuned.rank(embeddings, options.top_k, calibrated=options.calibrated)}
    if options.zero_shot:
        answers["zero_shot"] = tuned.zero_shot().rank(embeddings, options.top_k)
    if options.as_json:
        print_json({"results": _results(images, answers)})
    else:
        _print_answers(images, answers)


def evaluate_dataset(model: Model, chosen: EvaluationData, *, as_json: bool) -> None:
    """Evaluate a prompt and the hand-written one on one split, and print the results.

    Raises:
        UsageProblem: the split is empty, or has classes that the prompt does not know.
    """
    data = load_dataset(chosen.dataset, root=chosen.root, classes=chosen.classes or "all")
    if not data.split(chosen.split):
        raise UsageProblem(
            f"{chosen.dataset} has no {chosen.split} images", "choose another --split"
        )
    prompt, backbone = model.load()
    if chosen.classes is None and not set(data.class_names) <= set(prompt.class_names):
        raise UsageProblem(
            f"the classes of {chosen.dataset} are not those of {model.artifact}",
            f"the prompt knows: {', '.join(prompt.class_names)}; --classes all applies its "
            "context to other names",
        )
    from sharpzo_engine import PromptClassifier

    classifier = PromptClassifier(prompt, backbone)  # rejects a backbone that is not the prompt's
    classifier = _for_classes(classifier, data, narrow=chosen.classes is not None)
    report = _measure(classifier, data, chosen.split)
    transferred = not set(classifier.prompt.class_names) <= set(prompt.class_names)
    if as_json:
        print_json({**_figures(report), "dataset": data.name, "transferred": transferred})
    else:
        _print_evaluation(report)
        if transferred:
            typer.echo(_TRANSFERRED)


def _measure(classifier: PromptClassifier, data: Dataset, split: str) -> EvaluationReport:
    from sharpzo_engine.clip.features import extract_features
    from sharpzo_engine.prompts.evaluation import Tally
    from sharpzo_engine.reports.evaluation_report import EvaluationReport

    prompt, examples = classifier.prompt, data.split(split)
    index = {name: place for place, name in enumerate(prompt.class_names)}
    features = extract_features(examples, classifier.backbone)
    labels = np.array([index[data.class_names[example.label]] for example in examples], np.int64)
    tuned = Tally(prompt.class_names, prompt.temperature)
    tuned.add(classifier.logits(features.images), labels)
    if not classifier.has_zero_shot:
        return EvaluationReport(tuned.result(), None, split, prompt)
    plain = Tally(prompt.class_names)
    plain.add(classifier.zero_shot().logits(features.images), labels)
    return EvaluationReport(tuned.result(), plain.result(), split, prompt)


_TRANSFERRED = (
    "Some classes are new to the prompt: its tuned context was used with their names, without the "
    "head and the temperature, which only know the prompt's own classes."
)


def _for_classes(classifier: PromptClassifier, data: Dataset, *, narrow: bool) -> PromptClassifier:
    """Return a classifier among the classes of the evaluation.

    Usually these are the prompt's own. They are the dataset's if `narrow` is set, and for datasets
    that are only for testing and have fewer classes than the prompt (ImageNet-A and -R).
    """
    known = set(data.class_names) <= set(classifier.prompt.class_names)
    if known and not narrow and not data.test_only:
        return classifier
    return classifier.among(data.class_names)


def _results(images: Sequence[Path], answers: Answers) -> list[dict[str, object]]:
    return [
        {
            "image": str(image),
            **{key: [asdict(p) for p in rows[index]] for key, rows in answers.items()},
        }
        for index, image in enumerate(images)
    ]


def _print_answers(images: Sequence[Path], answers: Answers) -> None:
    """Print a line per image and rank, with a label and a score of each classifier."""
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


def _figures(report: EvaluationReport) -> dict[str, object]:
    classes = report.assessment.classes
    return {
        **report.to_json(),
        **report.figures(),
        "per_class_accuracy": {figures.name: figures.accuracy for figures in classes},
        "classes": [figures.name for figures in classes],
        "confusion_matrix": report.assessment.confusion,
    }


def _print_evaluation(report: EvaluationReport) -> None:
    measured, plain = report.assessment, report.zero_shot
    before, after = plain.figures() if plain else {}, measured.figures()
    title = f"{report.split}: {percent(measured.accuracy)} of {measured.images} images"
    figures = [
        (name, show(before.get(key)), show(after[key]))
        for key, name, show in _SHOWN
        if after[key] is not None
    ]
    figures.insert(1, ("... 95% interval", _interval(plain), _interval(measured)))
    print_table(title, ("", "zero-shot", report.classifier), figures)
    rows = [
        (one.name, percent(one.accuracy), percent(one.precision), str(one.images))
        for one in measured.classes
    ]
    print_table("", ("class", "accuracy", "precision", "images"), rows)
    if len(rows) <= WIDEST_MATRIX:
        names = [one.name for one in measured.classes]
        matrix = [
            (name, *map(str, row)) for name, row in zip(names, measured.confusion, strict=True)
        ]
        print_table("Confusion: true class by row", ("", *names), matrix)


def _interval(measured: Assessment | None) -> str:
    return "" if measured is None else interval_text(measured.accuracy, measured.images)


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


#: Key of a figure, its name, and its format.
_SHOWN: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("accuracy", "accuracy", percent),
    ("macro_accuracy", "mean accuracy per class", percent),
    ("top5_accuracy", "top-5 accuracy", percent),
    ("ece", "expected calibration error", percent),
    ("calibrated_ece", "... at the prompt's temperature", percent),
    ("nll", "negative log-likelihood", _nats),
    ("calibrated_nll", "... at the prompt's temperature", _nats),
)
