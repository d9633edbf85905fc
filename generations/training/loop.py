"""The training loop: one iteration, one task, one batch. It knows no task by name."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from generations.batch import Batch
from generations.errors import UserError
from generations.objectives import StepOutput, TaskContext
from generations.runtime import Runtime, generator, seed_everything, without_sync
from generations.training.guards import GradientGuard, PolicyWatch
from generations.training.monitor import Monitor
from generations.training.optim import fill_absent_gradients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """What the loop does and how often.

    Attributes:
        tasks: iteration i (from 1) trains tasks[i mod len(tasks)].
        iterations: the last iteration.
        accumulation: an optimiser step is made at iterations divisible by this.
        grad_clip: largest gradient norm; 0 does not clip.
        checkpoint_every: iterations between checkpoints; the last iteration always saves.
        test_every: iterations between tests, 0 for none.
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
        joined: parameters that have had a gradient (see `fill_absent_gradients`).
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    iteration: int
    joined: set[str]


def train(
    step: nn.Module,
    state: TrainingState,
    batches: Iterator[Batch],
    make_context: Callable[[torch.Generator], TaskContext],
    settings: LoopSettings,
    runtime: Runtime,
    monitor: Monitor,
    save: Callable[[TrainingState], None],
    test: Callable[[int], None],
) -> None:
    """Train from `state.iteration` + 1 to the last iteration.

    Every iteration seeds its own generators from (seed, iteration), so a resumed run draws what
    the uncut run would have drawn.

    Args:
        step: `TaskStep` of the model, wrapped for data parallelism if there are several processes.
        state: updated in place.
        batches: an endless stream that starts at the state's iteration.
        make_context: builds a task's context around the iteration's generator.
        save: writes a checkpoint.
        test: evaluates at an iteration.

    Raises:
        UserError: too many gradients in a row that are not finite; the state is saved before.
    """
    guard, watch = GradientGuard(settings.max_skipped), PolicyWatch()
    step.train()
    for iteration in range(state.iteration + 1, settings.iterations + 1):
        batch = next(batches).to(runtime.device)
        seed_everything(settings.seed, runtime.rank, iteration)
        task = settings.tasks[iteration % len(settings.tasks)]
        # the same on all ranks: one visual mask for the whole global batch
        context = make_context(generator(settings.seed, iteration))
        updates = iteration % settings.accumulation == 0
        with without_sync(step, not updates), runtime.autocast():
            output: StepOutput = step(task, batch, context)
            state.scaler.scale(output.loss / settings.accumulation).backward()
        figures = {f"loss/{task}": output.loss, **output.logs}
        rate = state.scheduler.get_last_lr()[0]
        figures["learning_rate"] = torch.tensor(rate, device=runtime.device)
        state.iteration = iteration
        if updates:
            norm, updated = _update(state, settings.grad_clip, guard)
            figures["gradient_norm"] = norm
            if not updated:
                figures = {}  # they would hide those of the other iterations
                _report(guard, iteration, task, batch, lambda: save(state))
        means = monitor.record(iteration, len(batch) * runtime.world_size, figures)
        for trouble in watch(means):
            logger.warning("iteration %d: %s; the state is saved", iteration, trouble)
            save(state)
        last = iteration == settings.iterations
        if last or iteration % settings.checkpoint_every == 0:
            save(state)
        if settings.test_every and (last or iteration % settings.test_every == 0):
            test(iteration)
            step.train()


def _report(
    guard: GradientGuard, iteration: int, task: str, batch: Batch, save: Callable[[], None]
) -> None:
    """Warn of a skipped update; when the run ends with it, save first."""
    try:
        guard.report(iteration, task, batch)
    except UserError:
        save()
        raise


def _update(state: TrainingState, grad_clip: float, guard: GradientGuard) -> tuple[Tensor, bool]:
    """One optimiser and scheduler step.

    Returns:
        the gradient norm before clipping, and whether the weights were updated.
    """
    fill_absent_gradients(state.model, state.joined)
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip or torch.inf)
    updated = guard.accepts(norm)
    if updated or state.scaler.is_enabled():  # the scaler skips by itself, and learns from it
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.scheduler.step()
    return norm, updated
