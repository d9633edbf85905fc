"""The tasks an iteration can train, each (model, batch, context) -> StepOutput."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from generations.batch import Batch
from generations.modeling import FeatureLevels, UnifiedTransformer
from generations.objectives.losses import BERT_CLASSES, random_mask_positions
from generations.objectives.token import xe_i2t_loss, xe_t2i_loss


@dataclass(frozen=True)
class StepOutput:
    """What a task gives back: the loss to minimise and scalars worth a curve."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskContext:
    """What a step needs beside model and batch.

    Attributes:
        generator: CPU generator of this iteration, seeded alike on all ranks.
        levels: which visual input each direction reads.
        smoothing: label smoothing.
        text_classes: what the smoothing of words is spread over; None: the model's vocabulary.
        mask_per_sample: each sample draws its own xe_t2i mask, instead of one for the whole batch.
    """

    generator: torch.Generator
    levels: FeatureLevels
    smoothing: float = 0.2
    text_classes: int | None = BERT_CLASSES
    mask_per_sample: bool = False


def xe_i2t(model: UnifiedTransformer, batch: Batch, context: TaskContext) -> StepOutput:
    """Stage 1, image -> text."""
    loss = xe_i2t_loss(
        model,
        batch,
        smoothing=context.smoothing,
        classes=context.text_classes,
        dense=context.levels.captioning,
    )
    return StepOutput(loss)


def xe_t2i(model: UnifiedTransformer, batch: Batch, context: TaskContext) -> StepOutput:
    """Stage 1, text -> image."""
    cells = batch.cluster_ids.shape[1]
    if context.mask_per_sample:
        positions = torch.zeros(len(batch), cells, dtype=torch.bool)
        for row in positions:
            row[random_mask_positions(cells, context.generator)] = True
    else:
        positions = random_mask_positions(cells, context.generator)
    loss = xe_t2i_loss(
        model,
        batch,
        positions.to(batch.cluster_ids.device),
        smoothing=context.smoothing,
        dense=context.levels.painting,
    )
    return StepOutput(loss)


Task = Callable[[UnifiedTransformer, Batch, TaskContext], StepOutput]
TASKS: dict[str, Task] = {"xe_i2t": xe_i2t, "xe_t2i": xe_t2i}


class TaskStep(nn.Module):
    """Model and tasks as one module, so that a data-parallel wrapper sees one `forward`."""

    def __init__(self, model: UnifiedTransformer):
        super().__init__()
        self.model = model

    def forward(self, task: str, batch: Batch, context: TaskContext) -> StepOutput:
        """Run one task of `TASKS`."""
        return TASKS[task](self.model, batch, context)
