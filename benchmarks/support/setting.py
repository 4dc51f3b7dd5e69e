"""What the benchmarks on photos have in common: dataset, backbone, shots, seeds, budget."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.support.output import RESULTS, Row
from sharpzo_cli.demo.digits import write_digits
from sharpzo_engine import (
    Backbone,
    Dataset,
    Features,
    Objective,
    PromptSpace,
    TuneResult,
    TuningConfig,
    extract_features,
    load_backbone,
    load_dataset,
    tune,
)
from sharpzo_engine.config import PRESETS
from sharpzo_engine.search.loop import Search
from sharpzo_engine.search.progress import OnStep
from sharpzo_engine.tuner import split_validation

#: The budget is in forward passes; steps shall never end a run before it does.
NO_LIMIT = 10_000_000
DIGITS, TINY = "digits", "tiny"  # a dataset by its name alone, and its backbone


@dataclass(frozen=True)
class Setting:
    """One dataset on one backbone; image features are shared by all runs."""

    folder: Path
    backbone_spec: str
    pretrained: str | None
    cache: Path
    shots: int = 16
    seeds: Sequence[int] = (1,)
    passes: int = 30_000  #: budget of a run, in forward passes

    @cached_property
    def backbone(self) -> Backbone:
        """Loaded when it is first needed."""
        return load_backbone(self.backbone_spec, self.pretrained)

    @property
    def title(self) -> str:
        """What tables are headed by."""
        name = Path(self.backbone_spec).name
        return f"{self.folder.name}, {name}, {self.shots} shots, {self.passes:,} forward passes"

    def facts(self) -> Row:
        """What measurements depend on; seeds are in their keys."""
        return {
            "dataset": self.folder.name,
            "backbone": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "shots": self.shots,
            "passes": self.passes,
        }

    def config(self, seed: int, values: Mapping[str, Any], preset: str = "default") -> TuningConfig:
        """A preset with `values` laid over it, under this budget."""
        budget = {
            "max_forward_passes": self.passes,
            "total_steps": NO_LIMIT,
            "shots": self.shots,
            "seed": seed,
        }
        return TuningConfig.parse({**budget, **values}, preset)

    @property
    def paper_preset(self) -> str:
        """The paper's hyperparameters for this dataset, if it names any."""
        columns = PRESETS.keys() - {"default", "fast", "reference"}
        return self.folder.name if self.folder.name in columns else "paper"

    def paper(self, seed: int) -> TuningConfig:
        """The paper's method; its change points of 100 to 500 generations are beyond any budget."""
        return self.config(seed, {"change_point": "auto"}, self.paper_preset)

    def dataset(self, seed: int) -> Dataset:
        """The few-shot sample of a seed."""
        return load_dataset(self.folder, shots=self.shots, seed=seed)

    def tune(self, config: TuningConfig) -> TuneResult:
        """A whole run."""
        return tune(self.dataset(config.seed), self.backbone, config, cache_dir=self.cache)

    def search(self, config: TuningConfig, on_step: OnStep | None = None) -> Search:
        """The search of a run alone, not yet begun."""
        return Search(config, *self.objectives(config), on_step)

    def objectives(self, config: TuningConfig) -> tuple[Objective, Objective]:
        """The losses on training and on validation images."""
        dataset = self.dataset(config.seed)
        train, validation, _ = split_validation(dataset, config)
        view_seed = config.seed if config.training_view == "random" else None
        seen = extract_features(train, self.backbone, cache_dir=self.cache, view_seed=view_seed)
        space = PromptSpace(self.backbone, dataset.class_names, config.prompt, config.seed)
        training = Objective(space, seen, config.zo.anchor)
        return training, Objective(space, self.features(validation))

    def features(self, examples: Sequence[Any]) -> Features:
        """Embeddings of centre crops."""
        return extract_features(examples, self.backbone, cache_dir=self.cache)


def make_parser(
    description: str | None, seeds: Sequence[int], passes: int, datasets: str | None = None
) -> argparse.ArgumentParser:
    """Options of every benchmark on photos; `datasets` is how many, as argparse's `nargs`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "a folder of photos, one folder per class"
    if datasets:
        about += f"; a file of features; or `{DIGITS}`, which are written and take {TINY}"
    parser.add_argument("dataset", type=Path, nargs=datasets, help=about)
    parser.add_argument("--backbone", default=TINY, help="tiny, local-dir:PATH or a model's name")
    parser.add_argument("--pretrained", help="an open_clip tag or a checkpoint file")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--passes", type=int, default=passes, help="budget of a run")
    parser.add_argument("--shots", type=int, default=16, help="training images per class")
    parser.add_argument("--cache", type=Path, help="where to keep image features")
    add_output_options(parser)
    return parser


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where measurements go."""
    parser.add_argument("--json", type=Path, help=f"default: {RESULTS}/NAME.json")
    parser.add_argument("--resume", action="store_true", help="skip what the JSON file holds")


@contextmanager
def setting_of(options: argparse.Namespace) -> Iterator[Setting]:
    """The setting that the options describe; without `--cache` features live as long as it."""
    with settings_of(options, [options.dataset]) as (setting,):
        yield setting


@contextmanager
def settings_of(options: argparse.Namespace, datasets: Sequence[Path]) -> Iterator[list[Setting]]:
    """The settings of several datasets, all on the options' backbone but `digits`."""
    with TemporaryDirectory() as temporary:
        settings = []
        for path in datasets:
            digits = path == Path(DIGITS)
            settings.append(
                Setting(
                    folder=digits_in(Path(temporary)) if digits else path.resolve(),
                    backbone_spec=TINY if digits else options.backbone,
                    pretrained=None if digits else options.pretrained,
                    cache=options.cache or Path(temporary) / "cache",
                    shots=options.shots,
                    seeds=tuple(options.seeds),
                    passes=options.passes,
                )
            )
        yield settings


def facts_of(settings: Sequence[Setting]) -> Row:
    """What measurements on several datasets depend on."""
    return {"sets": [setting.facts() for setting in settings]}


def digits_in(folder: Path) -> Path:
    """Write scikit-learn's digits; the folder `digits` in `folder`."""
    write_digits(folder)
    return (folder / "dataset").rename(folder / DIGITS)
