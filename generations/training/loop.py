"""The training loop: one iteration, one task, one batch. It knows no task by name."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from generations.batch import Batch
from generations.errors import StopRequested, UserError
from generations.objectives import StepOutput, TaskContext
from generations.runtime import (
    Runtime,
    Watch,
    generator,
    seed_everything,
    without_sync,
)
from generations.training.average import AveragedWeights
from generations.training.guards import GradientGuard, PolicyWatch
from generations.training.monitor import Monitor
from generations.training.update import apply_gradients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """What the loop does and how often.

    Attributes:
        tasks: iteration i (from 1) trains tasks[i mod len(tasks)].
        iterations: the last iteration.
        accumulation: an optimiser step is made at iterations divisible by this.
        grad_clip: largest gradient norm; 0 does not clip.
        checkpoint_every: iterations between checkpoints; the last iteration always saves. Between
            two optimiser steps there is nothing to go on from, so a checkpoint waits for the next.
        test_every: iterations between tests, 0 for none; they wait likewise, as the best stays.
        max_skipped: updates in a row whose gradient is not finite that end the run.
        seed: of the run.
    """

    tasks: Sequence[str]
    iterations: int
    accumulation: int = 1
    grad_clip: float = 1.0
    checkpoint_every: int = 10000
    test_every: int = 10000
    max_skipped: int = 20
    seed: int = 123


@dataclass
class TrainingState:
    """What changes while training, and what a checkpoint holds beside the weights.

    Attributes:
        iteration: iterations done.
        joined: parameters that have had a gradient (see `absent_gradients`).
        samples: training samples consumed, by all processes, in the global order.
        order: what that order depends on: the seed and the number of images.
        skipped: updates skipped in all, and in a row up to now.
        best: the best score of a test, and its iteration.
        tested: the iteration of the last test.
        average: the averaged weights, if there are any.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    iteration: int
    joined: set[str]
    samples: int = 0
    order: dict[str, int] = field(default_factory=dict)
    skipped: tuple[int, int] = (0, 0)
    best: tuple[float, int] | None = None
    tested: int = 0
    average: AveragedWeights | None = None


def train(
    step: nn.Module,
    state: TrainingState,
    batches: Iterator[Batch],
    make_context: Callable[[torch.Generator], TaskContext],
    settings: LoopSettings,
    runtime: Runtime,
    monitor: Monitor,
    save: Callable[[TrainingState, bool], None],
    test: Callable[[int], None],
    watch: Watch | None = None,
    after_iteration: Callable[[], None] = lambda: None,
) -> None:
    """Train from `state.iteration` + 1 to the last iteration.

    Every iteration seeds its own generators from (seed, iteration), so a resumed run draws what
    the uncut run would have drawn.

    Args:
        step: `TaskStep` of the model, wrapped for data parallelism if there are several processes.
        state: updated in place.
        batches: an endless stream that starts at the state's samples.
        make_context: builds a task's context around the iteration's generator.
        save: writes a checkpoint; with True it must be on the disk on return.
        test: evaluates at an iteration; may raise StopRequested, on all processes together.
        watch: is told where the loop is, and asked whether to stop.
        after_iteration: called once an iteration's update is done.

    Raises:
        UserError: too many gradients in a row that are not finite; the state is saved before.
        StopRequested: a signal asked for it; the state is saved before.
    """
    guard = GradientGuard(settings.max_skipped, runtime, *state.skipped)
    troubles = PolicyWatch()
    watch = watch or Watch(runtime)
    due = test_due = False  # a checkpoint, a test
    stopping = ""
    if _test_was_cut(state, settings):
        watch.beat(state.iteration, "testing")
        test(state.iteration)
        state.tested = state.iteration
    step.train()
    for iteration in range(state.iteration + 1, settings.iterations + 1):
        watch.beat(iteration, "reading data")
        batch = next(batches).to(runtime.device)
        watch.beat(iteration, "training")
        seed_everything(settings.seed, runtime.rank, iteration)
        task = settings.tasks[iteration % len(settings.tasks)]
        # the same on all ranks: one visual mask for the whole global batch
        context = make_context(generator(settings.seed, iteration))
        updates = iteration % settings.accumulation == 0
        with without_sync(step, not updates):
            with runtime.autocast():
                output: StepOutput = step(task, batch, context)
            state.scaler.scale(output.loss / settings.accumulation).backward()
        guard.saw(batch, output.loss)
        figures = {f"loss/{task}": output.loss, **output.logs}
        rate = float(state.scheduler.get_last_lr()[0])
        # filled there: a copy would wait for the device
        figures["learning_rate"] = torch.full((), rate, device=runtime.device)
        state.iteration = iteration
        state.samples += len(batch) * runtime.world_size
        finite = None
        if updates:
            figures["gradient_norm"], finite = _update(state, settings.grad_clip)
            if state.scaler.is_enabled():
                scale = state.scaler.get_scale()
                figures["loss_scale"] = torch.tensor(scale, device=runtime.device)
            with _counting(guard, state, save):
                guard.updated(iteration, task, finite)
        after_iteration()
        samples = len(batch) * runtime.world_size
        # figures of a skipped update would hide those of the other iterations
        means = monitor.record(iteration, samples, figures, finite, guard.skipped)
        for trouble in troubles(means):
            logger.warning("iteration %d: %s; the state is saved", iteration, trouble)
            due = True
        last = iteration == settings.iterations
        due = due or iteration % settings.checkpoint_every == 0
        stopping = stopping or watch.stop_requested()
        if last or (updates and (due or stopping)):
            watch.beat(iteration, "saving")
            with _counting(guard, state, save):
                guard.settle()
            save(state, last or bool(stopping))
            due = False
        if updates and stopping and not last:
            raise StopRequested(
                f"received {stopping}; saved at iteration {iteration} of {settings.iterations}; "
                "give the same command again to continue"
            )
        if settings.test_every:
            test_due = test_due or last or iteration % settings.test_every == 0
        if test_due and (last or updates):
            test_due = False
            watch.beat(iteration, "testing")
            with _counting(guard, state, save):
                guard.settle()
            try:
                test(iteration)
            except StopRequested:
                save(state, True)
                raise
            state.tested = iteration
            step.train()


def _test_was_cut(state: TrainingState, settings: LoopSettings) -> bool:
    """Whether the run ended after a checkpoint and before the test that was due with it."""
    every = settings.test_every
    if not every or state.tested >= state.iteration:
        return False
    last = state.iteration == settings.iterations
    return last or state.iteration // every > state.tested // every


@contextmanager
def _counting(
    guard: GradientGuard, state: TrainingState, save: Callable[[TrainingState, bool], None]
) -> Iterator[None]:
    """Context in which the guard looks at updates; when the run ends with one, save first."""
    try:
        yield
    except UserError:
        state.skipped = (guard.skipped, guard.in_a_row)
        save(state, True)
        raise
    state.skipped = (guard.skipped, guard.in_a_row)


def _update(state: TrainingState, grad_clip: float) -> tuple[Tensor, Tensor]:
    """One optimiser and scheduler step; what `apply_gradients` returns."""
    norm, updated = apply_gradients(
        state.model, state.optimizer, state.joined, grad_clip, state.scaler
    )
    state.scheduler.step()
    if state.average is not None:
        state.average.update(state.scheduler.last_epoch, updated)
    return norm, updated
