"""What a service needs: memory of its processes, disk of its objects, rows of a job.

    python -m benchmarks.sizing [--photos FOLDER] [--steps N] [--images N] [--backbones vit tiny]

For each backbone (a ViT-B/32 of full size with random weights, and `tiny`) a service of its own
with one worker reads a dataset, tunes a prompt on it with the default configuration, and then
classifies 64 images at once. A process's peak is what Linux calls VmHWM. Without photos it is ten
classes of pictures with as much detail.
"""

from __future__ import annotations

import argparse
import sqlite3
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.serving import TINY, VIT, backbone_folder, write_pictures
from benchmarks.support.output import RESULTS, Row, Table, machine_facts, write_json
from sharpzo_cli.demo.server import Running, running_process

KIB, MIB = 2**10, 2**20
CLASSES = 10
SPLITS = {"train": 16, "val": 4, "test": 8}  # images per class
TABLES = ("job_events", "job_steps")
CONFIG: Mapping[str, int] = {}  # of the tuning, beside its steps


@dataclass(frozen=True)
class Load:
    """What the service is given to do."""

    archive: Path
    steps: int
    images: Sequence[Path]
    archived: int  #: images in the archive


def write_archive(path: Path, folder: Path) -> int:
    """Write a dataset's folder as a zip; how many images it has."""
    images = 0
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(folder))
            images += file.suffix != ".json"
    return images


def write_dataset(folder: Path, pictures: Sequence[Path]) -> None:
    """Ten classes; every image is different, for equal ones are stored once."""
    number = 0
    for split, count in SPLITS.items():
        for label in range(CLASSES):
            target = folder / split / f"class {label}"
            target.mkdir(parents=True)
            for _ in range(count):
                data = pictures[number % len(pictures)].read_bytes()
                (target / f"{number}.jpg").write_bytes(data + number.to_bytes(4, "big"))
                number += 1


def measure(name: str, load: Load) -> Row:
    """One backbone's figures."""
    with backbone_folder(name) as model, TemporaryDirectory() as folder:
        data, log = Path(folder) / "data", Path(folder) / "log"
        settings = {
            "SHARPZO_BACKBONES": f"bench=local-dir:{model}",
            "SHARPZO_DEFAULT_BACKBONE": "bench",
        }
        with running_process(data, log, settings) as running:
            row: Row = {"backbone": name, "weights": size_of(model), "idle": peak(running.pid)}
            job_id, prompt_id, dataset_id = work(running, load)
            row |= {"api": peak(running.pid), **worker_peaks(running.pid)}
        artifacts = data / "artifacts"
        row |= {
            "archive": size_of(load.archive),
            "images": load.archived,
            "dataset": size_of(artifacts / "tenants")
            + size_of(artifacts / "datasets" / dataset_id),
            "job": size_of(artifacts / "jobs" / job_id),
            "prompt": sum(size_of(path) for path in (artifacts / "prompts").glob(f"{prompt_id}*")),
            "cache": size_of(data / "cache"),
            "database": size_of(data / "sharpzo.db"),
        }
        with closing(sqlite3.connect(data / "sharpzo.db")) as database:
            for table in TABLES:
                query = f"SELECT count(*) FROM {table} WHERE job_id = ?"
                row[table] = database.execute(query, (job_id,)).fetchone()[0]
        return row


def work(running: Running, load: Load) -> tuple[str, str, str]:
    """Upload, tune, classify; ids of the job, its prompt and the dataset."""
    client = running.client
    dataset = client.datasets.upload(load.archive, name="sizing")
    config = {**CONFIG, "total_steps": load.steps}
    job = client.jobs.create(dataset_id=dataset.id, name="sizing", config=config)
    ended = client.jobs.wait(job.id, timeout=3600)
    if ended.prompt_id is None:
        raise SystemExit(f"the job is {ended.status}: {ended.error}")
    client.prompts.classify(ended.prompt_id, list(load.images))
    return job.id, ended.prompt_id, dataset.id


def worker_peaks(pid: int) -> Mapping[str, int]:
    """Of the worker's parent process, and of the child that runs its job."""
    (parent,) = children(pid)
    return {"parent": peak(parent), "child": max(map(peak, children(parent)))}


def children(pid: int) -> Iterator[int]:
    """Processes that this one has started and that run still."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def peak(pid: int) -> int:
    """Most memory that the process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def tables(rows: Sequence[Row]) -> list[Table]:
    """Memory and disk."""

    def mib(row: Row, *names: str) -> list[str]:
        return [f"{row[name] / MIB:,.1f}" for name in names]

    memory = ("weights", "idle", "api", "parent", "child")
    disk = ("archive", "dataset", "job", "cache", "database")
    return [
        Table(
            "Memory, peak, MiB",
            ("", "weights", "API, ready", "API, 64 images", "worker", "its child, tuning"),
            [[row["backbone"], *mib(row, *memory)] for row in rows],
        ),
        Table(
            "Disk, MiB",
            ("", "images", "archive", "dataset", "job", "cache", "database", "prompt, KiB"),
            [
                [
                    row["backbone"],
                    str(row["images"]),
                    *mib(row, *disk),
                    f"{row['prompt'] / KIB:.0f}",
                ]
                for row in rows
            ],
        ),
        Table(
            "Rows of one job",
            ("", "steps", *TABLES),
            [[row["backbone"], str(row["steps"]), *(str(row[t]) for t in TABLES)] for row in rows],
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="a dataset's folder")
    parser.add_argument("--steps", type=int, default=200, help="of the search")
    parser.add_argument("--images", type=int, default=64, help="classified at once")
    parser.add_argument("--backbones", nargs="+", choices=["vit", "tiny"], default=["vit", "tiny"])
    parser.add_argument("--json", type=Path, default=RESULTS / "sizing.json")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        pictures, dataset = Path(folder) / "pictures", Path(folder) / "dataset"
        pictures.mkdir()
        write_pictures(pictures)
        files = sorted(pictures.iterdir())
        if options.photos is None:
            write_dataset(dataset, files)
        images = [files[number % len(files)] for number in range(options.images)]
        archive = Path(folder) / "dataset.zip"
        archived = write_archive(archive, options.photos or dataset)
        load = Load(archive, options.steps, images, archived)
        names = {"vit": VIT, "tiny": TINY}
        rows = [measure(names[name], load) | {"steps": load.steps} for name in options.backbones]
    for table in tables(rows):
        table.print()
    write_json(options.json, {"machine": machine_facts(), "rows": rows})


if __name__ == "__main__":
    main()
