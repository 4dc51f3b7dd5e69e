"""Stage 2 for objectives with visible outputs: Gauss-Newton with forward passes.

The loss is L(w) = l(T(w)), with an expensive T that only allows forward passes (the text encoder,
which returns class embeddings), and a cheap, known l (their cross-entropy on the image features). A
pass that returns T instead of L gives thousands of numbers instead of one. Each step:

    U:  orthonormal directions [q, d]: the model's gradient, the last steps, coordinates in turn
    D = T'(w) U^T                                  tangents, q forward passes
    J <- J + (D - J U^T) U                         block Broyden update; J estimates T'(w)
    g = J^T l'(T),   H = J^T l''(T) J              Gauss-Newton model of L, no pass
    s = -(H + lambda I)^-1 g                       Levenberg-Marquardt step
    J <- J + [T(w + s) - T(w) - J s] s^T / |s|^2   Broyden's secant update, 1 forward pass
    w <- w + s if the loss falls; lambda follows the ratio of actual to predicted decrease

If all d tangents were computed in every step, J would equal T'(w). Computing q of them, including
those along the last steps, converges nearly as fast with d / q times fewer passes (docs/method.md
has the measurement). If J would take too much memory, only a random subset of the coordinates is
active at a time.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.config import ZoConfig
from sharpzo_engine.errors import CheckpointError, ConfigError
from sharpzo_engine.randomness import dump_state, load_state
from sharpzo_engine.search.gradients import BlackBox
from sharpzo_engine.search.stages.stage import Descent, StageState, StepOutcome

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

#: Numbers in J (floats): 128 MiB. If J would be larger, fewer coordinates are active at a time.
MAX_JACOBIAN = 2**25
#: Rounds through the active coordinates before another subset becomes active.
ROUNDS_PER_SUBSET = 4
#: Trial steps, with growing damping, before new tangents are computed.
TRIALS = 4
#: Consecutive steps without a decrease, after which the limit of float32 is reached.
FRUITLESS_STEPS = 8
_DAMPING_RANGE = (1e-8, 1e8)
_TINY = 1e-12


@runtime_checkable
class Composite(Protocol):
    """An objective L(w) = l(T(w)) that returns T, flattened to O numbers."""

    def __call__(self, points: Array) -> Array:
        """Points [n, d] -> losses [n]."""
        ...

    def outputs(self, points: Array) -> Floats:
        """T at points [n, d] -> [n, O]; n forward passes."""
        ...

    def tangents(self, point: Array, directions: Array) -> Floats:
        """T'(w) u_j at `point` [d] for `directions` [q, d] -> [q, O]; about q forward passes."""
        ...

    def outer_loss(self, outputs: Floats) -> float:
        """L of one T [O]; no pass."""
        ...

    def quadratic_model(self, outputs: Floats, jacobian: Floats) -> tuple[Array, Array]:
        """J l'(T) [k] and J l''(T) J^T [k, k] for T [O] and the rows of `jacobian` [k, O]."""
        ...


