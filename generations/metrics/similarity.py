"""Similarity of pictures: SSIM, and a distance of the features of a trained network.

Shape legend: B batch, S side of a picture.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # against division by nothing, for pixels in [0, 1]


def structural_similarity(one: Tensor, other: Tensor) -> Tensor:
    """SSIM of pairs of pictures, each colour by itself, averaged over colours and places.

    Means, variances and the covariance are those under a Gaussian window of 11 x 11 pixels (less
    where a picture is smaller) with deviation 1.5, at all places where it lies inside.

    Args:
        one: (B, 3, S, S) in [0, 1].
        other: the same.

    Returns:
        (B,) in [-1, 1]; 1 for equal pictures.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity,
    IEEE Transactions on Image Processing 2004.
    """
    side = min(WINDOW, *one.shape[2:])
    places = torch.arange(side, dtype=torch.float64, device=one.device) - (side - 1) / 2
    line = torch.exp(-places.square() / (2 * SIGMA**2))
    line = line / line.sum()
    window = torch.outer(line, line).expand(one.shape[1], 1, side, side)

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=values.shape[1])

    one, other = one.double(), other.double()
    m1, m2 = mean(one), mean(other)
    v1, v2 = mean(one.square()) - m1.square(), mean(other.square()) - m2.square()
    covariance = mean(one * other) - m1 * m2
    alike = (2 * m1 * m2 + _C1) * (2 * covariance + _C2)
    return (alike / ((m1.square() + m2.square() + _C1) * (v1 + v2 + _C2))).mean((1, 2, 3))


@torch.no_grad()
def feature_distance(
    network: Callable[[Tensor], Sequence[Tensor]], one: Tensor, other: Tensor
) -> Tensor:
    """Distance of pairs of pictures in a network's maps, as LPIPS without its learned weights.

    At every place of a map the channels become a vector of length 1; the squared difference of
    both pictures' vectors is averaged over places, and over maps.

    Args:
        network: pictures (B, 3, S, S) in [-1, 1] -> maps (B, C, h, w).
        one: pictures in [0, 1].
        other: the same.

    Returns:
        (B,) in [0, 4]; 0 for equal pictures. Not to be compared with distances of other networks.

    Source: Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric,
    CVPR 2018, equation 1.
    """
    pairs = zip(network(one * 2 - 1), network(other * 2 - 1), strict=True)
    maps = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in pairs
    ]
    return torch.stack(maps).mean(0)
