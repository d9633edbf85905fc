"""Guidance and orders of cells: what they are by their formulas, and that the paper's is a case."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generations.decoding import Guidance, Order, draw_uniforms, image_tokens, painting_steps
from generations.decoding.images import cells_again
from generations.decoding.orders import halton_visits
from generations.modeling import ModelSize, UnifiedTransformer
from generations.vocabulary import CLS, PAD, SEP

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.0, grid_size=3, feature_size=10, clusters=7)
LENGTH = 6


def make(seed: int) -> UnifiedTransformer:
    """Weights by which pictures depend on captions."""
    torch.manual_seed(seed)
    model = UnifiedTransformer(SIZE).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2.0 if "visual_attention" in name else 0.2)
    return model


def captions(count: int = 5) -> torch.Tensor:
    text_ids = torch.randint(104, 1100, (count, LENGTH + 1))
    text_ids[: count // 2, 4:] = PAD
    return text_ids


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["constant", "growing"])
def test_guided_logits_are_their_formula(schedule):
    """Two whole forward passes a step, with the caption and with [CLS] [SEP] and padding."""
    model, text_ids = make(2), captions()
    empty = torch.full_like(text_ids, PAD)
    empty[:, :2] = torch.tensor([CLS, SEP])
    ids, masked, steps = torch.zeros(5, 9, dtype=torch.long), torch.ones(5, 9), 3
    how = {"guidance": Guidance(1.5, schedule)}
    for step, found in enumerate(painting_steps(model, text_ids, steps, **how)):
        with_words, without = (
            model(words, words != PAD, cluster_ids=ids, visual_mask=masked)[1][:, :9]
            for words in (text_ids, empty)
        )
        scale = 1.5 * (step + 1) / 3 if schedule == "growing" else 1.5
        logits = with_words + scale * (with_words - without)
        torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)
        certainty, best = logits.softmax(-1).max(-1)
        ids = torch.where(masked > 0, best, ids)
        assert torch.equal(found.cluster_ids, ids)
        again = cells_again(step, steps, 9)
        masked = torch.zeros(5, 9).scatter(1, certainty.argsort(1)[:, :again], 1.0)


def test_guidance_changes_pictures_and_none_is_the_papers_way():
    model, text_ids = make(2), captions()
    plain = image_tokens(model, text_ids, 4)
    for off in (Guidance(0.0), Guidance(0.0, "growing")):
        for found, usual in zip(
            painting_steps(model, text_ids, 4, guidance=off), painting_steps(model, text_ids, 4),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(found.logits, usual.logits)
    assert not torch.equal(image_tokens(model, text_ids, 4, guidance=Guidance(4.0)), plain)
    with pytest.raises(ValueError, match="growing"):
        image_tokens(model, text_ids, 4, guidance=Guidance(1.0, "falling"))


def test_guided_samples_depend_on_their_seeds_alone():
    model, text_ids = make(2), captions()
    how = {"temperature": 1.0, "guidance": Guidance(2.0)}
    several = image_tokens(model, text_ids, 3, uniforms=draw_uniforms(range(5), 2, 3, 9), **how)
    assert several.shape == (10, 9) and not torch.equal(several[::2], several[1::2])
    alone = image_tokens(
        model, text_ids[3:4], 3, uniforms=draw_uniforms([3], 2, 3, 9), **how
    )  # fmt: skip
    assert torch.equal(alone, several[6:8])


@given(st.integers(1, 20))
def test_halton_visits_every_cell_once(side):
    assert sorted(halton_visits(side)) == list(range(side * side))


def test_halton_spreads_any_stretch_of_cells():
    """The first quarter of 8 x 8 cells has some in each quadrant; a known beginning."""
    visits = torch.tensor(halton_visits(8)).view(8, 8)
    quadrants = (visits < 16).view(2, 4, 2, 4).sum((1, 3))
    assert quadrants.min() >= 3
    # points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9)
    assert [int(visits[4, 2]), int(visits[2, 5]), int(visits[6, 0])] == [0, 1, 2]


@pytest.mark.parametrize("name", ["halton", "random"])
@pytest.mark.parametrize("steps", [1, 3, 9, 20])
def test_fixed_orders_settle_each_cell_once(name, steps):
    """Also with more steps than cells."""
    model, text_ids = make(2), captions()
    order = Order(name, uniforms=draw_uniforms(range(5), 1, 1, 9) if name == "random" else None)
    found = list(painting_steps(model, text_ids, steps, order=order))
    for before, after in pairwise(found):
        assert (after.masked <= before.masked).all()  # what is settled is not masked again
        settled = ~after.masked
        assert torch.equal(before.cluster_ids[settled], after.cluster_ids[settled])
    left = found[-1].masked.sum(1)
    assert (left == left[0]).all() and left[0] > 0
    if steps == 9:  # one cell a step
        turns = torch.stack([step.masked for step in found]).sum(0) - 1
        assert all(sorted(row.tolist()) == list(range(9)) for row in turns)
        wanted = [halton_visits(3)] * 5 if name == "halton" else []
        assert turns.tolist() == wanted or name == "random"
        assert (turns[0] != turns[1]).any() == (name == "random")


def test_noise_of_the_order_fades_and_repeats_with_its_seed():
    certainty = torch.rand(2, 9)
    uniforms = draw_uniforms([1, 2], 1, 4, 9)
    noisy = Order(noise=2.0, uniforms=uniforms)
    gumbel = -(-uniforms[:, 0, 1].log()).log()
    expected = certainty.log() + 2.0 * 0.5 * gumbel
    torch.testing.assert_close(noisy.standing(certainty, 1, 4), expected)
    last = noisy.standing(certainty, 3, 4)
    torch.testing.assert_close(last, certainty.log())
    model, text_ids = make(2), captions()
    numbers = [draw_uniforms(range(seed, seed + 5), 1, 4, 9) for seed in (1, 1, 70)]
    once, again, other = (
        image_tokens(model, text_ids, 4, order=Order(noise=9.0, uniforms=drawn))
        for drawn in numbers
    )
    assert torch.equal(once, again) and not torch.equal(once, other)
    with pytest.raises(ValueError, match="this order is random"):
        image_tokens(model, text_ids, 4, order=Order("random"))
    with pytest.raises(ValueError, match="halton"):
        image_tokens(model, text_ids, 4, order=Order("spiral"))
