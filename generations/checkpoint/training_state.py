"""Checkpoints of a training run: weights, and everything that is needed to resume.

Stored in one of two layouts:
    model_0000002.pth    the released one: {"model", "optimizer", "scheduler", "iteration", ...}
    model_0000002/       model.safetensors, and everything but the weights in training_state.pth
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from generations.checkpoint.files import (
    AGAIN,
    PTH_SUFFIXES,
    WEIGHTS_FILE,
    checksum_of,
    one_name_each,
    read_pth,
    read_safetensors,
    save_pth,
    save_safetensors,
    unwritable,
    weights_in,
)
from generations.checkpoint.keys import TIED, strip_module
from generations.checkpoint.seals import write_seal
from generations.errors import UserError
from generations.files import flush_folder, umask

STATE_FILE = "training_state.pth"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A training run at one iteration.

    Attributes:
        weights: {name: tensor}, without `module.` prefixes.
        optimizer: the optimiser's state_dict, or None if the file holds weights alone.
        scheduler: the scheduler's state_dict, or None.
        iteration: optimiser iterations done.
        extra: whatever else a run saves (random states, sampler, ...): tensors, numbers, text,
            and lists and dictionaries of them, because nothing else can be read back.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    iteration: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, with the others that have no average; {} if none were saved."""
        average = self.extra.get("ema")
        if not average:
            return {}
        second = {name for name, first in TIED.items() if first in average}
        own = {name: value for name, value in self.weights.items() if name not in second}
        return {**own, **average}

    def payload(self) -> dict[str, Any]:
        """The released layout; without optimiser and scheduler where there are none."""
        states = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        states = {name: state for name, state in states.items() if state is not None}
        return {"model": self.weights, **states, "iteration": self.iteration, **self.extra}


def read_training_checkpoint(path: str | Path) -> TrainingCheckpoint:
    """Read a training checkpoint of either layout; apex's `amp` entry is dropped.

    Weights alone are a checkpoint at iteration 0 without optimiser and scheduler.

    Args:
        path: a .pth file, a folder, or a .safetensors file (weights alone).

    Raises:
        UserError: as `read_tensors`; or a folder's training state is not of its weights.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        weights, checksum = read_safetensors(path / WEIGHTS_FILE if path.is_dir() else path)
        state = _state_in(path, checksum) if path.is_dir() else {}
        for second, first in TIED.items():
            if first in weights:
                weights.setdefault(second, weights[first])
    else:
        payload = read_pth(path)
        weights = weights_in(payload, path)
        state = payload if isinstance(payload.get("model"), Mapping) else {}
    weights = {strip_module(name): tensor for name, tensor in weights.items()}
    known = ("optimizer", "scheduler", "iteration")
    _check_state({name: state[name] for name in known if name in state}, path)
    extra = {key: value for key, value in state.items() if key not in (*known, "model", "amp")}
    return TrainingCheckpoint(
        weights, state.get("optimizer"), state.get("scheduler"), state.get("iteration", 0), extra
    )


def _check_state(state: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError where an entry is not what torch saves under that name."""
    for name, value in state.items():
        if name == "iteration":
            good = isinstance(value, int) and value >= 0
        else:
            good = value is None or isinstance(value, dict)
            good = good and (name != "optimizer" or value is None or _is_optimizer_state(value))
        if not good:
            raise UserError(f"{path}: its entry `{name}` was not saved by a training run: {AGAIN}")


def _is_optimizer_state(value: Mapping[str, Any]) -> bool:
    match value:
        case {"param_groups": [*groups], "state": {**moments}}:
            whole = all(isinstance(group, dict) and "params" in group for group in groups)
            whole = whole and all(isinstance(group["params"], list) for group in groups)
            return whole and all(isinstance(entry, dict) for entry in moments.values())
    return False


def _state_in(folder: Path, checksum: str) -> dict[str, Any]:
    path = folder / STATE_FILE
    if not path.exists():
        return {}
    state = read_pth(path)
    if not isinstance(state, dict) or state.pop("weights_crc32", None) != checksum:
        raise UserError(
            f"{path} does not belong to the {WEIGHTS_FILE} beside it: delete {path} to start from "
            "the weights only, or use an earlier checkpoint"
        )
    return state


def write_training_checkpoint(
    path: str | Path, payload: Mapping[str, Any], seal: bool = False
) -> None:
    """Write a training checkpoint; it gets its name only when it is complete.

    Args:
        path: a .pth file, or a folder (any other name) for weights and state apart.
        payload: "model": {name: tensor}, and whatever else is to be read back: "optimizer",
            "scheduler", "iteration", ... (see `TrainingCheckpoint`).
        seal: also write its seal (see `seals`).

    Raises:
        UserError: it cannot be written (disk full); an earlier one is left as it was.
    """
    path = Path(path)
    finish = write_seal if seal else _nothing
    if path.suffix in PTH_SUFFIXES:
        save_pth(path, payload, lambda temporary: finish(path, temporary))
        return
    with atomic_folder(path) as temporary:
        fill_folder(temporary, payload)
        finish(path, temporary)


def _nothing(path: Path, temporary: Path) -> None:
    pass


def fill_folder(folder: Path, payload: Mapping[str, Any]) -> None:
    """Write weights and training state into a folder (see `write_training_checkpoint`)."""
    weights = one_name_each(payload["model"])
    state = {key: value for key, value in payload.items() if key != "model"}
    # the state names its weights, so that no other ones pass for them
    if state != {"iteration": 0}:  # else these are weights alone
        save_pth(folder / STATE_FILE, {**state, "weights_crc32": checksum_of(weights)})
    save_safetensors(folder / WEIGHTS_FILE, weights)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it takes the place of `path`.

    On any exception it is removed and an earlier `path` stays as it was.

    Raises:
        UserError: `path` is something else than a folder of checkpoint files, or unwritable.
    """
    path = Path(path)
    ours = {WEIGHTS_FILE, STATE_FILE, "config.json"}
    if path.exists() and not (path.is_dir() and {file.name for file in path.iterdir()} <= ours):
        raise UserError(f"{path} exists and is not a checkpoint: choose a new folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-", dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield temporary
        # mkdtemp makes folders private to the user; a checkpoint is as readable as its files
        temporary.chmod(0o777 & ~umask())
        if path.exists():
            # put aside and not removed first: there is no moment without a whole folder on disk
            path.rename(temporary.with_name(f"{temporary.name}.old"))
        temporary.rename(path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_name(f"{temporary.name}.old"), ignore_errors=True)
