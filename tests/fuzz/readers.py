"""What reads bytes that strangers made, with examples to damage and the errors it may raise."""

from __future__ import annotations

import functools
import io
import random
import tarfile
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from service.http.strict_json import loads
from service.http.tensors import read_tensors
from service.inference.encoder_host import check_contexts, read_suffixes
from sharpzo_core.errors import CoreError
from sharpzo_core.storage.archives import sniff, walk
from sharpzo_engine.checksummed import seal, unseal
from sharpzo_engine.data.images import decode_image
from sharpzo_engine.data.layout_detection import read_layout
from sharpzo_engine.errors import EngineError
from sharpzo_engine.prompts.artifact import KIND as PROMPT
from sharpzo_engine.prompts.artifact import TunedPrompt
from sharpzo_engine.search.checkpoint import CURRENT, CheckpointFolder, Snapshot
from tests.fuzz.mutations import mutate, mutate_json

TYPED = (CoreError, EngineError)
_IDENTITY = {"config": {"seed": 1}, "backbone": "x", "images": "y"}


@dataclass(frozen=True)
class Reader:
    """One way in."""

    name: str
    make: Callable[[random.Random], bytes]  #: a mutant
    read: Callable[[bytes], object]  #: raises nothing but `TYPED`


def damaged(examples: Callable[[], Sequence[bytes]]) -> Callable[[random.Random], bytes]:
    """Mutants of these examples, which are made when the first is wanted."""
    made = functools.cache(examples)
    return lambda random_: mutate(random_, made())


def pictures() -> list[bytes]:
    """Small images of every accepted format, and of the modes that decoders stumble over."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    frames = [picture.convert("RGB").rotate(90 * turn) for turn in range(3)]
    return [
        _saved(picture.convert("RGB"), "JPEG", quality=85, exif=exif),
        _saved(picture.convert("RGB"), "JPEG", progressive=True),
        _saved(picture.convert("CMYK"), "JPEG"),
        _saved(picture.convert("L"), "JPEG"),
        _saved(picture, "PNG"),
        _saved(picture.convert("P"), "PNG", transparency=0),
        _saved(picture.convert("1"), "PNG"),
        _saved(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"),
        _saved(picture, "PNG", save_all=True, append_images=frames),
        _saved(picture, "WEBP", lossless=True),
        _saved(picture.convert("RGB"), "WEBP", quality=50),
        _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    ]


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def archives() -> list[bytes]:
    """Archives of every container, some of them with what no dataset holds."""
    picture = _saved(Image.new("RGB", (4, 4)), "PNG")
    members = {f"{split}/{name}/1.png": picture for split in ("train", "test") for name in "ab"}
    members |= {"classnames.json": b'{"a": "A"}', "__MACOSX/x": b"x", "a/\u00e9.png": picture}
    tars = [_tar(members, mode, form) for mode in ("w", "w:gz") for form in _TAR_FORMS]
    return [
        _zip(members, zipfile.ZIP_STORED),
        _zip(members, zipfile.ZIP_DEFLATED),
        _zip({"a/" + "b" * 200: b"\0" * 100_000}, zipfile.ZIP_DEFLATED),
        _zip({}, zipfile.ZIP_STORED),
        *tars,
    ]


_TAR_FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def _zip(members: dict[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.comment = b"comment"
        for name, data in members.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=len(name) % 2 == 0) as file:
                file.write(data)
    return stream.getvalue()


def _tar(members: dict[str, bytes], mode: str, form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in {**members, "n" * 80 + "/" + "n" * 80 + ".png": b"x"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return stream.getvalue()


def prompt(width: int = 8, fingerprint: str = "0" * 64) -> TunedPrompt:
    """A small tuned prompt with a head's metadata."""
    vectors = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    metadata = {
        "backbone": {"name": "tiny", "pretrained": None, "fingerprint": fingerprint},
        "config": {"seed": 1, "prompt": {"context": "a photo of a"}},
        "metrics": {"val_accuracy": 0.5},
        "head": {"kind": "gda", "temperature": 1.0},
        "dataset": {"name": "x", "sha256": "0" * 64},
    }
    return TunedPrompt(("cat", "dog"), vectors, vectors[:, :4].copy(), 100.0, metadata)


