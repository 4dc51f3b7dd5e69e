"""A head stacked on the tuned prompt; the result is one matrix and one bias.

    logits = scale f T^T + alpha (f W + b)

Alpha, the penalty, and whether there is a head at all are chosen by the cross-entropy on images
that the fit has not seen:

- `official`: the dataset's validation images.
- `holdout`: the images held out of the shots; the chosen head is then fitted again on all shots.
- `training`: too few shots to hold any out. Heads are cross-validated by leaving out one shot at a
  time. The tuned prompt was trained on all shots, so the hand-written prompt takes its place there.

The validation images also chose the prompt. With few of them that makes the prompt look much better
than it is, so below `MIN_JUDGED` per class nothing is weighed: the answer is GDA, whose means are
drawn towards the classes' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.features import Features
from sharpzo_engine.heads.fitting import (
    ROWS,
    BlendedHead,
    CacheHead,
    Head,
    LinearHead,
    Real,
    fit_gda,
    fit_linear,
)
from sharpzo_engine.heads.pooling import NO_POOL, Pool, fit_pool, spread

#: L2 penalties to try for logistic regression on L2-normalised features.
PENALTIES = (0.1, 1.0)
#: Sharpnesses to try for Tip-Adapter; the first is the published default.
SHARPNESSES = (5.5, 1.0, 2.0, 10.0, 20.0)
#: Validation images per class below which classifiers are not weighed.
MIN_JUDGED = 4
#: Logits used to choose a head; of more images an evenly spaced sample is taken.
MAX_LOGITS = 2**20

ZERO_SHOT, PROMPT = "zero-shot", "tuned prompt"
HEAD_ALONE, STACKED, TIP_ADAPTER = "head alone", "prompt + head", "Tip-Adapter"


@dataclass(frozen=True)
class HeadData:
    """The data that heads are fitted to and validated on, in main memory."""

    train: Features
    validation: Features
    source: str  #: source of the validation images, see `tuner.split_validation`
    prompt: LinearHead  #: the tuned prompt
    zero_shot: LinearHead  #: the hand-written prompt

    @property
    def classes(self) -> int:
        """C."""
        return len(self.prompt.bias)

    @property
    def everything(self) -> Features:
        """The images that the chosen head is fitted to."""
        return _join(self.train, self.validation) if self.source == "holdout" else self.train

    def folds(self) -> Iterator[tuple[Features, Features]]:
        """Pairs of images to fit to and to validate on; none if there is only one shot."""
        if self.source != "training":
            yield self.train, _thinned(self.validation, self.classes)
            return
        turn = _turns(self.train.labels)
        shots = int(turn.max()) + 1
        if shots > 1:
            for shot in range(shots):
                yield self.train[turn != shot], self.train[turn == shot]


Fit = Callable[[Features, HeadData], Head]


def _fit_gda(features: Features, data: HeadData) -> LinearHead:
    return fit_gda(features, data.classes, data.zero_shot.weights)


def _fit_linear(features: Features, data: HeadData, penalty: float) -> LinearHead:
    return fit_linear(features, data.classes, penalty)


def _fit_cache(features: Features, data: HeadData, sharpness: float) -> CacheHead:
    return CacheHead(features, data.classes, sharpness)


@dataclass(frozen=True)
class Recipe:
    """A kind of head with its setting."""

    kind: str
    fit: Fit
    setting: float | None = None  #: penalty or sharpness


GDA = Recipe("gda", _fit_gda)
RECIPES: Mapping[str, tuple[Recipe, ...]] = {
    "none": (),
    "gda": (GDA,),
    "linear": tuple(Recipe("linear", partial(_fit_linear, penalty=p), p) for p in PENALTIES),
}


CACHES = tuple(Recipe("tip-adapter", partial(_fit_cache, sharpness=b), b) for b in SHARPNESSES)


@dataclass(frozen=True)
class Trial:
    """A recipe with its weights, and its loss on unseen images."""

    recipe: Recipe | None  #: None for the prompt alone
    prompt_weight: float  #: 1, or 0 for the head alone
    alpha: float | None  #: weight of the head's logits; None gives them the prompt's spread
    temperature: float
    loss: float  #: cross-entropy at that temperature; infinite if the trial failed


@dataclass(frozen=True)
class Stack:
    """The classifier that an artifact contains."""

    kind: str  #: none, gda or linear
    head: LinearHead  #: matrix and bias, in float32
    alpha: float
    prompt_weight: float
    temperature: float  #: divides the logits for calibrated probabilities
    penalty: float | None

    def describe(self) -> dict[str, float | str | None]:
        """Its entry in the artifact's metadata."""
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "prompt_weight": self.prompt_weight,
            "temperature": self.temperature,
            "penalty": self.penalty,
        }


