"""An encoder in ONNX Runtime: a folder that `export` wrote, without the original's weights.

    encoder.json                    `Manifest`
    image.onnx                      images [B, 3, H, W] -> embeddings [B, E]
    text.onnx                       contexts, suffixes, ends -> class embeddings [n, C, E]
    token_embeddings.safetensors    [vocabulary, W]
    tokenizer.json                  CLIP's byte-pair tokenizer

It gives no derivatives. Embeddings are normalised within the graphs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import safetensors.numpy
from numpy.typing import NDArray

from sharpzo_engine.clip.cross_entropy import CrossEntropy
from sharpzo_engine.clip.encoder import Described, Floats, Preprocess, TextPrecision
from sharpzo_engine.clip.onnx.bpe import BpeTokenizer
from sharpzo_engine.clip.onnx.manifest import IMAGE, TEXT, TOKENIZER, TOKENS, Manifest, check_files
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.texts import encode_texts
from sharpzo_engine.clip.tokens import PromptTokens, tokenize_prompts
from sharpzo_engine.errors import BackboneError

#: Suffix rows per call of the text graph; more need more memory and save no time.
MAX_ROWS = 4096


class OnnxEncoder(Described):
    """Both towers of a CLIP model in ONNX Runtime on the processor."""

    runtime = "onnxruntime"
    on_cpu = True

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        """Load the folder; `name` takes the place of the one that it records.

        Raises:
            BackboneError: a file is missing, or differs from what was exported.
        """
        manifest = Manifest.read(folder)
        check_files(folder, manifest)
        self.manifest = manifest
        self.name, self.pretrained = name or manifest.name, manifest.pretrained
        self.fingerprint = manifest.fingerprint
        self.level = manifest.level
        self.precision = manifest.precision
        self.logit_scale = float(manifest.logit_scale)
        self._images = _session(folder / IMAGE, round_activations=True)
        self._text = _session(folder / TEXT, round_activations=False)
        self._tokens = safetensors.numpy.load_file(folder / TOKENS)["tokens"]
        self.tokenizer = BpeTokenizer.load(folder / TOKENIZER, manifest.positions)

    @property
    def variant(self) -> str:
        """Runtime, precision and a hash of the files."""
        digest = hashlib.sha256(json.dumps(self.manifest.files, sort_keys=True).encode())
        return f"{self.runtime} {self.precision} {digest.hexdigest()[:12]}"

    @property
    def embed_dim(self) -> int:
        """Width E of the joint embedding."""
        return self.manifest.embed_dim

    @property
    def image_size(self) -> int:
        """Pixels along a side of what the image tower takes."""
        return self.manifest.preprocessing.size

    @property
    def text_width(self) -> int:
        """Width W of the text tower."""
        return self.manifest.text_width

    @property
    def positions(self) -> int:
        """Tokens that the text tower takes, first and last included."""
        return self.manifest.positions

    @property
    def preprocessing(self) -> Preprocessing:
        """What `preprocess` does, in numbers."""
        return self.manifest.preprocessing

    @property
    def preprocess(self) -> Preprocess:
        """The map from an image to pixels [3, H, W]."""
        return self.manifest.preprocessing

    def encode_images(self, batch: Floats) -> Floats:
        """Preprocessed images [B, 3, H, W] -> L2-normalised embeddings [B, E]."""
        pixels = np.ascontiguousarray(batch, np.float32)
        found: Floats = self._images.run(None, {"images": pixels})[0]
        return found

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Whole texts -> L2-normalised embeddings [n, E]; errors as `texts.encode_texts`."""
        return encode_texts(self, self.tokenizer, texts)

    def tokenize(self, context: str, class_names: Sequence[str]) -> PromptTokens:
        """Token ids of "{context} {name}." for every class; errors as `tokenize_prompts`."""
        return tokenize_prompts(self.tokenizer, context, class_names)

    def token_embeddings(self, ids: Sequence[int]) -> Floats:
        """Embeddings [M, W] of token ids, without positions."""
        found: Floats = self._tokens[np.asarray(ids, np.intp)].astype(np.float32)
        return found

    def prompts(self, words: str, class_names: Sequence[str]) -> OnnxPrompts:
        """The prompts "{words} {name}."; errors as `tokenize_prompts`."""
        return self.text_encoder(self.tokenize(words, class_names))

    def text_encoder(self, tokens: PromptTokens) -> OnnxPrompts:
        """The prompts of these tokens."""
        suffixes = [self.token_embeddings(suffix) for suffix in tokens.suffixes]
        return OnnxPrompts(self._text, self.token_embeddings(tokens.context), suffixes)

    def image_loss(self, images: Floats, labels: NDArray[np.int64]) -> CrossEntropy:
        """The loss of L2-normalised image embeddings [N, E] with labels [N]."""
        return CrossEntropy(images, labels, self.logit_scale)


class OnnxPrompts:
    """The prompts of some classes in ONNX Runtime."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        initial_context: Floats,
        suffixes: Sequence[Floats],
    ) -> None:
        """`initial_context` [M, W], and the tokens of each class, name to EOT, each [S_c, W]."""
        self._session = session
        self.initial_context = initial_context
        longest = max(map(len, suffixes))
        self._per_call = max(1, MAX_ROWS // longest)
        self._ends = np.array([len(rows) - 1 for rows in suffixes], np.int64)
        self._suffixes = np.stack(
            [np.pad(rows, ((0, longest - len(rows)), (0, 0))) for rows in suffixes]
        )

    def in_precision(self, name: TextPrecision) -> OnnxPrompts:
        """These prompts: the precision is the file's."""
        del name
        return self

    def encode(self, context: Floats) -> Floats:
        """`context` [n, M, W] (without positions) -> L2-normalised class embeddings [n, C, E]."""
        contexts = np.ascontiguousarray(context, np.float32)
        classes = len(self._suffixes)
        if classes >= self._per_call:
            one_by_one = [self._encode_one(contexts[i : i + 1]) for i in range(len(contexts))]
            return np.concatenate(one_by_one)
        step = self._per_call // classes
        parts = [
            self._run(contexts[i : i + step], slice(None)) for i in range(0, len(contexts), step)
        ]
        return np.concatenate(parts)

    def _encode_one(self, context: Floats) -> Floats:
        starts = range(0, len(self._suffixes), self._per_call)
        return np.concatenate(
            [self._run(context, slice(start, start + self._per_call)) for start in starts], axis=1
        )

    def _run(self, contexts: Floats, classes: slice) -> Floats:
        inputs = {
            "context": contexts,
            "suffixes": self._suffixes[classes],
            "ends": self._ends[classes],
        }
        found: Floats = self._session.run(None, inputs)[0]
        return found


def _session(path: Path, *, round_activations: bool) -> onnxruntime.InferenceSession:
    """Load a graph. Rounded activations are faster where weights are int8, but not smooth."""
    options = onnxruntime.SessionOptions()
    if not round_activations:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, undocumented kinds
        message = f"{path.name} cannot be loaded: {str(error).splitlines()[0][:200]}"
        raise BackboneError(message) from error