def sealed_anew(random_: random.Random, whole: TunedPrompt | None = None) -> bytes:
    """A prompt file whose maker got the hash right and something else wrong."""
    whole = whole or prompt()
    arrays, metadata = unseal(whole.to_bytes(), PROMPT)
    odd = dict(arrays)
    if random_.random() < 0.5:
        metadata = mutate_json(random_, metadata)
    else:
        name = random_.choice(list(odd))
        odd[name] = _odd_array(random_, odd[name])
    try:
        return seal(odd, metadata, PROMPT)
    except (ValueError, TypeError, UnicodeError):
        return sealed_anew(random_, whole)  # JSON or safetensors cannot hold it


def _odd_array(random_: random.Random, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return random_.choice(
        (
            array[:0],
            array[:, :0],
            array.reshape(-1),
            array[None],
            array[:1],
            np.vstack([array, array]),
            array.astype(np.int8),
            array.astype(np.float64) * 1e300,
            array.astype(np.bool_),
            np.zeros((2, 1_000_000), np.float32),
        )
    )


def _read_archive(data: bytes) -> None:
    """Every member of it, as a dataset that is uploaded."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(f"/proc/self/fd/{file.fileno()}")
        for member in walk(path, sniff(path)):
            member.read()


def _read_layout(data: bytes) -> None:
    files = ["images/1.png", "images/2.png", "split_zhou_X.json"]
    read_layout(files, lambda _: data.decode("utf-8", "replace"))


def _read_checkpoint(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CURRENT).write_bytes(data)
        CheckpointFolder(Path(folder), _IDENTITY).load()


def checkpoint() -> bytes:
    """A checkpoint as a run leaves it."""
    arrays = {"mean": np.arange(8.0), "mask": np.ones(8, np.bool_)}
    scalars = {"step": 3, "generator": {"state": 2**70, "kind": "PCG64"}}
    with tempfile.TemporaryDirectory() as folder:
        CheckpointFolder(Path(folder), _IDENTITY).save(Snapshot(arrays, scalars))
        return Path(folder, CURRENT).read_bytes()


def tensors(width: int = 32) -> list[bytes]:
    """Bodies of requests that encode context vectors."""
    rng = np.random.default_rng(0)
    classes = np.array([[320, 269, 49407], [320, 49407, -1]], np.int32)
    contexts = rng.standard_normal((2, 4, width)).astype(np.float32)
    return [
        safetensors.numpy.save({"contexts": contexts, "classes": classes}),
        safetensors.numpy.save({"contexts": contexts.astype(np.float16), "classes": classes[:1]}),
        safetensors.numpy.save({"classes": classes}, {"a": "b"}),
    ]


@dataclass(frozen=True)
class _Received:
    """A request whose body arrives in two pieces."""

    body: bytes

    async def stream(self) -> AsyncIterator[bytes]:
        yield self.body[:20]
        yield self.body[20:]


def _read_tensors(data: bytes) -> None:
    encoder: Any = SimpleNamespace(text_width=32, positions=77, embed_dim=32)
    request: Any = _Received(data)
    try:
        read_tensors(request, functools.partial(check_contexts, encoder)).send(None)
    except StopIteration as done:  # nothing in it waits
        read_suffixes(done.value["classes"], 49407)


_SPLIT_FILE = (
    b'{"train": [["1.png", 0, "cat"], ["2.png", 1, "dog"]], "val": [], '
    b'"test": [["1.png", 0, "cat"]]}'
)
_JSON = b'{"dataset_id": "ds_0", "config": {"seed": 1, "zo": {"queries": [1, 2.5e3, null]}}}'


def readers() -> dict[str, Reader]:
    """All of them, by name."""
    found = (
        Reader("archives", damaged(archives), _read_archive),
        Reader("images", damaged(pictures), lambda data: decode_image(data).close()),
        Reader("prompts", damaged(lambda: [prompt().to_bytes()]), TunedPrompt.load),
        Reader("prompts-sealed-anew", sealed_anew, TunedPrompt.load),
        Reader("checkpoints", damaged(lambda: [checkpoint()]), _read_checkpoint),
        Reader("split-files", damaged(lambda: [_SPLIT_FILE]), _read_layout),
        Reader("tensors", damaged(tensors), _read_tensors),
        Reader("json", damaged(lambda: [_JSON]), loads),
    )
    return {reader.name: reader for reader in found}
