"""The hot path against open_clip's own full forward, in one run and interleaved.

    python -m benchmarks.objective [--classes 2 10 100 1000] [--repeats N] [--json FILE] [--short]

A loss is whole: text tower and 16 images per class. The text tower has the size of ViT-B/16's and
ViT-B/32's (512 wide, 12 layers: both have the same) and random weights. Figures are minima over the
repeats, for what else the machine does only ever adds; ratios are plain : ours. With
`--threads 1 --clock cpu` they hardly depend on what else the machine does.

Useful FLOPs are those of the linear layers for the rows that the losses need (no padding, no
attention products); `of matmul` is their rate over torch's own fp32 matmul on all threads, and
`of linear` over the fastest fp32 linear layer found here (oneDNN's, side by side on all threads).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from sharpzo_engine import Backbone, Features, Objective, PromptConfig, PromptSpace
from sharpzo_engine.clip.parallel import map_chunks
from sharpzo_engine.clip.torch.arrays import to_tensor
from sharpzo_engine.clip.torch.linear import Linear
from sharpzo_engine.search.gradients import CentralDifferences

Row = dict[str, Any]
Clock = Callable[[], float]

WORDS = ["red", "old", "small", "house", "park", "river", "crop", "road", "dog", "apple"]
SHOTS = 16
GENERATION = 40
WIDTH, LAYERS = 512, 12
TOWERS = ("ViT-B-16", "ViT-B-32")


def make_backbone(
    width: int = WIDTH, layers: int = LAYERS, device: torch.device | str = "cpu"
) -> Backbone:
    """A CLIP with a text tower of the given size and a token image tower; random weights."""
    vision = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1, "head_width": 64}
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": width,
        "heads": width // 64,
        "layers": layers,
    }
    model = open_clip.CLIP(width, vision, text).to(device)
    preprocess = open_clip.image_transform(32, is_train=False)
    return Backbone(model, preprocess, open_clip.SimpleTokenizer(), name="random", pretrained=None)


def class_names(count: int) -> list[str]:
    """Distinct names of 1 to 4 words."""
    by_length = [itertools.product(WORDS, repeat=length) for length in (1, 2, 3, 4)]
    cycle = itertools.cycle(by_length)
    names: list[str] = []
    while len(names) < count:
        name = next(next(cycle), None)
        names += [" ".join(name)] if name else []
    return names


def make_objective(backbone: Backbone, classes: int) -> Objective:
    """Random unit image features, SHOTS per class."""
    images = np.random.default_rng(0).standard_normal((SHOTS * classes, backbone.embed_dim))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    features = Features(images, np.arange(len(images)) % classes)
    return Objective(PromptSpace(backbone, class_names(classes)), features)


class PlainEncoder:
    """open_clip's own full forward of a search's prompts, one candidate at a time."""

    def __init__(self, space: PromptSpace, words: str = PromptConfig().context) -> None:
        """For a backbone in torch; `words` are the space's own."""
        self.device = space.backbone.device
        tokens = space.backbone.tokenize(words, space.class_names)
        self._encoder = space.backbone.plain_text_encoder(tokens)

    @torch.inference_mode()
    def encode(self, context: NDArray[np.float32]) -> NDArray[np.float32]:
        """`context` [n, M, W] -> class embeddings [n, C, E]."""
        return self.to_tensors(context).cpu().numpy()

    def to_tensors(self, context: NDArray[np.float32]) -> Tensor:
        """The same, where they are computed."""
        return self._encoder.encode(to_tensor(context, self.device))


