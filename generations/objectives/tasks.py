"""The tasks an iteration can train, each (model, batch, context) -> StepOutput."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from generations.batch import Batch, to_device
from generations.modeling import FeatureLevels, UnifiedTransformer, visual_input
from generations.objectives.causal import causal_draw, causal_i2t_loss
from generations.objectives.losses import (
    BERT_CLASSES,
    random_mask_positions,
    self_critical_loss,
)
from generations.objectives.replay import drawn_and_greedy
from generations.objectives.sequence import (
    evaluating,
    greedy_baseline,
    paint_softly,
    sample_captions,
    soft_painting_loss,
)
from generations.objectives.token import Run, xe_i2t_loss, xe_t2i_loss
from generations.rewards import DocumentFrequency, cider_d
from generations.runtime.graphs import at_once
from generations.vocabulary import EMPTY, PAD


@dataclass(frozen=True)
class StepOutput:
    """What a task gives back: the loss to minimise and scalars worth a curve."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceSettings:
    """What the tasks of stage 2 need.

    Attributes:
        text_length: L.
        recompute: keep no activations of decoding steps, and compute them again in the backward
            pass: captions many words at a time, pictures step by step.
        baseline: "greedy" or "leave_one_out" (the other samples of the image).
        samples: captions drawn per image; 1 with the greedy baseline.
        document_frequency: corpus table of the reward; None: the batch's.
        score_pictures: soft features (B, N, D), captions -> CLIPScores (B,); None: not in the loss.
        mse_weight: weight of the distance to the real image's codebook rows.
        painting_steps: of mask-predict.
    """

    text_length: int = 16
    recompute: bool = True
    baseline: str = "greedy"
    samples: int = 1
    document_frequency: DocumentFrequency | None = None
    score_pictures: Callable[[Tensor, list[str]], Tensor] | None = None
    mse_weight: float = 0.0
    painting_steps: int = 4


@dataclass(frozen=True)
class TaskContext:
    """What a step needs beside model and batch.

    Attributes:
        generator: CPU generator of this iteration, seeded alike on all ranks.
        levels: which visual input each direction reads.
        smoothing: label smoothing.
        text_classes: what the smoothing of words is spread over; None: the model's vocabulary.
        mask_per_sample: each sample draws its own xe_t2i mask, instead of one for the whole batch.
        sequence: settings of stage 2.
        rank: of this process, whose batch is the rank-th slice of the global one.
        world_size: number of processes.
        mean_over_processes: of a number in a tensor, each process's own.
        caption_dropout: share of xe_t2i's captions that are emptied, for guidance.
        recompute_layers: stage 1 keeps what goes into a layer alone (activation checkpointing).
        run: how what stage 1 computes on the device runs, captioning causal left out.
    """

    generator: torch.Generator
    levels: FeatureLevels
    smoothing: float = 0.2
    text_classes: int | None = BERT_CLASSES
    mask_per_sample: bool = False
    sequence: SequenceSettings = SequenceSettings()
    rank: int = 0
    world_size: int = 1
    mean_over_processes: Callable[[Tensor], Tensor] = lambda number: number
    caption_dropout: float = 0.0
    recompute_layers: bool = False
    run: Run = at_once


def xe_i2t(model: UnifiedTransformer, batch: Batch, context: TaskContext) -> StepOutput:
    """Stage 1, image -> text."""
    dense = context.levels.captioning
    smooth = {"smoothing": context.smoothing, "classes": context.text_classes}
    with recomputing_layers(model, context.recompute_layers):
        if not model.causal:
            return StepOutput(xe_i2t_loss(model, batch, **smooth, dense=dense, run=context.run))
        loss, count = causal_i2t_loss(model, batch, **smooth, dense=dense)
    # each process counts by its share of the predicted words
    return StepOutput(loss * (count / context.mean_over_processes(count.float())))


def xe_t2i(model: UnifiedTransformer, batch: Batch, context: TaskContext) -> StepOutput:
    """Stage 1, text -> image."""
    cells = batch.cluster_ids.shape[1]
    share = 1.0
    if context.mask_per_sample:
        # drawn for the global batch, so that the number of processes does not matter; for the
        # same reason each process counts by its share of the predicted positions
        everywhere = torch.zeros(context.world_size * len(batch), cells, dtype=torch.bool)
        for row in everywhere:
            row[random_mask_positions(cells, context.generator)] = True
        positions = everywhere.chunk(context.world_size)[context.rank]
        share = context.world_size * int(positions.sum()) / int(everywhere.sum())
    else:
        positions = random_mask_positions(cells, context.generator)
    if context.caption_dropout:
        batch = drop_captions(batch, context)
    with recomputing_layers(model, context.recompute_layers):
        loss = xe_t2i_loss(
            model,
            batch,
            positions,
            smoothing=context.smoothing,
            dense=context.levels.painting,
            run=context.run,
        )
    return StepOutput(loss * share)


@contextmanager
def recomputing_layers(model: UnifiedTransformer, wanted: bool) -> Iterator[None]:
    """Context for activation checkpointing: a forward pass keeps only the input of each layer."""
    model.recompute_layers = wanted
    try:
        yield
    finally:
        model.recompute_layers = False


