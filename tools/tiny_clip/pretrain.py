"""Pretrain the `tiny` CLIP from scratch: `python -m tools.tiny_clip.pretrain --out DIR`.

Pictures and captions come from `corpus`, the layers from open_clip, the objective from CLIP
(Radford et al. 2021). Nothing is downloaded and no real image is used.
"""

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW, Optimizer, SparseAdam

from tools.tiny_clip.corpus import CAPTIONS_PER_PICTURE, Corpus, make_corpus
from tools.tiny_clip.render import IMAGE_SIZE

logger = logging.getLogger(__name__)

CONFIG_FILE: Final = "open_clip_config.json"
WEIGHTS_FILE: Final = "open_clip_model.safetensors"

MODEL_CONFIG: Final[dict[str, Any]] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "layers": [1, 1, 1, 1],  # a list selects CLIP's ResNet in open_clip
        "width": 12,
        "head_width": 64,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 4,
        "layers": 3,
    },
}
PREPROCESS_CONFIG: Final[dict[str, Any]] = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}

MAX_LOGIT_SCALE: Final = math.log(100.0)  # CLIP's own bound
WARMUP_SHARE: Final = 0.05  # of the training
ADAM_BETAS: Final = (0.9, 0.98)
LOG_EVERY: Final = 100  # steps


@dataclass(frozen=True)
class PretrainConfig:
    """Hyper-parameters of the pretraining."""

    #: Pictures generated once, before training.
    pictures: int = 40_000
    #: Optimizer steps.
    steps: int = 3_000
    #: Longest time spent on the steps, minutes; the learning rate reaches zero by then.
    minutes: float = 25.0
    batch_size: int = 128
    #: Peak of the cosine schedule.
    learning_rate: float = 2e-3
    #: Of matrices and kernels; embeddings and biases have none.
    weight_decay: float = 0.05
    seed: int = 0
    #: Processes that generate pictures.
    processes: int = 1


@dataclass(frozen=True)
class Batch:
    """Pictures and the distinct captions among theirs."""

    #: (b, 3, side, side), normalised.
    pictures: Tensor
    #: (u, t) token ids, u <= b.
    tokens: Tensor
    #: (b,), the caption of each picture, an index into `tokens`.
    caption_of: Tensor


def pretrain(config: PretrainConfig) -> open_clip.CLIP:
    """A model trained on a corpus generated for it."""
    started = time.monotonic()
    corpus = make_corpus(config.pictures, config.seed, config.processes)
    logger.info("generated %d pictures in %.0f s", len(corpus), time.monotonic() - started)
    model = build_model(config.seed).to(memory_format=torch.channels_last)
    _train(model, corpus, config)
    return model.eval()


def build_model(seed: int) -> open_clip.CLIP:
    """The untrained model. Its initial weights depend on `seed` alone."""
    # open_clip draws from torch's global generator, whose state is restored afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**MODEL_CONFIG)


