"""`sharpzo export`: convert a prompt file to a file that other programs can read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sharpzo_cli.errors import UsageProblem
from sharpzo_cli.output import print_json, print_table, writable

if TYPE_CHECKING:
    from pathlib import Path


def export_prompt(
    artifact: Path, form: str, out: Path | None, *, calibrated: bool, as_json: bool
) -> None:
    """Write the export beside the prompt file, or to `out`, and print its contents.

    Raises:
        UsageProblem: the file does not exist, or the export would replace it.
        ArtifactError: the file is not a prompt.
        NotCalibrated: the prompt has no temperature to calibrate with.
        MissingPackage: the package onnx is needed and not installed.
    """
    if not artifact.is_file():
        raise UsageProblem(f"{artifact} does not exist", "give a file written by `sharpzo tune`")
    from sharpzo_engine import TunedPrompt
    from sharpzo_engine.files import write_atomically
    from sharpzo_engine.prompts.export import ExportFormat, Origin, export

    content = artifact.read_bytes()
    prompt = TunedPrompt.load(content)
    target = writable(out or artifact.with_suffix(f".{form}"))
    if target.resolve() == artifact.resolve():
        raise UsageProblem(f"{target} is the prompt file itself", "choose another --out")
    origin = Origin(artifact.stem, None, hashlib.sha256(content).hexdigest())
    write_atomically(target, export(prompt, ExportFormat(form), origin, calibrated=calibrated))
    if as_json:
        answer = {
            "file": str(target),
            "format": form,
            "calibrated": calibrated,
            "temperature": prompt.temperature,
            "classes": list(prompt.class_names),
            "backbone": prompt.metadata["backbone"],
            "prompt_sha256": origin.sha256,
        }
        print_json(answer)
        return
    rows = [(str(index), name) for index, name in enumerate(prompt.class_names)]
    print_table(f"{target}: {len(rows)} classes", ("row", "class"), rows)
