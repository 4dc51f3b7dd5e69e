"""What reading an uploaded dataset costs: seconds, and memory of the service and its children.

    python -m benchmarks.ingestion [--megabytes 1000] [--json FILE]

Starts `sharpzo serve` on a folder of its own, uploads archives of JPEG photos and waits until each
dataset is ready. The yardstick is the least that any reader does: the standard library's own reader
over all members of the same archive, and the SHA-256 of each. The service does that, too, and
decodes every image, stores it and syncs it to the disk.

Photos are drawn: noise of all scales, as coarse as in nature, and grain, at JPEG's quality 90.
There are a few of each size; a comment makes the files differ, so that each is stored.

Memory is the sum of the resident sets of the API process and its children, libraries that they
share counted in each, above what it was before the upload. Linux only: figures come from /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.support.output import (
    RESULTS,
    Comparison,
    Row,
    Table,
    comparison_table,
    machine_facts,
    write_json,
)
from sharpzo_cli.demo.server import Running, running_process
from sharpzo_client import Client

MEGABYTE = 1_000_000
MEGABYTES = 1000
SHORT_MEGABYTES = 60
CLASSES = 10
PICTURES = 8  # that differ in more than their comment
MEMORY_TARGET = 300.0  # MiB above idle
TIME_TARGET = 3.0  # times the yardstick
SAMPLE_SECONDS = 0.05
WAIT_SECONDS = 1800.0
_POLL_SECONDS = 0.05
_QUALITY = 90
_USER = 11  # the field of /proc/PID/stat behind the command's closing bracket
GRAIN = 7.0  # of 255; about a quarter of a byte per pixel, as photos have


@dataclass(frozen=True)
class Case:
    """One archive."""

    name: str
    width: int  #: pixels of a photo
    height: int
    kind: str  #: `stored`, `deflated` or `tar.gz`


CASES = (
    Case("500 x 375, zip, stored", 500, 375, "stored"),
    Case("500 x 375, zip, deflated", 500, 375, "deflated"),
    Case("500 x 375, tar.gz", 500, 375, "tar.gz"),
    Case("4000 x 3000, zip, stored", 4000, 3000, "stored"),
)


def draw(width: int, height: int, seed: int) -> bytes:
    """A JPEG whose spectrum is about that of a photo."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    scale = 1
    while scale < min(width, height):
        small = rng.normal(0, 1, (-(-height // scale), -(-width // scale), 3))
        pixels = (small * 32 + 128).clip(0, 255).astype(np.uint8)
        layer = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, np.float32) - 128) * scale**0.8
        scale *= 2
    total *= 50 / total.std()
    total += rng.normal(0, GRAIN, (height, width, 1))
    stream = io.BytesIO()
    image = Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def photos(case: Case, megabytes: int) -> Iterator[tuple[str, bytes]]:
    """Names and files, as many as make up the size."""
    pictures = [draw(case.width, case.height, seed) for seed in range(PICTURES)]
    size, index = 0, 0
    while size < megabytes * MEGABYTE or index < 2 * CLASSES:
        picture = pictures[index % PICTURES]
        comment = f"{index:08}".encode()
        data = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + picture[2:]
        yield f"train/class {index % CLASSES}/{index:08}.jpg", data
        size += len(data)
        index += 1


def write_archive(path: Path, case: Case, megabytes: int) -> int:
    """Pack the photos of a case; returns how many."""
    count = 0
    if case.kind == "tar.gz":
        with tarfile.open(path, "w:gz", compresslevel=6) as tar:
            for name, data in photos(case, megabytes):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                count += 1
        return count
    method = zipfile.ZIP_DEFLATED if case.kind == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in photos(case, megabytes):
            archive.writestr(name, data)
            count += 1
    return count


def read_plainly(path: Path, kind: str) -> tuple[float, float]:
    """Seconds of the yardstick, and those of a processor."""
    began, cpu = time.perf_counter(), time.process_time()
    if kind == "tar.gz":
        with tarfile.open(path, "r|gz") as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                hashlib.sha256(file.read()).hexdigest()
    else:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                hashlib.sha256(archive.read(member)).hexdigest()
    return time.perf_counter() - began, time.process_time() - cpu


def family(pid: int) -> list[int]:
    """A process and its children, whichever thread started them."""
    try:
        threads = Path(f"/proc/{pid}/task").iterdir()
        texts = [(thread / "children").read_text() for thread in threads]
    except OSError:
        return [pid]
    children = {int(child) for text in texts for child in text.split()}
    # One that has just been made and runs nothing of its own yet still shows the parent's memory.
    return [pid, *(child for child in children if _command(child) != _command(pid))]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def resident_mib(pid: int) -> float:
    """Resident MiB of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return sum(sizes) / 1024


def computed_seconds(pid: int) -> float:
    """Seconds of a processor that a process and its ended children have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[_USER : _USER + 4]))  # own and children's, in user and system mode
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """The memory of a process and its children over a while."""

    pid: int
    alone: float = 0.0  #: highest of the process itself, MiB
    together: float = 0.0  #: highest sum, MiB
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until it is enough."""
        while not self._ended.is_set():
            sizes = [resident_mib(pid) for pid in family(self.pid)]
            self.alone = max(self.alone, sizes[0])
            self.together = max(self.together, sum(sizes))
            self._ended.wait(SAMPLE_SECONDS)

    def end(self) -> None:
        """It is enough."""
        self._ended.set()


@contextmanager
def watching(pid: int) -> Iterator[Watch]:
    """Watch a process during the block."""
    watch = Watch(pid)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def wait_until_idle(client: Client) -> None:
    """The service loads its backbone when it starts, which has nothing to do with datasets."""
    while not any(backbone.loaded for backbone in client.backbones.list()):
        time.sleep(_POLL_SECONDS)


def ingest(running: Running, client: Client, archive: Path) -> Row:
    """Upload an archive and wait for its dataset."""
    wait_until_idle(client)
    idle = resident_mib(running.pid)
    with watching(running.pid) as watch:
        began = time.perf_counter()
        dataset = client.datasets.upload(archive, wait=False)
        uploaded, cpu = time.perf_counter(), computed_seconds(running.pid)
        client.datasets.wait(dataset.id, timeout=WAIT_SECONDS, poll=_POLL_SECONDS)
        ready = time.perf_counter()
        cpu = computed_seconds(running.pid) - cpu
    client.datasets.delete(dataset.id)
    return {
        "upload_seconds": uploaded - began,
        "ingest_seconds": ready - uploaded,
        "ingest_cpu_seconds": cpu,
        "idle_mib": idle,
        "api_mib": watch.alone - idle,
        "all_mib": watch.together - idle,
    }


def run(megabytes: int = MEGABYTES) -> list[Row]:
    """Measure every case, each on a service of its own."""
    rows = []
    for case in CASES:
        with TemporaryDirectory(prefix="sharpzo-ingestion-") as folder:
            path = Path(folder) / ("a.tar.gz" if case.kind == "tar.gz" else "a.zip")
            images = write_archive(path, case, megabytes)
            data, log = Path(folder) / "data", Path(folder) / "log"
            with (
                running_process(data, log, {}, with_worker=False) as running,
                Client(running.url) as client,
            ):
                before = read_plainly(path, case.kind)
                measured = ingest(running, client, path)
                after = read_plainly(path, case.kind)
            plain, plain_cpu = (mean(pair) for pair in zip(before, after, strict=True))
            size = path.stat().st_size / MEGABYTE
            rows.append({"case": case.name, "images": images, "megabytes": size} | measured)
            rows[-1] |= {
                "plain_seconds": plain,
                "plain_cpu_seconds": plain_cpu,
                "ratio": measured["ingest_seconds"] / plain,
            }
    return rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """Seconds and memory, and what was aimed at."""
    header = (
        *("JPEG files", "images", "MB", "s", "plain, s", "ratio", "CPU, s", "plain, CPU, s"),
        *("API, MiB", "all, MiB"),
    )
    lines = [
        (
            row["case"],
            f"{row['images']:,}",
            f"{row['megabytes']:,.0f}",
            f"{row['ingest_seconds']:.1f}",
            f"{row['plain_seconds']:.1f}",
            f"{row['ratio']:.1f}",
            f"{row['ingest_cpu_seconds']:.1f}",
            f"{row['plain_cpu_seconds']:.1f}",
            f"{row['api_mib']:.0f}",
            f"{row['all_mib']:.0f}",
        )
        for row in rows
    ]
    note = "Memory above idle: of the API process, and with its children. CPU: of all of them."
    compared = [
        Comparison(name.format(row["case"]), row[key], target, at_most=True, form=form)
        for row in rows
        for name, key, target, form in (
            ("{}: ingestion : plain reading", "ratio", TIME_TARGET, "{:.1f}"),
            ("{}: memory above idle", "all_mib", MEMORY_TARGET, "{:.0f} MiB"),
        )
    ]
    return [
        Table("Ingestion", header, lines, note),
        comparison_table("Ingestion: aims", compared),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--json", type=Path, default=RESULTS / "ingestion.json")
    options = parser.parse_args(arguments)
    rows = run(options.megabytes)
    for table in tables(rows):
        table.print()
    write_json(options.json, {"machine": machine_facts(), "rows": rows})


if __name__ == "__main__":
    main()
