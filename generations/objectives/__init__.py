"""Losses and tasks."""

from generations.objectives.losses import (
    label_smoothing_loss,
    random_mask_positions,
    self_critical_loss,
)
from generations.objectives.tasks import (
    TASKS,
    SequenceSettings,
    StepOutput,
    TaskContext,
    TaskStep,
    reads_dense,
    unread_parameters,
)
from generations.objectives.token import xe_i2t_loss, xe_t2i_loss

__all__ = [
    "TASKS",
    "SequenceSettings",
    "StepOutput",
    "TaskContext",
    "TaskStep",
    "label_smoothing_loss",
    "random_mask_positions",
    "reads_dense",
    "self_critical_loss",
    "unread_parameters",
    "xe_i2t_loss",
    "xe_t2i_loss",
]
