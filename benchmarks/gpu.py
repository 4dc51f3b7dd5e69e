"""What a GPU changes: exactness against the processor, speed against open_clip, memory.

    python -m benchmarks.gpu [--device cuda] [--seconds 200] [--classes 10 100 1000] [--json FILE]

Needs torch and open_clip, no weights and no network: both towers have the size of ViT-B/16's and
random weights. Parts begin in order until `--seconds` are used up, so that the whole ends within
four minutes. Speeds are medians of interleaved rounds; the device is waited for before each clock
reading. Without such a device there is nothing to measure, which is said, with exit code 0.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch

from benchmarks.objective import PlainObjective, make_backbone, make_objective
from benchmarks.support.output import RESULTS, Row, Table, machine_facts, write_json
from sharpzo_engine import Backbone, GaussNewton, Objective, ZoConfig

SECONDS = 200.0
CLASSES = (10, 100, 1000)
ROUNDS = 5
POINTS = 64  #: losses at a time
STEPS = 6  #: of stage 2, per round
IMAGES = 256
PRECISIONS = ("float32", "bfloat16", "float16")


class Stopwatch:
    """Times calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def wait(self) -> None:
        """Return when the device has done all that was asked."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started

    def medians(self, calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """Median seconds of each call, taking turns after one round that does not count."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds + 1):
            for name, call in calls.items():
                took = self.seconds(call)
                if number:
                    times[name].append(took)
        return {name: statistics.median(found) for name, found in times.items()}


def objective_on(device: torch.device, classes: int) -> Objective:
    """The same objective on any device."""
    torch.manual_seed(0)
    return make_objective(make_backbone(device=device), classes)


def exactness(device: torch.device) -> Row:
    """Largest differences to the processor's numbers; whether a restored stage ends the same."""
    here, there = objective_on(torch.device("cpu"), 10), objective_on(device, 10)
    rng = np.random.default_rng(0)
    points = 0.3 * rng.normal(size=(8, here.space.dim))
    directions = rng.normal(size=(8, here.space.dim))
    tangents = [one.tangents(points[0], directions) for one in (here, there)]
    stage = GaussNewton(ZoConfig(), points[0], np.random.default_rng(1), 100)
    for _ in range(3):
        stage.step(there)
    other = GaussNewton(ZoConfig(), points[0], np.random.default_rng(1), 100)
    other.restore(copy.deepcopy(stage.state()))
    for one in (stage, other):
        for _ in range(3):
            one.step(there)
    return {
        "loss": float(np.abs(here(points) - there(points)).max()),
        "embedding": float(np.abs(here.outputs(points) - there.outputs(points)).max()),
        "tangent": float(np.abs(tangents[0] - tangents[1]).max() / np.abs(tangents[0]).max()),
        "resumed_identical": bool(np.array_equal(stage.point, other.point)),
    }


def text_speed(device: torch.device, classes: int) -> Row:
    """Losses and stage-2 steps per second, open_clip's own losses, and peak memory."""
    watch, objective = Stopwatch(device), objective_on(device, classes)
    plain = PlainObjective(objective)
    points = 0.3 * np.random.default_rng(0).normal(size=(POINTS, objective.space.dim))
    stage = GaussNewton(ZoConfig(), points[0], np.random.default_rng(1), 10**6)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = watch.medians(
        {
            "plain": lambda: plain(points[:1]),
            "ours": lambda: objective(points),
            "steps": lambda: [stage.step(objective) for _ in range(STEPS)],
        },
        ROUNDS,
    )
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {
        "classes": classes,
        "plain_losses_per_second": 1 / found["plain"],
        "losses_per_second": POINTS / found["ours"],
        "ratio": found["plain"] * POINTS / found["ours"],
        "steps_per_second": STEPS / found["steps"],
        "peak_mib": peak,
    }


def image_speed(device: torch.device) -> Row:
    """Images per second of ViT-B/16's image tower in each precision."""
    watch = Stopwatch(device)
    encoders: dict[str, Backbone] = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-16")
        tokenizer = open_clip.get_tokenizer("ViT-B-16")
        backbone = Backbone(model.to(device), preprocess, tokenizer, name="random", pretrained=None)
        backbone.encode_images_in(precision)  # type: ignore[arg-type]
        encoders[precision] = backbone
    count = IMAGES if device.type == "cuda" else 8
    pixels = np.random.default_rng(0).random((count, 3, 224, 224), np.float32)
    answers = {name: one.encode_images(pixels[:8]) for name, one in encoders.items()}
    took = watch.medians(
        {name: lambda one=one: one.encode_images(pixels) for name, one in encoders.items()}, ROUNDS
    )
    cosines = {
        f"{name}_cosine": float((answers["float32"] * answers[name]).sum(-1).min())
        for name in PRECISIONS[1:]
    }
    return {f"{name}_images_per_second": count / took[name] for name in PRECISIONS} | cosines


def tables(rows: dict[str, list[Row]], device: str) -> list[Table]:
    """What was measured, as tables."""
    found = []
    for name, measured in rows.items():
        if measured:
            header = tuple(key.replace("_", " ") for key in measured[0])
            lines = [[_figure(value) for value in row.values()] for row in measured]
            found.append(Table(f"{name} on {device}", header, lines))
    return found


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if abs(value) < 0.01 else f"{value:,.4g}"
    return "" if value is None else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no part begins after them")
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # builds without CUDA assert
        print(f"nothing to measure: no device {device} ({str(error).splitlines()[0]})")
        return
    began = time.monotonic()
    rows: dict[str, list[Row]] = {"Exactness": [], "Text side": [], "Image side": []}
    parts: list[tuple[str, Callable[[], Row]]] = [("Exactness", lambda: exactness(device))]
    parts += [("Text side", lambda n=n: text_speed(device, n)) for n in options.classes]
    parts.append(("Image side", lambda: image_speed(device)))
    for name, measure in parts:
        if time.monotonic() - began < options.seconds:
            rows[name].append(measure())
        else:
            print(f"left out for want of time: {name}", file=sys.stderr)
    for table in tables(rows, str(device)):
        table.print()
    write_json(options.json, {"machine": machine_facts(), "device": str(device), **rows})


if __name__ == "__main__":
    main()