class GaussNewton(Descent):
    """One run of stage 2, a step at a time."""

    def __init__(
        self, config: ZoConfig, start: Array, rng: np.random.Generator, horizon: int
    ) -> None:
        """Start at `start` [d] and end after `horizon` steps."""
        self._config = config
        self._rng = rng
        super().__init__(start, horizon)
        self._outputs = np.empty(0, np.float32)
        self._loss = math.nan
        self._damping = config.damping
        self._fruitless = 0
        self._jacobian = np.empty((0, 0), np.float32)
        self._active = np.empty(0, np.intp)
        self._turn = 0
        self._gradient = np.empty(0)
        self._recent: list[Array] = []
        self._slack = 0.0  # difference of two losses that noise explains

    @property
    def exhausted(self) -> bool:
        """Whether the horizon is reached, or steps no longer lower the loss."""
        return super().exhausted or self._fruitless >= FRUITLESS_STEPS

    @property
    def passes_per_step(self) -> int:
        """Upper bound on the evaluations of the next step."""
        return 2 + self._config.queries + TRIALS

    def step(self, objective: BlackBox) -> StepOutcome:
        """Update the model along q directions and take the step that minimises it.

        Raises:
            ConfigError: the objective does not return its outputs.
        """
        if not isinstance(objective, Composite):
            raise ConfigError(
                "zo.optimizer gauss-newton needs an objective with outputs (use sgd or adam)"
            )
        if not self._outputs.size:
            self._outputs = objective.outputs(self._point[None])[0]
            self._loss = objective.outer_loss(self._outputs)
        self._choose_active()
        self._learn(objective)
        model = objective.quadratic_model(self._outputs, self._jacobian)
        moved = any(self._try_step(objective, *model) for _ in range(TRIALS))
        self._fruitless = 0 if moved else self._fruitless + 1
        self._steps += 1
        return StepOutcome(loss=self._loss)

    def _choose_active(self) -> None:
        """Draw a new subset of coordinates and reset the model when the current one is done."""
        dim = self._point.size
        size = min(dim, max(self._config.queries, MAX_JACOBIAN // self._outputs.size))
        stuck = self._fruitless == FRUITLESS_STEPS // 2  # other coordinates may still help
        over = size < dim and (stuck or self._turn >= ROUNDS_PER_SUBSET * size)
        if self._active.size and not over:
            return
        self._active = np.sort(self._rng.permutation(dim)[:size])
        self._jacobian = np.zeros((size, self._outputs.size), np.float32)
        self._turn, self._gradient, self._recent = 0, np.empty(0), []

    def _learn(self, objective: Composite) -> None:
        """Compute tangents along the step's directions and update J with them."""
        directions = self._directions()
        tangents = objective.tangents(self._point, self._spread(directions))
        # Tangents that overflow are not usable.
        known = np.isfinite(tangents).all(1)
        self._correct(directions[known], tangents[known])

    def _directions(self) -> Array:
        """U [q, k], orthonormal, in active coordinates."""
        size = self._active.size
        chosen = [self._gradient] if self._gradient.size else []
        chosen += self._recent
        count = min(self._config.queries, size)
        coordinates = (self._turn + np.arange(max(1, count - len(chosen)))) % size
        self._turn += coordinates.size
        unit = np.zeros((coordinates.size, size))
        unit[np.arange(coordinates.size), coordinates] = 1.0
        frame, _ = np.linalg.qr(np.vstack([unit, *chosen])[:count].T)
        return np.ascontiguousarray(frame.T)

    def _correct(
        self, directions: NDArray[np.floating], tangents: NDArray[np.floating], error: float = 0.0
    ) -> None:
        """J <- J + a (D - J U^T) U for orthonormal rows U [q, k], in the layout [k, O].

        a = max(0, 1 - error / |D - J u|^2) in each row: the part of the news that is not explained
        by the tangents' `error` E |D - T'u|^2 (James-Stein shrinkage); 1 for exact tangents.
        """
        rows = directions.astype(np.float32)
        news = tangents - rows @ self._jacobian
        if error:
            known = 1 - error / np.maximum(np.square(news).sum(1, keepdims=True), _TINY)
            news *= np.maximum(known, 0).astype(np.float32)
        self._jacobian += rows.T @ news

    def _try_step(self, objective: Composite, gradient: Array, hessian: Array) -> bool:
        """Try a step; accept it if the loss decreases, and update the model in any case."""
        damped = hessian + self._damping * np.eye(gradient.size)
        step = -np.linalg.solve(damped, gradient).astype(np.float64)
        length = float(np.linalg.norm(step))
        if not 0 < length < math.inf:
            return False
        trial = self._point + self._spread(step[None])[0]
        outputs = self._outputs_at(objective, trial)
        loss = objective.outer_loss(outputs)
        if not np.isfinite(outputs).all() or math.isnan(loss):
            self._set_damping(10.0)
            return False
        secant = (outputs - self._outputs)[None] / np.float32(length)
        self._correct(step[None] / length, secant, self._secant_error(length))
        predicted = -float(gradient @ step + 0.5 * step @ hessian @ step)
        self._follow((self._loss - loss + self._slack) / max(predicted + self._slack, _TINY))
        if not loss < self._loss + self._slack:
            return False
        self._point, self._outputs, self._loss = trial, outputs, loss
        self._gradient = gradient / (np.linalg.norm(gradient) + _TINY)
        self._remember(step / length)
        return True

    def _outputs_at(self, objective: Composite, point: Array) -> Floats:
        """T [O] at a point [d]."""
        found: Floats = objective.outputs(point[None])[0]
        return found

    def _secant_error(self, length: float) -> float:  # noqa: ARG002 - exact outputs have none
        """E |(T(w + s) - T(w)) / |s| - the exact secant|^2 for a step of this length."""
        return 0.0

    def _remember(self, direction: Array) -> None:
        recent = [*self._recent, direction]
        self._recent = recent[max(0, len(recent) - self._config.memory) :]

    def _follow(self, ratio: float) -> None:
        """Lower the damping if the model predicted well, raise it if not."""
        if ratio > 0.75:
            self._set_damping(0.5)
        elif ratio < 0.25:
            self._set_damping(3.0)

    def _set_damping(self, factor: float) -> None:
        self._damping = float(np.clip(self._damping * factor, *_DAMPING_RANGE))

    def _spread(self, active: Array) -> Array:
        """Rows [n, k] in active coordinates -> [n, d], zero elsewhere."""
        spread = np.zeros((len(active), self._point.size))
        spread[:, self._active] = active
        return spread

    def state(self) -> StageState:
        """Everything needed to continue."""
        recent = np.array(self._recent).reshape(len(self._recent), self._active.size)
        return StageState(
            arrays={
                "point": self._point,
                "outputs": self._outputs,
                "jacobian": self._jacobian.copy(),  # it is updated in place
                "active": self._active,
                "gradient": self._gradient,
                "recent": recent,
            },
            scalars={
                "loss": None if math.isnan(self._loss) else self._loss,
                "damping": self._damping,
                "steps": self._steps,
                "fruitless": self._fruitless,
                "turn": self._turn,
                "horizon": self._horizon,
                "rng": dump_state(self._rng),
            },
        )

    def restore(self, state: StageState) -> None:
        """Set a fresh run to a saved state; the next step equals the uninterrupted one.

        Raises:
            CheckpointError: the state is of another search space.
        """
        arrays, scalars = state.arrays, state.scalars
        if arrays["point"].shape != self._point.shape:
            raise CheckpointError("the stage-2 state belongs to another run")
        self._point, self._outputs = arrays["point"], arrays["outputs"]
        self._jacobian, self._active = arrays["jacobian"].copy(), arrays["active"]
        self._gradient, self._recent = arrays["gradient"], list(arrays["recent"])
        self._loss = math.nan if scalars["loss"] is None else float(scalars["loss"])
        self._damping = float(scalars["damping"])
        self._steps, self._fruitless = int(scalars["steps"]), int(scalars["fruitless"])
        self._turn, self._horizon = int(scalars["turn"]), int(scalars["horizon"])
        load_state(self._rng, scalars["rng"])
