"""Encoders for other programs: images, texts and context vectors become embeddings.

Images share the batches of classification. Texts are encoded on the model thread, a few at a time,
so that image batches get their turn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from service.errors import Busy
from sharpzo_core.backbones import ANY_PRETRAINED
from sharpzo_core.errors import LevelMissing, NotFound, ValidationFailed
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.remote.wire import PADDING, Declared, Description, Limits
from sharpzo_engine.errors import ConfigError, DatasetError, ImageError

if TYPE_CHECKING:
    from service.inference.backbones import Backbones
    from service.inference.encoder import ImageEncoder
    from sharpzo_core.settings import Settings
    from sharpzo_engine import Encoder
    from sharpzo_engine.clip.encoder import Prompts, TokenEncoder
    from sharpzo_engine.clip.tokens import PromptTokens

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

LIMITS = Limits()
ROWS_AT_ONCE = 4096  # token rows encoded before image batches get their turn
TEXTS_AT_ONCE = 32
ANSWERS_AT_ONCE = 4  # of the largest size; smaller ones count by their size
KEPT_PROMPTS = 4  # a run sends the same classes thousands of times


class EncoderHost:
    """Encodes for callers of the encoder routes, with the backbones that also classify."""

    def __init__(self, settings: Settings, backbones: Backbones, images: ImageEncoder) -> None:
        self._specs = settings.backbone_specs
        self._backbones = backbones
        self._images = images
        self._waiting = _Gate(settings.inference_queue)
        self._floats = _Gate(ANSWERS_AT_ONCE * LIMITS.floats)
        self._prompts = lru_cache(KEPT_PROMPTS)(_prompts)  # on the model thread
        self._ends: WeakKeyDictionary[TokenEncoder, tuple[int, int]] = WeakKeyDictionary()

    def loaded(self, name: str) -> Encoder | None:
        """The backbone of this name, if it is loaded."""
        return self._backbones.get(name)

    async def get(self, name: str, level: Level = Level.IMAGES) -> Encoder:
        """The backbone of this name in the operator's list, loaded if needed.

        Raises:
            NotFound: it is not listed.
            LevelMissing: it does not answer what `level` stands for.
            Unavailable: it cannot be loaded.
        """
        spec = None if name == ANY_PRETRAINED else self._specs.get(name)
        if spec is None:
            raise NotFound("encoder", name)
        encoder = self._backbones.get(name)
        if encoder is None:
            encoder = await self._images.run(partial(self._backbones.load, spec))
        if not encoder.level.includes(level):
            raise LevelMissing(f"{name} gives {encoder.level}, not {level} (use another backbone)")
        return encoder

    async def get_with_tokens(self, name: str) -> TokenEncoder:
        """The backbone of this name if it has the level `contexts`; raises as `get`."""
        return cast("TokenEncoder", await self.get(name, Level.CONTEXTS))

    async def describe(self, name: str) -> Description:
        """Everything that a client needs to know of an encoder; raises as `get`."""
        encoder = await self.get(name)
        exact = encoder.level is Level.TANGENTS
        return Description(
            name=name,
            pretrained=encoder.pretrained,
            fingerprint=encoder.fingerprint,
            identity=identity(encoder),
            level=Level.CONTEXTS if exact else encoder.level,
            runtime=encoder.runtime,
            precision=encoder.precision,
            logit_scale=encoder.logit_scale,
            embed_dim=encoder.embed_dim,
            # Below `contexts` there is no text tower to speak of.
            text_width=getattr(encoder, "text_width", 0),
            positions=getattr(encoder, "positions", 0),
            preprocessing=encoder.preprocessing,
            limits=LIMITS,
        )

    async def embed(
        self, encoder: Encoder, images: Sequence[bytes], pointers: Sequence[str]
    ) -> Floats:
        """Image files -> embeddings [n, E].

        Raises:
            ValidationFailed: an image cannot be decoded; names it by its pointer.
            Busy: too many images are waiting.
        """
        with self._waiting.hold(len(images), self._images.seconds_for(self._waiting.held)):
            found = await self._images.embed(encoder, images, None)
        faults = [
            (pointer, str(item))
            for pointer, item in zip(pointers, found, strict=True)
            if isinstance(item, ImageError)
        ]
        if faults:
            raise ValidationFailed(faults)
        return np.stack([item for item in found if not isinstance(item, ImageError)])

    async def embed_texts(self, encoder: Encoder, texts: Sequence[str]) -> tuple[Floats, int]:
        """Texts -> embeddings [n, E] and their number of tokens, 0 if it is unknown.

        Raises:
            TextError: a text cannot be encoded.
            Busy: too much is being computed.
        """
        parts, tokens = [], 0
        with self._floats.hold(len(texts) * encoder.embed_dim):
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                part = texts[start : start + TEXTS_AT_ONCE]
                rows, count = await self._images.run(partial(_texts, encoder, part, start))
                parts.append(rows)
                tokens += count
        return np.concatenate(parts), tokens

    async def tokenize(
        self, encoder: TokenEncoder, context: str, class_names: Sequence[str]
    ) -> tuple[PromptTokens, Floats]:
        """Token ids of "{context} {name}." for every class, and the context's vectors [M, W].

        Raises:
            ValidationFailed: the context or a name is not usable.
        """
        return await self._images.run(partial(_words, encoder, context, class_names))

    async def encode_contexts(
        self, encoder: TokenEncoder, contexts: Floats, classes: Ids
    ) -> Floats:
        """Context vectors [n, M, W] and ids of classes [C, S] -> class embeddings [n, C, E].

        Raises:
            ValidationFailed: the ids are not those of the encoder's tokens.
            Busy: too much is being computed.
        """
        shape = (len(contexts), len(classes), encoder.embed_dim)
        with self._floats.hold(math.prod(shape)):
            found = np.empty(shape, np.float32)
            start, end = await self._find_ends(encoder)
            suffixes = read_suffixes(classes, end)
            points = max(1, ROWS_AT_ONCE // sum(map(len, suffixes)))
            for first in range(0, len(contexts), points):
                part = slice(first, first + points)
                work = partial(self._encode, encoder, start, suffixes, contexts[part])
                found[part] = await self._images.run(work)
        return found

    async def _find_ends(self, encoder: TokenEncoder) -> tuple[int, int]:
        """The ids of a text's first and last token; the last is the highest id."""
        if encoder not in self._ends:
            tokens = await self._images.run(partial(encoder.tokenize, "a", ["a"]))
            self._ends[encoder] = tokens.sos, tokens.suffixes[0][-1]
        return self._ends[encoder]

    def _encode(
        self,
        encoder: TokenEncoder,
        start: int,
        suffixes: tuple[tuple[int, ...], ...],
        contexts: Floats,
    ) -> Floats:
        prompts = self._prompts(encoder, start, contexts.shape[1], suffixes)
        found: Floats = prompts.encode(contexts)
        return found


