"""Base to new: what is learned from some classes, on the classes that no image was seen of.

    python -m benchmarks.base_to_new DATA --backbone local-dir:PATH [--splits first last even odd]
                                     [--passes N] [--seeds 1 2 3] [--together]
                                     [--json FILE] [--resume]

DATA is a folder of photos or a file of features. Of every split, named by which classes are the
base, test images of base classes are classified among these and those of new classes among those:
by the hand-written prompt, by CLIP's seven templates, by a prompt tuned on the base classes with
and without `zo.anchor`, and by the head that is fitted to the base classes' images and all texts.

With `--together`, all test images are classified among all classes, as by a prompt that was tuned
with the new classes as `extra_classes`; and by the head with and without its calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.support.feature_file import FeatureFile, search
from benchmarks.support.few_shots import read
from benchmarks.support.output import RESULTS, Row, Table, percent
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting, make_parser, setting_of
from sharpzo_engine import Encoder, Features, TuningConfig
from sharpzo_engine.clip.texts import template_embeddings
from sharpzo_engine.config import PromptConfig
from sharpzo_engine.heads.fitting import LinearHead, fit_gda
from sharpzo_engine.heads.stacking import HeadData, accuracy, stack_heads

SEEDS, PASSES = (1, 2, 3), 10_000
SPLITS: dict[str, Callable[[int], Sequence[int]]] = {
    "first": lambda classes: range(-(-classes // 2)),
    "last": lambda classes: range(classes // 2, classes),
    "even": lambda classes: range(0, classes, 2),
    "odd": lambda classes: range(1, classes, 2),
}
WRITTEN, TEMPLATES = "hand-written prompt", "seven templates"
TUNED, ANCHORED = "tuned, anchor 0", "tuned, anchor 1"
HEAD, TEMPLATE_HEAD = "head, hand-written prompt", "head, seven templates"
PLAIN, SERVED = "head, not calibrated", "head, calibrated"
ANCHORS = {TUNED: 0.0, ANCHORED: 1.0}
HEADS = (HEAD, TEMPLATE_HEAD, PLAIN, SERVED)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Some classes of a dataset, numbered from 0."""

    file: FeatureFile
    labels: Sequence[int]

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return [self.file.class_names[label] for label in self.labels]

    def of(self, features: Features) -> Features:
        """The images of these classes."""
        kept = features[np.flatnonzero(np.isin(features.labels, self.labels))]
        return Features(kept.images, np.searchsorted(self.labels, kept.labels))


@dataclass(frozen=True)
class Task:
    """One split of a dataset into base and new classes, on one backbone."""

    file: FeatureFile
    encoder: Encoder
    split: str
    together: bool = False  #: whether images are classified among all classes

    @cached_property
    def base(self) -> Part:
        """What is learned from."""
        return Part(self.file, list(SPLITS[self.split](len(self.file.class_names))))

    @cached_property
    def new(self) -> Part:
        """The rest."""
        labels = range(len(self.file.class_names))
        return Part(self.file, [label for label in labels if label not in self.base.labels])

    def zero_shot(self) -> list[Row]:
        """Both zero-shot classifiers."""
        names = self.file.class_names
        found = {
            WRITTEN: self._written(names),
            TEMPLATES: self._templates(names),
        }
        return [self._row(name, _linear(texts), 0) for name, texts in found.items()]

    def head(self, config: TuningConfig) -> list[Row]:
        """The head fitted to the base classes' shots, with either texts."""
        names = self.file.class_names
        drawn = self.file.few_shot(config.shots, config.seed)
        shots = drawn[np.flatnonzero(np.isin(drawn.labels, self.base.labels))]
        texts = {
            HEAD: self._written(names),
            TEMPLATE_HEAD: self._templates(names),
        }
        heads = {name: fit_gda(shots, len(names), rows) for name, rows in texts.items()}
        return [self._row(name, head, config.seed) for name, head in heads.items()]

    def served(self, config: TuningConfig) -> list[Row]:
        """The head among all classes, without and with the offset of the new ones."""
        base, file = self.base, self.file
        order = [*base.labels, *self.new.labels]
        names = [file.class_names[label] for label in order]
        written = _linear(self._written(names))
        data = HeadData(
            train=base.of(file.few_shot(config.shots, config.seed)),
            validation=base.of(file.validation),
            source="official",
            prompt=written,
            zero_shot=written,
            templates=_linear(self._templates(names)),
            extra_classes=len(self.new.labels),
        )
        plain = fit_gda(data.train, len(order), data.texts)
        found = {PLAIN: plain, SERVED: stack_heads("gda", data).served.head}
        back = np.argsort(order).tolist()
        return [self._row(name, _of_classes(h, back), config.seed) for name, h in found.items()]

    def tuned(self, config: TuningConfig, name: str) -> list[Row]:
        """The context tuned on the base classes."""
        base, file = self.base, self.file
        shots = base.of(file.few_shot(config.shots, config.seed))
        found = search(self.encoder, base.class_names, shots, base.of(file.validation), config)
        context = found.space.context(found.best.point[None])
        prompts = self.encoder.prompts(config.prompt.context, file.class_names)
        row = self._row(name, _linear(prompts.encode(context)[0]), config.seed)
        return [row | {"forward_passes": found.forward_passes, "seconds": found.seconds}]

    def _templates(self, names: Sequence[str]) -> NDArray[np.float32]:
        return template_embeddings(self.encoder, PromptConfig().templates, names)

    def _written(self, names: Sequence[str]) -> Floats:
        prompts = self.encoder.prompts(PromptConfig().context, names)
        return prompts.encode(prompts.initial_context[None])[0]

    def _row(self, name: str, head: LinearHead, seed: int) -> Row:
        """Accuracies (fractions) of base and of new images, among their own or all classes."""
        found = {"base": self._accuracy(head, self.base), "new": self._accuracy(head, self.new)}
        return {"split": self.split, "row": name, "seed": seed} | found

    def _accuracy(self, head: LinearHead, part: Part) -> float:
        test = self.file.test
        if self.together:
            return accuracy(head, test[np.flatnonzero(np.isin(test.labels, part.labels))])
        return accuracy(_of_classes(head, part.labels), part.of(test))