class PlainObjective:
    """The same loss by open_clip's full forward, one candidate at a time."""

    def __init__(self, objective: Objective) -> None:
        """Share the points' meaning and the images."""
        self._space, self._encoder = objective.space, PlainEncoder(objective.space)
        self._images = to_tensor(objective.features.images, self._encoder.device)
        self._labels = to_tensor(objective.features.labels, self._encoder.device)

    @torch.inference_mode()
    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Losses [n] of points [n, d]."""
        return np.array([self._loss(point) for point in points])

    def _loss(self, point: np.ndarray) -> float:
        embeddings = self._encoder.to_tensors(self._space.context(point[None]))[0]
        logits = self._space.backbone.logit_scale * self._images @ embeddings.T
        return float(functional.cross_entropy(logits, self._labels))


def useful_flops(space: PromptSpace) -> float:
    """FLOPs of the linear layers that one loss needs, in a tower with an MLP of 4W.

    Every row costs q, k, v (3 W^2), output (W^2) and MLP (8 W^2) products; the first layer's
    q, k, v of the suffixes are constants, and the last layer has q, output and MLP for the EOT rows
    alone.
    """
    tower, classes = space.backbone.tower, len(space.class_names)
    tokens = space.backbone.tokenize(PromptConfig().context, space.class_names)
    context = len(tokens.context)
    rows = context + sum(map(len, tokens.suffixes))
    inner = 12 * rows * (len(tower.blocks) - 2)
    first, last = 3 * context + 9 * rows, 2 * rows + 10 * classes
    products = (inner + first + last) * tower.width**2 + classes * tower.width * tower.embed_dim
    return 2.0 * products


def fastest(run: Callable[[], object], repeats: int, clock: Clock) -> float:
    """Seconds of the fastest call."""
    return min(seconds(run, clock) for _ in range(repeats))


def seconds(run: Callable[[], object], clock: Clock) -> float:
    """Seconds of one call."""
    start = clock()
    run()
    return clock() - start


@torch.inference_mode()
def matmul_rate(clock: Clock) -> float:
    """FLOPs per second of torch's own fp32 matmul on all threads: the best of two shapes."""
    rates = []
    for rows, inner, columns in ((2048, 2048, 2048), (4096, 512, 2048)):
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        rates.append(2 * rows * inner * columns / fastest(lambda a=a, b=b: a @ b, 8, clock))
    return max(rates)


def linear_rate(clock: Clock) -> float:
    """FLOPs per second of the encoder's own linear layer, 512 rows side by side on all threads."""
    linear, x = Linear(torch.randn(2048, 512), torch.randn(2048)), torch.randn(512, 512)
    items = range(16 * torch.get_num_threads())

    def apply(_: int) -> None:
        with torch.inference_mode():
            linear.stay(entered)

    entered = linear.enter(x)
    flops = 2 * 512 * 512 * 2048 * len(items)
    return flops / fastest(lambda: list(map_chunks(apply, items)), 6, clock)