class _Gate:
    """Bounds what is being computed for all callers together; only used on the event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.held = 0

    @contextmanager
    def hold(self, amount: int, retry_after: int = 1) -> Iterator[None]:
        """Count this amount during the block.

        Raises:
            Busy: it does not fit now.
        """
        if self.held + amount > self._capacity:
            raise Busy(retry_after)
        self.held += amount
        try:
            yield
        finally:
            self.held -= amount


def identity(encoder: Encoder) -> str:
    """Changes with everything that changes an answer."""
    parts = (encoder.fingerprint, encoder.runtime, encoder.precision, encoder.variant)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def check_contexts(encoder: TokenEncoder, tensors: Mapping[str, Declared]) -> None:
    """Check the shapes of `contexts` [n, M, W] and `classes` [C, S] against all bounds.

    Raises:
        ValidationFailed: a tensor is missing, superfluous, or has another dtype or shape.
    """
    if tensors.keys() != {"contexts", "classes"}:
        raise ValidationFailed([("", "needs the tensors `contexts` and `classes`, and no others")])
    contexts, classes = tensors["contexts"], tensors["classes"]
    width = encoder.text_width
    if contexts.dtype == "I32" or len(contexts.shape) != 3 or contexts.shape[2] != width:
        fault = f"must be float32 or float16 of the shape [points, tokens, {width}]"
        raise ValidationFailed([("/contexts", fault)])
    if classes.dtype != "I32" or len(classes.shape) != 2:
        raise ValidationFailed([("/classes", "must be int32 of the shape [classes, token ids]")])
    (points, tokens, _), (count, longest) = contexts.shape, classes.shape
    if not points or not tokens:
        raise ValidationFailed([("/contexts", "must not be empty")])
    if not count or not longest:
        raise ValidationFailed([("/classes", "must not be empty")])
    if 1 + tokens + longest > encoder.positions:
        fault = f"with the context, exceeds the {encoder.positions} tokens of a text"
        raise ValidationFailed([("/classes", fault)])
    _check_size("rows", points * count * longest, LIMITS.rows)
    _check_size("numbers of an answer", points * count * encoder.embed_dim, LIMITS.floats)


def _check_size(what: str, size: int, most: int) -> None:
    if size > most:
        fault = f"{size} {what} exceed {most} (send fewer points or classes at a time)"
        raise ValidationFailed([("/contexts", fault)])


def read_suffixes(classes: Ids, end: int) -> tuple[tuple[int, ...], ...]:
    """Each class's ids, without the padding; `end` is the highest id.

    Raises:
        ValidationFailed: a row is empty, has ids after padding, or an unknown id.
    """
    given = classes != PADDING
    lengths = given.sum(axis=1)
    in_order = given == (np.arange(classes.shape[1]) < lengths[:, None])
    if not (lengths.all() and in_order.all()):
        raise ValidationFailed([("/classes", f"every row needs ids, then padding of {PADDING}")])
    ids = classes[given]
    if ids.min() < 0 or ids.max() > end:
        raise ValidationFailed([("/classes", f"ids must be from 0 to {end}")])
    return tuple(tuple(row[:length].tolist()) for row, length in zip(classes, lengths, strict=True))


def _prompts(
    encoder: TokenEncoder, start: int, length: int, suffixes: tuple[tuple[int, ...], ...]
) -> Prompts:
    from sharpzo_engine.clip.tokens import PromptTokens

    return encoder.text_encoder(PromptTokens(start, (0,) * length, suffixes))


def _texts(encoder: Encoder, texts: Sequence[str], first: int) -> tuple[Floats, int]:
    """Embeddings and number of tokens; the index of a faulty text counts from `first`."""
    from sharpzo_engine.clip.texts import count_tokens
    from sharpzo_engine.errors import TextError

    try:
        return encoder.encode_texts(texts), count_tokens(encoder, texts)
    except TextError as error:
        raise TextError(str(error), first + error.index) from error


def _words(
    encoder: TokenEncoder, context: str, class_names: Sequence[str]
) -> tuple[PromptTokens, Floats]:
    try:
        tokens = encoder.tokenize(context, class_names)
    except ConfigError as error:
        raise ValidationFailed([("/context", str(error))]) from error
    except DatasetError as error:
        raise ValidationFailed([("/classes", str(error))]) from error
    return tokens, encoder.token_embeddings(tokens.context)
