"""The main job on real input: handwritten digits, the bundled backbone, the SDK, real processes."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharpzo_cli.demo.digits import write_digits
from sharpzo_cli.demo.server import clean_environment, running_service
from sharpzo_engine import PromptClassifier, TunedPrompt, load_backbone

TEST_IMAGES = 15  # per digit; the whole test split only takes longer to upload
CONFIG = {"shots": 16, "max_forward_passes": 4000}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    for digit in (folder / "dataset" / "test").iterdir():
        for image in sorted(digit.iterdir())[TEST_IMAGES:]:
            image.unlink()
    shutil.rmtree(folder / "dataset" / "val")
    return folder / "dataset"


@contextmanager
def running_worker(data_dir: Path, settings: dict[str, str]) -> Iterator[None]:
    """`sharpzo worker`, ended by SIGTERM."""
    environment = {**clean_environment(), **settings, "SHARPZO_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "sharpzo_cli", "worker"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as worker:
        try:
            yield
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)


@contextmanager
def servers(request: pytest.FixtureRequest, kind: str, data_dir: Path) -> Iterator[dict[str, str]]:
    """The settings of one kind of installation, with the worker that it needs."""
    if kind == "embedded":
        yield {}
        return
    settings = {
        "SHARPZO_BROKER_URL": request.getfixturevalue("redis_url"),
        "SHARPZO_DATABASE_URL": request.getfixturevalue("postgres_url"),
    }
    with running_worker(data_dir, settings):
        yield settings


@pytest.mark.parametrize(
    "kind",
    ["embedded", pytest.param("servers", marks=pytest.mark.needs("redis", "postgres"))],
)
def test_digits_are_tuned_and_served(
    kind: str, digits: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = tmp_path / "data"
    with (
        servers(request, kind, data) as settings,
        running_service(data, tmp_path / "log", settings) as client,
    ):
        dataset = client.datasets.upload(digits, name="digits")
        job = client.jobs.create(dataset_id=dataset.id, backbone="tiny", config=CONFIG)
        job = client.jobs.wait(job.id, timeout=150)
        assert job.status == "succeeded"
        assert job.metrics.test_accuracy >= job.metrics.zero_shot_accuracy + 0.15
        images = sorted((digits / "test").glob("*/*.png"))[:: TEST_IMAGES // 3]
        answer = client.prompts.classify(job.prompt_id, images, top_k=1)
        served = [result.best.label for result in answer.results]
        path = client.prompts.download(job.prompt_id, tmp_path / "prompt.safetensors")
    prompt = PromptClassifier(TunedPrompt.load(path), load_backbone("tiny", device="cpu"))
    assert served == [best.label for (best,) in prompt.predict(images, top_k=1)]
