"""A head stacked on the tuned prompt: still one matrix and one bias.

    logits = scale f T^T + alpha (f W + b)

Everything that is chosen, alpha, the penalty and whether there is a head at all, is chosen by the
cross-entropy of images that the fit has not seen:

- `official`: the dataset's validation images.
- `holdout`: the images held out of the shots; the chosen head is then fitted again on all shots.
- `training`: too few shots to hold any out. Heads are fitted with one shot left out, on which they
  are judged, in turn; the tuned prompt has learned from all of them, so the hand-written one, which
  has learned from none, stands in for it. With one shot nothing is left to judge on: GDA is stacked
  with logits as widely spread as the prompt's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sharpzo_engine.clip.features import Features
from sharpzo_engine.heads.fitting import (
    ROWS,
    BlendedHead,
    CacheHead,
    Head,
    LinearHead,
    fit_gda,
    fit_linear,
)
from sharpzo_engine.heads.pooling import NO_POOL, Pool, fit_pool, spread

#: L2 penalties that logistic regression is tried with, on L2-normalised features.
PENALTIES = (0.1, 1.0)
#: Sharpnesses that Tip-Adapter is tried with; the first is the published default.
SHARPNESSES = (5.5, 1.0, 2.0, 10.0, 20.0)
#: Logits that choosing looks at: of more images than these allow, evenly spaced ones.
MAX_LOGITS = 2**20

ZERO_SHOT, PROMPT = "zero-shot", "tuned prompt"
HEAD_ALONE, STACKED, TIP_ADAPTER = "head alone", "prompt + head", "Tip-Adapter"

Fit = Callable[[Features, int], Head]


@dataclass(frozen=True)
class Material:
    """What heads are fitted to, and on what they are judged; all of it in main memory."""

    train: Features
    validation: Features
    source: str  #: where the validation images come from, see `tuner.split_validation`
    prompt: LinearHead  #: the tuned prompt
    zero_shot: LinearHead  #: the hand-written prompt

    @property
    def classes(self) -> int:
        """C."""
        return len(self.prompt.bias)

    @property
    def everything(self) -> Features:
        """All images that a head may be fitted to in the end."""
        return _join(self.train, self.validation) if self.source == "holdout" else self.train

    def folds(self) -> Iterator[tuple[Features, Features]]:
        """Pairs of images to fit to and images to judge on; none with one shot in all."""
        if self.source != "training":
            yield self.train, _thinned(self.validation, self.classes)
            return
        turn = _turns(self.train.labels)
        shots = int(turn.max()) + 1
        if shots > 1:
            for shot in range(shots):
                yield _where(self.train, turn != shot), _where(self.train, turn == shot)


@dataclass(frozen=True)
class Recipe:
    """A head that can be tried."""

    kind: str
    fit: Fit
    setting: float | None = None  #: penalty or sharpness


GDA = Recipe("gda", fit_gda)
RECIPES: Mapping[str, tuple[Recipe, ...]] = {
    "none": (),
    "gda": (GDA,),
    "linear": tuple(Recipe("linear", partial(fit_linear, penalty=p), p) for p in PENALTIES),
}


def _fit_cache(features: Features, classes: int, sharpness: float) -> CacheHead:
    return CacheHead(features, classes, sharpness)


CACHES = tuple(Recipe("tip-adapter", partial(_fit_cache, sharpness=b), b) for b in SHARPNESSES)


@dataclass(frozen=True)
class Trial:
    """A recipe with its weights, and how it did on unseen images."""

    recipe: Recipe | None  #: None for the prompt alone
    prompt_weight: float  #: 1, or 0 for the head alone
    alpha: float | None  #: weight of the head's logits; None to spread them as the prompt's
    temperature: float
    loss: float  #: cross-entropy at that temperature; infinite if it is out of the question


@dataclass(frozen=True)
class Stack:
    """What an artifact answers with."""

    kind: str  #: none, gda or linear
    head: LinearHead  #: matrix and bias, in float32
    alpha: float
    prompt_weight: float
    temperature: float  #: divides the logits where probabilities are to be calibrated
    penalty: float | None

    def describe(self) -> dict[str, float | str | None]:
        """What the artifact's metadata says of it."""
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "prompt_weight": self.prompt_weight,
            "temperature": self.temperature,
            "penalty": self.penalty,
        }


@dataclass(frozen=True)
class Stacking:
    """The stack to serve, and every classifier to compare it with."""

    served: Stack
    rows: Mapping[str, Head]


