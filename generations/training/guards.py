"""Numbers gone wrong: gradients that are not finite, and policies that collapse."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from generations.batch import Batch
from generations.errors import UserError
from generations.runtime import Runtime, gather_lists

logger = logging.getLogger(__name__)

NAMED = 64  # images of bad batches that a message names


class GradientGuard:
    """Keeps gradients that are not finite away from the weights.

    Such an update is skipped and counted; too many in a row end the run. The norm is that of the
    averaged gradients, so all processes decide alike.

    Args:
        limit: skipped updates in a row that end the run.
        runtime: of this process.
        skipped: updates skipped in all, before.
        in_a_row: and of those the last ones without a good one between.

    Attributes:
        skipped: updates skipped in all.
        in_a_row: since the last good one.
    """

    def __init__(self, limit: int, runtime: Runtime, skipped: int = 0, in_a_row: int = 0):
        self.skipped = skipped
        self.in_a_row = in_a_row
        self._limit = limit
        self._runtime = runtime
        self._seen: list[tuple[Batch, Tensor]] = []

    def saw(self, batch: Batch, loss: Tensor) -> None:
        """Remember a batch whose gradient is on its way into the next update."""
        self._seen.append((batch, loss.detach()))

    def forget(self) -> None:
        """The update is done."""
        self._seen = []

    def accepts(self, norm: Tensor) -> bool:
        """Whether the weights may be updated with gradients of this norm."""
        fine = bool(torch.isfinite(norm))
        self.in_a_row = 0 if fine else self.in_a_row + 1
        self.skipped += not fine
        return fine

    def report(self, iteration: int, task: str) -> None:
        """Warn of a skipped update; all processes call it together.

        Raises:
            UserError: it was one too many.
        """
        what = f"iteration {iteration}, {task}: the gradient is not finite ({self._suspects()})"
        if self.in_a_row >= self._limit:
            raise UserError(
                f"{what}, the {self.in_a_row}. time in a row; these updates were skipped and the "
                "state is saved: check the images' features, or lower solver.lr"
            )
        if self._runtime.is_main:
            logger.warning("%s; the update is skipped (%d so far)", what, self.skipped)

    def _suspects(self) -> str:
        """The images of all processes whose loss is not finite; if it was all finite, of all."""
        own = [batch.image_ids for batch, loss in self._seen if not bool(torch.isfinite(loss))]
        ids = gather_lists([name for names in own for name in names], self._runtime)
        if not ids:
            seen = [name for batch, _ in self._seen for name in batch.image_ids]
            ids = gather_lists(seen, self._runtime)
        return f"images {', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''}"


class PolicyWatch:
    """Finds what figures of stage 2 say of a policy in trouble; each kind is told once."""

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
                "the policy has collapsed: most batches of sampled captions are one caption over "
                "and over; go back to an earlier checkpoint with a lower solver.lr"
            )
        new = [trouble for trouble in found if trouble not in self._told]
        self._told.update(new)
        return new
