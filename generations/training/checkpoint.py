"""Save a run and resume it."""

import logging
import re
import shutil
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from generations.checkpoint import (
    TrainingCheckpoint,
    check_whole,
    load_optimizer_state,
    load_tensors,
    note_score,
    read_training_checkpoint,
    score_of,
    seal_path,
    write_training_checkpoint,
)
from generations.errors import UserError
from generations.runtime import Runtime, distribute_moments, wait_for_all, whole
from generations.training.loop import TrainingState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"model_(\d{7,})(\.pth)?")


def checkpoint_path(folder: Path, iteration: int, form: str = "pth") -> Path:
    """`model_0000200.pth`, or the folder `model_0000200` of the safetensors form."""
    return folder / f"model_{iteration:07d}{'.pth' if form == 'pth' else ''}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest iteration in a run's folder that is whole, or None.

    Torn and damaged ones are passed over with a warning.

    Raises:
        UserError: there are checkpoints, but none that is whole.
    """
    found = _checkpoints(folder)
    for _, path in reversed(found):
        try:
            check_whole(path)
        except UserError as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", path, error)
            continue
        return path
    if found:
        raise UserError(
            f"all {len(found)} checkpoints in {folder} are damaged, the newest is "
            f"{found[-1][1].name}: restore one, or move them away to start from scratch"
        )
    return None


def iteration_of(path: Path) -> int | None:
    """The iteration in a checkpoint's name, or None."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else None


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Iterations and paths, the oldest first."""
    return sorted(
        (int(match.group(1)), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name))
    )


def payload_of(state: TrainingState, keep: bool = True) -> dict[str, Any]:
    """What a checkpoint holds, as whole tensors; all processes call it together.

    Averaged weights are called "ema": {name: tensor}.

    Args:
        state: of the run.
        keep: gathered tensors are wanted on this process.

    Random states need no saving: every iteration derives its own from the seed, and the seed is
    there.
    """
    average = state.average.tensors if state.average else None
    return {
        **({"ema": whole(average, keep)} if average else {}),
        "model": whole(state.model.state_dict(), keep),
        "optimizer": whole(state.optimizer.state_dict(), keep),
        "scheduler": state.scheduler.state_dict(),
        "iteration": state.iteration,
        "scaler": state.scaler.state_dict(),
        "joined": sorted(state.joined),
        "samples": state.samples,
        "order": dict(state.order),
        "skipped": list(state.skipped),
        "best": list(state.best) if state.best else [],
        "tested": state.tested,
    }


class Checkpoints:
    """Writes the checkpoints of a run, in a thread of the main process.

    Args:
        folder: of the run.
        runtime: of this process; every method is called by all processes together.
        form: pth or safetensors.
        keep_last: newest ones that stay; 0: all stay.
        keep_best: those of the best scores that stay as well.
    """

    def __init__(
        self, folder: Path, runtime: Runtime, form: str = "pth", keep_last: int = 0,
        keep_best: int = 0,
    ):  # fmt: skip
        self.folder = folder
        self._runtime = runtime
        self._form = form
        self._keep = (keep_last, keep_best)
        self._saved = -1
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        if runtime.is_main:
            self._sweep()

    def save(self, state: TrainingState, now: bool = False) -> None:
        """Save a state; it may change as soon as this returns.

        What cannot be written is told at once, training goes on, and the next time is another
        chance, unless it has to be `now`.

        Args:
            state: of the run.
            now: return when the checkpoint is on the disk.

        Raises:
            UserError: it has to be there now and cannot be written.
        """
        if self._saved != state.iteration:
            payload = payload_of(state, self._runtime.is_main)
            self._finish()
            if self._runtime.is_main:
                self._start(checkpoint_path(self.folder, state.iteration, self._form), payload)
            self._saved = state.iteration
        if now:
            self._finish()
            if self._error is not None:
                raise self._error
            wait_for_all(self._runtime)

    def score(self, state: TrainingState, score: float | None) -> None:
        """Take the score of a test of this state; a new best is kept.

        Args:
            state: as it was tested.
            score: higher is better; the same on all processes.
        """
        if score is None:
            return
        if state.best is None or score > state.best[0]:
            state.best = (score, state.iteration)
            logger.info("iteration %d: best score so far, %.4f", state.iteration, score)
            if self._keep[1]:
                self.save(state)
        self._finish()
        if self._runtime.is_main and self._error is None:
            note_score(checkpoint_path(self.folder, state.iteration, self._form), score)

    def close(self) -> None:
        """Let a checkpoint that is being written become whole."""
        self._finish()

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _start(self, path: Path, payload: dict[str, Any]) -> None:
        self._error = None
        try:
            _check_room(path, payload)
        except UserError as error:
            self._fail(error)
            return
        # training goes on in the same tensors
        snapshot = _copy(payload)
        self._writer = threading.Thread(target=self._write, args=(path, snapshot), name="writer")
        self._writer.start()

    def _write(self, path: Path, payload: dict[str, Any]) -> None:
        try:
            write_training_checkpoint(path, payload, seal=True)
            logger.info("saved %s", path)
            self._prune(payload["iteration"])
        except Exception as error:  # told by the main thread as well, if it asks
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._error = error
        logger.error("%s", error)

    def _prune(self, newest: int) -> None:
        """Remove what need not be kept. Only when a newer one is whole is an older one touched."""
        last, best = self._keep
        if not last:
            return
        # those of higher iterations are damaged or of an abandoned attempt: they do not count
        older = [entry for entry in _checkpoints(self.folder) if entry[0] <= newest]
        scores = [(score, path) for _, path in older if (score := score_of(path)) is not None]
        kept = {path for _, path in older[-last:]}
        kept |= {path for _, path in sorted(scores, reverse=True)[:best]}
        for _, path in older:
            if path not in kept:
                _remove(path)

    def _sweep(self) -> None:
        """Remove what a killed process left half written."""
        for path in self.folder.glob(".model_*"):
            logger.info("removing the incomplete file %s", path)
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    seal_path(path).unlink(missing_ok=True)


def _copy(value: Any) -> Any:
    """A copy on the CPU; tensors that share memory share it again."""
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = value.data_ptr()
            if key not in copies or copies[key].shape != value.shape or not key:
                copies[key] = value.detach().to("cpu", copy=True)
            return copies[key]
        if isinstance(value, dict):
            return {key: copy(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [copy(entry) for entry in value]
        return value

    return copy(value)


def _check_room(path: Path, payload: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = int(1.01 * _bytes(payload)) + 2**16
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise UserError(
            f"checkpoint {path} needs {needed / 2**20:,.0f} MB, and the disk has only "
            f"{free / 2**20:,.0f} MB left; earlier checkpoints are not changed: make room, set "
            "keep_last 2, or choose another save_dir"
        )


def _bytes(payload: Any) -> int:
    sizes: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            sizes[value.data_ptr()] = value.nbytes
        elif isinstance(value, dict):
            for entry in value.values():
                visit(entry)

    visit(payload)
    return sum(sizes.values())


def save_checkpoint(folder: Path, state: TrainingState, form: str = "pth") -> Path:
    """Write one checkpoint and return its path when it is on the disk.

    Raises:
        UserError: it cannot be written.
    """
    path = checkpoint_path(folder, state.iteration, form)
    _check_room(path, payload := payload_of(state))
    write_training_checkpoint(path, payload, seal=True)
    return path


def resume(path: Path, state: TrainingState) -> None:
    """Continue where a checkpoint ended: weights and everything else.

    Raises:
        UserError: the file holds weights alone, or an optimiser of another model.
    """
    saved = read_resumable(path)
    load_tensors(state.model, saved.weights, str(path))
    restore(saved, state, path)


def read_resumable(path: Path) -> TrainingCheckpoint:
    """Read a checkpoint that a run can go on from.

    Raises:
        UserError: the file holds weights alone, or is damaged.
    """
    saved = read_training_checkpoint(path)
    if saved.optimizer is None or saved.scheduler is None:
        raise UserError(f"{path} has no optimiser state to resume from; set load_model_only 1")
    return saved


def restore(saved: TrainingCheckpoint, state: TrainingState, path: Path) -> None:
    """Take up everything but the weights, which `state.model` has already.

    Raises:
        UserError: an optimiser of another model.
    """
    assert saved.optimizer is not None and saved.scheduler is not None
    load_optimizer_state(state.optimizer, saved.optimizer, state.model, str(path))
    distribute_moments(state.optimizer)
    extra = saved.extra
    if state.average is not None:
        if extra.get("ema"):
            state.average.load(extra["ema"], str(path))
        else:
            logger.info("%s has no averaged weights: averaging starts from its weights", path)
    try:
        state.scheduler.load_state_dict(saved.scheduler)
        if extra.get("scaler"):
            state.scaler.load_state_dict(extra["scaler"])
        state.iteration = saved.iteration
        # -1: a checkpoint from before samples were counted
        state.samples = int(extra.get("samples", -1))
        total, in_a_row = extra.get("skipped") or (0, 0)
        state.skipped = (int(total), int(in_a_row))
        score, iteration = extra.get("best") or (None, 0)
        state.best = None if score is None else (float(score), int(iteration))
        # absent in checkpoints of the original
        state.tested = int(extra.get("tested", state.iteration))
        # the test of a checkpoint comes after it, and leaves its score in the seal
        if (own := score_of(path)) is not None:
            state.tested = state.iteration
            if state.best is None or own > state.best[0]:
                state.best = (own, state.iteration)
        # a checkpoint of the original does not say what joined: what has optimiser state did
        names = [name for name, _ in state.model.named_parameters()]
        with_state = {names[index] for index in saved.optimizer["state"]}
        state.joined = set(extra.get("joined", with_state))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{path}: its training state is not valid ({error}); set load_model_only 1 to load "
            "only the weights"
        ) from None
    _warn_of_order(extra.get("order"), state.order, path)


def _warn_of_order(saved: Any, order: dict[str, int], path: Path) -> None:
    if isinstance(saved, dict) and saved != order:
        changed = ", ".join(
            f"{key} {saved.get(key)} -> {value}"
            for key, value in order.items()
            if saved.get(key) != value
        )
        logger.warning(
            "%s was saved with other data or another seed (%s): in this epoch, samples may be "
            "repeated or left out",
            *(path, changed),
        )