class _Bench:
    """Tries recipes on images that they have not seen."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._everything = material.everything
        self._fitted: dict[tuple[Recipe, int], Head] = {}
        self._folds = list(material.folds())
        judged = [unseen for _, unseen in self._folds] or [material.train]
        self._judged = Features(
            torch.cat([part.images for part in judged]), torch.cat([part.labels for part in judged])
        )
        stands_in = material.source == "training"
        self._prompt = material.zero_shot if stands_in else material.prompt

    def prompt_alone(self) -> Trial:
        """No head."""
        if not self._folds:
            return _of_prompt(None, NO_POOL)
        return _of_prompt(None, self._pool(self._prompt.logits(self._judged.images)))

    def stacked(self, recipe: Recipe, prompt: LinearHead | None = None) -> Trial:
        """A head beside a prompt, the tuned one or another."""
        if not self._folds:
            return Trial(recipe, 1.0, None, 1.0, 0.0)
        logits = (prompt or self._prompt).logits(self._judged.images)
        return self._beside(recipe, logits, self._unseen(recipe))

    def alone(self, recipe: Recipe) -> Trial:
        """A head without the prompt."""
        if not self._folds:
            return _of_head(recipe, NO_POOL)
        return _of_head(recipe, self._pool(self._unseen(recipe)))

    def _beside(self, recipe: Recipe, prompt: Tensor, head: Tensor) -> Trial:
        """Both weighed; one of them alone, if the other only does harm."""
        pool = self._pool(prompt, head)
        if not pool.weights:
            return _best(
                [_of_prompt(recipe, self._pool(prompt)), _of_head(recipe, self._pool(head))]
            )
        first, second = pool.weights
        return Trial(recipe, 1.0, second / first, 1 / first, pool.loss)

    def finish(self, trial: Trial) -> Stack:
        """Fit to everything and add up; a sum that is not finite leaves the prompt alone."""
        prompt = self._material.prompt
        head = self._fitted_to_all(trial.recipe) if trial.recipe else None
        if trial.recipe is None or not isinstance(head, LinearHead):
            return Stack("none", prompt, 0.0, 1.0, trial.temperature, None)
        alpha = self._alpha(trial, prompt, head)
        weight, recipe = trial.prompt_weight, trial.recipe
        total = LinearHead(
            (weight * prompt.weights + alpha * head.weights).float(),
            (weight * prompt.bias + alpha * head.bias).float(),
        )
        if not total.is_finite:
            return self.finish(self.prompt_alone())
        return Stack(recipe.kind, total, alpha, weight, trial.temperature, recipe.setting)

    def tip_adapter(self) -> BlendedHead:
        """The cache model beside the hand-written prompt, as published."""
        prompt = self._material.zero_shot
        trial = _best([self.stacked(recipe, prompt) for recipe in CACHES])
        head = self._fitted_to_all(trial.recipe or CACHES[0])
        return BlendedHead(prompt, trial.prompt_weight, head, self._alpha(trial, prompt, head))

    def _pool(self, *members: Tensor) -> Pool:
        return fit_pool(members, self._judged.labels)

    def _unseen(self, recipe: Recipe) -> Tensor:
        """Logits [n, C] of the judged images, from heads that have not seen them."""
        return torch.cat(
            [self._fit(recipe, seen).logits(judged.images) for seen, judged in self._folds]
        )

    def _fitted_to_all(self, recipe: Recipe) -> Head:
        return self._fit(recipe, self._everything)

    def _fit(self, recipe: Recipe, features: Features) -> Head:
        key = (recipe, id(features))
        if key not in self._fitted:
            self._fitted[key] = recipe.fit(features, self._material.classes)
        return self._fitted[key]

    def _alpha(self, trial: Trial, prompt: LinearHead, head: Head) -> float:
        if trial.alpha is not None:
            return trial.alpha
        images = self._material.train.images
        return spread(prompt.logits(images)) / (spread(head.logits(images)) or 1.0)


def _of_prompt(recipe: Recipe | None, pool: Pool) -> Trial:
    """A prompt keeps its scale; what the pool says is its temperature."""
    weight = pool.weights[0] if pool.weights else 1.0
    return Trial(recipe, 1.0, 0.0, 1 / weight, pool.loss)


def _of_head(recipe: Recipe, pool: Pool) -> Trial:
    """A head has no scale of its own; the pool's makes its probabilities calibrated."""
    return Trial(recipe, 0.0, pool.weights[0] if pool.weights else 1.0, 1.0, pool.loss)


def stack_heads(kind: str, material: Material) -> Stacking:
    """Choose, fit and stack; `kind` is `TuningConfig.head`. Without a head nothing is fitted."""
    bench = _Bench(material)
    plain = {ZERO_SHOT: material.zero_shot, PROMPT: material.prompt}
    if kind == "none":
        return Stacking(bench.finish(bench.prompt_alone()), plain)
    recipes = [r for name in RECIPES for r in RECIPES[name] if kind in (name, "auto")]
    stacked = [bench.stacked(recipe) for recipe in recipes]
    alone = [bench.alone(recipe) for recipe in recipes]
    none = [bench.prompt_alone()] if kind == "auto" else []
    served = bench.finish(_best([*none, *stacked, *alone]))
    rows: dict[str, Head] = {
        **plain,
        HEAD_ALONE: bench.finish(_best(alone)).head,
        STACKED: bench.finish(_best(stacked)).head,
        TIP_ADAPTER: bench.tip_adapter(),
    }
    return Stacking(served, rows)


def accuracy(head: Head, features: Features) -> float:
    """Fraction of images labelled right."""
    chunks = zip(features.images.split(ROWS), features.labels.split(ROWS), strict=True)
    right = sum(int((head.logits(images).argmax(1) == labels).sum()) for images, labels in chunks)
    return right / len(features)


def _best(trials: Sequence[Trial]) -> Trial:
    """The lowest loss; of equals the first, which is the simplest."""
    return min(trials, key=lambda trial: trial.loss)


def _join(first: Features, second: Features) -> Features:
    return Features(
        torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    )


def _where(features: Features, chosen: Tensor) -> Features:
    return Features(features.images[chosen], features.labels[chosen])


def _thinned(features: Features, classes: int) -> Features:
    """Evenly spaced images, which come class by class."""
    step = -(-len(features) * classes // MAX_LOGITS)
    return Features(features.images[::step], features.labels[::step])


def _turns(labels: Tensor) -> Tensor:
    """How many images of the same class come before each [N]."""
    so_far = functional.one_hot(labels).cumsum(0)  # [N, C]
    return so_far.gather(1, labels[:, None])[:, 0] - 1
