"""The losses of the image generator and its discriminator, as pure functions.

Shape legend: B batch, G grid side, N = G * G cells, S image side, K clusters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CONTRAST_WINDOW = 9  # pixels; the neighbourhood that a pixel's contrast is measured against


def reconstruction(image: Tensor, target: Tensor, contrast: float = 0.0) -> Tensor:
    """Mean absolute difference of pixels, those that stand out from around them counting more.

    Small dark eyes and thin lines are few pixels: under a plain mean, leaving them out costs next
    to nothing and pictures stay smooth. A pixel's weight is 1 + contrast * |t - m|, where m is the
    mean of the target in a window around it.

    Args:
        image: (B, 3, S, S) in [-1, 1].
        target: (B, 3, S, S) in [-1, 1].
        contrast: >= 0; 0 is the plain mean absolute difference.

    Returns:
        A scalar, >= 0.
    """
    difference = (image - target).abs()
    if contrast:
        around = F.avg_pool2d(
            target, CONTRAST_WINDOW, 1, CONTRAST_WINDOW // 2, count_include_pad=False
        )
        difference = difference * (1 + contrast * (target - around).abs())
    return difference.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator: real scores above 1 and fake ones below -1 cost nothing.

    Args:
        real: scores of real images, any shape.
        fake: scores of painted images, any shape.

    Returns:
        A scalar, >= 0.

    Source: Lim and Ye, Geometric GAN, 2017; SPEC 9.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """What the generator minimises against `hinge_discriminator`: minus the mean score.

    Args:
        fake: scores of painted images, any shape.

    Returns:
        A scalar.
    """
    return -fake.mean()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of a network's features of two images, averaged over its layers.

    Args:
        fake: one tensor a layer, of the painted images.
        real: the same of the real images; no gradient flows into them.

    Returns:
        A scalar, >= 0.

    Source: Wang et al., pix2pixHD, CVPR 2018; SPEC 9.
    """
    layers = [F.l1_loss(f, r.detach()) for f, r in zip(fake, real, strict=True)]
    return torch.stack(layers).mean()


def cluster_classification(logits: Tensor, cluster_ids: Tensor) -> Tensor:
    """Cross-entropy of the cluster that each grid cell of an image belongs to.

    Args:
        logits: (B, K, G, G).
        cluster_ids: (B, N) int64 in 0..K-1, cells row by row.

    Returns:
        A scalar, >= 0.

    Source: SPEC 9.
    """
    return F.cross_entropy(logits.flatten(2), cluster_ids)