@dataclass(frozen=True)
class Stacking:
    """The stack to serve, and all classifiers to compare it with."""

    served: Stack
    rows: Mapping[str, Head]


class _Validation:
    """Validates recipes on images that they have not seen."""

    def __init__(self, data: HeadData) -> None:
        self._data = data
        self._everything = data.everything
        self._fitted: dict[tuple[Recipe, int], Head] = {}
        self._folds = list(data.folds())
        judged = [unseen for _, unseen in self._folds] or [data.train]
        self._judged = Features(
            np.concatenate([part.images for part in judged]),
            np.concatenate([part.labels for part in judged]),
        )
        stands_in = data.source == "training"
        self._prompt = data.zero_shot if stands_in else data.prompt

    @property
    def is_small(self) -> bool:
        """Whether there are too few images to weigh classifiers by."""
        return len(self._judged) < MIN_JUDGED * self._data.classes

    def prompt_alone(self) -> Trial:
        """Score the prompt without a head."""
        if not self._folds:
            return _of_prompt(None, NO_POOL)
        return _of_prompt(None, self._pool(self._prompt.logits(self._judged.images)))

    def stacked(self, recipe: Recipe, prompt: LinearHead | None = None) -> Trial:
        """Score a head combined with a prompt (by default the tuned one)."""
        if not self._folds:
            return Trial(recipe, 1.0, None, 1.0, 0.0)
        logits = (prompt or self._prompt).logits(self._judged.images)
        return self._beside(recipe, logits, self._unseen(recipe))

    def alone(self, recipe: Recipe) -> Trial:
        """Score a head without the prompt."""
        if not self._folds:
            return _of_head(recipe, NO_POOL)
        return _of_head(recipe, self._pool(self._unseen(recipe)))

    def _beside(self, recipe: Recipe, prompt: Real, head: Real) -> Trial:
        """Weigh both; use only one of them if the other does not improve it."""
        pool = self._pool(prompt, head)
        if not pool.weights:
            return _best(
                [_of_prompt(recipe, self._pool(prompt)), _of_head(recipe, self._pool(head))]
            )
        first, second = pool.weights
        return Trial(recipe, 1.0, second / first, 1 / first, pool.loss)

    def finish(self, trial: Trial) -> Stack:
        """Fit to all images and add up; falls back to the prompt if the sum is not finite."""
        prompt = self._data.prompt
        head = self._fitted_to_all(trial.recipe) if trial.recipe else None
        if trial.recipe is None or not isinstance(head, LinearHead):
            return Stack("none", prompt, 0.0, 1.0, trial.temperature, None)
        alpha = self._alpha(trial, prompt, head)
        weight, recipe = trial.prompt_weight, trial.recipe
        total = LinearHead(
            weight * prompt.weights + alpha * head.weights, weight * prompt.bias + alpha * head.bias
        )
        total = LinearHead(*total.in_float32())
        if not total.is_finite:
            return self.finish(self.prompt_alone())
        return Stack(recipe.kind, total, alpha, weight, trial.temperature, recipe.setting)

    def tip_adapter(self) -> BlendedHead:
        """The cache model combined with the hand-written prompt, as published."""
        prompt = self._data.zero_shot
        trial = _best([self.stacked(recipe, prompt) for recipe in CACHES])
        head = self._fitted_to_all(trial.recipe or CACHES[0])
        return BlendedHead(prompt, trial.prompt_weight, head, self._alpha(trial, prompt, head))

    def _pool(self, *members: Real) -> Pool:
        return fit_pool(members, self._judged.labels)

    def _unseen(self, recipe: Recipe) -> Real:
        """Logits [n, C] of the validation images, from heads that have not seen them."""
        return np.concatenate(
            [self._fit(recipe, seen).logits(judged.images) for seen, judged in self._folds]
        )

    def _fitted_to_all(self, recipe: Recipe) -> Head:
        return self._fit(recipe, self._everything)

    def _fit(self, recipe: Recipe, features: Features) -> Head:
        key = (recipe, id(features))
        if key not in self._fitted:
            self._fitted[key] = recipe.fit(features, self._data)
        return self._fitted[key]

    def _alpha(self, trial: Trial, prompt: LinearHead, head: Head) -> float:
        if trial.alpha is not None:
            return trial.alpha
        images = self._data.train.images
        return spread(prompt.logits(images)) / (spread(head.logits(images)) or 1.0)


