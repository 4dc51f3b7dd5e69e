"""Base to new: what a prompt that was tuned on half of the classes does for the other half.

    python -m benchmarks.base_to_new PHOTOS --backbone local-dir:PATH [--passes N] [--seeds 1 2 3]

The first half of the classes (rounded up) is tuned on; then the tuned context, with the names of
the rest put behind it, classifies test images of the rest among the rest. No image of them was
seen. A head has no answer for a class without images, so there is none here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.support.output import RESULTS, Row, Table
from benchmarks.support.results import Results
from benchmarks.support.setting import Setting, make_parser, setting_of
from sharpzo_engine import evaluate, tune
from sharpzo_engine.data.dataset import select_classes

SEEDS, PASSES = (1, 2, 3), 10_000


def run(setting: Setting, seed: int) -> list[Row]:
    """Accuracies (fractions) on base and new classes, of the hand-written prompt and the tuned."""
    dataset = setting.dataset(seed)
    new = select_classes(dataset, "new")
    config = setting.config(seed, {"head": "none", "classes": "base"})
    result = tune(dataset, setting.backbone, config, cache_dir=setting.cache)
    prompts = setting.backbone.prompts(config.prompt.context, new.class_names)
    contexts = [prompts.initial_context, result.prompt.context]
    images = setting.features(new.test)
    zero_shot, tuned = (
        evaluate(prompts.encode(context[None])[0], images, new.class_names).accuracy
        for context in contexts
    )
    return [
        {
            "seed": seed,
            "base_zero_shot": result.metrics["zero_shot_accuracy"],
            "base_tuned": result.metrics["prompt_test_accuracy"],
            "new_zero_shot": zero_shot,
            "new_tuned": tuned,
        }
    ]


def tables(rows: Sequence[Row], title: str) -> list[Table]:
    """One line per seed, and their mean."""
    keys = ("base_zero_shot", "base_tuned", "new_zero_shot", "new_tuned")
    lines = [[str(row["seed"]), *[f"{row[key]:.1%}" for key in keys]] for row in rows]
    means = [sum(row[key] for row in rows) / len(rows) for key in keys]
    header = ("seed", "base, zero-shot", "base, tuned", "new, zero-shot", "new, tuned")
    lines.append(["mean", *[f"{mean:.1%}" for mean in means]])
    return [Table(f"Base to new: {title}", header, lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = make_parser(__doc__, SEEDS, PASSES).parse_args(arguments)
    with setting_of(options) as setting:
        path = options.json or RESULTS / "base_to_new.json"
        results = Results.open(path, setting.facts(), resume=options.resume)
        for seed in setting.seeds:
            results.measure([seed], partial(run, setting, seed))
        for table in tables(results.rows, setting.title):
            table.print()


if __name__ == "__main__":
    main()
