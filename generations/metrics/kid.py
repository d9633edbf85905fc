"""Kernel distance between two sets of features; KID is this on Inception's.

M features, D their size
"""

import numpy as np
from numpy.typing import NDArray

from generations.errors import UserError

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020  # of the field's common tool

Floats = NDArray[np.floating]


def kernel_distance(
    generated: Floats,
    real: Floats,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x'y / D + 1)³, over random subsets.

    Unlike FID it is unbiased, also for few images; it can be a little below 0.

    Args:
        generated: (M, D).
        real: (M', D).
        subsets: how many subsets are compared.
        subset_size: of each set's part; at most the smaller set.
        seed: of the subsets. With the same one torch-fidelity draws the same.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        UserError: fewer than two features on one side.

    Source: Binkowski et al. 2018.
    """
    size = min(subset_size, len(generated), len(real))
    if size < 2:
        raise UserError(
            f"KID needs at least two painted and two real images; there are {len(generated)} and "
            f"{len(real)}"
        )
    generated, real = (np.asarray(features, np.float64) for features in (generated, real))
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        first = generated[rng.choice(len(generated), size, replace=False)]
        second = real[rng.choice(len(real), size, replace=False)]
        found.append(_squared_mmd(first, second))
    return float(np.mean(found)), float(np.std(found))


def _squared_mmd(first: Floats, second: Floats) -> float:
    size = len(first)
    within = sum(
        kernel.sum() - np.trace(kernel)
        for kernel in (_kernel(first, first), _kernel(second, second))
    )
    return float(within / (size * (size - 1)) - 2 * _kernel(first, second).mean())


def _kernel(first: Floats, second: Floats) -> Floats:
    return (first @ second.T / first.shape[1] + 1) ** 3
