"""Prompt files that somebody made with care, imported into the real service and asked."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from sharpzo_core.settings import Settings
from sharpzo_engine import load_backbone
from tests.fuzz.readers import pictures, prompt, sealed_anew
from tests.fuzz.sandbox import Tally
from tests.service.conftest import open_client


def import_mutants(folder: Path, backbone: Path, seed: int, count: int) -> Tally:
    """Import odd files, and classify with those that are taken."""
    model = load_backbone(f"local-dir:{backbone}", device="cpu")
    settings = Settings(
        data_dir=folder, backbones=f"small=local-dir:{backbone}", default_backbone="small"
    )
    whole, tally = prompt(model.embed_dim, model.fingerprint), Tally()
    picture = pictures()[0]
    with open_client(settings) as client:
        for number in range(count):
            data = sealed_anew(random.Random(f"imports {seed} {number}"), whole)
            answer = client.post("/v1/prompts", files={"file": ("a", data)}, data={"name": "x"})
            said = [("import", answer)]
            if answer.status_code == 201:
                url = f"/v1/prompts/{answer.json()['id']}"
                said.append(("show", client.get(url)))
                files = {"images": ("a.jpg", picture)}
                said += [
                    (query, client.post(f"{url}/classify{query}", files=files))
                    for query in ("", "?calibrated=true", "?zero_shot=true")
                ]
                said.append(("export", client.get(f"{url}/export?form=npy")))
                said.append(("delete", client.delete(url)))
            else:
                tally.refused += 1
            tally.mutants += 1
            tally.faults += [
                f"mutant {number} of seed {seed}: {what}: {answer.status_code} {answer.text[:300]}"
                for what, answer in said
                if answer.status_code >= 500 or not _is_finite(answer)
            ]
    return tally


def _is_finite(answer: Any) -> bool:
    """Whether an answer holds only numbers that are."""
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return True
    odd: list[str] = []
    json.loads(answer.text, parse_constant=odd.append)
    return not odd
