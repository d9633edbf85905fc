"""Captioning the causal way: one pass, the cache and each position by itself say the same."""

import logging
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from generations.batch import Batch
from generations.checkpoint import from_pretrained, save_pretrained
from generations.config import load_config
from generations.datasets.captioning import draw_sample
from generations.decoding import beam_captions, caption_tokens, draw_uniforms, sampled_captions
from generations.decoding.captions import cut_after_eos
from generations.errors import UserError
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer, build_model
from generations.modeling.cache import next_word_logits, start_captions
from generations.objectives import TASKS, SequenceSettings, TaskContext, self_critical_loss
from generations.objectives.causal import causal_draw, causal_i2t_loss, word_states
from generations.pipelines.assembly import Start, warn_of_other_captioning
from generations.rewards import cider_d
from generations.vocabulary import CLS, EOS, MASK

SIZE = ModelSize(16, 2, 24, 2, 1, 3, 1100, 0.0, grid_size=3, feature_size=10, clusters=7)
LENGTH = 6  # L; T is 7


def make(seed: int = 0, few_words: bool = False) -> UnifiedTransformer:
    torch.manual_seed(seed)
    model = UnifiedTransformer(SIZE, causal=True).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # weights that make captions differ between images
            telling = "visual_attention" in name or "word_embeddings" in name
            torch.nn.init.normal_(parameter, std=1.0 if telling else 0.5)
    if few_words:  # of which a caption may well end
        with torch.no_grad():
            bias = model.classifier.predictions.bias.fill_(-90)
            bias[[200, 300, 400, 500, 600, 700, EOS]] = torch.tensor([*[0.0] * 6, 4.0])
    return model


def some(images: int, captions: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, N, D) and ids (B, C, T)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(104, 1100, (images, captions, LENGTH + 1), generator=generator)
    ids[..., 0] = CLS
    return 10 * torch.randn(images, 9, 10, generator=generator), ids


def by_itself(model: UnifiedTransformer, features: torch.Tensor, ids: torch.Tensor, step: int):
    """SPEC 13 to the letter for one position: [CLS], the words before it and its [MASK]."""
    text_ids = torch.cat([ids[:, :step], torch.full_like(ids[:, :1], MASK)], 1)
    mask = torch.ones(step + 1, step + 1).tril().bool()[None]
    vision, text = model.encode_vision(features), model.encode_text(text_ids, mask)
    for layer in model.encoder.x_layers:
        bias = (1 - mask.float())[:, None] * -1e9
        vision, text = layer.see(vision, text[:, :1], None), layer.tell(vision, text, bias)
    return model.text_logits(text[:, step])


@torch.no_grad()
def naive_captions(model: UnifiedTransformer, features: torch.Tensor) -> torch.Tensor:
    ids = torch.full((len(features), LENGTH + 1), CLS)
    for step in range(1, LENGTH + 1):
        ids[:, step] = by_itself(model, features, ids, step).argmax(-1)
    return cut_after_eos(ids)


@pytest.mark.parametrize("captions", [1, 3])
@torch.no_grad()
def test_one_pass_the_cache_and_each_position_by_itself_agree(captions):
    model, (features, ids) = make().double(), some(4, captions)
    features = features.double()
    vision = model.encode_vision(features)
    together = model.text_logits(word_states(model, vision, ids, LENGTH)).flatten(0, 1)
    cache = start_captions(model, vision, LENGTH + 1)
    cache = cache.rows(torch.arange(4).repeat_interleave(captions))
    flat = ids.flatten(0, 1)
    owners = features.repeat_interleave(captions, 0)
    for step in range(1, LENGTH + 1):
        alone = by_itself(model, owners, flat, step)
        cached = next_word_logits(model, cache, flat[:, step - 1], step)
        torch.testing.assert_close(together[:, step - 1], alone, rtol=0, atol=1e-9)
        torch.testing.assert_close(cached, alone, rtol=0, atol=1e-9)


@given(st.integers(0, 1), st.integers(1, LENGTH), st.integers(104, 1099))
@settings(max_examples=25)
@torch.no_grad()
def test_a_word_changes_no_prediction_up_to_its_own_place_and_none_of_another_caption(
    caption, place, word
):
    model, (features, ids) = make().double(), some(2, 2)
    vision = model.encode_vision(features.double())
    before = word_states(model, vision, ids, LENGTH)
    changed = ids.clone()
    changed[0, caption, place] = word
    after = word_states(model, vision, changed, LENGTH)
    same = torch.ones(before.shape[:-1], dtype=torch.bool)
    same[0, caption, place:] = False  # row p - 1 predicts position p
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=1e-10)
    if place < LENGTH and word != ids[0, caption, place]:
        assert (after - before)[~same].abs().max() > 1e-8


