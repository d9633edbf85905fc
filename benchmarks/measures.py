"""What the benchmark measures: ours and the original's amount of work, over the same weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import naive
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from generations.batch import Batch
from generations.config import load_config
from generations.decoding import caption_tokens, image_tokens, sampling
from generations.decoding.captions import decode_scored
from generations.decoding.images import cells_again, predict
from generations.decoding.prefixes import blank_caption, next_logits
from generations.image_generator import build_generator
from generations.metrics.fid import frechet_distance
from generations.modeling import FeatureLevels, UnifiedTransformer, build_model
from generations.modeling.transformer import Projections
from generations.objectives import TASKS, SequenceSettings, TaskContext, replay, sequence
from generations.objectives import xe_t2i_loss as our_xe_t2i_loss
from generations.rewards import cider_d
from generations.training.optim import fill_absent_gradients
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

ROOT = Path(__file__).resolve().parents[1]
FIRST_WORD = 1037
# of captions with their full stop; 11 in the mean, as in COCO
CAPTION_LENGTHS = (8, 9, 10, 10, 11, 11, 11, 12, 13, 15)
# relative; bfloat16 keeps 8 bits, and its rounding adds up over 19 layers
TOLERANCES = {"float32": 1e-5, "bf16": 3e-2}


@dataclass(frozen=True)
class Comparison:
    """Two results that are to be the same.

    Attributes:
        ours: gives the result.
        naive: gives the same, by the original's amount of work.
        difference: relative, of the two results; at most `TOLERANCES` of the precision.
        what: what is compared, in words.
    """

    ours: Callable[[], Any]
    naive: Callable[[], Any]
    difference: Callable[[Any, Any], float]
    what: str


@dataclass(frozen=True)
class Sides:
    """Two ways to the same numbers.

    Attributes:
        whole: what is timed, and what is compared in float32.
        samples: images, captions or pictures in one call.
        in_half: what is compared in bf16, where choices among all but equal tokens may turn out
            differently; None: the same.
        our_update: after `ours`, in a training step: gradient norm, optimiser; the time counts.
        naive_update: that of `naive`.
        before_timing: called once the results were compared.
        before_each: called before each call of either side, not timed.
        model: whose linear layers are computed by torch's usual library in `naive`.
        naive_samples: in one call of `naive`; None: as many. The ratio is of samples a second.
        check: what is compared, if not what is timed.
        same_tools: `naive` is our own code too: the same library of products and the same update.
    """

    whole: Comparison
    samples: int
    in_half: Comparison | None = None
    our_update: Callable[[], None] | None = None
    naive_update: Callable[[], None] | None = None
    before_timing: Callable[[], None] = lambda: None
    before_each: Callable[[], None] = lambda: None
    model: UnifiedTransformer | None = None
    naive_samples: int | None = None
    check: Comparison | None = None
    same_tools: bool = False


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The distance of two tensors by the size of the second."""
    size = float(theirs.double().norm())
    return float((ours.double() - theirs.double()).norm()) / size if size else float("inf")


def other_ids(ours: Tensor, theirs: Tensor) -> float:
    """The share of ids that differ."""
    return float((ours != theirs).double().mean())


def configuration(size: str) -> Any:
    """The defaults (full) or the mini world's; `mask_feat` is not zero, as once trained."""
    files = [ROOT / "configs" / "mini" / "stage2.yaml"] if size == "mini" else []
    return load_config(files, ("model.dropout", "0.1", "init.mask_feat_std", "0.5"))


def new_model(size: str) -> UnifiedTransformer:
    torch.manual_seed(0)
    return build_model(configuration(size)).train()


