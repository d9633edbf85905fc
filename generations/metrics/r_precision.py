"""R-precision: does an image find its own caption among others?

n images, D feature size, K negatives
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from generations.errors import UserError

Floats = NDArray[np.floating]
CHUNK = 256  # images at once, so that memory does not grow with their number


@dataclass(frozen=True)
class RPrecision:
    """Share of images that find their caption.

    Attributes:
        mean: over all images, in [0, 1].
        std: over the folds.
        hits: (n,) 1.0 where the own caption won, else 0.0.
    """

    mean: float
    std: float
    hits: NDArray[np.float64]


def r_precision(
    image_features: Floats,
    text_features: Floats,
    negatives: NDArray[np.integer] | None = None,
    folds: int = 10,
    seed: int = 42,
) -> RPrecision:
    """Each image's own caption against 99 random others, by cosine similarity.

    Args:
        image_features: (n, D), of any length.
        text_features: (n, D), row i the caption of image i.
        negatives: (n, K) rows of the captions to beat; default `draw_negatives(n, seed=seed)`.
        folds: parts for the standard deviation.
        seed: of the negatives and of the shuffle before folding.

    Raises:
        UserError: fewer than 100 captions.

    Source: SPEC 10.
    """
    if len(image_features) != len(text_features):
        raise ValueError(
            f"the numbers of images, {len(image_features)}, and of captions, {len(text_features)}, "
            "differ"
        )
    if negatives is None:
        negatives = draw_negatives(len(text_features), seed=seed)
    return summarize_hits(find_hits(image_features, text_features, negatives), folds, seed)


def hard_r_precision(
    image_features: Floats,
    text_features: Floats,
    sizes: Sequence[int] | NDArray[np.integer],
    folds: int = 10,
    seed: int = 42,
) -> RPrecision:
    """Each image's own caption against copies of it with one word swapped, for one kind of word.

    Args:
        image_features: (n, D).
        text_features: (sum of sizes, D): for each image its own caption, then the swapped ones.
        sizes: (n,) captions of each image, its own included.
        folds: as in `r_precision`.
        seed: of the shuffle before folding.

    Source: SPEC 10.
    """
    return summarize_hits(find_hard_hits(image_features, text_features, sizes), folds, seed)


def draw_negatives(count: int, negatives: int = 99, seed: int = 42) -> NDArray[np.int64]:
    """For each of `count` captions that many different others, (count, negatives).

    Drawn as in the original, so seed 42 gives its choice.

    Raises:
        UserError: there are not enough captions.
    """
    if count <= negatives:
        raise UserError(
            f"R-precision compares each caption with {negatives} others, so it needs at least "
            f"{negatives + 1} captions, not {count}"
        )
    rng = random.Random(seed)
    others = np.array([rng.sample(range(count - 1), negatives) for _ in range(count)])
    return others + (others >= np.arange(count)[:, None])  # step over the own caption


def find_hits(
    image_features: Floats, text_features: Floats, negatives: NDArray[np.integer]
) -> NDArray[np.float64]:
    """1.0 for each image (n,) whose own caption is at least as similar as every negative."""
    images, texts = _normalize(image_features), _normalize(text_features)
    candidates = np.concatenate([np.arange(len(images))[:, None], negatives], 1)  # (n, 1 + K)
    hits = np.empty(len(images))
    for first in range(0, len(images), CHUNK):
        part = slice(first, first + CHUNK)
        similarity = np.einsum("id,ikd->ik", images[part], texts[candidates[part]])
        hits[part] = similarity[:, 0] >= similarity.max(1)
    return hits


def find_hard_hits(
    image_features: Floats, text_features: Floats, sizes: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float64]:
    """1.0 for each image (n,) whose own caption, its first, beats its other captions."""
    sizes = np.asarray(sizes)
    if len(sizes) != len(image_features) or sizes.sum() != len(text_features) or sizes.min() < 1:
        raise ValueError(
            f"sizes are for {sizes.sum()} captions of {len(sizes)} images, but there are "
            f"{len(text_features)} captions of {len(image_features)} images"
        )
    images, texts = _normalize(image_features), _normalize(text_features)
    starts = np.cumsum(sizes) - sizes
    similarity = np.einsum("td,td->t", np.repeat(images, sizes, 0), texts)
    best = np.maximum.reduceat(similarity, starts)  # (n,)
    return (similarity[starts] >= best).astype(np.float64)


def summarize_hits(hits: NDArray[np.floating], folds: int = 10, seed: int = 42) -> RPrecision:
    """Mean over all hits and standard deviation over folds of shuffled ones.

    Args:
        hits: (n,) of 0 and 1.
        folds: nearly equal parts that together hold every hit; at most n.
        seed: of the shuffle.
    """
    if not len(hits):
        raise UserError("R-precision: there are no images")
    shuffled = np.random.default_rng(seed).permutation(hits)
    means = [part.mean() for part in np.array_split(shuffled, min(folds, len(hits)))]
    return RPrecision(float(np.mean(hits)), float(np.std(means)), np.asarray(hits, np.float64))


def legacy_fold_means(
    shuffled_hits: NDArray[np.floating], fold_size: int = 3000, folds: int = 10
) -> NDArray[np.float64]:
    """The original's folds, to check its published figures by; not for new ones.

    Each fold loses its last element, and folds beyond the last hit have no mean (NaN).

    Source: SPEC 12.
    """
    parts = [shuffled_hits[i * fold_size : (i + 1) * fold_size - 1] for i in range(folds)]
    return np.array([part.mean() if len(part) else np.nan for part in parts])


def _normalize(features: Floats) -> NDArray[np.float64]:
    features = np.asarray(features, np.float64)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
