"""`sharpzo classify` and `sharpzo evaluate`: a prompt file on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import typer

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import percent, print_json, print_table
from sharpzo_engine.data.dataset import load_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sharpzo_engine import Backbone, Dataset, Prediction, PromptClassifier, TunedPrompt
    from sharpzo_engine.data.layout import Part
    from sharpzo_engine.reports.evaluation_report import EvaluationReport

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


@dataclass(frozen=True)
class Subject:
    """What `evaluate` measures a prompt on."""

    dataset: str  #: a path, or a name of the catalogue
    root: Path | None
    split: str
    classes: Part | None  #: None for all, none of which may be new to the prompt


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


def evaluate_dataset(model: Model, subject: Subject, *, as_json: bool) -> None:
    """Measure a prompt, and the hand-written one beside it, on one split and print the figures.

    Raises:
        UsageProblem: the split is empty, or it has classes that the prompt does not know.
    """
    data = load_dataset(subject.dataset, root=subject.root, classes=subject.classes or "all")
    if not data.split(subject.split):
        raise UsageProblem(
            f"{subject.dataset} has no {subject.split} images", "choose another --split"
        )
    prompt, backbone = model.load()
    if subject.classes is None and not set(data.class_names) <= set(prompt.class_names):
        raise UsageProblem(
            f"the classes of {subject.dataset} are not those of {model.artifact}",
            f"the prompt knows: {', '.join(prompt.class_names)}; --classes all applies its "
            "context to other names",
        )
    from sharpzo_engine import PromptClassifier

    classifier = PromptClassifier(prompt, backbone)  # refuses a backbone that is not the prompt's
    classifier = _for_classes(classifier, data, narrow=subject.classes is not None)
    report = _measure(classifier, data, subject.split)
    transferred = not set(classifier.prompt.class_names) <= set(prompt.class_names)
    if as_json:
        print_json({**_figures(report), "dataset": data.name, "transferred": transferred})
    else:
        _print_evaluation(report)
        if transferred:
            typer.echo(_TRANSFERRED)


def _measure(classifier: PromptClassifier, data: Dataset, split: str) -> EvaluationReport:
    """The classifier and the hand-written prompt on one split of a dataset."""
    from sharpzo_engine.clip.features import extract_features
    from sharpzo_engine.prompts.evaluation import Tally
    from sharpzo_engine.reports.evaluation_report import EvaluationReport

    prompt, examples = classifier.prompt, data.split(split)
    index = {name: place for place, name in enumerate(prompt.class_names)}
    features = extract_features(examples, classifier.backbone)
    labels = np.array([index[data.class_names[example.label]] for example in examples], np.int64)
    tuned, plain = Tally(prompt.class_names, prompt.temperature), Tally(prompt.class_names)
    for measured, tally in ((classifier, tuned), (classifier.zero_shot(), plain)):
        tally.add(measured.logits(features.images).cpu().numpy(), labels)
    return EvaluationReport(tuned.result(), plain.result(), split, prompt)


_TRANSFERRED = (
    "Some classes are new to the prompt: its tuned context stands before their names. A head and a "
    "temperature know the old classes alone, and were left out."
)


def _for_classes(classifier: PromptClassifier, data: Dataset, *, narrow: bool) -> PromptClassifier:
    """The classifier of the classes that the dataset's images are to be told apart among.

    Those are the prompt's own, but for sets that are only tested on, whose classes are fewer than
    their prompt's (ImageNet-A and -R), and where a `narrow` choice was asked for.
    """
    known = set(data.class_names) <= set(classifier.prompt.class_names)
    if known and not narrow and not data.test_only:
        return classifier
    return classifier.among(data.class_names)


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


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


#: Figure, what it is, and how it is shown.
_SHOWN: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("accuracy", "accuracy", percent),
    ("macro_accuracy", "mean accuracy of the classes", percent),
    ("top5_accuracy", "top-5 accuracy", percent),
    ("ece", "expected calibration error", percent),
    ("calibrated_ece", "... at the prompt's temperature", percent),
    ("nll", "negative log-likelihood", _nats),
    ("calibrated_nll", "... at the prompt's temperature", _nats),
)
