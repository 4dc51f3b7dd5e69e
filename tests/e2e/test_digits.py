"""The main job on Redis and PostgreSQL: handwritten digits, the bundled backbone, the SDK.

The same on the embedded broker and SQLite is the demo, which has a test of its own.
"""

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


@pytest.mark.needs("redis", "postgres")
def test_digits_are_tuned_and_served(
    digits: Path, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    data = tmp_path / "data"
    settings = {"SHARPZO_BROKER_URL": redis_url, "SHARPZO_DATABASE_URL": postgres_url}
    with (
        running_worker(data, settings),
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
