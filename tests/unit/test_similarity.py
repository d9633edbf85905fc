"""How alike two pictures are."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from generations.metrics.similarity import feature_distance, structural_similarity
from generations.pipelines.generator_networks import RANDOM, lite0_features

RNG = torch.Generator().manual_seed(0)


def by_hand(one, other):
    """SSIM of two (H, W) float64 arrays, window by window."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for y in range(one.shape[0] - 10):
        for x in range(one.shape[1] - 10):
            a, b = one[y : y + 11, x : x + 11], other[y : y + 11, x : x + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            both = (window * (a - ma) * (b - mb)).sum()
            light = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
            found.append(light * (2 * both + 9e-4) / (va + vb + 9e-4))
    return np.mean(found)


def test_similarity_is_that_of_the_paper():
    one, other = torch.rand(2, 2, 3, 14, 16, generator=RNG)
    found = structural_similarity(one, other)
    for index in range(2):
        pairs = zip(one[index].double().numpy(), other[index].double().numpy(), strict=True)
        assert found[index] == pytest.approx(np.mean([by_hand(a, b) for a, b in pairs]), abs=1e-9)


def test_similarity_of_equal_flat_and_small_pictures():
    picture = torch.rand(1, 3, 20, 20, generator=RNG)
    assert structural_similarity(picture, picture).item() == pytest.approx(1)
    dark, light = torch.full((1, 3, 12, 12), 0.25), torch.full((1, 3, 12, 12), 0.75)
    known = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)  # of the means alone
    assert structural_similarity(dark, light).item() == pytest.approx(known, abs=1e-6)
    assert structural_similarity(dark[..., :4, :4], light[..., :4, :4]).item() == pytest.approx(
        known, abs=1e-6
    )


def test_distance_compares_directions_of_features():
    def network(pictures):
        return [2 * pictures + 5, F.avg_pool2d(pictures, 2)]

    one = torch.zeros(1, 3, 2, 2)
    one[:, 0] = 1.0  # in [-1, 1]: (1, -1, -1)
    other = torch.zeros(1, 3, 2, 2)
    other[:, 1] = 1.0
    first = (7.0, 3.0, 3.0), (3.0, 7.0, 3.0)
    cosines = [np.dot(*first) / np.dot(first[0], first[0]), -1 / 3]
    expected = np.mean([2 - 2 * cosine for cosine in cosines])
    assert feature_distance(network, one, other).item() == pytest.approx(expected, abs=1e-6)
    assert feature_distance(network, one, one).item() == 0


def test_distance_of_a_network_grows_with_the_damage():
    network = lite0_features(RANDOM, 3)
    assert [tuple(m.shape[1:]) for m in network(torch.zeros(1, 3, 64, 64))] == (
        [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    )
    picture = torch.rand(2, 3, 64, 64, generator=RNG)
    noise = torch.randn(2, 3, 64, 64, generator=RNG)
    little, much = (
        feature_distance(network, picture, (picture + s * noise).clamp(0, 1)) for s in (0.02, 0.3)
    )
    assert (little > 0).all() and (little < much).all()
