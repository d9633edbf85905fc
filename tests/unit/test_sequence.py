"""Stage 2: recomputation changes memory, not numbers; sequences are as SPEC 8 says."""

import pytest
import torch
from torch.nn import functional as F

from generations import batch
from generations.decoding import cut_after_eos, painting_steps
from generations.decoding.prefixes import blank_caption, next_logits
from generations.modeling import ModelSize, UnifiedTransformer
from generations.modeling.dropout import recorded_dropout
from generations.objectives.replay import drawn_and_greedy
from generations.objectives.sequence import (
    end_captions,
    evaluating,
    greedy_baseline,
    paint_softly,
    sample_captions,
    soft_painting_loss,
)
from generations.vocabulary import CLS, EOS, PAD

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.2, grid_size=3, feature_size=10, clusters=7)
LENGTH = 6


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UnifiedTransformer(SIZE)
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = 5  # some captions end early
    return model


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        # those of key biases are 0 but for rounding
        scale = theirs[name].abs().max().clamp(min=1e-4)
        assert (gradient - theirs[name]).abs().max() / scale < 1e-5, name


def kept_graph(model, vision, greedy, length):
    """What `drawn_and_greedy` gives, step by step and with its whole graph."""
    leave = not batch.sizes_repeat(vision.device)
    ids = blank_caption(len(vision) + len(greedy), length, vision.device)
    states = torch.cat([vision, greedy])
    ended = torch.zeros(len(ids), dtype=torch.bool)
    logprobs = [torch.zeros(len(vision))]
    for step in range(1, length):
        going = ~ended
        active = going.nonzero()[:, 0] if leave else torch.arange(len(ids))
        rows = active[active < len(vision)]
        with recorded_dropout(len(rows)):
            logits = next_logits(model, states[active], ids[active], step)
        words = logits.argmax(-1)
        column = torch.zeros(len(vision))
        if len(rows):
            chances = logits[: len(rows)].log_softmax(-1)
            words[: len(rows)] = torch.multinomial(chances.exp(), 1)[:, 0]
            chosen = chances.gather(1, words[: len(rows), None])[:, 0]
            column = column.index_put((rows,), chosen * going[rows])
        ids = ids.index_put((active, torch.tensor(step)), words)
        ended[active[words == EOS]] = True
        logprobs.append(column)
        if ended.all():
            break
    ids = cut_after_eos(end_captions(ids))
    logprobs += [torch.zeros(len(vision))] * (length + 1 - len(logprobs))
    return ids[: len(vision)], torch.stack(logprobs, 1), ids[len(vision) :]


