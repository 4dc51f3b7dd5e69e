"""A frozen open_clip model: the encoder in torch."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sharpzo_engine import tiny
from sharpzo_engine.clip.encoder import Described, Floats, TextPrecision
from sharpzo_engine.clip.level import Level
from sharpzo_engine.clip.onnx.preprocessing import Preprocessing
from sharpzo_engine.clip.texts import encode_texts
from sharpzo_engine.clip.tokens import PromptTokens, tokenize_prompts
from sharpzo_engine.clip.torch.arrays import to_tensor
from sharpzo_engine.clip.torch.cross_entropy import TorchCrossEntropy
from sharpzo_engine.clip.torch.image_tower import read_image_tower
from sharpzo_engine.clip.torch.prompts import TorchPrompts
from sharpzo_engine.clip.torch.text_encoder import ForwardTextEncoder, PlainTextEncoder
from sharpzo_engine.clip.torch.text_tower import OpenClipModule, TowerWeights, read_tower
from sharpzo_engine.errors import BackboneError

LOCAL_DIR = "local-dir:"
ImagePrecision = Literal["float32", "bfloat16", "float16"]

_DTYPES: dict[ImagePrecision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

#: open_clip's own: an image -> a tensor [3, H, W], and texts -> a tensor of ids [n, positions].
Transform = Callable[[Image.Image], torch.Tensor]
OpenClipTokenizer = Callable[[Sequence[str]], torch.Tensor]

logger = logging.getLogger(__name__)


class Backbone(Described):
    """Both towers of a CLIP model in float32, frozen, on one device: the encoder in torch."""

    level = Level.TANGENTS
    runtime = "torch"

    def __init__(
        self,
        model: OpenClipModule,
        transform: Transform,
        tokenizer: OpenClipTokenizer,
        *,
        name: str,
        pretrained: str | None,
    ) -> None:
        """Wrap an open_clip model that is already on its device.

        Raises:
            BackboneError: its text tower is not causal with EOT readout.
        """
        self.model = model.eval().requires_grad_(False)
        self.transform = transform
        self.tokenizer = tokenizer
        self.name = name
        self.pretrained = pretrained
        self.text: OpenClipModule = model if isinstance(model, open_clip.CLIP) else model.text
        self.tower: TowerWeights = read_tower(self.text)
        self.device = self.tower.token_embedding.device
        self.logit_scale = math.exp(float(model.logit_scale))
        self.fingerprint = _fingerprint(model, transform)
        self.precision: ImagePrecision = "float32"
        self.image_tower = read_image_tower(model.visual)
        if self.image_tower is None and self.device.type == "cpu":
            model.visual.to(memory_format=torch.channels_last)  # what convolutions take fastest

    @property
    def variant(self) -> str:
        """Names what changes the last bits of embeddings: the image tower's precision."""
        return "" if self.precision == "float32" else f"{self.runtime} {self.precision}"

    @property
    def embed_dim(self) -> int:
        """Width E of the joint embedding."""
        return self.tower.embed_dim

    @property
    def image_size(self) -> int:
        """Pixels along a side of what the image tower takes."""
        size = self.model.visual.image_size
        return int(size[0] if isinstance(size, tuple | list) else size)

    @property
    def text_width(self) -> int:
        """Width W of the text tower."""
        return self.tower.width

    @property
    def positions(self) -> int:
        """Tokens that the text tower takes, first and last included."""
        return len(self.tower.positional_embedding)

    @property
    def preprocessing(self) -> Preprocessing:
        """What `preprocess` does, in numbers.

        Raises:
            BackboneError: the model does not say, or it is not supported.
        """
        found = dict(getattr(self.model.visual, "preprocess_cfg", {}))
        try:
            return Preprocessing(
                size=self.image_size,
                mean=tuple(found["mean"]),
                std=tuple(found["std"]),
                interpolation=found["interpolation"],
                resize_mode=found["resize_mode"],
            )
        except KeyError as error:
            raise BackboneError(f"{self.name} does not describe its preprocessing") from error

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on this machine's processor."""
        return self.device.type == "cpu"

    def preprocess(self, image: Image.Image) -> Floats:
        """An image -> pixels [3, H, W]."""
        pixels: Floats = self.transform(image).numpy()
        return pixels

    @torch.inference_mode()
    def encode_images(self, batch: Floats) -> Floats:
        """Preprocessed images [B, 3, H, W] -> L2-normalised embeddings [B, E]."""
        embedded = functional.normalize(self._encode(to_tensor(batch, self.device)), dim=-1)
        found: Floats = embedded.cpu().numpy()
        return found

    def _encode(self, images: Tensor) -> Tensor:
        if self.image_tower is not None:
            return self.image_tower(images)
        # Autocast rounds the products alone. It has no float16 on processors.
        rounds = self.precision == "bfloat16" and self.device.type == "cpu"
        with torch.autocast("cpu", torch.bfloat16, enabled=rounds):
            embeddings: Tensor = self.model.encode_image(images.to(self._image_dtype))
        return embeddings.float()

    @property
    def _image_dtype(self) -> torch.dtype:
        """Of the pixels that open_clip's own forward takes."""
        weight: Tensor = next(self.model.visual.parameters())
        return weight.dtype

    def encode_images_in(self, precision: ImagePrecision) -> None:
        """Change the precision of the image tower permanently.

        Half precision saves time if the device has units for it. Embeddings then differ from those
        that prompts were tuned on: by about 0.5 % of their length in bfloat16 on a processor, where
        only products are rounded.
        """
        if precision == self.precision:
            return
        if self.precision == "bfloat16" and self.image_tower is not None:
            raise RuntimeError("the weights in float32 are gone (load the backbone again)")
        visual, dtype = self.model.visual, _DTYPES[precision]
        self.precision = precision
        self.image_tower = read_image_tower(visual, dtype)
        if self.image_tower is not None:
            visual.transformer.to("meta")  # frees the weights that were copied
        elif precision != "bfloat16" or self.device.type != "cpu":
            visual.to(dtype)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Whole texts -> L2-normalised embeddings [n, E]; errors as `texts.encode_texts`."""
        return encode_texts(self, self.ids, texts)

    def tokenize(self, context: str, class_names: Sequence[str]) -> PromptTokens:
        """Token ids of "{context} {name}." for every class; errors as `tokenize_prompts`."""
        return tokenize_prompts(self.ids, context, class_names)

    def ids(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Texts -> token ids [n, positions], zero-padded."""
        ids: NDArray[np.int64] = self.tokenizer(texts).numpy()
        return ids

    def text_encoder(
        self, tokens: PromptTokens, precision: TextPrecision = "float32"
    ) -> TorchPrompts:
        """The forward-only encoder of these prompts."""
        dtype = _DTYPES[precision]
        tower = self.tower if dtype == self.tower.dtype else read_tower(self.text, dtype)
        words = self.token_embeddings(tokens.context)
        again = partial(self.text_encoder, tokens)
        return TorchPrompts(ForwardTextEncoder(tower, tokens), words, again)

    def prompts(self, words: str, class_names: Sequence[str]) -> TorchPrompts:
        """The prompts "{words} {name}."; errors as `tokenize_prompts`."""
        return self.text_encoder(self.tokenize(words, class_names))

    def image_loss(self, images: Floats, labels: NDArray[np.int64]) -> TorchCrossEntropy:
        """The loss of L2-normalised image embeddings [N, E] with labels [N]."""
        return TorchCrossEntropy(images, labels, self.logit_scale, self.device)

    def plain_text_encoder(self, tokens: PromptTokens) -> PlainTextEncoder:
        """open_clip's own full forward of these prompts, for comparison."""
        return PlainTextEncoder(self.text, tokens)

    def token_embeddings(self, ids: Sequence[int]) -> Floats:
        """Embeddings [M, W] of token ids, without positions."""
        rows = self.tower.token_embedding[torch.tensor(ids, device=self.device)]
        found: Floats = rows.float().cpu().numpy()
        return found


