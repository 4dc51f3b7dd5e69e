"""`encoder.json`: what an exported encoder is, and the hashes of its files. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.errors import BackboneError

KIND = "sharpzo-encoder/1"
MANIFEST = "encoder.json"
IMAGE, TEXT = "image.onnx", "text.onnx"
TOKENS, TOKENIZER = "token_embeddings.safetensors", "tokenizer.json"
FILES = (IMAGE, TEXT, TOKENS, TOKENIZER)
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Manifest:
    """The content of `encoder.json`."""

    name: str
    pretrained: str | None
    fingerprint: str  #: of the original's weights
    precision: Precision
    level: Level
    logit_scale: float
    embed_dim: int  #: E
    text_width: int  #: W
    positions: int  #: of the text tower
    preprocessing: Preprocessing
    files: dict[str, str]  #: file name -> SHA-256
    #: measured through the written files against the original, see `export.Agreement`
    agreement: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `encoder.json`.

        Raises:
            BackboneError: it is missing or not of this kind.
        """
        try:
            raw = json.loads((folder / MANIFEST).read_text())
        except OSError as error:
            message = f"no {MANIFEST} in {folder} (use a folder of `sharpzo encoders export`)"
            raise BackboneError(message) from error
        except ValueError as error:
            raise BackboneError(f"{folder / MANIFEST} is not JSON (export it again)") from error
        if not isinstance(raw, dict) or raw.pop("kind", None) != KIND:
            raise BackboneError(f"{folder / MANIFEST} is not a {KIND} file (export it again)")
        try:
            shape = raw.pop("preprocessing")
            shape |= {name: tuple(shape[name]) for name in ("mean", "std")}
            level = Level(raw.pop("level"))
            known = {key: raw[key] for key in raw if key in {f.name for f in fields(cls)}}
            return cls(preprocessing=Preprocessing(**shape), level=level, **known)
        except (KeyError, TypeError, ValueError) as error:
            raise BackboneError(f"{folder / MANIFEST} is incomplete (export it again)") from error

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"kind": KIND, **asdict(self)}, indent=2) + "\n"


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an encoder's folder but its manifest."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Return if the files are those that were exported.

    Raises:
        BackboneError: one is missing or differs; names it.
    """
    try:
        found = hash_files(folder)
    except OSError as error:
        missing = Path(str(error.filename)).name
        raise BackboneError(f"{folder} has no {missing} (export the encoder again)") from error
    changed = [name for name in FILES if found[name] != manifest.files.get(name)]
    if changed:
        raise BackboneError(
            f"{folder / changed[0]} is damaged: it does not match {MANIFEST} (export it again)"
        )
