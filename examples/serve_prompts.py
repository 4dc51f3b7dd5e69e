"""Serve two versions of a prompt side by side, move an alias, and roll back.

Start the service with `sharpzo serve`, then: python serve_prompts.py OLD NEW IMAGE...
OLD and NEW are prompt files of the same classes.
"""

import os
import sys

from sharpzo_client import Client, ConflictError

old_file, new_file, *images = sys.argv[1:]
with Client(os.environ.get("SHARPZO_URL", "http://localhost:8000")) as client:
    old = client.prompts.upload(old_file, name="shop")
    new = client.prompts.upload(new_file, name="shop")
    client.aliases.set("shop@live", old.id, comment="first release")
    client.prompts.pin("shop@live")

    # Compare both versions with the hand-written prompt; the images are encoded once.
    for answer in client.classify(images, [old.id, new.id], top_k=1, zero_shot=True):
        for image, result in zip(images, answer.results, strict=True):
            print(
                f"version {answer.version}: {image}", result.best, result.zero_shot or result.error
            )

    try:
        gate = {"metric": "test_accuracy", "min_improvement": 0.0}
        client.aliases.set("shop@live", new.id, expected_prompt_id=old.id, gate=gate)
    except ConflictError as refusal:
        print("not promoted:", refusal)
    answer = client.prompts.classify("shop@live", images, calibrated=True, deadline=10.0)
    print("answered by version", answer.version)

    if answer.version == new.version:
        client.aliases.rollback("shop@live", comment="needs more testing")
    for change in client.aliases.history("shop@live"):
        print(change.seq, change.action, change.version, change.comment or "")
    print("in memory:", client.prompts.get("shop@live").residency)
