"""What `sharpzo encoders` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sharpzo_cli.errors import RunFailed, UsageProblem
from sharpzo_cli.output import percent, print_facts, print_json, print_list
from sharpzo_engine.data.file_names import is_image
from sharpzo_engine.data.folders import list_files
from sharpzo_engine.data.images import decode_image
from sharpzo_engine.errors import BackboneError, ImageError, MissingPackage

if TYPE_CHECKING:
    from sharpzo_engine.clip.agreement import Agreement, Photos
    from sharpzo_engine.clip.encoder import Encoder
    from sharpzo_engine.clip.onnx.manifest import Manifest, Precision

#: Photos that are used, evenly spaced: enough for the second digit of an agreement.
MOST_PHOTOS = 512
LARGEST_SIDE = 512  # pixels that are kept of a photo; all of them are in memory at once
SPEED_SECONDS = 2.0
SPEED_BATCH = 16


@dataclass(frozen=True)
class ExportRequest:
    backbone: str
    pretrained: str | None
    out: Path
    precision: Precision
    calibrate: Path | None
    min_agreement: float


def export_folder(request: ExportRequest, *, as_json: bool) -> None:
    from sharpzo_engine import Backbone, load_backbone
    from sharpzo_engine.clip.onnx.export import Disagreement, export_encoder
    from sharpzo_engine.clip.onnx.manifest import FILES, MANIFEST, Manifest

    if request.out.exists() and {path.name for path in request.out.iterdir()} != {MANIFEST, *FILES}:
        raise UsageProblem(f"{request.out} exists and is no encoder", "name another --out")
    photos = load_photos(request.calibrate)
    backbone = load_backbone(request.backbone, request.pretrained, "cpu")
    if not isinstance(backbone, Backbone):
        raise UsageProblem(f"{request.backbone} is exported already", "name the original")
    if not as_json:
        typer.echo(f"exporting {backbone.name} in {request.precision} ...", err=True)
    try:
        agreement = export_encoder(
            backbone, request.out, request.precision, photos, request.min_agreement
        )
    except Disagreement as error:
        raise RunFailed(
            str(error), "give more varied photos, use --precision fp16, or lower --min-agreement"
        ) from error
    _show(request.out, Manifest.read(request.out), agreement, {}, as_json=as_json)


def check_folder(folder: Path, photos_in: Path | None, *, as_json: bool) -> None:
    from sharpzo_engine import load_backbone
    from sharpzo_engine.clip.agreement import Answers
    from sharpzo_engine.clip.onnx.encoder import OnnxEncoder
    from sharpzo_engine.clip.onnx.manifest import Manifest

    manifest = Manifest.read(folder)
    encoder = OnnxEncoder(folder)
    photos = load_photos(photos_in)
    agreement = None
    try:
        original = load_backbone(manifest.name, manifest.pretrained, "cpu")
    except (BackboneError, MissingPackage) as error:
        typer.echo(f"not compared: the original cannot be loaded here ({error})", err=True)
    else:
        if original.fingerprint != manifest.fingerprint:
            raise RunFailed(
                f"{folder} was exported from other weights than {manifest.name} has now",
                "export it again",
            )
        agreement = Answers.of(encoder, photos).agreement(Answers.of(original, photos))
    _show(folder, manifest, agreement, speed(encoder), as_json=as_json)


def list_folders(root: Path, *, as_json: bool) -> None:
    from sharpzo_engine.clip.onnx.manifest import MANIFEST, Manifest

    if not root.is_dir():
        raise UsageProblem(f"{root} is not a folder", "give a folder")
    paths = {path for depth in ("", "*/", "*/*/") for path in root.glob(depth + MANIFEST)}
    found = [(path.parent, Manifest.read(path.parent)) for path in sorted(paths)]
    if as_json:
        print_json({"encoders": [_facts(folder, manifest) for folder, manifest in found]})
        return
    rows = [
        (m.precision, m.level, _size(folder), percent(m.agreement.get("top1")), m.name, str(folder))
        for folder, m in found
    ]
    print_list(("PRECISION", "LEVEL", "SIZE", "AGREEMENT", "MODEL", "FOLDER"), rows)


def load_photos(folder: Path | None) -> Photos | None:
    """The photos below a folder; those in class folders bring the names of the classes.

    Raises:
        UsageProblem: there are fewer than two images that can be read.
    """
    if folder is None:
        return None
    from sharpzo_engine.clip.agreement import COMMON_THINGS, Photos

    if not folder.is_dir():
        raise UsageProblem(f"{folder} is not a folder", "give a folder of photos")
    paths = sorted(folder / name for name in list_files(folder) if is_image(name))
    step = max(1, -(-len(paths) // MOST_PHOTOS))
    images = [image for path in paths[::step] if (image := _decode(path)) is not None]
    if len(images) < 2:
        raise UsageProblem(f"{folder} has {len(images)} usable photos", "give at least two")
    names = sorted({path.parent.name for path in paths})
    return Photos(images, names if len(names) > 1 else COMMON_THINGS)


def speed(encoder: Encoder) -> dict[str, float]:
    """Images and class prompts per second, in batches, on this machine."""
    import numpy as np

    size = encoder.image_size
    pixels = np.zeros((SPEED_BATCH, 3, size, size), np.float32)
    prompts = encoder.prompts("a photo of a", [f"thing {n}" for n in range(SPEED_BATCH)])
    context = prompts.initial_context[None]
    return {
        "images_per_second": SPEED_BATCH * _rate(lambda: encoder.encode_images(pixels)),
        "class_prompts_per_second": SPEED_BATCH * _rate(lambda: prompts.encode(context)),
    }


def _rate(call: Callable[[], object]) -> float:
    call()
    calls, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < SPEED_SECONDS:
        call()
        calls += 1
    return calls / seconds


def _decode(path: Path) -> Any:  # noqa: ANN401 - Pillow loads when an image is decoded
    try:
        image = decode_image(path.read_bytes())
    except (ImageError, OSError):
        return None
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return image


def _show(
    folder: Path,
    manifest: Manifest,
    agreement: Agreement | None,
    rates: dict[str, float],
    *,
    as_json: bool,
) -> None:
    found = None if agreement is None else agreement.to_dict()
    if as_json:
        print_json({**_facts(folder, manifest), "agreement": found, **rates})
        return
    facts = [
        ("folder", str(folder)),
        ("model", manifest.name),
        ("precision", manifest.precision),
        ("size", _size(folder)),
    ]
    if agreement is not None:
        top1 = agreement.top1
        same = "not measured (give photos)" if top1 is None else percent(top1)
        facts += [("same label", same), ("smallest cosine, texts", f"{agreement.text_cosine:.5f}")]
        if agreement.image_cosine is not None:
            facts.append(("smallest cosine, images", f"{agreement.image_cosine:.5f}"))
    facts += [(name.replace("_", " "), f"{rate:,.0f}") for name, rate in rates.items()]
    facts.append(("use it with", f"--backbone onnx-dir:{folder}"))
    print_facts(facts)


def _facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "name": manifest.name,
        "pretrained": manifest.pretrained,
        "fingerprint": manifest.fingerprint,
        "precision": manifest.precision,
        "level": manifest.level,
        "bytes": _bytes(folder),
        "agreement": manifest.agreement or None,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _size(folder: Path) -> str:
    return f"{_bytes(folder) / 1e6:,.1f} MB"
