"""A CLIP model behind a server of embeddings in OpenAI's form: `openai-embeddings:URL#MODEL`."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.cross_entropy import CrossEntropy
from sharpzo_engine.clip.encoder import Described, Floats, Preprocess, require
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.remote import probes
from sharpzo_engine.clip.remote.connection import Connection, Refused
from sharpzo_engine.clip.remote.encoder import colours, png, slices
from sharpzo_engine.clip.residuals import ResidualPrompts, hand_written
from sharpzo_engine.errors import BackboneError

#: Images are sent in this size, which is no smaller than what most models take.
IMAGE_SIZE = 336
INPUTS = 32  # in one request
MAX_DIMENSIONS = 2**16
LOGIT_SCALE = 100.0  # of OpenAI's CLIP; the server does not say


class EmbeddingsEncoder(Described):
    """Texts and images become embeddings, and nothing else is known of the model.

    Its fingerprint is made of its answers to fixed probes.
    """

    runtime = "remote"
    precision = "unknown"
    pretrained = None
    logit_scale = LOGIT_SCALE
    image_size = IMAGE_SIZE
    preprocessing = Preprocessing(IMAGE_SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    on_cpu = False

    def __init__(self, connection: Connection, model: str, *, name: str | None = None) -> None:
        """Ask for the probes; a server that refuses texts has the level `images`.

        Raises:
            EncoderAway: the server does not answer.
            BackboneError: it embeds no images, or its answers are not embeddings.
        """
        if not model:
            raise BackboneError(f"{connection.url} needs a model after # (such as URL#clip)")
        self._connection = connection
        self._model = model
        self.name = name or model
        self.level = self._find_level()
        self._watch = probes.Watch(connection.url, self._answer_probes)
        self.embed_dim = self._watch.first.shape[1]
        self.fingerprint = probes.fingerprint(self._watch.first, f"openai-embeddings {model}")

    @property
    def variant(self) -> str:
        """Which interface it is asked through."""
        return "remote openai-embeddings"

    @property
    def changed(self) -> bool:
        """Whether the server was found to have another model than at first."""
        return self._watch.changed

    def check(self) -> None:
        """Ask for the probes again; raises as `Changeable.check`."""
        self._watch.check()

    @property
    def preprocess(self) -> Preprocess:
        """The map from an image to its colours [3, H, W], 0 to 255."""
        return lambda image: colours(self.preprocessing.crop(image))

    def encode_images(self, batch: Floats) -> Floats:
        """Colours of images [B, 3, H, W] -> L2-normalised embeddings [B, E]; errors as `_ask`."""
        self._watch.check_if_due()
        return self._embed([data_uri(one) for one in batch])

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Whole texts -> L2-normalised embeddings [n, E]; errors as `_ask`.

        Raises:
            LevelMissing: the server embeds no texts.
        """
        require(self, Level.TEXTS, "a text")
        self._watch.check_if_due()
        return self._embed(texts)

    def prompts(self, words: str, class_names: Sequence[str]) -> ResidualPrompts:
        """The classes as texts "{words} {name}."; errors as `encode_texts`."""
        return ResidualPrompts(self.encode_texts(hand_written(words, class_names)))

    def image_loss(self, images: Floats, labels: NDArray[np.int64]) -> CrossEntropy:
        """The loss of L2-normalised image embeddings [N, E] with labels [N]."""
        return CrossEntropy(images, labels, self.logit_scale)

    def _find_level(self) -> Level:
        try:
            self._embed(probes.TEXTS[:1])
        except Refused:
            return Level.IMAGES
        return Level.TEXTS

    def _answer_probes(self) -> Floats:
        inputs = [data_uri(colours(image)) for image in probes.images(IMAGE_SIZE)]
        if self.level is Level.TEXTS:
            inputs += probes.TEXTS
        return self._embed(inputs)

    def _embed(self, inputs: Sequence[str]) -> Floats:
        parts = list(slices(len(inputs), INPUTS))
        found: dict[int, Floats] = {}

        def ask(part: slice) -> None:
            found[part.start] = self._ask(inputs[part])

        self._connection.each(ask, parts)
        return np.concatenate([found[part.start] for part in parts])

    def _ask(self, inputs: Sequence[str]) -> Floats:
        """The embeddings [n, E] of one request.

        Raises:
            EncoderAway: the server does not answer.
            BackboneError: it refuses, or its answer is not in OpenAI's form.
        """
        body = {"input": list(inputs), "model": self._model, "encoding_format": "base64"}
        floats = len(inputs) * MAX_DIMENSIONS
        answer = self._connection.request("POST", "/embeddings", floats=floats, json=body)
        try:
            items = sorted(json.loads(answer.body)["data"], key=lambda item: int(item["index"]))
            rows = np.stack([vector(item["embedding"]) for item in items])
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise BackboneError(f"{self._connection.url} answers with no embeddings") from error
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if len(rows) != len(inputs) or not (np.isfinite(rows).all() and norms.all()):
            raise BackboneError(f"{self._connection.url} answers with unusable embeddings")
        unit: Floats = rows / norms
        return unit


def vector(embedding: object) -> Floats:
    """One embedding [E]: base64 of float32, or a list of numbers from servers that ignore that."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.asarray(embedding, np.float32)


def data_uri(pixels: Floats) -> str:
    """Colours [3, H, W] as the URI of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