def load_open_clip(
    name: str, pretrained: str | None, device: str, *, alias: str | None = None
) -> Backbone:
    """Load an open_clip model; arguments and errors as `load_backbone`."""
    if name == "tiny":
        if pretrained:
            raise BackboneError("the backbone tiny includes its weights (omit pretrained)")
        return _create(f"{LOCAL_DIR}{tiny.PATH}", None, device, shown_as="tiny")
    if name.startswith(LOCAL_DIR):
        _check_local_dir(Path(name.removeprefix(LOCAL_DIR)), pretrained)
        return _create(name, None, device, shown_as=alias or name)
    model = name.replace("/", "-")
    check_weights(model, pretrained)
    backbone = _create(model, pretrained, device, shown_as=model)
    if alias and pretrained not in open_clip.list_pretrained_tags_by_model(model):
        backbone.name, backbone.pretrained = alias, None
    return backbone


def pick_device(device: str = "auto") -> torch.device:
    """Resolve `auto`; check any other name.

    Raises:
        BackboneError: the device does not exist here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # CUDA-less builds assert
        message = f"device {device!r} is not available here (use auto, cpu, cuda or mps)"
        raise BackboneError(message) from error
    return chosen


def _check_local_dir(path: Path, pretrained: str | None) -> None:
    if pretrained:
        raise BackboneError("a local-dir: backbone includes its weights (omit pretrained)")
    if not (path / "open_clip_config.json").is_file():
        raise BackboneError(f"no open_clip_config.json in {path} (use the model's folder)")


def check_weights(model: str, pretrained: str | None) -> None:
    """Check that open_clip knows a model and its weights, without loading them.

    Raises:
        BackboneError: they are unknown; lists the known weights.
    """
    if model not in open_clip.list_models():
        raise BackboneError(
            f"unknown backbone {model[:80]!r} (see `open_clip.list_models()`, or use tiny or "
            "local-dir:PATH)"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not pretrained:
        offered = f"one of {', '.join(tags)}" if tags else "a checkpoint file"
        raise BackboneError(f"backbone {model} needs weights (set pretrained to {offered})")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise BackboneError(
            f"no weights {pretrained[:80]!r} for {model}: neither a file nor a known tag "
            f"(use a file or one of {', '.join(tags)})"
        )


def _create(name: str, pretrained: str | None, device: str, *, shown_as: str) -> Backbone:
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=pretrained,
                require_pretrained=True,
                # open_clip only warns when a tag's weights were trained with QuickGELU.
                force_quick_gelu=bool(tag.get("quick_gelu", False)),
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip passes on any error of its loaders
        logger.debug("loading %s failed", name, exc_info=True)
        message = f"backbone {shown_as} cannot be loaded: {_first_line(error)}"
        raise BackboneError(message) from error
    return Backbone(
        model.to(pick_device(device)), preprocess, tokenizer, name=shown_as, pretrained=pretrained
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _fingerprint(model: OpenClipModule, transform: Transform) -> str:
    """SHA-256 over every weight and the preprocessing: equal for equal embeddings."""
    digest = hashlib.sha256()
    digest.update(json.dumps(_layout_of(model), sort_keys=True).encode())
    digest.update(repr(getattr(model.visual, "preprocess_cfg", transform)).encode())
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _layout_of(model: OpenClipModule) -> dict[str, Any]:
    activations = sorted({type(m).__name__ for m in model.modules() if "GELU" in type(m).__name__})
    shapes = {k: [str(v.dtype), list(v.shape)] for k, v in model.state_dict().items()}
    return {"activations": activations, "tensors": shapes}
