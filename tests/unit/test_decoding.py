"""Decoding does less than the full forward passes of SPEC 7, and gives the same."""

import pytest
import torch

from generations.decoding import caption_tokens, cut_after_eos, image_tokens
from generations.modeling import ModelSize, UnifiedTransformer
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.0, grid_size=3, feature_size=10, clusters=7)
LENGTH = 6


def make(seed: int, zeroshot: bool = False) -> UnifiedTransformer:
    torch.manual_seed(seed)
    model = UnifiedTransformer(SIZE, zeroshot).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # weights that make captions differ between images
            std = 2.0 if "visual_attention" in name else 0.2
            torch.nn.init.normal_(parameter, std=std)
    with torch.no_grad():
        # a likely full stop, so that captions end at different steps
        model.classifier.predictions.bias[EOS] += 2
    return model


def naive_captions(model: UnifiedTransformer, features: torch.Tensor) -> torch.Tensor:
    """SPEC 7 to the letter: full sequences, both heads everywhere, nothing reused."""
    ids = torch.full((len(features), LENGTH + 1), MASK)
    ids[:, 0], ids[:, -1] = CLS, SEP
    for step in range(1, LENGTH + 1):
        mask = (torch.arange(LENGTH + 1) <= step).expand(len(ids), -1)
        logits, _ = model(ids, mask, features=features)
        ids[:, step] = logits[:, 9 + step].argmax(-1)
    return cut_after_eos(ids)


@pytest.mark.parametrize("zeroshot", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_captions_equal_the_naive_computation(seed, zeroshot):
    model = make(seed, zeroshot)
    with torch.no_grad():
        features = 10 * torch.randn(12, 9, 10)
        expected = naive_captions(model, features)
    assert torch.equal(caption_tokens(model, features, text_length=LENGTH), expected)


def test_some_captions_of_that_test_end_early():
    lengths = set()
    for seed in range(3):
        ids = caption_tokens(make(seed), 10 * torch.randn(12, 9, 10), text_length=LENGTH)
        lengths |= set((ids > 0).sum(1).tolist())
    assert len(lengths) > 2


def test_fewer_steps_give_a_prefix():
    model, features = make(1), torch.randn(3, 9, 10)
    whole = caption_tokens(model, features, text_length=LENGTH)
    part = caption_tokens(model, features, text_length=LENGTH, steps=3)
    assert torch.equal(part[:, :4], whole[:, :4])
    assert not part[:, 4:].any()


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_painting_equals_the_naive_computation(steps):
    model = make(2)
    text_ids = torch.randint(104, 1100, (5, LENGTH + 1))
    text_ids[:3, 4:] = PAD
    ids, masked = torch.zeros(5, 9, dtype=torch.long), torch.ones(5, 9)
    with torch.no_grad():
        for step in range(steps):
            mask = (text_ids != PAD).long()
            _, logits = model(text_ids, mask, cluster_ids=ids, visual_mask=masked)
            certainty, best = logits[:, :9].softmax(-1).max(-1)
            ids = torch.where(masked > 0, best, ids)
            again = int((steps - step - 1) / steps * 9)
            masked = torch.zeros(5, 9).scatter(1, certainty.argsort(1)[:, :again], 1.0)
    before = text_ids.clone()
    assert torch.equal(image_tokens(model, text_ids, steps), ids)
    assert torch.equal(text_ids, before)


def test_cut_after_eos_keeps_the_first_full_stop():
    ids = torch.tensor([[CLS, 7, EOS, 8, EOS], [CLS, 7, 8, 9, 9], [EOS, EOS, 1, 2, 3]])
    expected = [[CLS, 7, EOS, 0, 0], [CLS, 7, 8, 9, 9], [EOS, 0, 0, 0, 0]]
    assert cut_after_eos(ids).tolist() == expected
