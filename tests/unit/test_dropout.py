"""Dropout as a CPU draws it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from generations.modeling.dropout import Dropout, attention


@given(
    chance=st.floats(0, 0.9),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_scaled_by_one_over_its_chance(chance, shape, dtype):
    torch.manual_seed(0)
    values = torch.ones(shape, dtype=dtype, requires_grad=True)
    dropped = Dropout(chance)(values)
    scale = torch.tensor(1 / (1 - chance), dtype=dtype).item()
    found = dropped.detach().unique().tolist()
    assert all(value == 0 or value == pytest.approx(scale, rel=1e-2) for value in found)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())  # of ones: the mask and its scale


@pytest.mark.parametrize("chance", [0.001, 0.1, 0.5])
def test_the_share_of_zeros_is_the_chance_and_neighbours_are_independent(chance):
    torch.manual_seed(1)
    zeros = (Dropout(chance)(torch.ones(1_000_003)) == 0).double()
    deviation = (chance * (1 - chance) / len(zeros)) ** 0.5
    assert abs(zeros.mean() - chance) < 5 * deviation + 1 / 65536
    for gap in (1, 2, 3, 4):  # four decisions come from one random number
        together = (zeros[:-gap] * zeros[gap:]).mean()
        assert abs(together - chance**2) < 5 * chance / len(zeros) ** 0.5


def test_a_seed_gives_the_same_masks_and_draws_move_on():
    drop, values = Dropout(0.3), torch.ones(100)
    torch.manual_seed(5)
    first, second = drop(values), drop(values)
    torch.manual_seed(5)
    assert torch.equal(drop(values), first)
    assert not torch.equal(first, second)


def test_a_chance_just_below_one_drops_nearly_everything():
    torch.manual_seed(3)
    assert (Dropout(1 - 1e-7)(torch.ones(10_000)) == 0).double().mean() > 0.999


def test_evaluation_drops_nothing():
    values = torch.rand(7)
    assert Dropout(0.5).eval()(values) is values


def test_attention_with_dropout_is_torchs_in_the_mean():
    torch.manual_seed(2)
    query, key, value = torch.rand(3, 1, 2, 4, 8, dtype=torch.float64)
    bias = torch.zeros(4, 4, dtype=torch.float64).masked_fill(torch.ones(4, 4).triu(1) > 0, -1e4)
    torchs = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(attention(query, key, value, bias, 0.0), torchs)
    many = [part.expand(20_000, -1, -1, -1) for part in (query, key, value)]
    mean = attention(*many, bias, 0.2).mean(0, keepdim=True)
    torch.testing.assert_close(mean, torchs, atol=0.02, rtol=0)