@pytest.mark.parametrize("seed", range(2))
def test_captions_equal_the_naive_computation(seed):
    model, (features, _) = make(seed, few_words=True), some(12, 1, seed)
    expected = naive_captions(model, features)
    assert len(set((expected > 0).sum(1).tolist())) > 1  # they end at different steps
    assert torch.equal(caption_tokens(model, features, text_length=LENGTH), expected)
    alone = beam_captions(model, features, None, LENGTH, beam_size=1)
    assert torch.equal(alone.ids[:, 0], expected)
    greedy = sampled_captions(
        model, draw_uniforms(range(12), 2, LENGTH), features, text_length=LENGTH, temperature=0.0
    )
    assert torch.equal(greedy.ids, expected[:, None].expand(-1, 2, -1))


@torch.no_grad()
def test_scores_of_a_beam_are_those_of_its_captions():
    """Hypotheses change places at each step, and their keys and values go with them."""
    model, (features, _) = make(1, few_words=True), some(5, 1)
    found = beam_captions(model, features, None, LENGTH, beam_size=4, num_captions=3)
    states = word_states(model, model.encode_vision(features), found.ids, LENGTH)
    words = found.ids[:, :, 1:]
    chances = model.text_logits(states).log_softmax(-1).gather(-1, words[..., None])[..., 0]
    log_probs = (chances * (words > 0)).sum(-1)
    torch.testing.assert_close(found.log_probs, log_probs, rtol=1e-4, atol=1e-4)


def batch_of(lengths: list[list[int]]) -> Batch:
    """Captions of so many ids each, 0 for an absent one."""
    features, ids = some(len(lengths), len(lengths[0]))
    ids *= torch.arange(LENGTH + 1) < torch.tensor(lengths)[..., None]
    count = len(lengths)
    cells = torch.zeros(count, 9, dtype=torch.long)
    references = torch.zeros(count, 5, 25, dtype=torch.long)
    references[:, 0, : LENGTH + 1] = ids[:, 0]
    names = [str(number) for number in range(count)]
    first = ids[:, 0]
    return Batch(
        names, names, first, first, cells[:, 0], cells, features, references, ids[:, 1:]
    )  # fmt: skip


LENGTHS = [[6, 3, 0], [4, 5, 2], [6, 6, 6], [2, 0, 0]]


def test_the_loss_is_the_mean_over_all_words_and_first_pads():
    model, batch = make(), batch_of(LENGTHS)
    losses = []
    for image, row in enumerate(LENGTHS):
        for caption, length in enumerate(row):
            ids = batch.drawn_text_ids[image, None, caption]
            for step in range(1, length + 1):
                logits = by_itself(model, batch.features[image, None], ids, step)
                losses.append(F.cross_entropy(logits, ids[:, step], label_smoothing=0.2))
    # torch spreads over all classes, the specification over all others
    loss, count = causal_i2t_loss(model, batch, smoothing=0.2 * 1099 / 1100, classes=None)
    assert count == len(losses) == 40
    torch.testing.assert_close(loss, torch.stack(losses).mean())


