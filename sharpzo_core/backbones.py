"""Which backbones a request may name: the grammar of SHARPZO_BACKBONES.

Comma-separated items: `name=SPEC`, or a name that is its own spec, or `*`. A SPEC is what
`load_backbone` takes: `tiny`, `MODEL:TAG`, `MODEL:path/to/file.safetensors`, `local-dir:PATH`,
`onnx-dir:PATH`, `remote:URL` or `openai-embeddings:URL#MODEL`.
`*` admits every pretrained open_clip model, requested as `MODEL:TAG`. Only the operator can give
paths and addresses; requests can only give names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from sharpzo_engine.clip.level import Level

#: Admits every pretrained open_clip model by its `MODEL:TAG`.
ANY_PRETRAINED = "*"
TINY = "tiny"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
# A model name may hold one slash, as in ViT-B/16; a tag holds no dot, so it never names a file.
_MODEL_AND_TAG = re.compile(
    r"(?P<model>[A-Za-z][A-Za-z0-9_-]*(/[0-9][A-Za-z0-9-]*)?):(?P<tag>[A-Za-z0-9][A-Za-z0-9_-]*)"
)
ONNX_DIR = "onnx-dir:"
REMOTE, EMBEDDINGS = "remote:", "openai-embeddings:"
_FOLDERS = ("local-dir:", ONNX_DIR)
_ADDRESSES = (REMOTE, EMBEDDINGS)
_LOCATORS = frozenset(
    {"local-dir", "onnx-dir", "hf-hub", "http", "https", "file", "s3", "gs", "hf"}
    | {kind.rstrip(":") for kind in _ADDRESSES}
)
Runtime = Literal["torch", "onnxruntime", "remote"]


@dataclass(frozen=True)
class BackboneSpec:
    """A configured name and what `load_backbone(model, pretrained)` is called with."""

    name: str
    model: str
    pretrained: str | None = None

    @property
    def folder(self) -> Path | None:
        """Folder of an encoder exported for ONNX Runtime; None for all others."""
        return Path(self.model.removeprefix(ONNX_DIR)) if self.model.startswith(ONNX_DIR) else None

    @property
    def runtime(self) -> Runtime:
        """What answers."""
        if self.model.startswith(_ADDRESSES):
            return "remote"
        return "torch" if self.folder is None else "onnxruntime"

    @property
    def level(self) -> Level:
        """What the encoder can answer."""
        if self.model.startswith(EMBEDDINGS):
            return Level.TEXTS
        return Level.TANGENTS if self.runtime == "torch" else Level.CONTEXTS


def parse_backbones(text: str) -> dict[str, BackboneSpec]:
    """Read a SHARPZO_BACKBONES value; the key `*` stands for every pretrained open_clip model.

    Raises:
        ValueError: an item is malformed or a name is listed twice.
    """
    specs: dict[str, BackboneSpec] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        spec = _parse_item(item)
        if spec.name in specs:
            raise ValueError(f"backbone {spec.name!r} is listed twice")
        specs[spec.name] = spec
    if not specs:
        raise ValueError("at least one backbone is needed")
    return specs


def _parse_item(item: str) -> BackboneSpec:
    if item == ANY_PRETRAINED:
        return BackboneSpec(ANY_PRETRAINED, ANY_PRETRAINED)
    name, equals, target = (part.strip() for part in item.partition("="))
    if not _NAME.fullmatch(name) or (not equals and name.split(":")[0] in _LOCATORS):
        raise ValueError(f"{item!r} is not `name` or `name=SPEC` (a path needs a name before it)")
    if equals and not target:
        raise ValueError(f"{item!r} names no model after `=`")
    return _spec(name, target or name)


def _spec(name: str, target: str) -> BackboneSpec:
    if target.startswith(_FOLDERS):
        return BackboneSpec(name, target)
    if target.startswith(_ADDRESSES):
        return BackboneSpec(name, _checked(target))
    model, _, pretrained = target.partition(":")
    return BackboneSpec(name, model, pretrained or None)


def _checked(target: str) -> str:
    kind, _, address = target.partition(":")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{target!r} has no address (give {kind}:https://HOST/PATH)")
    if parts.username or parts.password:
        raise ValueError(f"the address of {kind} holds a password (set SHARPZO_ENCODER_KEY)")
    if target.startswith(EMBEDDINGS) and not parts.fragment:
        raise ValueError(f"{target!r} names no model (give it after #, as in URL#clip)")
    return target


def find_backbone(specs: dict[str, BackboneSpec], name: str) -> BackboneSpec | None:
    """The spec that a request's `name` stands for, or None if it is not offered.

    Whether open_clip knows a `MODEL:TAG` is decided where open_clip is loaded.
    """
    if name != ANY_PRETRAINED and name in specs:
        return specs[name]
    match = _MODEL_AND_TAG.fullmatch(name) if ANY_PRETRAINED in specs else None
    if match is None or match["model"] in _LOCATORS:
        return None
    return BackboneSpec(name, match["model"], match["tag"])


def serving(
    specs: Mapping[str, BackboneSpec], described: Mapping[str, str | None]
) -> list[BackboneSpec]:
    """Candidates for the backbone that a prompt records: those of its name, else those from files.

    Another machine may have the same weights under another name; the caller compares fingerprints.
    """
    name, pretrained = described.get("name") or "", described.get("pretrained")
    configured = [spec for key, spec in specs.items() if key != ANY_PRETRAINED]
    named = [
        spec
        for spec in configured
        if spec.name == name or (_model_name(spec), spec.pretrained) == (name, pretrained)
    ]
    if named:
        return named
    admitted = find_backbone(dict(specs), f"{name}:{pretrained}") if pretrained else None
    if admitted is not None:
        return [admitted]
    return [spec for spec in configured if ":" in spec.model or "/" in (spec.pretrained or "")]


def _model_name(spec: BackboneSpec) -> str:
    return spec.model if ":" in spec.model else spec.model.replace("/", "-")
