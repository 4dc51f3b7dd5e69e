"""Serving against the bare encoder, on the same machine in the same minutes.

    python -m benchmarks.serving [--full] [--backbones vit tiny] [--json FILE]
        [--against REVISION] [--photos FOLDER --photo-backbone SPEC]

A service of its own, a process that puts load on it (`benchmarks.support.load`) and one that only
decodes and encodes (`benchmarks.support.plain_encoder`, with its best batch size) take turns; a
ratio is the median of the ratios of all rounds. `vit` is a ViT-B/32 of full size with random
weights, for speed does not depend on their values; pictures are JPEG files of 256 x 256 pixels.
`--against` also runs the service of another revision, in turns with this one. Labels of both
precisions are compared on digits with `tiny`, and on the photos if they are given.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.support.load import Task
from benchmarks.support.output import (
    RESULTS,
    Comparison,
    Row,
    Table,
    comparison_table,
    machine_facts,
    write_json,
)
from sharpzo_cli.demo.server import running_service
from sharpzo_client import Client

PICTURES = 64
SIDE = 256  # pixels
CLASSES = 10
PROMPTS = 1000
CONCURRENCY = 32
BATCHES = (1, 4, 8, 16, 32)  # that the plain process tries
CONCURRENCIES = (1, 4, 16, 64)
OPEN_SHARES = (0.5, 0.8)  # of the closed loop's rate
BROKEN = 0.05
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
TURNS = 4  # of the latency in the time of one measurement
TOLERANCE = 1e-4  # of a probability; batches of other sizes round otherwise
VIT, TINY = "vit", "tiny"


@dataclass(frozen=True)
class Budget:
    """How much is measured."""

    rounds: int
    seconds: dict[str, float]  #: backbone -> of one measurement
    cold: int  #: prompts that are asked for the first time
    mixed: dict[str, int]  #: backbone -> requests whose answers are checked
    prompts: int = PROMPTS


SHORT = Budget(3, {VIT: 10.0, TINY: 3.0}, 15, {VIT: 0, TINY: 2000})
FULL = Budget(7, {VIT: 20.0, TINY: 6.0}, 50, {VIT: 2000, TINY: 2000})


class Process:
    """One of our modules, asked line by line."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> str:
        """Send a line, await one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("a process of the benchmark has ended")
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Service(NamedTuple):
    """A running service and its load."""

    client: Client
    load: Process

    def put(self, task: Task) -> dict[str, Any]:
        """Put load on it."""
        outcome: dict[str, Any] = json.loads(self.load.ask(json.dumps(vars(task))))
        return outcome


@dataclass(frozen=True)
class Prompts:
    """Random class matrices, as artifacts and as what they should answer."""

    rows: NDArray[np.float32]  #: [prompts, classes, E]
    scale: float
    describe: dict[str, str | None]
    width: int

    @property
    def refs(self) -> list[str]:
        """Their names."""
        return [f"bench-{index}" for index in range(len(self.rows))]

    def artifact(self, index: int) -> bytes:
        """The file of one of them."""
        from sharpzo_engine import TunedPrompt

        names = tuple(f"bench-{index} class {i}" for i in range(CLASSES))
        metadata = {"backbone": self.describe, "metrics": {}}
        context = np.zeros((4, self.width), np.float32)
        return TunedPrompt(names, self.rows[index], context, self.scale, metadata).to_bytes()

    def probabilities(self, index: int, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """What one of them says of an image [E]."""
        logits = self.scale * (self.rows[index].astype(np.float64) @ embedding)
        exponents = np.exp(logits - logits.max())
        return exponents / exponents.sum()


def write_pictures(folder: Path) -> None:
    """Pictures with coarse and fine detail, as photos have."""
    rng = np.random.default_rng(0)
    for index in range(PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        grain = rng.integers(-20, 21, (SIDE, SIDE, 3))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int64)
        picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{index:03}.jpg", quality=90)


def write_vit(folder: Path) -> None:
    """A ViT-B/32 of random weights as a `local-dir:`."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    described = {
        "model_cfg": open_clip.get_model_config("ViT-B-32"),
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


@contextmanager
def backbone_folder(name: str) -> Iterator[Path]:
    """Where a backbone's files are."""
    if name == TINY:
        from sharpzo_engine import tiny

        yield tiny.PATH
        return
    with TemporaryDirectory() as folder:
        write_vit(Path(folder))
        yield Path(folder)


