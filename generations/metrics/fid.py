"""Fréchet distance between two sets of features; FID is this on Inception's.

M features, D their size
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class FeatureStatistics:
    """Mean and covariance of a stream of features, in float64 and constant memory.

    Statistics of parts (of processes, of an interrupted run) can be merged: the fields are all
    there is to it.

    Attributes:
        count: features seen.
        mean: (D,) their mean.
        scatter: (D, D) sum of the outer products of their deviations from the mean.
    """

    count: int
    mean: Floats
    scatter: Floats

    @classmethod
    def empty(cls, size: int) -> "FeatureStatistics":
        """Statistics of no features of the given size D."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "FeatureStatistics":
        """Statistics of features (M, D)."""
        statistics = cls.empty(features.shape[1])
        statistics.update(features)
        return statistics

    def update(self, features: NDArray[np.floating]) -> None:
        """Take in features (M, D)."""
        if not len(features):
            return
        batch = np.asarray(features, dtype=np.float64)
        mean = batch.mean(0)
        deviations = batch - mean
        self.merge(FeatureStatistics(len(batch), mean, deviations.T @ deviations))

    def merge(self, other: "FeatureStatistics") -> None:
        """Take in what `other` saw."""
        total = self.count + other.count
        if not total:
            return
        shift = other.mean - self.mean
        # the parts' scatter around their own means, and that of their means (Chan et al. 1979)
        between = np.outer(shift, shift) * (self.count * other.count / total)
        self.scatter = self.scatter + other.scatter + between
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Floats:
        """(D, D), divided by count - 1.

        Raises:
            ValueError: fewer than two features were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two feature vectors, not {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(mu1: Floats, sigma1: Floats, mu2: Floats, sigma2: Floats) -> float:
    """Squared Fréchet distance |mu1 - mu2|² + Tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^½).

    The matrix square root itself is not needed, only its trace. sigma1 sigma2 has the eigenvalues
    of the symmetric matrix A' sigma2 A with A A' = sigma1, none of them negative, and the trace is
    the sum of their roots. That is faster than a general square root, and needs no help with
    singular covariances (fewer features than dimensions).

    Args:
        mu1: (D,) mean.
        sigma1: (D, D) covariance.
        mu2: (D,) mean.
        sigma2: (D, D) covariance.

    Returns:
        The distance, >= 0.

    Source: SPEC 10; Heusel et al. 2017.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape:
        raise ValueError(f"cannot compare statistics of {mu1.shape} and {mu2.shape} features")
    root = _factor(sigma1)  # A
    squares = np.linalg.eigvalsh(root.T @ sigma2 @ root)
    trace = np.sqrt(np.maximum(squares, 0)).sum()
    gap = mu1 - mu2
    return max(float(gap @ gap + np.trace(sigma1) + np.trace(sigma2) - 2 * trace), 0.0)


def _factor(sigma: Floats) -> Floats:
    """A matrix A (D, D) with A A' = sigma."""
    try:
        return np.linalg.cholesky(sigma).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:  # singular: slower, but of any rank
        values, vectors = np.linalg.eigh(sigma)
        return vectors * np.sqrt(np.maximum(values, 0))
