"""Checkpoints: reading, converting, loading and writing weights and training states."""

from generations.checkpoint.convert import convert_checkpoint
from generations.checkpoint.files import (
    read_tensors,
    refuse_misfit,
    save_pth,
    save_safetensors,
)
from generations.checkpoint.loading import (
    LoadReport,
    load_averaged,
    load_generator_weights,
    load_tensors,
    load_weights,
)
from generations.checkpoint.optimizer import (
    load_optimizer_state,
    optimizer_state_by_index,
    optimizer_state_by_name,
)
from generations.checkpoint.pretrained import from_pretrained, save_pretrained
from generations.checkpoint.seals import check_whole, note_score, score_of, seal_path
from generations.checkpoint.training_state import (
    TrainingCheckpoint,
    read_training_checkpoint,
    write_training_checkpoint,
)

__all__ = [
    "LoadReport",
    "TrainingCheckpoint",
    "check_whole",
    "convert_checkpoint",
    "from_pretrained",
    "load_averaged",
    "load_generator_weights",
    "load_optimizer_state",
    "load_tensors",
    "load_weights",
    "note_score",
    "optimizer_state_by_index",
    "optimizer_state_by_name",
    "read_tensors",
    "read_training_checkpoint",
    "refuse_misfit",
    "save_pretrained",
    "save_pth",
    "save_safetensors",
    "score_of",
    "seal_path",
    "write_training_checkpoint",
]
