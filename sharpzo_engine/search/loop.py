"""The search loop: runs the stages, validates, keeps the best point, enforces the budgets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sharpzo_engine.clip.parallel import numpy_on_one_thread
from sharpzo_engine.config import TuningConfig
from sharpzo_engine.errors import FinishSearch, TuningInterrupted
from sharpzo_engine.search.checkpoint import Checkpointing, Snapshot
from sharpzo_engine.search.history import StepRecord, history_arrays, history_records
from sharpzo_engine.search.methods import (
    has_stage_1,
    has_stage_2,
    passes_per_stage_2_step,
    stage_1,
    stage_2,
    stage_label,
)
from sharpzo_engine.search.objective import Objective, Score
from sharpzo_engine.search.progress import OnStep, Phase, Progress
from sharpzo_engine.search.prompt_space import PromptSpace
from sharpzo_engine.search.stages.stage import Descent, Stage, StageState, StepOutcome

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Clock = Callable[[], float]

#: Steps of stage 2 are cheap and are validated about once per this many evaluations.
PASSES_BETWEEN_VALIDATIONS = 200
#: Passes without a better validation loss that end no search without a budget.
LEAST_PATIENCE = 4_000
#: Steps of a stage before the remaining time is estimated.
STEPS_BEFORE_ETA = 10


@dataclass(frozen=True)
class Validated:
    """A point and its score on the validation images."""

    point: Array
    score: Score


class Search:
    """One run from the hand-written prompt to the best validated point."""

    def __init__(
        self,
        config: TuningConfig,
        objective: Objective,
        validation: Objective,
        on_step: OnStep | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`validation` decides the change point and the best point, but never influences a step."""
        self._config = config
        self._objective = objective
        self._validation = validation
        self._on_step = on_step or (lambda _: None)
        self._clock = clock
        self._began = clock()
        self._passes_before = 0
        self._since_validation = 0
        self._stale = 0
        self._first_step, self._stage_began = 0, self._began
        self._finish_asked = False
        self.stopped_by = "completed"
        self.training_loss = math.nan  # of the best point, once the search is over
        self.history: list[StepRecord] = []
        origin = objective.space.origin
        self.best = Validated(origin, validation.score(origin))
        self.start = self.best.score
        self._half_best = [self.best] * len(self.start.halves)
        self._best_rank = _rank(self.start)
        self._best_passes = 0  # before it was found
        self._stage: Stage = self._first_stage()

    @property
    def space(self) -> PromptSpace:
        """The search space."""
        return self._objective.space

    @property
    def forward_passes(self) -> int:
        """Evaluations so far, including those on validation images."""
        counted = self._objective.forward_passes + self._validation.forward_passes
        return self._passes_before + counted

    @property
    def seconds(self) -> float:
        """Time of tuning so far, over all attempts."""
        return self._clock() - self._began

    @property
    def selected_step(self) -> int:
        """The step that the kept point comes from; 0 is the hand-written prompt."""
        ranks = self._ranks()
        step = min(ranks, key=ranks.__getitem__)
        # The validation after the last step is not in the history, and may find a better point.
        is_last = self._config.selection == "last" or _rank(self.best.score) < ranks[step]
        return len(self.history) if is_last else step

    def unbiased_logits(self) -> Floats | None:
        """Logits [N, C] of the validation images by points that they have not chosen.

        Each half is judged by the best point on the other half. None if a class has one image.
        """
        halves = self._validation.halves
        if not halves:
            return None
        chosen = [found.point for found in reversed(self._half_best)]
        if self._config.selection == "last":
            chosen = [self.best.point] * len(halves)
        embeddings = self.space.class_embeddings(np.stack(chosen))
        images = self._validation.features.images
        logits = np.empty((len(images), embeddings.shape[1]), np.float32)
        for half, rows in zip(halves, embeddings, strict=True):
            logits[half] = images[half] @ (self.space.backbone.logit_scale * rows).T
        return logits

    @property
    def expected_steps(self) -> int:
        """Steps of the whole run, as far as is known: in stage 2 what the passes are enough for."""
        if isinstance(self._stage, Descent):
            return self._first_step + self._stage.horizon
        return self._config.total_steps

    @property
    def phase(self) -> Phase:
        """The current stage."""
        return self._stage.name

    @property
    def _budget(self) -> list[int]:
        """The budgets that stage 2's schedule depends on."""
        return [self._config.total_steps, self._config.pass_limit]

    def finish(self) -> None:
        """Take no further step: `run` ends as if the budget were used up."""
        self._finish_asked = True

    def run(self, checkpoints: Checkpointing | None = None) -> Array:
        """Search to the end of the budget and return the best validated point [d].

        `on_step` may end it earlier by raising `FinishSearch`, and so may `finish`.

        Raises:
            TuningInterrupted: raised by `on_step`; a checkpoint is written first.
        """
        try:
            with numpy_on_one_thread():
                self._loop(checkpoints)
        except TuningInterrupted:
            if checkpoints:
                checkpoints.save(len(self.history), self.snapshot)
            raise
        if checkpoints:  # later phases can be interrupted, and a longer run can start here
            checkpoints.save(len(self.history), self.snapshot)
        self._validate()
        self.training_loss = float(self._objective(self.best.point)[0])
        return self.best.point

    def _loop(self, checkpoints: Checkpointing | None) -> None:
        while not self._is_over():
            self._advance()
            if checkpoints:
                checkpoints.save_if_due(len(self.history), self.snapshot)

    def _advance(self) -> None:
        """Run, validate and report one step of the current stage."""
        passes = self._objective.forward_passes
        outcome = self._stage.step(self._objective)
        self._since_validation += self._objective.forward_passes - passes
        due = self.phase == "stage1" or self._since_validation >= PASSES_BETWEEN_VALIDATIONS
        self._record(outcome, self._validate() if due else None)

    def _validate(self) -> Score:
        """Score the stage's candidates; keep the best point so far, or the last one."""
        self._since_validation = 0
        scored = [Validated(p, self._validation.score(p)) for p in self._stage.candidates]
        best = min(scored, key=lambda validated: _rank(validated.score))
        for half, kept in enumerate(self._half_best):
            self._half_best[half] = min((kept, *scored), key=partial(_loss_on, half))
        improved = _rank(best.score) < self._best_rank
        self._stale = 0 if improved else self._stale + 1
        self._best_passes = self.forward_passes if improved else self._best_passes
        self._best_rank = min(self._best_rank, _rank(best.score))
        if self._config.selection == "last":
            self.best = scored[0]  # the stage's own point
        elif improved:
            self.best = best
        return best.score

    def _record(self, outcome: StepOutcome, score: Score | None) -> None:
        record = StepRecord(
            step=len(self.history) + 1,
            phase=self.phase,
            loss=outcome.loss,
            val_loss=score.loss if score else None,
            val_accuracy=score.accuracy if score else None,
            sigma=outcome.sigma,
            sharpness=outcome.sharpness,
            forward_passes=self.forward_passes,
            seconds=self.seconds,
        )
        self.history.append(record)
        progress = Progress(
            phase=self.phase,
            step=record.step,
            total_steps=self.expected_steps,
            forward_passes=record.forward_passes,
            eta_seconds=self._eta(),
            record=record,
            stage_label=stage_label(self.phase, self._config, self._objective),
        )
        if self._change_point_reached():
            self._begin_stage_2()
        try:
            self._on_step(progress)
        except FinishSearch:
            self.finish()

    def _is_over(self) -> bool:
        """Whether the search must stop now; stores the reason."""
        config = self._config
        if len(self.history) >= config.total_steps:
            return True
        if self._stage.exhausted and not self._horizon_reached:
            return True
        if self._finish_asked:
            self.stopped_by = "finished"
        elif config.max_seconds is not None and self.seconds >= config.max_seconds:
            self.stopped_by = "max_seconds"
        elif self._horizon_reached or not self._affords(self._stage.passes_per_step):
            is_own = config.max_forward_passes is not None
            self.stopped_by = "max_forward_passes" if is_own else "enough"
        elif config.max_forward_passes is None and self._has_settled:
            self.stopped_by = "enough"
        return self.stopped_by != "completed"

    @property
    def _horizon_reached(self) -> bool:
        """Whether stage 2 has done the steps that the passes were enough for."""
        return isinstance(self._stage, Descent) and self._stage.is_done

    def _affords(self, passes: int) -> bool:
        # The validations after this step and at the end also count.
        reserve = 2 * len(self._stage.candidates)
        return self.forward_passes + passes + reserve <= self._config.pass_limit

    @property
    def _has_settled(self) -> bool:
        """Whether validation has not improved for as many passes as it took to the best point.

        A shorter patience fails: validation often stalls for thousands of passes, then improves.
        """
        since = self.forward_passes - self._best_passes
        return since >= max(LEAST_PATIENCE, self._best_passes)

    def _change_point_reached(self) -> bool:
        config = self._config
        if self.phase == "stage2" or not has_stage_2(config):
            return False
        if config.change_point == "auto":
            share = self._stage_1_share()
            return self._stale >= config.patience or share >= 0.5 or self._stage.exhausted
        return len(self.history) >= config.change_point or self._stage.exhausted

    def _stage_1_share(self) -> float:
        """Largest fraction of any budget that stage 1 has used."""
        config = self._config
        shares = [len(self.history) / config.total_steps, self.forward_passes / config.pass_limit]
        if config.max_seconds is not None:
            shares.append(self.seconds / config.max_seconds)
        return max(shares)

    def _first_stage(self) -> Stage:
        if has_stage_1(self._config):
            return stage_1(self._config, self._objective)
        return self._stage_2()

    def _begin_stage_2(self) -> None:
        self._stale = self._since_validation = 0
        self._first_step, self._stage_began = len(self.history), self._clock()
        self._stage = self._stage_2(self._stage)

    def _stage_2(self, before: Stage | None = None) -> Stage:
        """Stage 2 from the best validated point (`reference`: from the last point of stage 1)."""
        start = self.best.point
        if before is not None and self._config.numerics == "reference":
            start = before.point
        return stage_2(self._config, self._objective, start, self._stage_2_horizon(), before)

    def _stage_2_horizon(self) -> int:
        """Steps that the budgets leave for stage 2."""
        steps = self._config.total_steps - len(self.history)
        per_step = passes_per_stage_2_step(self._config, self._objective)
        per_step *= 1 + 1 / PASSES_BETWEEN_VALIDATIONS
        left = self._config.pass_limit - self.forward_passes
        return min(steps, int(left / per_step))

    def _eta(self) -> float | None:
        """Seconds left, estimated from the stage's speed; None if the change point is unknown."""
        done = len(self.history) - self._first_step
        if self.phase == "stage1" and has_stage_2(self._config):
            return None
        if done < STEPS_BEFORE_ETA:
            return None
        pace = (self._clock() - self._stage_began) / done
        left = pace * (self._config.total_steps - len(self.history))
        if self.phase == "stage2":
            left = pace * self._stage_2_horizon()
        if self._config.max_seconds is not None:
            left = min(left, self._config.max_seconds - self.seconds)
        return max(0.0, left)

    def snapshot(self) -> Snapshot:
        """The complete state, from which `restore` continues bit-identically."""
        stage = self._stage.state()
        return Snapshot(
            arrays={
                **{f"stage.{name}": array for name, array in stage.arrays.items()},
                **history_arrays(self.history),
                "best_point": self.best.point,
                "half_points": np.array([found.point for found in self._half_best]),
            },
            scalars={
                "phase": self.phase,
                "stage": stage.scalars,
                "best": [self.best.score.loss, self.best.score.accuracy],
                "start": [self.start.loss, self.start.accuracy],
                "halves": [list(found.score.halves) for found in self._half_best],
                "stale": self._stale,
                "best_passes": self._best_passes,
                "since_validation": self._since_validation,
                "first_step": self._first_step,
                "forward_passes": self.forward_passes,
                "seconds": self.seconds,
                "budget": self._budget,
                "stage_seconds": self._clock() - self._stage_began,
            },
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same run, possibly with another budget."""
        arrays, scalars = snapshot.arrays, snapshot.scalars
        self.history = history_records(arrays)
        self.best = Validated(arrays["best_point"], Score(*scalars["best"]))
        self.start = Score(*scalars["start"])
        if "halves" in scalars:  # earlier checkpoints have none
            self._half_best = [
                Validated(point, Score(math.nan, math.nan, tuple(losses)))
                for point, losses in zip(arrays["half_points"], scalars["halves"], strict=True)
            ]
        self._best_rank = min(self._ranks().values())
        self._stage = self._stage_2() if scalars["phase"] == "stage2" else self._first_stage()
        own = {k.removeprefix("stage."): v for k, v in arrays.items() if k.startswith("stage.")}
        self._stage.restore(StageState(own, scalars["stage"]))
        self._stale, self._since_validation = scalars["stale"], scalars["since_validation"]
        self._best_passes = scalars.get("best_passes", scalars["forward_passes"])
        self._first_step = scalars["first_step"]
        self._objective.forward_passes = self._validation.forward_passes = 0
        self._passes_before = scalars["forward_passes"]
        self._began = self._clock() - scalars["seconds"]
        self._stage_began = self._clock() - scalars["stage_seconds"]
        if scalars["budget"] != self._budget and isinstance(self._stage, Descent):
            self._stage.extend(self._stage.steps + self._stage_2_horizon())

    def _ranks(self) -> dict[int, tuple[float, float]]:
        """The rank of each validated step; of the hand-written prompt as step 0."""
        return {0: _rank(self.start)} | {
            record.step: _rank(Score(record.val_loss, record.val_accuracy))
            for record in self.history
            if record.val_loss is not None and record.val_accuracy is not None
        }


def _rank(score: Score) -> tuple[float, float]:
    """Sort key, lower is better: first the loss, which is smoother than accuracy on few images."""
    return (_comparable(score.loss), -score.accuracy)


def _loss_on(half: int, validated: Validated) -> float:
    return _comparable(validated.score.halves[half])


def _comparable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
