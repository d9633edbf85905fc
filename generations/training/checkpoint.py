"""Saving a run and finding its way back."""

import logging
import re
from pathlib import Path

from generations.checkpoint import (
    load_optimizer_state,
    load_tensors,
    read_training_checkpoint,
    write_training_checkpoint,
)
from generations.errors import UserError
from generations.training.loop import TrainingState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"model_(\d{7})(\.pth)?")


def checkpoint_path(folder: Path, iteration: int, form: str = "pth") -> Path:
    """`model_0000200.pth`, or the folder `model_0000200` of the safetensors form."""
    return folder / f"model_{iteration:07d}{'.pth' if form == 'pth' else ''}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest iteration in a run's folder, or None."""
    found = [
        (int(match.group(1)), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def iteration_of(path: Path) -> int | None:
    """The iteration in a checkpoint's name, or None."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else None


def save_checkpoint(folder: Path, state: TrainingState, form: str = "pth") -> Path:
    """Write weights, optimiser, schedule and iteration.

    The random state needs no saving: every iteration derives its own from the seed.
    """
    path = checkpoint_path(folder, state.iteration, form)
    write_training_checkpoint(
        path,
        {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict(),
            "iteration": state.iteration,
            "scaler": state.scaler.state_dict(),
            "joined": sorted(state.joined),
        },
    )
    logger.info("saved %s", path)
    return path


def resume(path: Path, state: TrainingState) -> None:
    """Continue where a checkpoint ended: weights, optimiser, schedule and iteration.

    Raises:
        UserError: the file holds weights alone, or an optimiser of another model.
    """
    saved = read_training_checkpoint(path)
    if saved.optimizer is None or saved.scheduler is None:
        raise UserError(f"{path} holds no optimiser state to resume from; set load_model_only 1")
    load_tensors(state.model, saved.weights, str(path))
    load_optimizer_state(state.optimizer, saved.optimizer, state.model, str(path))
    state.scheduler.load_state_dict(saved.scheduler)
    if saved.extra.get("scaler"):
        state.scaler.load_state_dict(saved.extra["scaler"])
    state.iteration = saved.iteration
    # a checkpoint of the original does not say what joined: what has optimiser state did
    names = [name for name, _ in state.model.named_parameters()]
    with_state = {names[index] for index in saved.optimizer["state"]}
    state.joined = set(saved.extra.get("joined", with_state))
