"""What tuning on another server costs: a service with the weights on this machine, and without.

    python -m benchmarks.remote PHOTOS --backbone local-dir:PATH [--passes N] [--turns N]

The backbone is exported for ONNX Runtime. The default configuration is tuned on the folder, and on
a service in a process of its own that has it, taking turns; image features are cached before.
Processor time is of both processes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.support.output import Table
from benchmarks.support.setting import Setting, make_parser, setting_of
from sharpzo_cli.demo.server import running_process
from sharpzo_engine import Encoder, TuneResult, load_backbone, tune
from sharpzo_engine.clip.onnx.export import export_encoder

SEED, PASSES, TURNS = 1, 2_000, 3
LOCAL, REMOTE = "in this process", "on a server"
WARM_UP = 60  # passes


def seconds_of(processes: Sequence[psutil.Process]) -> float:
    """Processor time of these processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def run(
    setting: Setting, encoder: Encoder, processes: Sequence[psutil.Process], passes: int
) -> tuple[float, float, TuneResult]:
    """Wall seconds, processor seconds and the result of one job."""
    values = {"head": "none", "max_forward_passes": passes}
    config, dataset = setting.config(SEED, values), setting.dataset(SEED)
    began, used = time.perf_counter(), seconds_of(processes)
    result = tune(dataset, encoder, config, cache_dir=setting.cache)
    return time.perf_counter() - began, seconds_of(processes) - used, result


def measure(setting: Setting, turns: int) -> Table:
    """One line for each place, with medians."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        export_encoder(setting.backbone, folder / "onnx", "fp32", min_agreement=0)
        spec = f"onnx-dir:{folder / 'onnx'}"
        settings = {"SHARPZO_BACKBONES": f"far={spec}", "SHARPZO_DEFAULT_BACKBONE": "far"}
        with running_process(
            folder / "data", folder / "log", settings, with_worker=False
        ) as server:
            address = f"remote:{server.url}/v1/encoders/far"
            encoders = {LOCAL: load_backbone(spec), REMOTE: load_backbone(address)}
            processes = [psutil.Process(), psutil.Process(server.pid)]
            return _compare(setting, encoders, processes, turns)


def _compare(
    setting: Setting,
    encoders: Mapping[str, Encoder],
    processes: Sequence[psutil.Process],
    turns: int,
) -> Table:
    found: dict[str, list[tuple[float, float, TuneResult]]] = {name: [] for name in encoders}
    for encoder in encoders.values():
        run(setting, encoder, processes, WARM_UP)
    for _ in range(turns):
        for name, encoder in encoders.items():
            found[name].append(run(setting, encoder, processes, setting.passes))
    wall, cpu = (
        {name: statistics.median(each[place] for each in runs) for name, runs in found.items()}
        for place in (0, 1)
    )
    lines = [
        [name, f"{wall[name]:.1f}", f"{wall[name] / wall[LOCAL]:.2f}", f"{cpu[name]:.1f}"]
        for name in encoders
    ]
    here, there = (found[name][0][2].prompt for name in encoders)
    same = np.array_equal(here.context, there.context)
    header = ("model", "seconds", "in this process = 1", "processor seconds")
    note = f"The tuned prompts are {'the same to the bit' if same else 'NOT the same'}."
    return Table(f"Encoders on a server: {setting.title}", header, lines, note)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, (SEED,), PASSES)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args(arguments)
    with setting_of(options) as setting:
        measure(setting, options.turns).print()


if __name__ == "__main__":
    main()
