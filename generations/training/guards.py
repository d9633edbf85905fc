"""Numbers gone wrong: gradients that are not finite, and policies that collapse."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from generations.batch import Batch
from generations.errors import UserError

logger = logging.getLogger(__name__)

NAMED = 5  # images of a bad batch that a message names


class GradientGuard:
    """Keeps gradients that are not finite away from the weights.

    Such an update is skipped and counted; too many in a row end the run. The norm is that of the
    averaged gradients, so all processes decide alike.

    Args:
        limit: skipped updates in a row that end the run.

    Attributes:
        skipped: updates skipped in all.
    """

    def __init__(self, limit: int):
        self.skipped = 0
        self._limit = limit
        self._in_a_row = 0

    def accepts(self, norm: Tensor) -> bool:
        """Whether the weights may be updated with gradients of this norm."""
        fine = bool(torch.isfinite(norm))
        self._in_a_row = 0 if fine else self._in_a_row + 1
        self.skipped += not fine
        return fine

    def report(self, iteration: int, task: str, batch: Batch) -> None:
        """Warn of a skipped update.

        Raises:
            UserError: it was one too many.
        """
        images = ", ".join(batch.image_ids[:NAMED]) + (", ..." if len(batch) > NAMED else "")
        what = f"iteration {iteration}, {task}: the gradient is not finite (images {images})"
        if self._in_a_row >= self._limit:
            raise UserError(
                f"{what}, the {self._in_a_row}. time in a row; these updates were skipped and the "
                "state is saved: check the images' features, or lower solver.lr"
            )
        logger.warning("%s; the update is skipped", what)


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
