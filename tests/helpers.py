"""A data folder with a small dataset and backbone, and worker processes on it."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from sharpzo_core.broker.queue import JobQueue, make_celery
from sharpzo_core.database.engine import make_engine
from sharpzo_core.migrations import migrate
from sharpzo_core.records.datasets import DatasetRecord, image_key, manifest_key
from sharpzo_core.records.jobs import Job, JobStatus
from sharpzo_core.schemas.jobs import JobCreate
from sharpzo_core.settings import Settings
from sharpzo_core.storage.artifact_store import ArtifactStore
from sharpzo_core.stores.dataset_store import DatasetStore
from sharpzo_core.stores.job_leases import JobLeases
from sharpzo_core.stores.job_store import JobStore
from sharpzo_core.stores.prompt_store import PromptStore
from sharpzo_core.stores.worker_store import WorkerStore
from sharpzo_core.submission.tuning import submit_job

CLASSES = ("cat", "dog", "bird")
IMAGES = {"train": 4, "val": 2, "test": 2}  # per class
POLL_SECONDS = 0.02
CONFIG: dict[str, Any] = {
    "shots": 4,
    "total_steps": 40,
    "change_point": 10,
    "prompt": {"intrinsic_dim": 16},
    "cma": {"population_size": 6},
}


T = TypeVar("T")


def eventually(look: Callable[[], T], seconds: float = 20, what: object = "it") -> T:
    """The first true value that `look` gives.

    Raises:
        TimeoutError: there was none in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen in {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return found


class Workplace:
    """The stores of one data folder, and the processes started on it."""

    def __init__(self, settings: Settings) -> None:
        migrate(settings)
        self.settings = settings
        self.engine = make_engine(settings)
        self.jobs = JobStore(self.engine)
        self.datasets = DatasetStore(self.engine)
        self.prompts = PromptStore(self.engine)
        self.workers = WorkerStore(self.engine)
        self.leases = JobLeases.from_settings(self.engine, settings)
        self.artifacts = ArtifactStore.from_url(settings.artifacts)
        self.queue = JobQueue(make_celery(settings))
        self.processes: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.queue.close()
        self.engine.dispose()

    def add_dataset(self) -> DatasetRecord:
        dataset = self.datasets.create("shapes")
        rng = np.random.default_rng(0)
        splits = {
            split: [
                {"image": self._add_image(dataset.id, rng, label), "label": label}
                for label in range(len(CLASSES))
                for _ in range(images)
            ]
            for split, images in IMAGES.items()
        }
        manifest = json.dumps({"class_names": CLASSES, "splits": splits}).encode()
        self.artifacts.put_bytes(manifest_key(dataset.id), manifest)
        counts = {split: dict.fromkeys(CLASSES, images) for split, images in IMAGES.items()}
        sha256 = hashlib.sha256(manifest).hexdigest()
        return self.datasets.mark_ready(dataset.id, classes=CLASSES, counts=counts, sha256=sha256)

    def _add_image(self, dataset_id: str, rng: np.random.Generator, label: int) -> str:
        stream = io.BytesIO()
        pixels = (rng.random((32, 32, 3)) * 80 + label * 80).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        name = f"{hashlib.sha256(stream.getvalue()).hexdigest()}.png"
        self.artifacts.put_bytes(image_key(dataset_id, name), stream.getvalue())
        return name

    def submit(self, *, notify: bool = True, **config: Any) -> Job:
        request = JobCreate(dataset_id=self.add_dataset().id, config=CONFIG | config)
        job = submit_job(
            request,
            settings=self.settings,
            jobs=self.jobs,
            datasets=self.datasets,
            artifacts=self.artifacts,
        )
        if notify and self.queue.notify(job.id):
            self.jobs.mark_notified(job.id)
        return job

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A worker in its own process group."""
        process = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env=os.environ | self.settings.environment(),
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def wait(self, job_id: str, condition: Callable[[Job], bool], seconds: float = 240) -> Job:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.jobs.get(job_id)
            if condition(job):
                return job
            time.sleep(0.05)
        raise TimeoutError(f"{self.jobs.get(job_id)}\n{self.jobs.events(job_id)}")

    def wait_until_ended(self, job_id: str) -> Job:
        return self.wait(job_id, lambda job: job.finished_at is not None)

    def wait_for_checkpoint(self, job_id: str) -> None:
        """Return as soon as the running job has saved itself."""
        self.wait(job_id, lambda job: job.checkpoint is not None)
        status = self.jobs.get(job_id).status
        assert status is JobStatus.RUNNING, "the job was too short for this test"


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer with random weights, in open_clip's folder layout."""
    return write_small_backbone(tmp_path_factory.mktemp("backbone"))


def write_small_backbone(folder: Path) -> Path:
    """Write that CLIP into `folder`; the same weights every time."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    model = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.CLIP(**model).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "open_clip_model.safetensors",
    )
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def make_workplace(data_dir: Path, small_backbone: Path) -> Iterator[Callable[..., Workplace]]:
    places: list[Workplace] = []

    def make(**settings: Any) -> Workplace:
        defaults = {"data_dir": data_dir, "backbones": f"tiny=local-dir:{small_backbone}"}
        places.append(Workplace(Settings.load(**defaults | settings)))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.fixture
def workplace(make_workplace: Callable[..., Workplace]) -> Workplace:
    """The embedded mode: SQLite and messages in files."""
    return make_workplace()