@contextmanager
def serving(model: Path, pictures: Path, **settings: str) -> Iterator[Service]:
    """A service that has this backbone, and its load process."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        chosen = {"BACKBONES": f"bench=local-dir:{model}", "DEFAULT_BACKBONE": "bench", **settings}
        environment = {f"SHARPZO_{name}": value for name, value in chosen.items()}
        data, log = Path(folder) / "data", Path(folder) / "log"
        client = stack.enter_context(running_service(data, log, environment))
        host, _, port = client.base_url.rpartition("/")[2].partition(":")
        load = Process("benchmarks.support.load", host, port, str(pictures))
        stack.callback(load.close)
        yield Service(client, load)


def prepare(model: Path, pictures: Path, count: int) -> tuple[Prompts, NDArray[np.float32]]:
    """Prompts for a backbone, and the pictures' embeddings [N, E], one by one."""
    from sharpzo_engine import load_backbone
    from sharpzo_engine.data.images import decode_image

    backbone = load_backbone(f"local-dir:{model}", device="cpu", alias="bench")
    files = sorted(pictures.glob("*.jpg"))
    pixels = [backbone.preprocess(decode_image(file.read_bytes())) for file in files]
    embeddings = np.concatenate([backbone.encode_images(image[None]) for image in pixels])
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((count, CLASSES, backbone.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    scale = 30.0  # answers are clear, and no probability is all but one
    return Prompts(rows, scale, backbone.describe(), backbone.text_width), embeddings


@contextmanager
def files_of(revision: str) -> Iterator[Path]:
    """A folder with the files of another revision."""
    command = ["git", "archive", revision]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(folder, filter="data")
        yield Path(folder)


def measure(name: str, budget: Budget, against: str | None = None) -> list[Row]:
    """All figures of one backbone."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        pictures = Path(folder)
        write_pictures(pictures)
        model = stack.enter_context(backbone_folder(name))
        prompts, embeddings = prepare(model, pictures, budget.prompts)
        refs = prompts.refs
        plain = Process("benchmarks.support.plain_encoder", f"local-dir:{model}", str(pictures))
        stack.callback(plain.close)
        service = stack.enter_context(serving(model, pictures))
        for index, ref in enumerate(refs):
            service.client.prompts.upload(prompts.artifact(index), name=ref)
        seconds = budget.seconds[name]
        rounded = stack.enter_context(serving(model, pictures, INFERENCE_PRECISION="bfloat16"))
        rounded.client.prompts.upload(prompts.artifact(0), name=refs[0])
        extract = feature_extraction(model, pictures)
        measured = {
            "cold": lambda: measure_cold(service, refs[: budget.cold + 1]),
            "throughput": lambda: measure_throughput(
                plain, service, rounded, extract, refs, budget.rounds, seconds
            ),
            "latency": lambda: measure_latency(plain, service, refs[:1], budget.rounds, seconds),
            "load": lambda: measure_load(service, refs, seconds),
            "mixed": lambda: measure_mixed(service, prompts, embeddings, budget.mixed[name]),
        }
        rows: list[Row] = [
            {"backbone": name, "figure": figure, **found}
            for figure, run in measured.items()
            for found in run()
        ]
        with serving(model, pictures, INFERENCE_BATCH="1") as single:
            single.client.prompts.upload(prompts.artifact(0), name=refs[0])
            found = compare_services(service, single, refs[:1], budget.rounds, seconds)
        rows.append({"backbone": name, "figure": "batching", **found})
        if against is not None:
            with files_of(against) as tree:
                with chdir(tree):  # `-m` takes modules from here
                    other = stack.enter_context(serving(model, pictures))
                other.client.prompts.upload(prompts.artifact(0), name=refs[0])
                found = compare_services(service, other, refs[:1], budget.rounds, seconds)
            rows.append({"backbone": name, "figure": "against", "revision": against, **found})
        return rows


def feature_extraction(model: Path, pictures: Path) -> Callable[[], float]:
    """A function that embeds all pictures as a tuning job does, and gives images per second."""
    from sharpzo_engine import extract_features, load_backbone
    from sharpzo_engine.data.dataset import Example

    backbone = load_backbone(f"local-dir:{model}", device="cpu")
    examples = [Example(file, 0) for file in sorted(pictures.glob("*.jpg"))]

    def extract() -> float:
        started = time.perf_counter()
        extract_features(examples, backbone)
        return len(examples) / (time.perf_counter() - started)

    extract()
    return extract


def measure_cold(service: Service, refs: list[str]) -> Iterator[Row]:
    """The first question to a prompt against the second; the first prompt only warms up."""
    service.put(Task(refs[:1], requests=5))
    cold, warm = [], []
    for ref in refs[1:]:
        cold.append(service.put(Task([ref], requests=1))["p50"])
        warm.append(service.put(Task([ref], requests=1))["p50"])
    yield {"cold_ms": 1e3 * median(cold), "warm_ms": 1e3 * median(warm)}


def plain_rate(plain: Process, batch: int, seconds: float) -> tuple[float, float]:
    """Images per second and seconds of one batch of the plain process."""
    rate, took = plain.ask(f"{batch} {seconds}").split()
    return float(rate), float(took)


def measure_throughput(
    plain: Process,
    service: Service,
    rounded: Service,
    extract: Callable[[], float],
    refs: list[str],
    rounds: int,
    seconds: float,
) -> Iterator[Row]:
    """Many clients: one prompt, a thousand, bfloat16; and features of files, all in turns."""
    best = max(BATCHES, key=lambda batch: plain_rate(plain, batch, seconds / 3)[0])
    make_resident(service, refs)
    make_resident(rounded, refs[:1])
    for index in range(rounds):
        found: dict[str, Any] = {}
        turns: list[tuple[str, Callable[[], Any]]] = [
            ("plain", lambda: plain_rate(plain, best, seconds)[0]),
            ("one", lambda: closed_loop(service, refs[:1], seconds)),
            ("many", lambda: closed_loop(service, refs, seconds)),
            ("bfloat16", lambda: closed_loop(rounded, refs[:1], seconds)),
            ("features", extract),
        ]
        for what, turn in turns if index % 2 else reversed(turns):
            found[what] = turn()
        yield {
            "best_batch": best,
            "plain": found["plain"],
            "one": found["one"]["rate"],
            "many": found["many"]["rate"],
            "bfloat16": found["bfloat16"]["rate"],
            "features": found["features"],
            "livez_p99_ms": 1e3 * found["one"]["livez_p99"],
        }


def closed_loop(service: Service, refs: list[str], seconds: float) -> dict[str, Any]:
    """Many clients, each of which asks again when it is answered."""
    return service.put(Task(refs, CONCURRENCY, seconds=seconds, probe=True))


def make_resident(service: Service, refs: Sequence[str]) -> None:
    """Ask each prompt once, many with one image."""
    picture = Image.new("RGB", (SIDE, SIDE))
    for start in range(0, len(refs), 32):
        service.client.classify([picture], refs[start : start + 32])


def measure_latency(
    plain: Process, service: Service, refs: list[str], rounds: int, seconds: float
) -> Iterator[Row]:
    """One client against a plain call with one image, in short turns: paces drift."""
    for _ in range(TURNS * rounds):
        _, took = plain_rate(plain, 1, seconds / TURNS)
        served = service.put(Task(refs, seconds=seconds / TURNS))
        yield {"plain_ms": 1e3 * took, "served_ms": 1e3 * served["p50"]}


def measure_load(service: Service, refs: list[str], seconds: float) -> Iterator[Row]:
    """Closed loops of several widths, and open ones at a share of the capacity."""
    capacity = 0.0
    for clients in (*CONCURRENCIES[:-1], CONCURRENCY, CONCURRENCIES[-1]):
        found = service.put(Task(refs, concurrency=clients, seconds=seconds, probe=True))
        capacity = max(capacity, found["rate"])
        yield load_row(f"{clients} clients", found)
    for share in OPEN_SHARES:
        rate = share * capacity
        found = service.put(Task(refs, rate=rate, seconds=seconds, probe=True))
        yield load_row(f"open, {share:.0%} of capacity", found)


def load_row(name: str, found: dict[str, Any]) -> Row:
    """What a client sees."""
    return {
        "load": name,
        "rate": found["rate"],
        "p50_ms": 1e3 * found["p50"],
        "p99_ms": 1e3 * found["p99"],
        "livez_p99_ms": 1e3 * found["livez_p99"],
        "statuses": found["statuses"],
    }


def measure_mixed(
    service: Service, prompts: Prompts, embeddings: NDArray[np.float32], requests: int
) -> Iterator[Row]:
    """Prompts and broken images at random; every answer is compared with what it should be."""
    if not requests:
        return
    task = Task(prompts.refs, CONCURRENCY, requests=requests, broken=BROKEN, answers=True, seed=7)
    found = service.put(task)
    wrong = [answer for answer in found["answers"] if not is_right(answer, prompts, embeddings)]
    failed = sum(count for status, count in found["statuses"].items() if status >= "500")
    yield {"requests": len(found["answers"]), "wrong": len(wrong), "server_errors": failed}


def is_right(answer: Row, prompts: Prompts, embeddings: NDArray[np.float32]) -> bool:
    """Whether an answer is of the prompt that was asked, of this image, and true."""
    body, index = answer["body"], prompts.refs.index(answer["ref"])
    if answer["status"] != 200 or body["name"] != answer["ref"]:
        return False
    (result,) = body["results"]
    if answer["image"] < 0:
        return "error" in result and "predictions" not in result
    if "predictions" not in result:
        return False
    expected = prompts.probabilities(index, embeddings[answer["image"]])
    return all(
        prediction["label"] == f"{answer['ref']} class {prediction['index']}"
        and abs(prediction["score"] - expected[prediction["index"]]) < TOLERANCE
        for prediction in result["predictions"]
    )


def compare_services(
    service: Service, other: Service, refs: list[str], rounds: int, seconds: float
) -> Row:
    """Images per second of both, in turns, and the median of their ratios."""
    for turn in (service, other):
        turn.put(Task(refs, requests=5))
    own: list[float] = []
    its: list[float] = []
    for index in range(rounds):
        turns = [(service, own), (other, its)]
        for turn, rates in turns if index % 2 else reversed(turns):
            rates.append(closed_loop(turn, refs, seconds)["rate"])
    ratio = median(one / two for one, two in zip(own, its, strict=True))
    return {"ratio": ratio, "rate": median(own), "other_rate": median(its)}


def measure_agreement(spec: str, folder: Path) -> Row:
    """The share of images with the same zero-shot label in bfloat16, and the smallest cosine."""
    from sharpzo_engine import Backbone, load_backbone, load_dataset
    from sharpzo_engine.clip.features import extract_features
    from sharpzo_engine.prompts.classifier import zero_shot_weights

    dataset = load_dataset(folder)
    examples = [*dataset.train, *(dataset.val or ()), *dataset.test]
    backbone = load_backbone(spec, device="cpu")
    assert isinstance(backbone, Backbone)
    classes = zero_shot_weights(backbone, "a photo of a", dataset.class_names)
    found = []
    for precision in PRECISIONS:
        backbone.encode_images_in(precision)
        images = extract_features(examples, backbone).images
        found.append((images, (images @ classes.T).argmax(-1)))
    (exact, label), (rounded, its) = found
    return {
        "figure": "agreement",
        "backbone": spec,
        "dataset": folder.name,
        "images": len(examples),
        "share": float((label == its).mean()),
        "cosine": float((exact * rounded).sum(-1).min()),
    }


def agreements(photos: Path | None, photo_backbone: str) -> list[Row]:
    """Of `tiny` on digits, and of another backbone on photos."""
    from sharpzo_cli.demo.digits import write_digits

    with TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        rows = [measure_agreement(TINY, Path(folder) / "digits" / "dataset")]
    if photos is not None:
        rows.append(measure_agreement(photo_backbone, photos))
    return rows


def agreement_table(rows: Sequence[Row]) -> Table:
    """Labels in bfloat16 against float32."""
    found = [
        Comparison(
            f"{row['dataset']} with {Path(row['backbone']).name}, {row['images']} images",
            row["share"],
            0.995,
            form="{:.2%}",
        )
        for row in rows
        if row["figure"] == "agreement"
    ]
    return comparison_table("Equal zero-shot labels in bfloat16", found)


def tables(rows: Sequence[Row]) -> list[Table]:
    """The figures beside their targets, and what clients see under several loads."""
    names = list(dict.fromkeys(row["backbone"] for row in rows if row["figure"] == "load"))
    return [
        *([agreement_table(rows)] if any(row["figure"] == "agreement" for row in rows) else []),
        *(
            table
            for name in names
            for table in (
                comparison_table(f"Serving {TITLES[name]}", compare(name, rows)),
                load_table(name, rows),
            )
        ),
    ]


TITLES = {VIT: "ViT-B/32", TINY: "`tiny`"}


def compare(name: str, rows: Sequence[Row]) -> list[Comparison]:
    """All figures of one backbone; only those of ViT-B/32, and of batching with tiny, are aimed."""
    by_figure: dict[str, list[Row]] = {}
    for row in rows:
        if row["backbone"] == name:
            by_figure.setdefault(row["figure"], []).append(row)
    vit = name == VIT
    return [
        *_rates(by_figure["throughput"], aimed=vit),
        *_latencies(by_figure, aimed=vit),
        Comparison(
            f"batches : one image at a time, {CONCURRENCY} clients",
            by_figure["batching"][0]["ratio"],
            None if vit else 1.3,
            form="{:.2f}",
        ),
        *(
            Comparison(
                f"images per second : the same at {row['revision']} ({row['other_rate']:.0f})",
                row["ratio"],
                None if vit else 350 / 225,
                form="{:.2f}",
            )
            for row in by_figure.get("against", [])
        ),
        *(found for row in by_figure.get("mixed", []) for found in _faults(row)),
    ]


def _rates(rounds: Sequence[Row], *, aimed: bool) -> list[Comparison]:
    """Images per second; medians of the rounds' ratios."""
    batch = rounds[0]["best_batch"]
    compared = (
        (f"images per second, {CONCURRENCY} clients : plain process, batches of {batch}",
         "one", "plain", 2.5),
        (f"the same in bfloat16 : plain process in float32, batches of {batch}",
         "bfloat16", "plain", 4),
        (f"features of files : plain process, batches of {batch}", "features", "plain", 2.5),
        (f"{PROMPTS} prompts at random : one prompt", "many", "one", 0.97),
    )  # fmt: skip
    return [
        Comparison(
            what,
            median(row[top] / row[bottom] for row in rounds),
            target if aimed else None,
            form="{:.2f}",
        )
        for what, top, bottom, target in compared
    ]


def _latencies(by_figure: Mapping[str, Sequence[Row]], *, aimed: bool) -> list[Comparison]:
    """Milliseconds, at most."""
    (cold,) = by_figure["cold"]
    livez = median(row["livez_p99_ms"] for row in by_figure["throughput"])
    more = median(row["served_ms"] - row["plain_ms"] for row in by_figure["latency"])
    compared = (
        ("one client: more than the plain call, median", more, 8, "{:.1f} ms"),
        (
            "first question to a prompt: more than the second, median",
            cold["cold_ms"] - cold["warm_ms"],
            30,
            "{:.1f} ms",
        ),
        (f"`GET /livez` under {CONCURRENCY} clients, p99", livez, 50, "{:.0f} ms"),
    )
    return [
        Comparison(what, value, target if aimed else None, at_most=True, form=form)
        for what, value, target, form in compared
    ]


def _faults(row: Row) -> list[Comparison]:
    """Of a mix of requests; there may be none."""
    what = f"of {row['requests']} mixed requests, 5 % broken images"
    return [
        Comparison(f"wrong answers {what}", row["wrong"], 0, at_most=True, form="{:.0f}"),
        Comparison(f"server errors {what}", row["server_errors"], 0, at_most=True, form="{:.0f}"),
    ]


def load_table(name: str, rows: Sequence[Row]) -> Table:
    """Rates and latencies."""
    header = ("", "images/s", "p50 ms", "p99 ms", "/livez p99 ms")
    keys = ("rate", "p50_ms", "p99_ms", "livez_p99_ms")
    lines = [
        [row["load"], *(f"{row[key]:.1f}" if math.isfinite(row[key]) else "" for key in keys)]
        for row in rows
        if row["backbone"] == name and row["figure"] == "load"
    ]
    note = f"One image per request, {PROMPTS} prompts at random; the load shares the machine."
    return Table(f"Load on {TITLES[name]}", header, lines, note)


def run(
    budget: Budget, names: Sequence[str] = (VIT, TINY), against: str | None = None
) -> list[Row]:
    """Measure with every backbone that the budget has time for."""
    wanted = [name for name in names if name in budget.seconds]
    return [row for name in wanted for row in measure(name, budget, against)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="more rounds, and longer ones")
    parser.add_argument("--backbones", nargs="+", choices=(VIT, TINY), default=[VIT, TINY])
    parser.add_argument("--json", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--against", metavar="REVISION", help="also measure this git revision")
    parser.add_argument("--photos", type=Path, help="a dataset folder, to compare labels on")
    parser.add_argument("--photo-backbone", default=TINY, metavar="SPEC")
    options = parser.parse_args(arguments)
    labels = agreements(options.photos, options.photo_backbone)
    rows = run(FULL if options.full else SHORT, options.backbones, options.against) + labels
    for table in tables(rows):
        table.print()
    write_json(options.json, {"machine": machine_facts(), "rows": rows})


if __name__ == "__main__":
    main()