def _of_prompt(recipe: Recipe | None, pool: Pool) -> Trial:
    """A prompt keeps its scale; the inverse of its pool weight is the temperature."""
    weight = pool.weights[0] if pool.weights else 1.0
    return Trial(recipe, 1.0, 0.0, 1 / weight, pool.loss)


def _of_head(recipe: Recipe, pool: Pool) -> Trial:
    """A head is scaled by its pool weight, which calibrates its probabilities."""
    return Trial(recipe, 0.0, pool.weights[0] if pool.weights else None, 1.0, pool.loss)


def stack_heads(kind: str, data: HeadData) -> Stacking:
    """Choose, fit and stack a head; `kind` is `TuningConfig.head` (`none` fits nothing)."""
    validation = _Validation(data)
    plain = {ZERO_SHOT: data.zero_shot, PROMPT: data.prompt}
    if kind == "none":
        return Stacking(validation.finish(validation.prompt_alone()), plain)
    recipes = [r for name in RECIPES for r in RECIPES[name] if kind in (name, "auto")]
    stacked = [validation.stacked(recipe) for recipe in recipes]
    alone = [validation.alone(recipe) for recipe in recipes]
    none = [validation.prompt_alone()] if kind == "auto" else []
    if kind == "auto" and validation.is_small:
        served = validation.finish(validation.alone(GDA))
    else:
        served = validation.finish(_best([*none, *stacked, *alone]))
    rows: dict[str, Head] = {
        **plain,
        HEAD_ALONE: validation.finish(_best(alone)).head,
        STACKED: validation.finish(_best(stacked)).head,
        TIP_ADAPTER: validation.tip_adapter(),
    }
    return Stacking(served, rows)


def accuracy(head: Head, features: Features) -> float:
    """Fraction of images that are classified correctly."""
    chunks = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
    right = sum(int((head.logits(c.images).argmax(1) == c.labels).sum()) for c in chunks)
    return right / len(features)


def _best(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest loss; on ties the first, which is the simplest."""
    return min(trials, key=lambda trial: trial.loss)


def _join(first: Features, second: Features) -> Features:
    return Features(
        np.concatenate([first.images, second.images]), np.concatenate([first.labels, second.labels])
    )


def _thinned(features: Features, classes: int) -> Features:
    """An evenly spaced sample; images are ordered by class."""
    step = -(-len(features) * classes // MAX_LOGITS)
    return features[::step]


def _turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of earlier images of the same class, for each image [N]."""
    turns = np.empty_like(labels)
    for label in np.unique(labels):
        own = labels == label
        turns[own] = np.arange(own.sum())
    return turns
