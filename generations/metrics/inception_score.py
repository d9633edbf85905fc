"""Inception score: how certain a classifier is of each image, and how diverse its answers are."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, xlogy

from generations.errors import UserError


def inception_score(probs: NDArray[np.floating], splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of each of `splits` consecutive parts.

    Args:
        probs: (M, C) class probabilities of M images.
        splits: number of parts; all images count, also when M is no multiple.

    Returns:
        Mean and standard deviation over the parts, in [1, C].

    Raises:
        UserError: fewer images than parts.

    Source: SPEC 10; Salimans et al. 2016.
    """
    if len(probs) < splits:
        raise UserError(f"inception score: {len(probs)} images are too few for {splits} splits")
    probs = np.asarray(probs, dtype=np.float64)
    bounds = [part * len(probs) // splits for part in range(splits + 1)]
    scores = []
    for first, last in pairwise(bounds):
        part = probs[first:last]  # (m, C)
        divergence = rel_entr(part, part.mean(0)).sum(1)  # (m,), 0 log 0 = 0
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


class InceptionScoreSums:
    """The inception score of a stream of images, in constant memory.

    Statistics of parts (of several processes) can be merged.

    Args:
        total: number of images to come; their places say which of the parts they belong to.
        classes: C.
        splits: number of parts.

    Raises:
        UserError: fewer images than parts.
    """

    def __init__(self, total: int, classes: int, splits: int = 10):
        if total < splits:
            raise UserError(f"inception score: {total} images are too few for {splits} splits")
        self._bounds = [part * total // splits for part in range(1, splits)]
        self.counts = np.zeros(splits)
        self.sums = np.zeros((splits, classes))  # of p
        self.negentropies = np.zeros(splits)  # of p log p

    def update(self, places: Sequence[int], probs: NDArray[np.floating]) -> None:
        """Take in the probabilities (m, C) of the images at `places` (from 0)."""
        probs = np.asarray(probs, np.float64)
        parts = np.searchsorted(self._bounds, places, side="right")
        np.add.at(self.counts, parts, 1)
        np.add.at(self.sums, parts, probs)
        np.add.at(self.negentropies, parts, xlogy(probs, probs).sum(1))

    def merge(self, other: "InceptionScoreSums") -> None:
        """Take in what `other` saw."""
        self.counts = self.counts + other.counts
        self.sums = self.sums + other.sums
        self.negentropies = self.negentropies + other.negentropies

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the parts, as of `inception_score`.

        Raises:
            UserError: a part has no image.
        """
        if not self.counts.all():
            raise UserError("inception score: too few images could be read for all its splits")
        means = self.sums / self.counts[:, None]  # (splits, C)
        # mean KL(p || q) = mean of sum p log p, less sum q log q, as q is the mean of p
        scores = np.exp(self.negentropies / self.counts - xlogy(means, means).sum(1))
        return float(np.mean(scores)), float(np.std(scores))