def measure_losses(objective: Objective, repeats: int, clock: Clock) -> Row:
    """Losses per second both ways (a generation at a time), and a stage-2 pair; interleaved."""
    classes = len(objective.space.class_names)
    count = max(2, min(GENERATION, 2000 // classes))
    points = 0.3 * np.random.default_rng(0).normal(size=(count, objective.space.dim))
    plain, pair = PlainObjective(objective), points[:2]
    first = {}  # the first point's loss by either path
    times = []
    for _ in range(repeats):
        plain_s = seconds(lambda: first.update(plain=plain(points[:1])[0]), clock)
        pair_s = seconds(lambda: objective(pair), clock)
        ours_s = seconds(lambda: first.update(ours=objective(points)[0]), clock) / count
        times.append((plain_s, pair_s, ours_s))
    plain_s, pair_s, ours_s = (min(column) for column in zip(*times, strict=True))
    rate = useful_flops(objective.space) / ours_s
    return {
        "plain_losses_per_second": 1 / plain_s,
        "ours_losses_per_second": 1 / ours_s,
        "ratio": plain_s / ours_s,
        "pair_ratio": 2 * plain_s / pair_s,
        "useful_gflops": rate / 1e9,
        "of_matmul": rate / matmul_rate(clock),
        "of_linear": rate / linear_rate(clock),
        "difference": abs(first["ours"] - first["plain"]),
    }


def measure_derivatives(objective: Objective, repeats: int, clock: Clock) -> Row:
    """CGE's time over the JVP's on the same coordinates, and what their slopes differ by."""
    classes, dim = len(objective.space.class_names), objective.space.dim
    directions = np.eye(dim)[: max(8, min(dim, 2000 // classes))]
    point = 0.3 * np.random.default_rng(1).normal(size=dim)
    differences = CentralDifferences(1e-3)
    cge, jvp = [], []
    for _ in range(repeats):
        jvp.append(seconds(lambda: objective.directional_derivatives(point, directions), clock))
        cge.append(seconds(lambda: differences(objective, point, directions), clock))
    exact = objective.directional_derivatives(point, directions)[1]
    rough = differences(objective, point, directions)[1]
    error = float(np.linalg.norm(exact - rough) / np.linalg.norm(exact))
    return {"cge_over_jvp": min(cge) / min(jvp), "slope_difference": error}


def measure_ranking(objective: Objective, repeats: int, clock: Clock) -> Row:
    """bfloat16's speed-up and its rank correlation with float32 on one generation."""
    classes = len(objective.space.class_names)
    count = max(8, min(GENERATION, 2000 // classes))
    points = 0.3 * np.random.default_rng(2).normal(size=(count, objective.space.dim))
    reduced = objective.in_precision("bfloat16")
    exact, rough = objective(points), reduced(points)
    full_s = fastest(lambda: objective(points), repeats, clock)
    reduced_s = fastest(lambda: reduced(points), repeats, clock)
    ranks = [losses.argsort().argsort() for losses in (exact, rough)]
    return {
        "bf16_speedup": full_s / reduced_s,
        "bf16_rank_correlation": float(np.corrcoef(*ranks)[0, 1]),
    }


def peak_memory(classes: int, path: str) -> float:
    """Peak resident MiB of a fresh process that computes losses by `path` (plain or ours)."""
    command = [sys.executable, "-m", "benchmarks.objective", "--peak", path]
    command += ["--classes", str(classes)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout)


def compute_for_peak(classes: int, path: str) -> float:
    """Compute a generation (ours) or a loss (plain, whose candidates go one at a time); Linux."""
    objective = make_objective(make_backbone(), classes)
    points = 0.3 * np.random.default_rng(0).normal(size=(GENERATION, objective.space.dim))
    if path == "plain":
        PlainObjective(objective)(points[:1])
    else:
        objective(points[: max(2, 2000 // classes)])
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run(
    short: bool = False,
    classes: list[int] | None = None,
    repeats: int = 5,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Measure every number of classes. `short` takes some three minutes on two cores."""
    backbone, rows = make_backbone(), []
    for count in classes or ([10, 100, 1000] if short else [2, 10, 100, 1000]):
        objective = make_objective(backbone, count)
        large = count > 200
        times = 1 if large and short else 2 if large or short else repeats
        row: Row = {"classes": count, "threads": torch.get_num_threads()}
        row |= measure_losses(objective, times, clock)
        if not (large and short):
            row |= measure_derivatives(objective, times, clock)
            row |= measure_ranking(objective, times, clock)
            row["plain_peak_mib"] = peak_memory(count, "plain")
            row["ours_peak_mib"] = peak_memory(count, "ours")
        rows.append({key: float(value) for key, value in row.items()})
    return rows


COLUMNS = {
    "classes": ("classes", "{:.0f}"),
    "plain_losses_per_second": ("plain, losses/s", "{:.3g}"),
    "ours_losses_per_second": ("ours, losses/s", "{:.3g}"),
    "ratio": ("ratio", "{:.1f}"),
    "pair_ratio": ("ratio, pair", "{:.1f}"),
    "of_matmul": ("of matmul", "{:.2f}"),
    "of_linear": ("of linear", "{:.2f}"),
    "cge_over_jvp": ("CGE : JVP", "{:.2f}"),
    "bf16_speedup": ("bf16 : fp32", "{:.2f}"),
    "bf16_rank_correlation": ("rank corr.", "{:.3f}"),
    "difference": ("loss diff.", "{:.0e}"),
    "plain_peak_mib": ("plain, MiB", "{:.0f}"),
    "ours_peak_mib": ("ours, MiB", "{:.0f}"),
}


def print_table(rows: list[Row]) -> None:
    """The figures, one line per number of classes."""
    towers = " and ".join(TOWERS)
    title = (
        f"text tower of {towers}, fp32, {rows[0]['threads']:.0f} threads; ratios are plain : ours"
    )
    table = Table(title=title)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            *(form.format(row[key]) if key in row else "" for key, (_, form) in COLUMNS.items())
        )
    Console(width=140).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+")
    parser.add_argument("--towers", nargs="+", choices=TOWERS, help="one figure: they are equal")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak:
        sys.stdout.write(f"{compute_for_peak(options.classes[0], options.peak)}\n")
        return
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rows = run(options.short, options.classes, options.repeats, clock)
    print_table(rows)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
