"""Beam search, sampling, schedules: what is found and drawn, and that greedy is a special case."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generations.decoding import (
    beam_captions,
    caption_tokens,
    choose_tokens,
    cut_after_eos,
    draw_uniforms,
    image_tokens,
    sampled_captions,
)
from generations.decoding.captions import caption_lengths
from generations.decoding.images import cells_again
from generations.modeling import ModelSize, UnifiedTransformer
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.0, grid_size=3, feature_size=10, clusters=7)
LENGTH = 6
WORDS = [200, 300, 400, 500, EOS]


def make(seed: int, zeroshot: bool = False, few_words: bool = False) -> UnifiedTransformer:
    torch.manual_seed(seed)
    model = UnifiedTransformer(SIZE, zeroshot).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # weights that make captions differ between images
            torch.nn.init.normal_(parameter, std=2.0 if "visual_attention" in name else 0.2)
    with torch.no_grad():
        bias = model.classifier.predictions.bias
        bias[EOS] += 2
        if few_words:
            bias += 0.5 - 40 * torch.ones(len(bias)).index_fill(0, torch.tensor(WORDS), 0)
    return model


def images(count: int = 6) -> torch.Tensor:
    return 10 * torch.randn(count, 9, 10, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def rescore(model: UnifiedTransformer, feature: torch.Tensor, captions: torch.Tensor, steps: int):
    """Log-probabilities (M,) of captions (M, T) of one image, by full forward passes."""
    total = torch.zeros(len(captions))
    ids = torch.full_like(captions, MASK)
    ids[:, 0], ids[:, -1] = CLS, SEP
    going = torch.ones(len(captions), dtype=torch.bool)
    for step in range(1, steps + 1):
        mask = (torch.arange(LENGTH + 1) <= step).expand(len(ids), -1)
        logits, _ = model(ids, mask, features=feature.expand(len(ids), -1, -1))
        chances = logits[:, 9 + step].log_softmax(-1)
        total += torch.where(going, chances.gather(1, captions[:, step, None])[:, 0], 0.0)
        ids[:, step] = captions[:, step]
        going &= captions[:, step] != EOS
    return total


def everything(words: list[int], steps: int) -> torch.Tensor:
    """All captions of at most `steps` words, (M, T)."""
    rows = {
        tuple(cut_after_eos(torch.tensor([[CLS, *way] + [PAD] * (LENGTH - steps)]))[0].tolist())
        for way in itertools.product(words, repeat=steps)
    }
    return torch.tensor(sorted(rows))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("seed", range(2))
def test_a_wide_beam_equals_exhaustive_search(seed, length_penalty):
    model, features = make(seed, few_words=True), images(3)
    captions = everything(WORDS, 4)
    found = beam_captions(
        model, features, None, LENGTH, 4, len(WORDS) ** 3, length_penalty, num_captions=4
    )
    for image in range(3):
        log_probs = rescore(model, features[image], captions, 4)
        scores, best = (log_probs / caption_lengths(captions, 4) ** length_penalty).topk(4)
        assert torch.equal(found.ids[image], captions[best])
        torch.testing.assert_close(found.scores[image], scores)
        torch.testing.assert_close(found.log_probs[image], log_probs[best])


def test_a_beam_as_wide_as_the_vocabulary_equals_exhaustive_search_of_two_words():
    captions = everything(WORDS, 2)
    for seed in range(4):
        model, features = make(seed, few_words=True), images(3)
        found = beam_captions(model, features, None, LENGTH, 2, len(WORDS))
        for image in range(3):
            best = rescore(model, features[image], captions, 2).argmax()
            assert torch.equal(found.ids[image, 0], captions[best])


@pytest.mark.parametrize("zeroshot", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_beam_1_is_greedy(seed, zeroshot):
    model, features = make(seed, zeroshot), images(12)
    greedy = caption_tokens(model, features, text_length=LENGTH)
    assert torch.equal(beam_captions(model, features, None, LENGTH, beam_size=1).ids[:, 0], greedy)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
def test_no_beam_scores_below_greedy(length_penalty):
    features, better = images(12), 0
    for seed in range(4):
        model = make(seed)
        greedy = caption_tokens(model, features, text_length=LENGTH, steps=LENGTH - 1)
        lengths = caption_lengths(greedy, LENGTH - 1)
        for beam_size in (2, 4):
            found = beam_captions(
                model, features, None, LENGTH, LENGTH - 1, beam_size, length_penalty
            )
            for image, row in enumerate(greedy):
                lowest = rescore(model, features[image], row[None], LENGTH - 1)[0]
                lowest = lowest / lengths[image] ** length_penalty
                assert found.scores[image, 0] >= lowest - 1e-4
                better += bool(found.scores[image, 0] > lowest + 1e-3)
    assert better  # the search is worth it somewhere


def test_hypotheses_are_different_and_in_order():
    found = beam_captions(make(1), images(), None, LENGTH, beam_size=5, num_captions=5)
    assert found.ids.shape == (6, 5, LENGTH + 1)
    assert torch.equal(found.scores.sort(1, descending=True).values, found.scores)
    for rows in found.ids.tolist():
        assert len({tuple(row) for row in rows}) == 5
    assert (found.ids[:, :, 1:] == EOS).any()


def test_an_image_alone_gets_the_caption_it_gets_in_company():
    model, features = make(2), images(8)
    together = beam_captions(model, features, None, LENGTH, beam_size=3, num_captions=2)
    for image in range(8):
        alone = beam_captions(
            model, features[image, None], None, LENGTH, beam_size=3, num_captions=2
        )
        assert torch.equal(alone.ids[0], together.ids[image])


@pytest.mark.parametrize("how", [{"top_k": 1}, {"temperature": 0.0}, {"top_p": 1e-9}])
def test_sampling_without_choice_is_greedy(how):
    model, features = make(0), images()
    drawn = sampled_captions(
        model, draw_uniforms(range(6), 3, LENGTH), features, text_length=LENGTH, **how
    )
    greedy = caption_tokens(model, features, text_length=LENGTH)
    assert torch.equal(drawn.ids, greedy[:, None].expand(-1, 3, -1))


def test_seeds_repeat_captions_whatever_the_batch():
    model, features = make(0), images()
    uniforms = draw_uniforms(range(6), 4, LENGTH)
    first = sampled_captions(model, uniforms, features, text_length=LENGTH)
    alone = sampled_captions(
        model, draw_uniforms([4], 4, LENGTH), features[4, None], text_length=LENGTH
    )
    assert torch.equal(alone.ids[0], first.ids[4])
    other = sampled_captions(model, draw_uniforms([94], 4, LENGTH), features[4, None])
    assert not torch.equal(other.ids[0, :, : LENGTH + 1], first.ids[4])
    assert torch.equal(first.scores.sort(1, descending=True).values, first.scores)
    torch.testing.assert_close(
        first.log_probs[4], rescore(model, features[4], first.ids[4], LENGTH)
    )


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=8),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(0, 9),
    st.sampled_from([0.2, 0.6, 0.95, 1.0]),
)
def test_frequencies_of_drawn_tokens(logits, temperature, top_k, top_p):
    chances = [x / temperature for x in logits]
    order = sorted(range(len(chances)), key=lambda i: -chances[i])[: top_k or None]
    weights = torch.tensor([chances[i] for i in order]).double().softmax(0)
    ordered = sorted(chances)
    closest = min(b - a for a, b in itertools.pairwise(ordered))
    if closest < 1e-5 or ((weights.cumsum(0) - top_p).abs().min() < 1e-4 and top_p < 1):
        return  # ties: several answers are right
    inside = torch.cat([torch.zeros(1), weights.cumsum(0)[:-1]]) < top_p
    expected = torch.zeros(len(logits)).double()
    expected[order] = weights * inside / weights[inside].sum()
    uniforms = (torch.arange(2000) + 0.5) / 2000
    rows = torch.tensor(logits).expand(2000, -1)
    drawn = choose_tokens(rows, uniforms, temperature, top_k, top_p)
    counts = torch.bincount(drawn, minlength=len(logits)) / 2000
    if temperature and top_k != 1:
        torch.testing.assert_close(counts.double(), expected, atol=1e-3, rtol=0)


def test_no_impossible_token_is_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]]).expand(2, -1)
    extremes = torch.tensor([0.0, 1 - 2**-24])
    for how in ((1.0, 0, 1.0), (1.0, 4, 1.0), (1e-40, 0, 0.9)):
        assert set(choose_tokens(logits, extremes, *how).tolist()) <= {1, 2}


def test_painting_at_a_low_temperature_is_greedy_and_seeds_repeat():
    model = make(2)
    text_ids = torch.randint(104, 1100, (5, LENGTH + 1))
    greedy = image_tokens(model, text_ids, 3)
    uniforms = draw_uniforms(range(5), 2, 3, 9)
    assert torch.equal(image_tokens(model, text_ids, 3, temperature=0.0), greedy)
    cold = image_tokens(model, text_ids, 3, temperature=1e-6, uniforms=uniforms)
    assert torch.equal(cold, greedy.repeat_interleave(2, 0))
    warm = image_tokens(model, text_ids, 3, temperature=1.0, uniforms=uniforms)
    assert not torch.equal(warm[::2], warm[1::2])
    alone = image_tokens(
        model, text_ids[3:4], 3, temperature=1.0, uniforms=draw_uniforms([3], 2, 3, 9)
    )
    assert torch.equal(alone, warm[6:8])
    with pytest.raises(ValueError, match="uniform"):
        image_tokens(model, text_ids, 3, temperature=1.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_fall_to_0(schedule):
    counts = [cells_again(step, 8, 64, schedule) for step in range(8)]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == 0
    assert cells_again(0, 1, 64, schedule) == 0
    assert cells_again(0, 4, 64, "cosine") == 59  # 64 cos(pi / 8)
    with pytest.raises(ValueError, match="cosine"):
        cells_again(0, 4, 64, "cubic")


def test_the_cosine_schedule_settles_fewer_cells_at_first():
    model, text_ids = make(2), torch.randint(104, 1100, (8, LENGTH + 1))
    assert not torch.equal(
        image_tokens(model, text_ids, 4, "cosine"), image_tokens(model, text_ids, 4)
    )
