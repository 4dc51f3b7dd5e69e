"""Label a folder of loose images with a tuned prompt, and evaluate the prompt on another.

Start the service with `sharpzo serve`, then: python batch_inference.py PROMPT IMAGES [PHOTOS]
PROMPT is a name, `name:version` or an id; PHOTOS has a folder per class for the evaluation.
"""

import os
import sys

from sharpzo_client import Client

prompt, images, *photos = sys.argv[1:]
with Client(os.environ.get("SHARPZO_URL", "http://localhost:8000")) as client:
    loose = client.datasets.upload(images, labelled=False)
    job = client.prompts.classify_dataset(prompt, loose.id, top_k=1)
    job = client.jobs.wait(job.id, progress=True)
    for record in client.jobs.results(job.id):
        print(record.file, record.best or record.error)
    print(client.jobs.download_results(job.id, "labels.csv", format="csv"))

    for folder in photos:
        labelled = client.datasets.upload(folder)
        job = client.jobs.wait(client.prompts.evaluate(prompt, labelled.id).id, progress=True)
        print(f"accuracy: {job.metrics.zero_shot_accuracy} -> {job.metrics.accuracy}")
        print(f"calibration error: {job.metrics.ece}")
        print(client.jobs.download_report(job.id, "evaluation.html"))
