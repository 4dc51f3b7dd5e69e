"""`load_backbone`: from a name to an encoder. Torch is loaded only for models that run in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sharpzo_engine.errors import BackboneError, MissingPackage

if TYPE_CHECKING:
    from sharpzo_engine.clip.encoder import Encoder

ONNX_DIR = "onnx-dir:"
REMOTE = ("remote:", "openai-embeddings:")


def load_backbone(
    name: str,
    pretrained: str | None = None,
    device: str = "auto",
    *,
    alias: str | None = None,
    patience: float = 60.0,
) -> Encoder:
    """Load a CLIP model with its weights.

    Args:
        name: `tiny` (bundled), `local-dir:PATH` (open_clip's folder layout), `onnx-dir:PATH` (a
            folder of `sharpzo encoders export`), `remote:URL` (an encoder of another service),
            `openai-embeddings:URL#MODEL`, or an open_clip model name such as `ViT-B-16` or
            `ViT-B/16`.
        pretrained: for a model name, a tag of open_clip (`openai`) or a checkpoint file.
        device: `auto` takes CUDA, then MPS, then the processor.
        alias: name of a model in artifacts, in place of its path.
        patience: seconds for which a request to a remote encoder is sent again.

    Raises:
        BackboneError: the model or its weights are unknown or unavailable (`EncoderAway`: a remote
            one does not answer). A model is never returned with random weights.
        MissingPackage: what runs the model is not installed.
    """
    if not name.startswith((ONNX_DIR, *REMOTE)):
        with _needs(name, "engine", ", or use onnx-dir:PATH"):
            from sharpzo_engine.clip.torch.backbone import load_open_clip
        return load_open_clip(name, pretrained, device, alias=alias)
    if pretrained:
        raise BackboneError(f"{name} includes its weights (omit pretrained)")
    if name.startswith(REMOTE):
        with _needs("an encoder on another server", "client"):
            from sharpzo_engine.clip.remote.load import load_remote
        return load_remote(name, alias, patience)
    with _needs(ONNX_DIR, "edge"):
        from sharpzo_engine.clip.onnx.encoder import OnnxEncoder
    return OnnxEncoder(Path(name.removeprefix(ONNX_DIR)), name=alias)


@contextmanager
def _needs(name: str, extra: str, otherwise: str = "") -> Iterator[None]:
    """Say which extra brings the packages that are imported within."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{name} needs the package {error.name} (pip install 'sharpzo[{extra}]'{otherwise})"
        ) from error
