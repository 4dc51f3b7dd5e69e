"""Tune a prompt on a folder of photos through the service, then label other photos.

Start the service with `sharpzo serve`, then: python tune_photos.py PHOTOS IMAGE...
"""

import os
import sys

from sharpzo_client import Client

folder, *images = sys.argv[1:]
with Client(os.environ.get("SHARPZO_URL", "http://localhost:8000")) as client:
    dataset = client.datasets.upload(folder)
    job = client.jobs.create(dataset.id, preset="fast", config={"shots": 4})
    job = client.jobs.wait(job.id, progress=True)
    print(f"accuracy: {job.metrics.zero_shot_accuracy} -> {job.metrics.test_accuracy}")
    answer = client.prompts.classify(str(job.prompt_id), images, top_k=1)
    for image, result in zip(images, answer.results, strict=True):
        print(image, result.best or result.error)
    print(client.prompts.download(str(job.prompt_id), "prompt.safetensors"))
