"""K-means codebook of grid features, and the nearest centroid of each cell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from generations.errors import UserError
from generations.libraries import library

faiss = library("faiss", "faiss-cpu")

_SEEDING_POINTS = 65536  # among which the starting centroids are chosen


@dataclass(frozen=True)
class ClusterQuality:
    """How well a codebook represents the points that were assigned to it.

    Attributes:
        points: number of points.
        inertia: mean squared distance of a point to its centroid.
        used: number of centroids with at least one point.
        clusters: K.
        nearest_centroid: mean distance of a centroid to the one nearest to it.
    """

    points: int
    inertia: float
    used: int
    clusters: int
    nearest_centroid: float


def sample_cells(
    read: Callable[[str], np.ndarray], names: Sequence[str], cells: int, most: int, seed: int
) -> np.ndarray:
    """Draw cells of images at random, reading each image at most once.

    Args:
        read: an image's (N, D) features.
        names: the images.
        cells: N.
        most: number of cells; all are taken if there are no more.
        seed: of the draw.

    Returns:
        (min(most, images * N), D) float32.
    """
    total = len(names) * cells
    chosen = np.arange(total)
    if most < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    images, places = np.divmod(chosen, cells)
    points = np.empty((0, 0), np.float32)
    start = 0
    for image in np.unique(images):
        features = read(names[int(image)])
        if not points.size:
            points = np.empty((len(chosen), features.shape[1]), np.float32)
        end = int(np.searchsorted(images, image, side="right"))
        points[start:end] = features[places[start:end]]
        start = end
    return points


def fit_kmeans(
    points: np.ndarray, clusters: int, iterations: int = 20, seed: int = 0
) -> np.ndarray:
    """K-means on all the points given, on the GPU where faiss has one.

    Equal points count as one with a weight, and k-means++ spreads the starting centroids: flat
    pictures have thousands of equal cells, which would otherwise take most of the codebook.

    Args:
        points: (P, D) float32.
        clusters: K.
        iterations: of Lloyd's algorithm.
        seed: of the starting centroids.

    Returns:
        (K, D) float32.

    Raises:
        UserError: fewer different points than clusters.
    """
    kept, counts = _different(points)
    weights = counts.astype(np.float32)
    if len(kept) < clusters:
        raise UserError(
            f"cannot make grid_cluster_num {clusters} clusters from {len(kept)} different cells "
            f"({len(points)} in all); lower grid_cluster_num or add images"
        )
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        gpu=faiss.get_num_gpus() > 0,
        min_points_per_centroid=1,
        max_points_per_centroid=len(kept),  # the caller has already drawn a subset
    )
    if len(kept) < len(points):
        points = points[kept]  # else no copy: they may fill most of the memory
    kept_points = np.ascontiguousarray(points, np.float32)
    start = _spread_out(kept_points, weights, clusters, np.random.default_rng(seed))
    kmeans.train(kept_points, weights=weights, init_centroids=start)
    return np.array(kmeans.centroids, np.float32)


def _different(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the first of each set of equal points, and the sizes of the sets."""
    # a linear hash of the bits, exact in wrap-around arithmetic; sorting whole rows is far slower
    bits = np.ascontiguousarray(points, np.float32).view(np.uint32)
    factors = np.random.default_rng(0).integers(1, 2**63, points.shape[1], np.uint64) * 2 + 1
    hashes = np.empty(len(points), np.uint64)
    for start in range(0, len(points), 4096):
        part = bits[start : start + 4096].astype(np.uint64)
        hashes[start : start + 4096] = (part * factors).sum(axis=1, dtype=np.uint64)
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = np.argsort(first)  # as they came, not as the hash has it
    return first[order], counts[order]


def _spread_out(
    points: np.ndarray, weights: np.ndarray, clusters: int, rng: np.random.Generator
) -> np.ndarray:
    """Starting centroids (K, D) among different points, by k-means++.

    Source: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    most = max(_SEEDING_POINTS, clusters)
    if len(points) > most:
        drawn = rng.choice(len(points), most, replace=False)
        points, weights = points[drawn], weights[drawn]
    squares = np.einsum("pd,pd->p", points, points)
    # squared distance of each point to the nearest centroid so far, times its weight
    distances = np.full(len(points), np.inf, np.float32)
    chosen: list[int] = []
    probabilities = weights.astype(np.float64)
    for _ in range(clusters):
        ladder = np.cumsum(probabilities)
        if ladder[-1] > 0:
            new = int(np.searchsorted(ladder, rng.random() * ladder[-1], side="right"))
        else:  # the points left differ by less than rounding
            new = int(np.setdiff1d(np.arange(len(points)), chosen)[0])
        chosen.append(min(new, len(points) - 1))
        centroid = chosen[-1]
        to_new = squares + squares[centroid] - 2 * (points @ points[centroid])
        distances = np.minimum(distances, np.maximum(to_new, 0))
        distances[centroid] = 0
        probabilities = distances.astype(np.float64) * weights
    return points[chosen]


class ClusterAssigner:
    """Gives points the id of their nearest centroid, and keeps count of how well they fit.

    On the GPUs where faiss has some.

    Args:
        centroids: (K, D) float32.
    """

    def __init__(self, centroids: np.ndarray):
        self._centroids = np.ascontiguousarray(centroids, np.float32)
        self._index = faiss.IndexFlatL2(self._centroids.shape[1])
        if faiss.get_num_gpus() > 0:
            self._index = faiss.index_cpu_to_all_gpus(self._index)
        self._index.add(self._centroids)
        self._points = 0
        self._distance = 0.0
        self._used = np.zeros(len(centroids), bool)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(P, D) float32 -> (P,) int64 in 0..K-1."""
        distances, ids = self._index.search(np.ascontiguousarray(points, np.float32), 1)
        self._points += len(points)
        self._distance += float(np.maximum(distances, 0).sum(dtype=np.float64))
        self._used[ids] = True
        return ids[:, 0]

    def quality(self) -> ClusterQuality:
        """Of all points assigned so far."""
        nearest = 0.0
        if len(self._centroids) > 1:
            distances, _ = self._index.search(self._centroids, 2)
            nearest = float(np.sqrt(np.maximum(distances[:, 1], 0)).mean())
        return ClusterQuality(
            self._points,
            self._distance / max(1, self._points),
            int(self._used.sum()),
            len(self._centroids),
            nearest,
        )
