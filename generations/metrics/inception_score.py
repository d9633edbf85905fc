"""Inception score: how sure a classifier is of each image, and how varied its answers are."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

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
