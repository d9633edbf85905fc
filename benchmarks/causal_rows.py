"""Rows in which `naive` is our own paper's way of captioning, and ours is the causal one."""

from collections.abc import Callable
from dataclasses import replace

import measures
import torch
from measures import Comparison, Sides
from torch import Tensor

from generations.batch import Batch
from generations.decoding import caption_tokens
from generations.modeling import UnifiedTransformer
from generations.modeling.cache import next_word_logits, start_captions
from generations.objectives import TASKS, label_smoothing_loss
from generations.objectives.causal import causal_draw, causal_i2t_loss, word_states
from generations.vocabulary import EOS, PAD

DRAWN = 40  # words that rl_i2t draws from


def in_way(model: UnifiedTransformer, causal: bool, call: Callable[[], Tensor]) -> Tensor:
    """A call with the model in one of the two ways; the weights are the same."""
    model.causal = causal
    return call()


@torch.no_grad()
def cached_logits(model: UnifiedTransformer, features: Tensor, ids: Tensor) -> Tensor:
    """Logits (B, C, T - 1, V) of all positions of captions (B, C, T), word by word."""
    images, captions, length = ids.shape
    cache = start_captions(model, model.encode_vision(features), length)
    cache = cache.rows(torch.arange(images).repeat_interleave(captions))
    flat = ids.flatten(0, 1)
    found = [next_word_logits(model, cache, flat[:, p - 1], p) for p in range(1, length)]
    return torch.stack(found, 1).unflatten(0, (images, captions))


def words_of(size: str, captions: int, batch_size: int = 8) -> Sides:
    """Supervised words of a training step, with update."""
    model = measures.new_model(size)
    batch = measures.random_batch(model, batch_size, 17)
    further = [measures.random_batch(model, batch_size, 17).text_ids for _ in range(captions - 1)]
    several = replace(batch, further_text_ids=torch.stack(further, 1)) if further else batch
    ids = several.drawn_text_ids
    assert batch.features is not None

    def step(part: Batch, causal: bool) -> Callable[[], Tensor]:
        context = measures.our_context(True)
        return lambda: in_way(model, causal, lambda: TASKS["xe_i2t"](model, part, context).loss)

    @torch.no_grad()
    def by_word() -> Tensor:
        places = torch.arange(1, ids.shape[-1]) <= (ids != PAD).sum(-1, keepdim=True)
        logits = cached_logits(model, batch.features, ids)[places]
        return label_smoothing_loss(logits, ids[..., 1:][places])

    def at_once() -> Tensor:
        return causal_i2t_loss(model, several, classes=None)[0].detach()

    sides = measures.training_step(model, batch, step(several, True), step(batch, False))
    words = int(((ids != PAD).sum(-1)).sum())
    check = Comparison(at_once, by_word, measures.apart, "loss of the pass and of word by word")
    return replace(sides, samples=words, naive_samples=batch_size, check=check, same_tools=True)


def caption_greedy_causal(size: str, batch_size: int = 10) -> Sides:
    """17 words for each of 10 images; the model cannot write EOS."""
    model = measures.new_model(size).eval()
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = -1e4
    features = measures.random_batch(model, batch_size, 17).features
    assert features is not None

    def write(causal: bool) -> Callable[[], Tensor]:
        def call() -> Tensor:
            return caption_tokens(model, features, text_length=17)

        return lambda: in_way(model, causal, call)

    @torch.no_grad()
    def again() -> Tensor:
        """The likeliest words of one pass over the captions."""
        ids = write(True)()
        states = word_states(model, model.encode_vision(features), ids[:, None], ids.shape[1] - 1)
        return torch.cat([ids[:, :1], model.text_logits(states[:, 0]).argmax(-1)], 1)

    check = Comparison(write(True), again, measures.other_ids, "ids, and those of one pass")
    whole = Comparison(write(True), write(False), measures.other_ids, "")
    return Sides(whole, batch_size, model=model, check=check, same_tools=True)


def rl_i2t_step_causal(size: str, batch_size: int = 2) -> Sides:
    """15 words for each of 2 images, greedily and drawn; no caption ends early."""
    model = measures.new_model(size)
    words = torch.arange(measures.FIRST_WORD, measures.FIRST_WORD + DRAWN)
    measures.favour(model, words)
    batch = measures.random_batch(model, batch_size, 16)
    assert batch.features is not None

    def step(causal: bool) -> Callable[[], Tensor]:
        context = measures.our_context(True)
        return lambda: in_way(model, causal, lambda: TASKS["rl_i2t"](model, batch, context).loss)

    def drawn() -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        visual = {"features": batch.features}
        model.causal = True
        ids, logprobs, _ = causal_draw(model, visual, 1, True, 16)
        return ids, logprobs[:, 1:-1].detach()

    @torch.no_grad()
    def by_word() -> Tensor:
        ids = drawn()[0]
        logits = cached_logits(model, batch.features, ids[:, None, :-1])[:, 0]
        return logits.log_softmax(-1).gather(-1, ids[:, 1:-1, None])[..., 0]

    sides = measures.training_step(model, batch, step(True), step(False))
    what = "log-probabilities of the pass and of word by word"
    check = Comparison(lambda: drawn()[1], by_word, measures.apart, what)
    return replace(sides, check=check, same_tools=True)


ROWS: dict[str, Callable[[str], Sides]] = {
    "xe_i2t_words_causal": lambda size: words_of(size, 1),
    "xe_i2t_words_causal5": lambda size: words_of(size, 5),
    "caption_greedy_causal": caption_greedy_causal,
    "rl_i2t_step_causal": rl_i2t_step_causal,
}
