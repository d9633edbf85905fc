"""Detect non-finite gradients, and policies that collapse in stage 2."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from generations.batch import Batch
from generations.errors import UserError
from generations.runtime import Later, Runtime, gather_lists

logger = logging.getLogger(__name__)

NAMED = 64  # images of bad batches that a message names


class GradientGuard:
    """Counts and logs updates that were skipped because their gradients are not finite.

    Too many in a row end the run. The norm is that of the averaged gradients, so all processes
    decide alike. What a GPU found is looked at one update later, so that nobody waits for it.

    Args:
        limit: skipped updates in a row that end the run.
        runtime: of this process.
        skipped: updates skipped in all, before.
        in_a_row: and of those the last ones without a good one between.

    Attributes:
        skipped: updates skipped in all, of those looked at.
        in_a_row: since the last good one.
    """

    def __init__(self, limit: int, runtime: Runtime, skipped: int = 0, in_a_row: int = 0):
        self.skipped = skipped
        self.in_a_row = in_a_row
        self._limit = limit
        self._runtime = runtime
        self._seen: list[_Seen] = []
        self._open: _Update | None = None

    def saw(self, batch: Batch, loss: Tensor) -> None:
        """Remember a batch whose gradient is on its way into the next update."""
        self._seen.append((batch.image_ids, loss.detach()))

    def updated(self, iteration: int, task: str, finite: Tensor) -> None:
        """Take note of an update; all processes call it together.

        Args:
            iteration: of the update.
            task: of the iteration.
            finite: bool scalar, whether it was made.

        Raises:
            UserError: too many were skipped.
        """
        update = _Update(iteration, task, Later(finite), self._seen)
        self._seen = []
        if finite.is_cuda:
            update, self._open = self._open, update
        if update is not None:
            self._look_at(update)

    def settle(self) -> None:
        """Look at the last update now.

        Raises:
            UserError: too many were skipped.
        """
        update, self._open = self._open, None
        if update is not None:
            self._look_at(update)

    def _look_at(self, update: "_Update") -> None:
        if update.finite.get():
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        what = f"iteration {update.iteration}, {update.task}: the gradient is not finite"
        what += f" ({self._suspects(update.seen)})"
        if self.in_a_row >= self._limit:
            raise UserError(
                f"{what}, {self.in_a_row} times in a row; these updates were skipped and the state "
                "is saved: check the features of the images, or lower solver.lr"
            )
        if self._runtime.is_main:
            logger.warning("%s; the update is skipped (%d so far)", what, self.skipped)

    def _suspects(self, seen: "list[_Seen]") -> str:
        """The images of all processes whose loss is not finite; if it was all finite, of all."""
        own = [names for names, loss in seen if not bool(torch.isfinite(loss))]
        ids = gather_lists([name for names in own for name in names], self._runtime)
        if not ids:
            ids = gather_lists([name for names, _ in seen for name in names], self._runtime)
        return f"images {', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''}"


_Seen = tuple[list[str], Tensor]  # the images of a batch, and its loss


@dataclass(frozen=True)
class _Update:
    iteration: int
    task: str
    finite: Later
    seen: list[_Seen]


class PolicyWatch:
    """Finds signs of a collapsing policy in the metrics of stage 2; logs each kind once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, figures: Mapping[str, float]) -> list[str]:
        """New troubles in the means of the last iterations."""
        found = [
            f"{name} is not finite"
            for name, value in sorted(figures.items())
            if name.startswith("rl_") and not math.isfinite(value)
        ]
        if figures.get("rl_i2t/collapsed", 0.0) > 0.5:
            found.append(
                "the policy has collapsed: in most batches all sampled captions are equal; resume "
                "from an earlier checkpoint with a lower solver.lr"
            )
        new = [trouble for trouble in found if trouble not in self._told]
        self._told.update(new)
        return new