@pytest.mark.parametrize("processes", [2, 4])
def test_the_mean_over_processes_is_that_of_the_global_batch(processes):
    model, batch = make(), batch_of(LENGTHS)

    def gradient_of(part: Batch, mean: float):
        context = TaskContext(
            torch.Generator(),
            FeatureLevels(),
            world_size=processes,
            mean_over_processes=lambda _: torch.tensor(mean),
        )
        model.zero_grad()
        loss = TASKS["xe_i2t"](model, part, context).loss
        loss.backward()
        return loss.item(), model.encoder.layer[0].intermediate.dense.weight.grad.clone()

    loss, gradient = gradient_of(batch, 40.0)
    size = len(batch) // processes
    parts = [
        gradient_of(
            Batch(**{k: v[rank * size :][:size] for k, v in vars(batch).items()}), 40 / processes
        )
        for rank in range(processes)
    ]
    assert loss == pytest.approx(sum(part[0] for part in parts) / processes, rel=1e-6)
    mean = torch.stack([part[1] for part in parts]).mean(0)
    torch.testing.assert_close(mean, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("greedy", [True, False])
def test_drawn_captions_have_the_log_probabilities_that_the_cache_drew_them_with(greedy):
    model, (features, _) = make().train(), some(3, 1)
    torch.manual_seed(3)
    ids, logprobs, baseline = causal_draw(model, {"features": features}, 4, greedy, LENGTH)
    assert model.training and logprobs.requires_grad and ids.shape == (12, LENGTH + 1)
    expected = caption_tokens(model, features, text_length=LENGTH, steps=LENGTH - 1)
    expected[:, -1] = torch.where((expected == EOS).any(1), 0, EOS)
    assert torch.equal(baseline, expected if greedy else ids[:0])
    owners = features.repeat(4, 1, 1)
    for step in range(1, LENGTH):
        drawn = ids[:, step] > 0
        with torch.no_grad():
            chances = by_itself(model, owners, ids, step).log_softmax(-1)
        own = chances.gather(1, ids[:, step, None])[:, 0] * drawn
        torch.testing.assert_close(logprobs[:, step], own, rtol=1e-5, atol=1e-5)
    assert not logprobs[:, [0, -1]].any()


@pytest.mark.slow
def test_drawn_captions_have_the_frequencies_of_the_model():
    model = make(1)
    with torch.no_grad():
        model.classifier.predictions.bias.fill_(-30)
        model.classifier.predictions.bias[[200, 300, EOS]] = torch.tensor([0.5, 0.0, -0.5])
    features, _ = some(1, 1)
    torch.manual_seed(0)
    ids, logprobs, _ = causal_draw(model, {"features": features}, 4000, False, 3)
    for caption in ids.unique(dim=0):
        rows = (ids == caption).all(1)
        chance = float(logprobs.detach()[rows][0].sum().exp())
        assert float(rows.double().mean()) == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_rl_i2t_has_the_self_critical_loss_of_what_was_drawn(baseline):
    model, batch = make(few_words=True), batch_of([[6]] * 3)
    pairs = [[700, 400], [400, 500], [400, 700]]
    batch.references[:, 0] = F.pad(torch.tensor([[CLS, *pair, EOS] for pair in pairs]), (0, 21))
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = 0
    samples = 1 if baseline == "greedy" else 4
    sequence = SequenceSettings(LENGTH, baseline=baseline, samples=samples)
    torch.manual_seed(0)
    context = TaskContext(torch.Generator(), FeatureLevels(), sequence=sequence)
    output = TASKS["rl_i2t"](model, batch, context)
    torch.manual_seed(0)
    visual = {"features": batch.features}
    ids, logprobs, greedy = causal_draw(model, visual, samples, samples == 1, LENGTH)
    scores = cider_d(torch.cat([ids, greedy]), batch.references)
    if baseline == "greedy":
        advantage = scores[:3] - scores[3:]
    else:
        rows = scores.view(4, 3)
        advantage = (rows - (rows.sum(0) - rows) / 3).flatten()
    expected = self_critical_loss(logprobs, ids, advantage.float()[:, None])
    assert advantage.abs().sum() > 0
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.encoder.visn_fc.visn_fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dense", ["1", "0"])
@pytest.mark.parametrize("captioning", ["paper", "causal"])
@pytest.mark.parametrize("zeroshot", ["0", "1"])
def test_the_switch_goes_with_every_feature_level_and_not_with_zeroshot(
    dense, captioning, zeroshot
):
    flags = (
        "use_mix_feature",
        "0",
        "use_grid_feat",
        dense,
        "use_grid_cluster",
        str(1 - int(dense)),
    )
    keys = (*flags, "captioning", captioning, "xlxmert_zeroshot", zeroshot)
    if captioning == "causal" and zeroshot == "1":
        with pytest.raises(UserError, match=r"xlxmert_zeroshot 1 .* set captioning paper"):
            load_config(overrides=keys)
    else:
        assert load_config(overrides=keys).captioning == captioning


def test_several_captions_an_image_need_the_causal_way():
    with pytest.raises(UserError, match="captions_per_image 5 needs captioning causal"):
        load_config(overrides=("captions_per_image", "5"))


@pytest.mark.parametrize("wanted", [1, 2, 4, 9])
def test_further_captions_are_those_after_the_first_in_the_drawn_order(wanted):
    captions = [[CLS, 200 + number, 300] for number in range(4)]
    drawn = draw_sample(captions, random.Random(7), 4, wanted)
    alone = draw_sample(captions, random.Random(7), 4)
    assert (drawn.order, drawn.text_ids, drawn.position) == (
        alone.order, alone.text_ids, alone.position
    )  # fmt: skip
    rows = [drawn.text_ids, *drawn.further]
    assert len(rows) == wanted
    there = [[*captions[number], 0, 0] for number in drawn.order[:wanted]]
    assert rows == there + [[0] * 5] * (wanted - len(there))


def test_a_saved_model_remembers_its_way(tmp_path):
    sizes = ("model.hidden_size", "16", "model.num_heads", "2", "model.intermediate_size", "24")
    layers = ("model.language_layers", "1", "model.visual_layers", "1", "model.cross_layers", "1")
    small = ("model.vocab_size", "1100", "grid_feat_dim", "10", "grid_cluster_num", "7")
    for way in ("causal", "paper"):
        cfg = load_config(overrides=("captioning", way, *sizes, *layers, *small))
        save_pretrained(build_model(cfg), cfg, tmp_path)
        assert from_pretrained(tmp_path)[0].causal == (way == "causal")


@pytest.mark.parametrize("remembered", ["paper", "causal", ""])
def test_weights_of_the_other_way_are_warned_of(tmp_path, caplog, remembered):
    text = f"captioning: {remembered}" if remembered else "seed: 3"  # a run of before the switch
    (tmp_path / "config.yaml").write_text(text)
    cfg = load_config(overrides=("captioning", "causal"))
    with caplog.at_level(logging.WARNING):
        warn_of_other_captioning(cfg, Start("weights", str(tmp_path / "model_0000001.pth")))
    assert ("set captioning paper" in caplog.text) == (remembered != "causal")
