"""Watch a run: stop requests, processes that hang, lost launchers."""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import distributed

from generations.errors import LOST
from generations.runtime.base import Runtime

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_STORE_PATIENCE = timedelta(seconds=5)


class Watch:
    """Context around a training run.

    SIGTERM and SIGUSR1 no longer end the process: the loop asks `stop_requested` and ends at a
    point where everything can be saved. A thread ends the process with a message when the loop
    has not come on for `limit` seconds, or when the launcher that started it is gone: without it
    nobody would stop a process that its peers wait for.

    Args:
        runtime: of this process.
        limit: seconds.
    """

    def __init__(self, runtime: Runtime, limit: float = 1800.0):
        self._runtime = runtime
        self._limit = limit
        self._signal = 0
        self._asked: Any = None  # the reduction of an earlier call, on its way
        self._reduced = torch.zeros(1, dtype=torch.int32)
        self._before: dict[int, Any] = {}
        self._where = (0, "starting")
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> "Watch":
        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        self._before = {number: signal.signal(number, note) for number in _SIGNALS}
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._guard, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked is not None and error[0] is None:
            with contextlib.suppress(RuntimeError):  # the others may have left already
                self._asked.wait()
        self._asked = None
        if self._thread is not None:
            # the end of the interpreter stops a thread in the middle of a call of the store's,
            # and so aborts the process
            self._thread.join(3 * _STORE_PATIENCE.total_seconds())

    @property
    def heard(self) -> str:
        """The name of the signal that this process has heard, or ''."""
        return signal.Signals(self._signal).name if self._signal else ""

    def beat(self, iteration: int, phase: str) -> None:
        """Say where the loop is; this is also the sign of life."""
        self._where = (iteration, phase)
        self._moved = time.monotonic()

    def stop_requested(self) -> str:
        """The name of the signal that asks for an end, or ''; the same on all processes.

        All call it in every iteration. Processes hear a signal at different times, so they tell
        each other, and the answer comes one call later so that none has to wait for it.
        """
        if self._runtime.world_size == 1:
            return self.heard
        if self._asked is not None:
            self._asked.wait()
        number = int(self._reduced)
        if number:
            return signal.Signals(number).name
        self._reduced = torch.tensor([self._signal], dtype=torch.int32)
        self._asked = distributed.all_reduce(self._reduced, distributed.ReduceOp.MAX, async_op=True)
        return ""

    # --- the thread ------------------------------------------------------------------------------

    def _guard(self) -> None:
        store = self._store()
        self._publish(store)
        while not self._ended.wait(min(1.0, self._limit / 10)):
            if self._parent is not None and os.getppid() != self._parent:
                _end(f"process {self._runtime.rank}: the launcher is gone, so this process ends")
            self._publish(store)
            waited = time.monotonic() - self._moved
            if waited > self._limit and not self._ended.is_set():
                self._give_up(store, waited)

    def _store(self) -> Any:
        """A connection of this thread's own to the store through which the processes met."""
        if self._runtime.world_size == 1:
            return None
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            return distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                address, port, is_master=False, timeout=_STORE_PATIENCE, wait_for_workers=False
            )
        except (KeyError, ValueError, RuntimeError):
            return None  # then a message names this process alone

    def _publish(self, store: Any) -> None:
        if store is not None:
            iteration, phase = self._where
            # the process that keeps the store may be gone, and others will say so
            with contextlib.suppress(RuntimeError):
                store.set(self._key(self._runtime.rank), f"{time.time()}|{iteration}|{phase}")

    def _key(self, rank: int) -> str:
        return f"generations/alive/{self._runtime.meeting}/{rank}"

    def _give_up(self, store: Any, waited: float) -> None:
        iteration, phase = self._where
        lines = [
            f"process {self._runtime.rank} has been {phase} in iteration {iteration} for "
            f"{waited:.0f} s (hang_timeout {self._limit:g}); the run ends; give the same command "
            "again to continue from its newest checkpoint"
        ]
        for rank in range(self._runtime.world_size if store is not None else 0):
            lines.append(_heard(store, rank, self._key(rank)))
        sys.stderr.write("what this process was doing:\n")
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        _end("; ".join(lines))


def ignore_stop_signals(worker: int = 0) -> None:
    """Let a data-loading process live on while the loop needs it (a DataLoader's worker_init_fn).

    Launchers signal all processes. It ends with the loop; when its own parent, which may be leaving
    after an error, tells it so; or when that is gone. Without effect where the system does not say
    who sent a signal.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def end_with_parent() -> None:
        while signal.sigwaitinfo(_SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=end_with_parent, name="signals", daemon=True).start()


def _heard(store: Any, rank: int, key: str) -> str:
    try:
        if not store.check([key]):
            return f"process {rank} never reported"
        then, iteration, phase = store.get(key).decode().split("|")
    except RuntimeError:
        return f"the state of process {rank} is unknown"
    ago = time.time() - float(then)
    return f"process {rank} last reported {ago:.0f} s ago, {phase} in iteration {iteration}"


def _end(message: str) -> None:
    # the main thread is stuck in a call that cannot be interrupted: no way out but this one
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(LOST)
