"""An encoder of another SharpZO service, over HTTP: `remote:URL`."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError

from sharpzo_engine.clip.cross_entropy import CrossEntropy
from sharpzo_engine.clip.encoder import (
    Described,
    Floats,
    Preprocess,
    Prompts,
    TextPrecision,
    require,
)
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.remote import probes
from sharpzo_engine.clip.remote.connection import Answer, Connection, Refused
from sharpzo_engine.clip.remote.wire import IDENTITY_HEADER, MEDIA_TYPE, PADDING, Description, pad
from sharpzo_engine.clip.residuals import ResidualPrompts, hand_written
from sharpzo_engine.clip.tokens import PromptTokens
from sharpzo_engine.errors import BackboneError, ConfigError, DatasetError

#: Search points in one request; more take longer to be computed than to be sent.
POINTS = 20

Ids = NDArray[np.int32]


class RemoteEncoder(Described):
    """The owner's server keeps the weights; images are sent resized, context vectors as they are.

    Every answer names the encoder that gave it, so a replaced model is found at once; probes are
    asked at the start of every job and every hour.
    """

    runtime = "remote"
    on_cpu = False

    def __init__(self, connection: Connection, *, name: str | None = None) -> None:
        """Ask what the encoder is; `name` takes the place of its own.

        Raises:
            EncoderAway: the server does not answer.
            BackboneError: it is no such encoder, or does not accept the key.
        """
        self._connection = connection
        self._about = about = self._describe()
        self._embedded: dict[tuple[int, ...], Floats] = {}
        self.name, self.pretrained = name or about.name, about.pretrained
        self.fingerprint, self.precision = about.fingerprint, about.precision
        self.level = Level.CONTEXTS if about.level is Level.TANGENTS else about.level
        self.logit_scale, self.embed_dim = about.logit_scale, about.embed_dim
        self.text_width, self.positions = about.text_width, about.positions
        self.limits = about.limits
        self._watch = probes.Watch(connection.url, self._answer_probes)

    @property
    def variant(self) -> str:
        """Where it runs, and the server's own runtime, precision and files."""
        about = self._about
        return f"remote {about.runtime} {about.precision} {about.identity[:12]}"

    @property
    def image_size(self) -> int:
        """Pixels along a side of what the image tower takes."""
        return self.preprocessing.size

    @property
    def preprocessing(self) -> Preprocessing:
        """What the server does with an image."""
        return self._about.preprocessing

    @property
    def changed(self) -> bool:
        """Whether the server was found to have another model than at first."""
        return self._watch.changed

    def check(self) -> None:
        """Ask for the description and the probes again; raises as `Changeable.check`."""
        self._watch.settle(same=self._describe().identity == self._about.identity)
        self._watch.check()

    @property
    def preprocess(self) -> Preprocess:
        """The map from an image to its colours [3, H, W], 0 to 255; the server normalises them."""
        return lambda image: colours(self.preprocessing.crop(image))

    def encode_images(self, batch: Floats) -> Floats:
        """Colours of images [B, 3, H, W] -> L2-normalised embeddings [B, E]; errors as `ask`."""
        self._watch.check_if_due()
        return self._encode_images(batch)

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Whole texts -> L2-normalised embeddings [n, E]; errors as `ask`."""
        self._watch.check_if_due()
        return self._encode_texts(texts)

    def tokenize(self, context: str, class_names: Sequence[str]) -> PromptTokens:
        """Token ids of "{context} {name}." for every class, by the server's tokenizer.

        Raises:
            ConfigError: the context is not usable.
            DatasetError: a class name is not.
        """
        require(self, Level.CONTEXTS, "a prompt")
        parts = [
            self._tokenize(context, class_names[part])
            for part in slices(len(class_names), self.limits.texts)
        ]
        ids = tuple(map(int, parts[0]["context_ids"]))
        self._embedded[ids] = parts[0]["context"]
        suffixes = [
            tuple(row[row != PADDING].tolist()) for part in parts for row in part["classes"]
        ]
        return PromptTokens(int(parts[0]["start"][0]), ids, tuple(suffixes))

    def token_embeddings(self, ids: Sequence[int]) -> Floats:
        """Embeddings [M, W] of the words of a context that was tokenised before.

        Raises:
            BackboneError: it was not.
        """
        found = self._embedded.get(tuple(ids))
        if found is None:
            raise BackboneError("a remote encoder embeds only contexts that it has tokenised")
        return found

    def text_encoder(self, tokens: PromptTokens) -> RemotePrompts:
        """The prompts of these tokens, whose context was tokenised before."""
        return RemotePrompts(self, tokens)

    def prompts(self, words: str, class_names: Sequence[str]) -> Prompts:
        """The prompts "{words} {name}."; errors as `tokenize` and `ask`."""
        if self.level is Level.TEXTS:
            return ResidualPrompts(self.encode_texts(hand_written(words, class_names)))
        return self.text_encoder(self.tokenize(words, class_names))

    def image_loss(self, images: Floats, labels: NDArray[np.int64]) -> CrossEntropy:
        """The loss of L2-normalised image embeddings [N, E] with labels [N]."""
        return CrossEntropy(images, labels, self.logit_scale)

    def encode_contexts(self, contexts: Floats, suffixes: Ids) -> Floats:
        """Context vectors [n, M, W] and padded token ids [C, S] -> class embeddings [n, C, E]."""
        shape = (len(contexts), len(suffixes), self.embed_dim)
        content = safetensors.numpy.save({"contexts": contexts, "classes": suffixes})
        headers = {"Content-Type": MEDIA_TYPE}
        return self.ask("/contexts", shape, content=content, headers=headers)

    def each(self, *args: Any) -> None:  # noqa: ANN401 - those of `Connection.each`
        """Several requests at a time."""
        self._connection.each(*args)

    def ask(self, path: str, shape: tuple[int, ...], **body: Any) -> Floats:  # noqa: ANN401 - httpx's own arguments
        """Send a body and receive `embeddings` of this shape.

        Raises:
            EncoderAway: the server does not answer.
            BackboneMismatch: the answer is that of another model.
            BackboneError: the server refuses, or answers with something else.
        """
        floats = math.prod(shape)
        answer = self._tensors(self._connection.request("POST", path, floats=floats, **body))
        found = answer.get("embeddings")
        if found is None or found.shape != shape or found.dtype != np.float32:
            raise BackboneError(f"{self._connection.url}{path} does not answer with {list(shape)}")
        return found

    def _describe(self) -> Description:
        answer = self._connection.request("GET")
        try:
            return Description.model_validate_json(answer.body)
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            place = ".".join(map(str, fault["loc"])) or "its answer"
            message = f"{self._connection.url} is no encoder: {place}: {fault['msg']}"
            raise BackboneError(f"{message} (use the address of GET /v1/encoders/NAME)") from error

    def _answer_probes(self) -> Floats:
        pictures = [colours(image) for image in probes.images(self.image_size)]
        answers = [self._encode_images(np.stack(pictures))]
        if self.level.includes(Level.TEXTS):
            answers.append(self._encode_texts(probes.TEXTS))
        return np.concatenate(answers)

    def _encode_images(self, batch: Floats) -> Floats:
        found = np.empty((len(batch), self.embed_dim), np.float32)

        def ask(part: slice) -> None:
            files = [("images", (f"{i}.png", png(one))) for i, one in enumerate(batch[part])]
            found[part] = self.ask("/images", found[part].shape, files=files)

        self.each(ask, slices(len(batch), self.limits.images))
        return found

    def _encode_texts(self, texts: Sequence[str]) -> Floats:
        found = np.empty((len(texts), self.embed_dim), np.float32)

        def ask(part: slice) -> None:
            body = {"texts": list(texts[part])}
            found[part] = self.ask("/texts", found[part].shape, json=body)

        self.each(ask, slices(len(texts), self.limits.texts))
        return found

    def _tokenize(self, context: str, class_names: Sequence[str]) -> dict[str, NDArray[Any]]:
        body = {"context": context, "classes": list(class_names)}
        floats = self.positions * (len(class_names) + self.text_width)
        try:
            answer = self._connection.request("POST", "/contexts", floats=floats, json=body)
        except Refused as error:
            if any(pointer.startswith("/classes") for pointer in error.pointers):
                raise DatasetError(str(error)) from error
            raise ConfigError(str(error)) from error
        found = self._tensors(answer)
        self._check_words(found, len(class_names))
        return found

    def _check_words(self, found: dict[str, NDArray[Any]], classes: int) -> None:
        shapes = {name: array.shape for name, array in found.items()}
        count = len(found["context"]) if shapes.get("context") else 0
        longest = found["classes"].size // classes if "classes" in found else 0
        expected = {
            "start": (1,),
            "context_ids": (count,),
            "context": (count, self.text_width),
            "classes": (classes, longest),
        }
        if shapes != expected:
            raise BackboneError(f"{self._connection.url}/contexts does not answer with token ids")

    def _tensors(self, answer: Answer) -> dict[str, NDArray[Any]]:
        self._watch_identity(answer)
        try:
            return safetensors.numpy.load(answer.body)
        except SafetensorError as error:
            message = f"{self._connection.url} does not answer with safetensors"
            raise BackboneError(message) from error

    def _watch_identity(self, answer: Answer) -> None:
        if answer.headers.get(IDENTITY_HEADER) != self._about.identity:
            self._watch.settle(same=False)


class RemotePrompts:
    """The prompts of some classes on the server."""

    def __init__(self, encoder: RemoteEncoder, tokens: PromptTokens) -> None:
        """Split the classes and the points into what one request may ask for."""
        self._encoder = encoder
        self.initial_context = encoder.token_embeddings(tokens.context)
        self._suffixes = pad(tokens.suffixes)
        longest = self._suffixes.shape[1]
        limits = encoder.limits
        most = min(limits.rows // longest, limits.floats // encoder.embed_dim)
        self._classes = list(slices(len(self._suffixes), most))
        self._points = max(1, min(POINTS, most // len(self._suffixes)))

    def in_precision(self, name: TextPrecision) -> RemotePrompts:
        """These prompts: the precision is the server's."""
        del name
        return self

    def encode(self, context: Floats) -> Floats:
        """`context` [n, M, W] -> L2-normalised class embeddings [n, C, E]; errors as `ask`."""
        contexts = np.ascontiguousarray(context, np.float32)
        encoder = self._encoder
        found = np.empty((len(contexts), len(self._suffixes), encoder.embed_dim), np.float32)

        def ask(part: tuple[slice, slice]) -> None:
            found[part] = encoder.encode_contexts(contexts[part[0]], self._suffixes[part[1]])

        points = list(slices(len(contexts), self._points))
        encoder.each(ask, [(some, classes) for some in points for classes in self._classes])
        return found


def slices(count: int, largest: int) -> Iterator[slice]:
    """Cut `count` items into equal slices of at most `largest`.

    Equal ones, because kernels may round a single point otherwise than several.
    """
    parts = -(-count // largest)
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


def colours(image: Image.Image) -> Floats:
    """An RGB image -> [3, H, W], 0 to 255."""
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1))


def png(pixels: Floats) -> bytes:
    """Colours [3, H, W] as a file, without loss."""
    file = io.BytesIO()
    image = Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8))
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