def export(model: open_clip.CLIP, folder: Path) -> None:
    """Write the model in half precision as an open_clip `local-dir:` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)


def _train(model: open_clip.CLIP, corpus: Corpus, config: PretrainConfig) -> None:
    batches = _batches(corpus, _tokenise(corpus), config)
    optimizers = _make_optimizers(model, config)
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(batches):
        elapsed = (time.monotonic() - started) / 60.0
        progress = max(step / config.steps, elapsed / config.minutes)
        if progress >= 1.0:
            break
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = config.learning_rate * _schedule(progress)
        loss = _step(model, batch, optimizers)
        if step % LOG_EVERY == 0:
            scale = model.logit_scale.exp().item()
            logger.info("step %d, %.1f min: loss %.3f, scale %.1f", step, elapsed, loss, scale)


def _make_optimizers(model: open_clip.CLIP, config: PretrainConfig) -> list[Optimizer]:
    """Adam, sparse for the token table, so that rows of unused words do not change."""
    model.token_embedding.sparse = True
    table = model.token_embedding.weight
    dense = [parameter for parameter in model.parameters() if parameter is not table]
    groups = [
        {
            "params": [parameter for parameter in dense if parameter.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in dense if parameter.ndim <= 1],
            "weight_decay": 0.0,
        },
    ]
    return [AdamW(groups, betas=ADAM_BETAS), SparseAdam([table], betas=ADAM_BETAS)]


def _schedule(progress: float) -> float:
    """Fraction of the peak learning rate: linear warm-up, then half a cosine."""
    if progress < WARMUP_SHARE:
        return (progress + 1e-3) / WARMUP_SHARE
    return 0.5 * (1.0 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1.0 - WARMUP_SHARE)))


def _batches(corpus: Corpus, tokens: Tensor, config: PretrainConfig) -> Iterator[Batch]:
    """Infinite batches; each epoch has every picture once, with one of its captions."""
    generator = torch.Generator().manual_seed(config.seed)
    pictures = torch.from_numpy(corpus.pictures)
    size = min(config.batch_size, len(corpus))
    while True:
        order = torch.randperm(len(corpus), generator=generator)
        for rows in order[: len(order) // size * size].view(-1, size):
            chosen = torch.randint(CAPTIONS_PER_PICTURE, (size,), generator=generator)
            yield _make_batch(pictures[rows], tokens[rows, chosen])


def _tokenise(corpus: Corpus) -> Tensor:
    """Token ids of all captions, (n, CAPTIONS_PER_PICTURE, context length)."""
    tokenizer = open_clip.SimpleTokenizer()
    # Tokens do not cross spaces, and there are few different words, so encode each word once.
    encode = lru_cache(maxsize=None)(tokenizer.encode)
    length = MODEL_CONFIG["text_cfg"]["context_length"]
    tokens = torch.zeros(len(corpus), CAPTIONS_PER_PICTURE, length, dtype=torch.long)
    for picture, captions in enumerate(corpus.captions):
        for index, caption in enumerate(captions):
            ids = [token for word in caption.split() for token in encode(word)]
            sentence = [tokenizer.sot_token_id, *ids, tokenizer.eot_token_id]
            tokens[picture, index, : len(sentence)] = torch.tensor(sentence)
    return tokens


def _make_batch(pictures: Tensor, tokens: Tensor) -> Batch:
    distinct, caption_of = torch.unique(tokens, dim=0, return_inverse=True)
    longest = int((distinct != 0).sum(dim=1).max())
    pixels = _normalise(pictures).contiguous(memory_format=torch.channels_last)  # faster on CPU
    return Batch(pixels, distinct[:, :longest], caption_of)


def _normalise(pictures: Tensor) -> Tensor:
    mean = torch.tensor(PREPROCESS_CONFIG["mean"]).view(3, 1, 1)
    std = torch.tensor(PREPROCESS_CONFIG["std"]).view(3, 1, 1)
    return (pictures.permute(0, 3, 1, 2).float() / 255.0 - mean) / std


def _step(model: open_clip.CLIP, batch: Batch, optimizers: list[Optimizer]) -> float:
    loss = _contrastive_loss(model, batch)
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return loss.item()


def _contrastive_loss(model: open_clip.CLIP, batch: Batch) -> Tensor:
    """CLIP's loss, in which pictures with equal captions are positives of one another."""
    pictures: Tensor = functional.normalize(model.encode_image(batch.pictures), dim=-1)
    texts = functional.normalize(_encode_text(model, batch.tokens), dim=-1)
    logits = model.logit_scale.exp() * pictures @ texts.T  # (b, u)
    rows = torch.arange(len(pictures))
    find_text = -logits.log_softmax(dim=1)[rows, batch.caption_of].mean()
    find_picture = -logits.log_softmax(dim=0)[rows, batch.caption_of].mean()
    loss: Tensor = (find_text + find_picture) / 2
    return loss


def _encode_text(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text` for t <= 77 positions; exact, since attention is causal."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    end = tokens.argmax(dim=-1)  # end-of-text has the largest id
    last: Tensor = model.ln_final(hidden)[torch.arange(len(tokens)), end]
    projection: Tensor = model.text_projection
    return last @ projection


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    defaults = PretrainConfig()
    parser = argparse.ArgumentParser(description="Pretrain the tiny CLIP on generated pictures.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="time limit")
    parser.add_argument("--pictures", type=int, default=defaults.pictures)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; more than idle cores is far slower"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Pretrain with the options given on the command line and export the model."""
    options = _parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    config = PretrainConfig(
        pictures=options.pictures,
        steps=options.steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        seed=options.seed,
        processes=options.processes,
    )
    export(pretrain(config), options.out)
    logger.info("wrote %s", options.out)


if __name__ == "__main__":
    main()