def drop_captions(batch: Batch, context: TaskContext) -> Batch:
    """The batch with some captions emptied: [CLS] [SEP] PAD. Drawn for the global batch.

    Source: Ho and Salimans 2021 (classifier-free guidance), section 3.2.
    """
    chances = torch.rand(context.world_size * len(batch), generator=context.generator)
    dropped = (chances < context.caption_dropout).chunk(context.world_size)[context.rank]
    length = batch.text_ids.shape[1]
    empty = to_device(torch.tensor([*EMPTY, *[PAD] * (length - len(EMPTY))]), batch.text_ids.device)
    dropped = to_device(dropped, empty.device)[:, None]
    return replace(batch, text_ids=torch.where(dropped, empty, batch.text_ids))


def rl_i2t(model: UnifiedTransformer, batch: Batch, context: TaskContext) -> StepOutput:
    """Stage 2, image -> text: self-critical training on CIDEr-D.

    Source: SPEC 8, paper section 3.5; Rennie et al. 2017; Luo 2020 (leave-one-out baseline).
    """
    settings = context.sequence
    visual = visual_input(batch, context.levels.captioning)
    greedy_wanted = settings.baseline == "greedy"
    draw = causal_draw if model.causal else _draw_anew if settings.recompute else _draw_and_keep
    ids, logprobs, greedy = draw(
        model, visual, settings.samples, greedy_wanted, settings.text_length
    )
    both = torch.cat([ids, greedy]).cpu()  # the one time that words are read for their reward
    scores = cider_d(both, batch.references, document_frequency=settings.document_frequency)
    reward, baseline = scores[: len(ids)], scores[len(ids) :]
    if not greedy_wanted:
        others = reward.view(settings.samples, -1)
        baseline = ((others.sum(0) - others) / (settings.samples - 1)).flatten()
    advantage = (reward - baseline).to(logprobs.dtype)[:, None]  # (M, 1)
    loss = self_critical_loss(logprobs, ids, to_device(advantage, logprobs.device))
    words = both[: len(ids)]
    drawn = words.unique(dim=0)
    logs = {
        "rl_i2t/reward": reward.mean(),
        "rl_i2t/baseline": baseline.mean(),
        "rl_i2t/advantage": advantage.abs().mean(),
        "rl_i2t/caption_length": (words != PAD).sum(1).float().mean(),
        "rl_i2t/distinct": torch.tensor(len(drawn) / len(ids)),
        "rl_i2t/collapsed": torch.tensor(float(len(ids) > 1 and len(drawn) == 1)),
    }
    values = to_device(torch.stack([value.float() for value in logs.values()]), loss.device)
    return StepOutput(loss, dict(zip(logs, values, strict=True)))


def _draw_anew(
    model: UnifiedTransformer, visual: dict[str, Tensor], samples: int, greedy: bool, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `causal_draw`, the paper's way: drawn with dropout, without a graph."""
    vision = model.encode_vision(**visual).repeat(samples, 1, 1)  # (M, N, H)
    with evaluating(model):
        certain = model.encode_vision(**visual) if greedy else vision[:0]  # (G, N, H)
    return drawn_and_greedy(model, vision, certain, length)


def _draw_and_keep(
    model: UnifiedTransformer, visual: dict[str, Tensor], samples: int, greedy: bool, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_draw_anew`, with the graph of each step."""
    vision = model.encode_vision(**visual).repeat(samples, 1, 1)  # (M, N, H)
    ids, logprobs = sample_captions(model, vision, length)
    return ids, logprobs, greedy_baseline(model, visual, length) if greedy else ids[:0]


def rl_t2i(model: UnifiedTransformer, batch: Batch, context: TaskContext) -> StepOutput:
    """Stage 2, text -> image: CLIP loss through the image generator, and mean squared distance.

    Source: SPEC 8, paper section 3.5.
    """
    settings = context.sequence
    score = settings.score_pictures
    soft = paint_softly(model, batch.text_ids, settings.painting_steps, settings.recompute)
    loss, scores = soft_painting_loss(
        model,
        soft,
        batch.cluster_ids,
        settings.mse_weight,
        None if score is None else lambda soft: score(soft, batch.captions),
    )
    return StepOutput(loss, {} if scores is None else {"rl_t2i/clip_score": scores.mean()})


Task = Callable[[UnifiedTransformer, Batch, TaskContext], StepOutput]
TASKS: dict[str, Task] = {
    "xe_i2t": xe_i2t,
    "xe_t2i": xe_t2i,
    "rl_i2t": rl_i2t,
    "rl_t2i": rl_t2i,
}


def reads_dense(task: str, levels: FeatureLevels) -> bool:
    """Whether a task of `TASKS` looks at a batch's dense features."""
    # stage 2 paints from nothing, and compares with codebook rows
    return {
        "xe_i2t": levels.captioning,
        "rl_i2t": levels.captioning,
        "xe_t2i": levels.painting,
    }.get(task, False)


def unread_parameters(model: UnifiedTransformer, task: str) -> set[str]:
    """Names of the model's parameters that a task of `TASKS` gives no gradient."""
    last = f"encoder.x_layers.{len(model.encoder.x_layers) - 1}"
    read_not = ["pooler.", "classifier.seq_relationship."]
    if task.endswith("i2t"):
        read_not += ["img_classifier.", "mask_feat", f"{last}.visn_"]
    else:
        read_not += ["classifier.predictions.bias", "classifier.predictions.transform."]
        read_not.append(f"{last}.lang_")
    starts = tuple(read_not)
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


class TaskStep(nn.Module):
    """Model and tasks as one module, so that a data-parallel wrapper sees one `forward`."""

    def __init__(self, model: UnifiedTransformer):
        super().__init__()
        self.model = model

    def forward(self, task: str, batch: Batch, context: TaskContext) -> StepOutput:
        """Run one task of `TASKS`."""
        return TASKS[task](self.model, batch, context)