def set_dropout(model: UnifiedTransformer, chance: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = chance
        elif isinstance(module, Projections):
            module.dropout = chance


def favour(model: UnifiedTransformer, words: Tensor) -> None:
    """Let the model write these words alone, so that random captions meet their references."""
    with torch.no_grad():
        bias = model.classifier.predictions.bias
        bias.fill_(-30.0)
        bias[words] = 0.0


def random_batch(model: UnifiedTransformer, batch_size: int, text_length: int) -> Batch:
    """Random ids and features of a model's sizes; captions have COCO's lengths."""
    size = model.size
    cells = size.grid_size**2
    text_ids = torch.full((batch_size, text_length + 1), PAD)
    positions = torch.empty(batch_size, dtype=torch.long)
    for row in range(batch_size):
        words = min(CAPTION_LENGTHS[row * 3 % 10], text_length - 2)
        text_ids[row, 0], text_ids[row, words + 1] = CLS, SEP
        text_ids[row, 1 : words + 1] = torch.randint(FIRST_WORD, size.vocab_size, (words,))
        positions[row] = torch.randint(1, words + 3, ())  # up to the first PAD
    masked = text_ids.clone()
    masked[torch.arange(batch_size), positions] = MASK
    return Batch(
        image_ids=[str(number) for number in range(batch_size)],
        captions=["a dog."] * batch_size,
        text_ids=text_ids,
        masked_text_ids=masked,
        mask_positions=positions,
        cluster_ids=torch.randint(0, size.clusters, (batch_size, cells)),
        features=torch.rand(batch_size, cells, size.feature_size),
        references=torch.randint(FIRST_WORD, FIRST_WORD + 40, (batch_size, 5, 12)),
    )


# --- without training ----------------------------------------------------------------------------


def caption_greedy(size: str, batch_size: int = 10) -> Sides:
    """17 words for each of 10 images; the model cannot write EOS."""
    model = new_model(size).eval()
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = -1e4
    length = 17
    features = random_batch(model, batch_size, length).features
    assert features is not None
    whole = Comparison(
        lambda: caption_tokens(model, features, text_length=length),
        torch.no_grad()(lambda: naive.write(model, features, length, length, naive.likeliest)[0]),
        other_ids,
        "ids",
    )
    return Sides(whole, batch_size, next_words(model, features, length), model=model)


def next_words(model: UnifiedTransformer, features: Tensor, length: int) -> Comparison:
    """Logits of three positions, given the same words before them."""
    ids = blank_caption(len(features), length, features.device)
    words = torch.randint(FIRST_WORD, model.size.vocab_size, (len(features), length - 1))
    written = {step: ids.clone() for step in (1, length // 2, length)}
    for step, row in written.items():
        row[:, 1:step] = words[:, : step - 1]

    @torch.no_grad()
    def ours() -> Tensor:
        vision = model.encode_vision(features)
        return torch.stack(
            [next_logits(model, vision, ids, step).float() for step, ids in written.items()]
        )

    @torch.no_grad()
    def theirs() -> Tensor:
        found = [naive.word_logits(model, features, ids, step) for step, ids in written.items()]
        return torch.stack(found)

    return Comparison(ours, theirs, apart, "logits of the words 1, 8 and 17 after the same words")


def caption_greedy_natural(size: str, batch_size: int = 10) -> Sides:
    """EOS is written where COCO's captions end; the original goes on until the last position."""
    model = new_model(size).eval()
    length = 17
    features = random_batch(model, batch_size, length).features
    assert features is not None
    ends = torch.tensor(CAPTION_LENGTHS * (batch_size // 10))

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return logits.argmax(-1).masked_fill(ends[rows] == step, EOS)

    @torch.no_grad()
    def ours() -> Tensor:
        return decode_scored(model, model.encode_vision(features), length, length, choose)[0]

    @torch.no_grad()
    def theirs() -> Tensor:
        every = torch.arange(batch_size)
        return naive.write(
            model, features, length, length, lambda logits, step: choose(logits, every, step)
        )[0]

    whole = Comparison(ours, theirs, other_ids, "ids")
    return Sides(whole, batch_size, next_words(model, features, length), model=model)


def image_sampling(size: str, batch_size: int = 10) -> Sides:
    """Cluster ids of 10 captions in 4 steps."""
    model = new_model(size).eval()
    text_ids = random_batch(model, batch_size, 17).text_ids
    whole = Comparison(
        lambda: image_tokens(model, text_ids),
        torch.no_grad()(lambda: naive.paint(model, text_ids)[0]),
        other_ids,
        "ids",
    )
    return Sides(whole, batch_size, cells_of_steps(model, text_ids), model=model)


def cells_of_steps(model: UnifiedTransformer, text_ids: Tensor, steps: int = 4) -> Comparison:
    """Image logits of grids that are masked as much as in the steps of painting."""
    cells = model.size.grid_size**2
    written = torch.randint(0, model.size.clusters, (len(text_ids), cells))
    grids = []
    for count in (cells, *(cells_again(step, steps, cells) for step in range(steps - 1))):
        masked = torch.zeros_like(written, dtype=torch.bool)
        masked[:, torch.randperm(cells)[:count]] = True
        grids.append(masked)
    seen = text_ids != PAD

    @torch.no_grad()
    def ours() -> Tensor:
        text = model.encode_text(text_ids, seen)
        return torch.stack([predict(model, text, seen, written, masked) for masked in grids])

    @torch.no_grad()
    def theirs() -> Tensor:
        found = [
            model(text_ids, seen, cluster_ids=written, visual_mask=masked)[1][:, :cells]
            for masked in grids
        ]
        return torch.stack(found)

    return Comparison(ours, theirs, apart, "logits of four grids, given the same cells")


def image_generator_forward(size: str, batch_size: int = 10) -> Sides:
    """Pixels of 10 grids; the original samples with the graph on."""
    generator = build_generator(configuration(size))
    grid, depth = generator.size.grid_size, generator.size.feature_size
    features = torch.rand(batch_size, depth, grid, grid)
    whole = Comparison(
        torch.no_grad()(lambda: generator(features)),
        lambda: generator(features).detach(),
        apart,
        "pixels",
    )
    return Sides(whole, batch_size)


# --- training steps ------------------------------------------------------------------------------


def training_step(
    model: UnifiedTransformer,
    batch: Batch,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    in_half: tuple[Callable[[], Tensor], Callable[[], Tensor], str] | None = None,
) -> Sides:
    """Forward, backward and update; loss and gradients are compared without dropout.

    Args:
        in_half: as the two losses, where in bf16 others are compared, and how.
    """
    optimizer = AdamW(model.parameters(), lr=5e-5, eps=1e-6, weight_decay=1e-2)
    joined: set[str] = set()
    set_dropout(model, 0.0)

    def before_each() -> None:
        model.zero_grad()
        torch.manual_seed(5)

    def run(loss_of: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], list[Tensor]]]:
        loss = loss_of()
        loss.backward()
        return loss.detach(), lambda: gradients(model)

    def update(fused: bool) -> None:
        if fused:  # else all are there
            fill_absent_gradients(model, joined)
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = fused, False
        present = [p for p in model.parameters() if p.grad is not None]
        nn.utils.clip_grad_norm_(present, 1.0)
        optimizer.step()

    def compared(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], how: str) -> Comparison:
        what = f"loss and whole gradient{how}"
        return Comparison(lambda: run(ours), lambda: run(theirs), steps_apart, what)

    return Sides(
        compared(ours, theirs, ""),
        len(batch),
        compared(*in_half) if in_half else None,
        lambda: update(True),
        lambda: update(False),
        lambda: set_dropout(model, 0.1),
        before_each,
        model,
    )


def gradients(model: nn.Module) -> list[Tensor]:
    """A gradient for each parameter; zeros where there is none."""
    return [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]


def steps_apart(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> float:
    """The larger one of the relative differences of losses and whole gradients."""
    gap = sum(
        float((a - b).double().square().sum()) for a, b in zip(ours[1], theirs[1], strict=True)
    )
    norm = sum(float(b.double().square().sum()) for b in theirs[1])
    return max(apart(ours[0], theirs[0]), (gap / norm) ** 0.5 if norm else float("inf"))


def our_context(recompute: bool, steps: int = 4) -> TaskContext:
    settings = SequenceSettings(16, recompute=recompute, mse_weight=1.0, painting_steps=steps)
    return TaskContext(torch.Generator(), FeatureLevels(), sequence=settings)


def xe_i2t_step(size: str, batch_size: int = 8) -> Sides:
    model = new_model(size)
    batch = random_batch(model, batch_size, 17)
    return training_step(
        model,
        batch,
        lambda: TASKS["xe_i2t"](model, batch, our_context(True)).loss,
        lambda: naive.xe_i2t_loss(model, batch),
    )


def xe_t2i_step(size: str, batch_size: int = 8) -> Sides:
    """The mean number of masked cells, 35 of 64."""
    model = new_model(size)
    batch = random_batch(model, batch_size, 17)
    cells = model.size.grid_size**2
    positions = torch.randperm(cells)[: (max(1, cells // 10) + cells) // 2]
    return training_step(
        model,
        batch,
        lambda: our_xe_t2i_loss(model, batch, positions),
        lambda: naive.xe_t2i_loss(model, batch, positions),
    )


def rl_i2t_step(size: str, batch_size: int = 2, recompute: bool = True) -> Sides:
    """15 words for each of 2 images, greedily and drawn; no caption ends early."""
    model = new_model(size)
    words = torch.arange(FIRST_WORD, FIRST_WORD + 40)
    favour(model, words)
    batch = random_batch(model, batch_size, 16)
    greedy, drawn = words[torch.randint(40, (2, batch_size, 15))]

    def ours() -> Tensor:
        return TASKS["rl_i2t"](model, batch, our_context(recompute)).loss

    def ours_of_words() -> Tensor:
        columns = iter(greedy.unbind(1))
        with (
            mock.patch.object(replay, "likeliest", lambda _: next(columns)),
            mock.patch.object(sequence, "likeliest", lambda _: next(columns)),
            draws(drawn),
        ):
            return ours()

    def theirs_of_words() -> Tensor:
        with draws(drawn):
            return naive.rl_i2t_loss(model, batch, 16, lambda _, step: greedy[:, step - 1])

    return training_step(
        model,
        batch,
        ours,
        lambda: naive.rl_i2t_loss(model, batch, 16),
        (ours_of_words, theirs_of_words, ", of the same words"),
    )


@contextmanager
def draws(words: Tensor) -> Iterator[None]:
    """Let torch draw given ids (B, S), one column in each call."""
    columns = iter(words.unbind(1))
    with (
        mock.patch.object(sampling, "draw", lambda *_: next(columns)),
        mock.patch("torch.multinomial", lambda *_: next(columns)[:, None]),
    ):
        yield


def rl_t2i_step(size: str, batch_size: int = 2, recompute: bool = False) -> Sides:
    """Squared distance alone: generator and CLIP are left out on both sides."""
    model = new_model(size)
    batch = random_batch(model, batch_size, 16)

    def ours(steps: int = 4) -> Tensor:
        return TASKS["rl_t2i"](model, batch, our_context(recompute, steps)).loss

    return training_step(
        model,
        batch,
        ours,
        lambda: naive.rl_t2i_loss(model, batch),
        (lambda: ours(1), lambda: naive.rl_t2i_loss(model, batch, 1), ", of one step of painting"),
    )


# --- rewards, metrics, data ----------------------------------------------------------------------


def cider_d_reward(size: str, captions: int = 160) -> Sides:
    """Samples and baselines of half as many images, with five references each."""
    rng = np.random.default_rng(0)

    def caption() -> list[int]:
        words = (FIRST_WORD + rng.zipf(1.3, int(rng.integers(8, 14))) % 4000).tolist()
        return [CLS, *words, EOS]

    references = [[caption() for _ in range(5)] for _ in range(captions // 2)]
    samples = [
        [caption(), row[0][:6] + caption()[1:]][number % 2]
        for number, row in enumerate(references * 2)
    ]
    whole = Comparison(
        lambda: cider_d(samples, references),
        lambda: torch.from_numpy(naive.cider_d_scores(samples, references * 2)),
        lambda ours, theirs: float(((ours - theirs).abs() / theirs.abs()).nan_to_num(0).max()),
        "each score",
    )
    return Sides(whole, captions)


def fid_trace(size: str) -> Sides:
    """The distance of two sets of Inception-like features: 2048 wide, falling variances."""
    width = 2048 if size == "full" else 128
    rng = np.random.default_rng(0)
    scales = 1 / np.sqrt(1 + np.arange(width))
    statistics = []
    for shift in (0.0, 0.1):
        features = rng.standard_normal((2 * width, width)) * scales + shift
        statistics += [features.mean(0), np.cov(features.T)]
    whole = Comparison(
        lambda: frechet_distance(*statistics),
        lambda: naive.frechet_distance(*statistics),
        lambda ours, theirs: abs(ours - theirs) / abs(theirs),
        "the distance",
    )
    return Sides(whole, 2 * width)


MEASURES: dict[str, Callable[[str], Sides]] = {
    "caption_greedy": caption_greedy,
    "caption_greedy_natural": caption_greedy_natural,
    "image_sampling": image_sampling,
    "xe_i2t_step": xe_i2t_step,
    "xe_t2i_step": xe_t2i_step,
    "rl_i2t_step": rl_i2t_step,
    "rl_i2t_step_kept": lambda size: rl_i2t_step(size, recompute=False),
    "rl_t2i_step": rl_t2i_step,
    "rl_t2i_step_recompute": lambda size: rl_t2i_step(size, recompute=True),
    "image_generator_forward": image_generator_forward,
    "cider_d_reward": cider_d_reward,
    "fid_trace": fid_trace,
}