@pytest.mark.parametrize("zeroshot", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("captions, greedy", [(3, 2), (5, 0), (20, 4)])
def test_replayed_captions_have_the_gradients_of_the_whole_graph(
    model, captions, greedy, on_gpu, zeroshot, as_on_a_gpu
):
    if on_gpu:  # ended captions stay
        as_on_a_gpu()
    # of 3 rows up to three steps run at once, of 5 two, of 20 each alone (replay.ROWS)
    model.zeroshot = zeroshot
    features = torch.randn(captions, 9, 10)
    certain = torch.randn(greedy, 9, 16)
    results = []
    for way in (drawn_and_greedy, kept_graph):
        torch.manual_seed(3)
        vision = model.encode_vision(features)
        ids, logprobs, likeliest = way(model, vision, certain, LENGTH)
        reward = torch.arange(float(captions))[:, None] - 1.5
        found = gradients(model, (logprobs * reward).sum())
        results.append((ids, likeliest, logprobs, found))
    (*words, logprobs, ours), (*other_words, expected, theirs) = results
    assert all(map(torch.equal, words, other_words))
    torch.testing.assert_close(logprobs, expected)
    assert_equal(ours, theirs)


def test_the_graph_is_that_of_captions_drawn_one_way_or_the_other(model):
    model.eval()  # dropout has other masks in either way
    vision = torch.randn(8, 9, 16)
    results = []
    for way in (sample_captions, lambda *inputs: drawn_and_greedy(*inputs[:2], vision, LENGTH)):
        torch.manual_seed(3)
        ids, logprobs, *_ = way(model, vision, LENGTH)
        results.append((ids, logprobs, gradients(model, logprobs.square().sum())))
    (ids, logprobs, ours), (other_ids, expected, theirs) = results
    assert torch.equal(ids, other_ids)
    torch.testing.assert_close(logprobs, expected)
    assert_equal(ours, theirs)


def test_greedy_captions_beside_drawn_ones_have_no_dropout(model):
    features = torch.randn(4, 9, 10)
    expected = greedy_baseline(model, {"features": features}, LENGTH)
    with evaluating(model):
        certain = model.encode_vision(features)
    for seed in range(3):
        torch.manual_seed(seed)
        *_, greedy = drawn_and_greedy(model, model.encode_vision(features), certain, LENGTH)
        assert torch.equal(greedy, expected)


def test_replaying_follows_the_precision_of_the_drawing(model):
    vision = model.encode_vision(torch.randn(4, 9, 10))
    with torch.autocast("cpu", torch.bfloat16):
        _, logprobs, _ = drawn_and_greedy(model, vision, vision[:0], LENGTH)
    seen = []
    hook = model.classifier.predictions.transform.register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    logprobs.sum().backward()
    hook.remove()
    assert seen and all(seen)


def test_soft_pictures_recompute_to_the_same_gradients(model):
    text_ids = torch.randint(104, 1100, (3, LENGTH + 1))
    text_ids[1:, 4:] = PAD
    target = torch.randint(0, 7, (3, 9))
    results = []
    for recompute in (True, False):
        torch.manual_seed(3)
        soft = paint_softly(model, text_ids, 4, recompute)
        loss, _ = soft_painting_loss(model, soft, target, 1.0, lambda soft: soft.sin().mean((1, 2)))
        results.append((soft.detach(), gradients(model, loss)))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert_equal(results[0][1], results[1][1])


def test_sampled_sequences_have_their_form(model):
    ids, logprobs = sample_captions(model, model.encode_vision(torch.randn(64, 9, 10)), LENGTH)
    assert ids.shape == logprobs.shape == (64, LENGTH + 1)
    assert (ids[:, 0] == CLS).all()
    assert ((ids == EOS).sum(1) == 1).all()
    assert torch.equal(cut_after_eos(ids), ids)
    drawn = (ids > 0) & (torch.arange(LENGTH + 1) > 0) & (torch.arange(LENGTH + 1) < LENGTH)
    assert (logprobs[drawn] < 0).all() and not logprobs[~drawn].any()
    assert len({tuple(row) for row in ids.tolist()}) > 30


def test_logprobs_are_those_of_the_model(model):
    model.eval()
    features = torch.randn(4, 9, 10)
    ids, logprobs = sample_captions(model, model.encode_vision(features), LENGTH)
    for step in range(1, LENGTH):
        masked = ids.clone()
        masked[:, step] = 103
        mask = (torch.arange(LENGTH + 1) <= step).expand(4, -1)
        logits, _ = model(masked, mask, features=features)
        expected = logits[:, 9 + step].log_softmax(-1).gather(1, ids[:, step : step + 1])[:, 0]
        going = ids[:, step] > 0
        torch.testing.assert_close(logprobs[going, step], expected[going])


def test_the_baseline_is_greedy_without_dropout_and_without_a_graph(model):
    visual = {"features": torch.randn(4, 9, 10)}
    model.train()
    first, second = greedy_baseline(model, visual, LENGTH), greedy_baseline(model, visual, LENGTH)
    assert torch.equal(first, second) and model.training
    assert (first == EOS).any(1).all()
    with evaluating(model):
        assert not model.training and not torch.is_grad_enabled()


def test_hard_choices_give_codebook_rows(model):
    """With all mass on one cluster the soft features are its centroid, at the last writing step."""
    model.eval()
    with torch.no_grad():
        model.img_classifier.out_cluster.weight.mul_(1e5)
        text_ids = torch.randint(104, 1100, (3, LENGTH + 1))
        *_, last = painting_steps(model, text_ids, 3)
        soft = paint_softly(model, text_ids, 3)
    torch.testing.assert_close(soft, model.cluster_codebook(last.cluster_ids), rtol=0.05, atol=0.05)


def test_the_gumbel_softmax_is_torchs(model):
    model.eval()
    text_ids = torch.tensor([[CLS, 500, EOS, 102, PAD]])
    (step,) = painting_steps(model, text_ids, 1)
    torch.manual_seed(3)
    wanted = F.gumbel_softmax(step.logits, tau=1.0, dim=-1) @ model.cluster_codebook.weight
    torch.manual_seed(3)
    found = paint_softly(model, text_ids, 1, recompute=False)
    assert torch.equal(found, wanted)
    weight = model.img_classifier.out_cluster.weight
    gradients = [torch.autograd.grad(soft.square().sum(), weight)[0] for soft in (found, wanted)]
    assert torch.equal(*gradients) and gradients[0].any()


def test_the_losses_add_up(model):
    soft = torch.randn(2, 9, 10)
    ids = torch.randint(0, 7, (2, 9))
    both, scores = soft_painting_loss(model, soft, ids, 0.5, lambda soft: soft.mean((1, 2)))
    assert torch.equal(scores, soft.mean((1, 2)))
    expected = 0.5 * F.mse_loss(soft, model.cluster_codebook.weight[ids]) - scores.mean()
    torch.testing.assert_close(both, expected)
    assert soft_painting_loss(model, soft, ids, 1.0)[1] is None