def _linear(texts: Floats) -> LinearHead:
    return LinearHead(texts, np.zeros(len(texts), np.float32))


def _of_classes(head: LinearHead, labels: Sequence[int]) -> LinearHead:
    return LinearHead(head.weights[labels], head.bias[labels])


def measure(
    setting: Setting, results: Results, splits: Sequence[str], *, together: bool = False
) -> None:
    """Run what is missing."""
    file = read(setting.folder, setting.backbone, setting.cache)
    for split in splits:
        task = Task(file, setting.backbone, split, together)
        head = task.served if together else task.head
        results.measure([split, "zero-shot"], task.zero_shot)
        for seed in setting.seeds:
            config = setting.config(seed, {"head": "none"})
            results.measure([split, "head", seed], partial(head, config))
            for name, anchor in ANCHORS.items():
                config = setting.config(seed, {"head": "none", "zo": {"anchor": anchor}})
                results.measure([split, name, seed], partial(task.tuned, config, name))


def tables(rows: Sequence[Row], title: str, *, together: bool = False) -> list[Table]:
    """Means and deviations over seeds of every split; H is the harmonic mean of both means."""
    lines = []
    for split in dict.fromkeys(row["split"] for row in rows):
        for name in (WRITTEN, TEMPLATES, TUNED, ANCHORED, *HEADS):
            own = [row for row in rows if (row["split"], row["row"]) == (split, name)]
            if own:
                base, new = ([row[key] for row in own] for key in ("base", "new"))
                cells = [percent(base), percent(new), f"{_harmonic(base, new):.1%}"]
                lines.append([f"{split}: {name}", *cells])
    about = "One label space" if together else "Base to new"
    return [Table(f"{about}: {title}", ("base classes: row", "base", "new", "H"), lines)]


def _harmonic(base: Sequence[float], new: Sequence[float]) -> float:
    """2 / (1 / base + 1 / new) of the means; 0 if one is."""
    one, other = float(np.mean(base)), float(np.mean(new))
    return 2 * one * other / (one + other) if one + other else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, SEEDS, PASSES)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["first"])
    parser.add_argument("--together", action="store_true", help="all classes in one classifier")
    options = parser.parse_args(arguments)
    name = "one_label_space.json" if options.together else "base_to_new.json"
    with setting_of(options) as setting:
        path = options.json or RESULTS / name
        results = Results.open(path, setting.facts(), resume=options.resume)
        measure(setting, results, options.splits, together=options.together)
        for table in tables(results.rows, setting.title, together=options.together):
            table.print()


if __name__ == "__main__":
    main()
