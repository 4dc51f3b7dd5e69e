"""What a tuned prompt is served with: the prompt, a head, or both; one matrix and one bias.

    logits = w (scale f T^T) + alpha (f W + b)

T is the hand-written prompt, the mean of its templates, or the tuned prompt. Weights, the penalty,
and what is served are chosen by the cross-entropy on images that the fit has not seen:

- `official`: the dataset's validation images.
- `holdout`: the images held out of the shots; the chosen head is then fitted again on all shots.
- `training`: too few shots to hold any out. Heads are cross-validated by leaving out one shot at a
  time. The tuned prompt was trained on all shots, so it is no candidate there.

The validation images have also chosen the tuned prompt. So each half of them judges the best prompt
of the other half (`HeadData.unbiased`).

`auto` serves the head `gda` unless another candidate is clearly better: its loss is lower by more
than `CLEARLY` standard errors of the difference, and its accuracy higher by more than one. The best
of many candidates on few images is mostly the luckiest one, and a lower loss may be no more than
better calibration.

With classes without images, the head `gda` is served alone: embeddings from two contexts in one
classifier are not comparable. See `extra_classes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.features import Features
from sharpzo_engine.heads.extra_classes import Calibration, add_offset, calibrate
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
#: Standard errors of a difference of losses beyond which it is not chance.
CLEARLY = 2.0
LEAST_JUDGED = 2  # of one image, a difference has no standard error
#: Logits used to choose a head; of more images an evenly spaced sample is taken.
MAX_LOGITS = 2**20

#: Rows of the comparison.
ZERO_SHOT, TEMPLATES, PROMPT = "zero-shot", "zero-shot, templates", "tuned prompt"
HEAD_ALONE, STACKED, WRITTEN_STACKED = "head alone", "prompt + head", "hand-written + head"
TIP_ADAPTER = "Tip-Adapter"
#: Candidates' names of the prompts.
NAMES = {ZERO_SHOT: "hand-written prompt", TEMPLATES: "templates", PROMPT: PROMPT}


@dataclass(frozen=True)
class HeadData:
    """The data that heads are fitted to and validated on, in main memory."""

    train: Features
    validation: Features
    source: str  #: source of the validation images, see `tuner.split_validation`
    prompt: LinearHead  #: the tuned prompt
    zero_shot: LinearHead  #: the hand-written prompt
    templates: LinearHead | None = None  #: mean of the templates' texts, if the encoder knows texts
    #: Logits [n, C] of the validation images by tuned prompts that they have not chosen.
    unbiased: Real | None = None
    unlabelled: Real | None = None  #: embeddings [U, E] of images without labels, for GDA
    extra_classes: int = 0  #: how many of the last classes have no images

    @property
    def classes(self) -> int:
        """C."""
        return len(self.prompt.bias)

    @property
    def texts(self) -> Real:
        """What the classes' names say [C, E]: half the hand-written prompt, half the templates."""
        written: Real = self.zero_shot.weights
        return written if self.templates is None else written + self.templates.weights

    @property
    def everything(self) -> Features:
        """The images that the chosen head is fitted to."""
        return _join(self.train, self.validation) if self.source == "holdout" else self.train

    def folds(self) -> Iterator[tuple[Features, Features]]:
        """Pairs of images to fit to and to validate on; none if there is only one shot."""
        if self.source != "training":
            yield self.train, self.validation[self._sample]
            return
        turn = self.train.turns()
        shots = int(turn.max()) + 1
        if shots > 1:
            for shot in range(shots):
                yield self.train[turn != shot], self.train[turn == shot]

    @property
    def prompts(self) -> dict[str, LinearHead]:
        """The prompts by their rows."""
        texts = {} if self.templates is None else {TEMPLATES: self.templates}
        return {ZERO_SHOT: self.zero_shot, **texts, PROMPT: self.prompt}

    def judged_prompts(self, images: Real) -> dict[str, Real]:
        """Logits [n, C] of the judged images by each prompt that did not see them."""
        found = {name: prompt.logits(images) for name, prompt in self.prompts.items()}
        del found[PROMPT]
        if self.unbiased is not None and self.source != "training":
            found[PROMPT] = self.unbiased[self._sample]
        return found

    @property
    def _sample(self) -> slice:
        """Evenly spaced validation images, which are ordered by class."""
        return slice(None, None, -(-len(self.validation) * self.classes // MAX_LOGITS))


Fit = Callable[[Features, HeadData], Head]


def _fit_gda(features: Features, data: HeadData) -> LinearHead:
    return fit_gda(features, data.classes, data.texts, data.unlabelled)


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


#: In `auto` the first is the default.
RECIPES: Mapping[str, tuple[Recipe, ...]] = {
    "gda": (Recipe("gda", _fit_gda),),
    "linear": tuple(Recipe("linear", partial(_fit_linear, penalty=p), p) for p in PENALTIES),
}
CACHES = tuple(Recipe("tip-adapter", partial(_fit_cache, sharpness=b), b) for b in SHARPNESSES)


@dataclass(frozen=True)
class Trial:
    """A candidate: a prompt, a head or both, with their weights and losses on unseen images."""

    prompt: str | None  #: the row of the prompt; None for a head alone
    recipe: Recipe | None  #: None for a prompt alone
    pool: Pool  #: weights of prompt and head, in this order

    @property
    def name(self) -> str:
        """`tuned prompt + gda`."""
        parts = [NAMES[self.prompt]] if self.prompt else []
        return " + ".join([*parts, self.recipe.kind] if self.recipe else parts)

    @property
    def loss(self) -> float:
        """Mean cross-entropy; infinite if nothing could be judged."""
        return self.pool.loss


@dataclass(frozen=True)
class Stack:
    """The classifier that an artifact contains."""

    name: str  #: see `Trial.name`
    kind: str  #: none, gda or linear
    head: LinearHead  #: matrix and bias, in float32
    alpha: float
    prompt_weight: float
    temperature: float  #: divides the logits for calibrated probabilities
    penalty: float | None

    @property
    def is_prompt(self) -> bool:
        """Whether it is the tuned prompt itself."""
        return self.name == PROMPT

    def describe(self) -> dict[str, float | str | None]:
        """Its entry in the artifact's metadata."""
        return {
            "name": self.name,
            "kind": self.kind,
            "alpha": self.alpha,
            "prompt_weight": self.prompt_weight,
            "temperature": self.temperature,
            "penalty": self.penalty,
        }


@dataclass(frozen=True)
class Candidate:
    """One line of `Choice`."""

    name: str
    loss: float  #: cross-entropy on the judged images
    accuracy: float  #: on the same images, a fraction
    difference: float | None  #: to the default's loss; None if the default says nothing
    standard_error: float | None  #: of the difference


@dataclass(frozen=True)
class Choice:
    """Why the served classifier was chosen."""

    reason: str
    images: int  #: that judged
    candidates: tuple[Candidate, ...] = ()  #: best first
    calibration: Calibration | None = None  #: of classes without images, if there are any

    def describe(self) -> dict[str, object]:
        """Its entry in the artifact's metadata."""
        found = asdict(self)
        if self.calibration is None:
            del found["calibration"]
        return found


@dataclass(frozen=True)
class Stacking:
    """The stack to serve, why, and all classifiers to compare it with."""

    served: Stack
    choice: Choice
    rows: Mapping[str, Head]


class _Validation:
    """Validates candidates on images that they have not seen."""

    def __init__(self, data: HeadData) -> None:
        self._data = data
        self._everything = data.everything
        self._fitted: dict[tuple[Recipe, int], Head] = {}
        self._folds = list(data.folds())
        self._judged = data.train[:0]
        for _, unseen in self._folds:
            self._judged = _join(self._judged, unseen)
        self._prompts = data.judged_prompts(self._judged.images)

    @property
    def images(self) -> int:
        """How many images judge."""
        return len(self._judged)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Rows of the prompts that can be judged."""
        return tuple(self._prompts) if self._folds else ()

    def alone(self, recipe: Recipe) -> Trial:
        """Judge a head without a prompt."""
        return Trial(None, recipe, self._pool(self._unseen(recipe)) if self._folds else NO_POOL)

    def prompt_alone(self, prompt: str) -> Trial:
        """Judge a prompt without a head."""
        known = prompt in self.prompts
        return Trial(prompt, None, self._pool(self._prompts[prompt]) if known else NO_POOL)

    def stacked(self, prompt: str, recipe: Recipe) -> Trial:
        """Judge both; use only one of them if the other does not improve it.

        A tuned prompt that cannot be judged is weighed as if it were the hand-written one.
        """
        if not self._folds:
            return Trial(prompt, recipe, NO_POOL)
        logits = self._prompts.get(prompt, self._prompts[ZERO_SHOT])
        pool = self._pool(logits, self._unseen(recipe))
        if pool.weights:
            return Trial(prompt, recipe, pool)
        return _best([Trial(prompt, None, self._pool(logits)), self.alone(recipe)])

    def finish(self, trial: Trial) -> Stack:
        """Fit to all images and add up; falls back to the tuned prompt if that is not finite."""
        prompt = self._data.prompts[trial.prompt or PROMPT]
        head = self._fitted_to_all(trial.recipe) if trial.recipe else None
        if not isinstance(head, LinearHead) or trial.recipe is None:
            # A prompt keeps its scale; the inverse of its weight is the temperature.
            temperature = 1 / trial.pool.weights[0] if trial.pool.weights else 1.0
            return Stack(trial.name, "none", prompt, 0.0, 1.0, temperature, None)
        weight, alpha, temperature = self._weights(trial, prompt, head)
        total = LinearHead(
            weight * prompt.weights + alpha * head.weights, weight * prompt.bias + alpha * head.bias
        )
        total = LinearHead(*total.in_float32())
        if not total.is_finite:
            return self.finish(self.prompt_alone(PROMPT))
        recipe = trial.recipe
        return Stack(trial.name, recipe.kind, total, alpha, weight, temperature, recipe.setting)

    def _weights(self, trial: Trial, prompt: LinearHead, head: Head) -> tuple[float, float, float]:
        """Weights of prompt and head, and the temperature.

        A head is scaled by its weight, which calibrates its probabilities; beside a prompt so that
        the prompt keeps its scale. What could not be judged gets the prompt's spread.
        """
        weights = trial.pool.weights
        if not weights:
            images = self._data.train.images
            alpha = spread(prompt.logits(images)) / (spread(head.logits(images)) or 1.0)
            return (1.0 if trial.prompt else 0.0), alpha, 1.0
        if not trial.prompt:
            return 0.0, weights[0], 1.0
        return 1.0, weights[1] / weights[0], 1 / weights[0]

    def tip_adapter(self) -> BlendedHead:
        """The cache model combined with the hand-written prompt, as published."""
        prompt = self._data.zero_shot
        trial = _best([self.stacked(ZERO_SHOT, recipe) for recipe in CACHES])
        if trial.prompt and not trial.recipe:
            return BlendedHead(prompt, 1.0, prompt, 0.0)
        head = self._fitted_to_all(trial.recipe or CACHES[0])
        weight, alpha, _ = self._weights(trial, prompt, head)
        return BlendedHead(prompt, weight, head, alpha)

    def _pool(self, *members: Real) -> Pool:
        return fit_pool(members, self._judged.labels)

    def _unseen(self, recipe: Recipe) -> Real:
        """Logits [n, C] of the judged images, from heads that have not seen them."""
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


def stack_heads(kind: str, data: HeadData) -> Stacking:
    """Choose, fit and stack; `kind` is `TuningConfig.head` (`none` serves the tuned prompt)."""
    rows: dict[str, Head] = dict(data.prompts)
    if data.extra_classes:
        served, choice = _with_extra_classes(data)
        return Stacking(served, choice, rows | {HEAD_ALONE: served.head})
    validation = _Validation(data)
    if kind == "none":
        choice = Choice("head is none, which asks for the tuned prompt alone", validation.images)
        return Stacking(validation.finish(validation.prompt_alone(PROMPT)), choice, rows)
    recipes = [r for name in RECIPES for r in RECIPES[name] if kind in (name, "auto")]
    alone = [validation.alone(recipe) for recipe in recipes]
    stacked = {p: [validation.stacked(p, recipe) for recipe in recipes] for p in data.prompts}
    trials = [*alone, *(trial for p in validation.prompts for trial in stacked[p])]
    if kind == "auto":
        trials += [validation.prompt_alone(p) for p in validation.prompts]
    default = alone[0] if kind == "auto" else _best(alone)
    trial, choice = _choose(default, trials, validation.images)
    served = validation.finish(trial)
    if served.name != trial.name:
        choice = replace(choice, reason=f"{served.name}: numbers of {trial.name} are not finite")
    rows |= {
        HEAD_ALONE: validation.finish(_best(alone)).head,
        STACKED: validation.finish(_best(stacked[PROMPT])).head,
        WRITTEN_STACKED: validation.finish(_best(stacked[ZERO_SHOT])).head,
        TIP_ADAPTER: validation.tip_adapter(),
    }
    return Stacking(served, choice, rows)


def _with_extra_classes(data: HeadData) -> tuple[Stack, Choice]:
    """The head `gda` for all classes, calibrated; falls back to the tuned prompt as `finish`."""
    classes = data.classes - data.extra_classes
    own = data.everything
    images = _join(own, data.validation) if data.source == "official" else own
    fitted = np.arange(len(images)) < len(own)
    calibration, weight = calibrate(images, fitted, classes, data.texts[:classes])
    head = _fit_gda(own, data)
    unit = spread(head.logits(own.images)[:, :classes]) or 1.0
    head = add_offset(head, classes, calibration.offset * unit)
    alpha = weight / unit  # calibrates the probabilities
    total = LinearHead(*LinearHead(alpha * head.weights, alpha * head.bias).in_float32())
    if not total.is_finite:
        reason = f"{PROMPT}: numbers of gda are not finite"
        return Stack(PROMPT, "none", data.prompt, 0.0, 1.0, 1.0, None), Choice(reason, 0)
    reason = (
        f"gda: the only head for classes without images, of which there are {data.extra_classes}; "
        f"their offset was found by leaving out halves of the {classes} other classes"
    )
    served = Stack("gda", "gda", total, alpha, 0.0, 1.0, None)
    return served, Choice(reason, len(images), calibration=calibration)


def _choose(default: Trial, trials: Sequence[Trial], images: int) -> tuple[Trial, Choice]:
    """The clearly better trial of the lowest loss; the default if there is none."""
    judged = sorted((trial for trial in trials if trial.pool.weights), key=lambda t: t.loss)
    if not judged or images < LEAST_JUDGED:
        reason = f"{default.name}: no images are left to compare candidates on"
        return default, Choice(reason, images)
    unique = {trial.name: trial for trial in reversed(judged)}  # of one kind, the best
    lines = tuple(_candidate(trial, default) for trial in reversed(unique.values()))
    for trial in judged:
        if _is_clearly_better(trial, default):
            reason = f"{trial.name}: clearly better than {default.name} on {images} images"
            return trial, Choice(reason, images, lines)
    reason = f"{default.name}: nothing is clearly better on {images} images"
    return default, Choice(reason, images, lines)


def _is_clearly_better(trial: Trial, default: Trial) -> bool:
    if not default.pool.weights:
        return True  # it tells no class from another
    lower, error = _paired(default.pool.losses, trial.pool.losses)
    more, spread_of_more = _paired(trial.pool.right, default.pool.right)
    return lower > CLEARLY * error and more > spread_of_more


def _candidate(trial: Trial, default: Trial) -> Candidate:
    right = float(trial.pool.right.mean())
    if not default.pool.weights:
        return Candidate(trial.name, trial.loss, right, None, None)
    difference, error = _paired(trial.pool.losses, default.pool.losses)
    return Candidate(trial.name, trial.loss, right, difference, error)


def _paired(one: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """Mean difference of values of the same images [n], n > 1, and its standard error."""
    apart = one.astype(np.float64) - other
    return float(apart.mean()), float(apart.std(ddof=1)) / math.sqrt(len(apart))


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
