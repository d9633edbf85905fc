"""Device, process group, seeds, precision."""

import contextlib
import gc
import logging
import os
import random
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from generations.errors import ProcessLostError, UserError
from generations.runtime.machine import choose_device, describe, shared_memory_is_full
from generations.runtime.memory import keep_freed_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The precision that a run computes in.

    Attributes:
        half: autocast on a GPU to bfloat16, or float16 where it has no bfloat16.
        cpu_half: autocast to bfloat16 on a CPU. Off, a CPU's figures are those of float32.
        tf32: products of float32 in TF32 on a GPU.
    """

    half: bool = True
    cpu_half: bool = False
    tf32: bool = True

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """The type inside `Runtime.autocast` on a device; None: float32."""
        if device.type == "cpu" and self.cpu_half:
            return torch.bfloat16
        if device.type == "cuda" and self.half:
            # older GPUs only emulate bfloat16, slower than float32
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native else torch.float16
        return None


@dataclass(frozen=True)
class Runtime:
    """Where this process runs, and in which precision.

    Attributes:
        device: the device of this process.
        rank: number of this process among `world_size`.
        autocast_dtype: bfloat16 or float16 inside `autocast`, None for full float32.
        meeting: name of this group of processes, which no earlier one had; '' for one alone.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    autocast_dtype: torch.dtype | None = None
    meeting: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def scaler(self, loss_scale: float = -1.0) -> torch.amp.GradScaler:
        """Loss scaler; it does nothing unless the precision is float16.

        Args:
            loss_scale: fixed scale, or -1 for a dynamic one.
        """
        if loss_scale > 0:
            # never grows: a fixed scale, as the flag says
            return torch.amp.GradScaler(
                self.device.type,
                init_scale=loss_scale,
                growth_interval=2**31 - 1,
                enabled=self.autocast_dtype == torch.float16,
            )
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype == torch.float16)


@contextmanager
def start(
    device: str = "auto",
    distribute: bool = True,
    precision: Precision | None = None,
    deterministic: bool = False,
    timeout: float = 1800.0,
) -> Iterator[Runtime]:
    """Choose the device, join the launcher's process group, and leave it at the end.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        distribute: join the group when the environment of torchrun or torch.distributed.launch is
            there.
        precision: of the numbers; None: the defaults of `Precision`.
        deterministic: only algorithms whose result is the same in every run.
        timeout: seconds that a process waits for the others.

    Raises:
        UserError: the device does not exist here; or another process ended the run with one.
        ProcessLostError: another process of the group died or does not answer.
    """
    if deterministic:
        # read when CUDA starts; without it cuBLAS may add in any order
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # else it imports inductor
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if distribute else 1
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if world_size > 1 else None
    chosen = choose_device(device, local_rank)
    if chosen.type == "cpu":
        keep_freed_memory()
    precision = precision or Precision()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high" if precision.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = precision.tf32
    # gloo also beside NCCL: what processes tell each other on the CPU does not hold up a GPU
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    # the watch over a run names who hangs; what waits here is only for when there is none
    patience = timedelta(seconds=2 * timeout)
    store, rank, meeting = None, 0, ""
    try:
        if world_size > 1:
            store, rank, world_size = next(rendezvous("env://", timeout=patience))
            # torchrun may give a restarted group the store of the first one, with the addresses
            # of processes that are gone
            meeting = _meet(store, rank, world_size, patience)
            store = distributed.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
                f"generations/{meeting}", store
            )
            # it keeps the group that is there when it is imported, as defaults of its functions; a
            # group that is kept is not closed, and the others do not notice that this one left
            import_module("torch.distributed.nn.functional")
            distributed.init_process_group(
                backend, timeout=patience, store=store, rank=rank, world_size=world_size
            )
        dtype = precision.autocast_dtype(chosen)
        if not rank:
            logger.info("%s", describe(chosen, world_size, dtype, precision.tf32))
        yield Runtime(chosen, rank, world_size, dtype, meeting)
    except Exception as error:
        who = _lost(error)
        full = shared_memory_is_full(error)
        told = full or (str(error) if isinstance(error, UserError) else "")
        _clear_frames(error)
        elsewhere = _part(store, world_size, told) if who or told else ""
        if elsewhere and not told:
            raise UserError(f"another process ended the run: {elsewhere}") from None
        if full:
            raise UserError(full) from error
        if not who:
            raise
        raise ProcessLostError(
            f"process {os.environ.get('RANK', '0')} lost {who} "
            f"({' '.join(str(error).split())[:160]}); give the same command again to continue from "
            "the newest checkpoint"
        ) from error
    finally:
        _leave()


def _meet(store: Any, rank: int, world_size: int, patience: timedelta) -> str:
    """Agree on a name for this group of processes, in a store that may hold traces of earlier ones.

    The count of restarts is no such name: launchers that join later count from 0. So each process
    asks under a name of its own that only a process 0 of now can have answered.

    Raises:
        ProcessLostError: a process does not come.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"generations/asks/{rank}", own)
        meeting = store.get(f"generations/answer/{own}").decode()
        store.set(f"generations/came/{meeting}/{rank}", "")
        return meeting
    waiting = set(range(1, world_size))
    deadline = time.monotonic() + patience.total_seconds()
    while waiting:
        for other in sorted(waiting):
            if store.check([f"generations/asks/{other}"]):
                asked = store.get(f"generations/asks/{other}").decode()
                store.set(f"generations/answer/{asked}", own)
            if store.check([f"generations/came/{own}/{other}"]):
                waiting.remove(other)
        if time.monotonic() > deadline:
            raise ProcessLostError(f"process 0 got no answer from processes {sorted(waiting)}")
        time.sleep(0.02)
    return own


def _leave() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        # FSDP's objects refer to each other and to the group, whose threads must not be left to
        # the end of the interpreter: it would abort
        gc.collect()
        distributed.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the functions that an error came through hold, such as a wrapped model."""
    while error is not None and distributed.is_initialized():
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


_REFUSED, _PARTED = "refused", "parted"  # keys of the store
_FAREWELL = timedelta(seconds=10)


def _part(store: Any, world_size: int, told: str) -> str:
    """Leave the group in such a way that wrong input that one process met ends all as such.

    Without this the others would only know that they lost somebody, and be started again.

    Args:
        store: of the group; None: it never came together.
        world_size: its size.
        told: the error that this process ends with; '' if it lost others.

    Returns:
        the error of the process that met one first, or ''.
    """
    if store is None:
        return ""
    try:
        store.set_timeout(_FAREWELL)
        if told and not store.check([_REFUSED]):
            # of an error in a data-loading process the last line is its message
            store.set(_REFUSED, told.strip().splitlines()[-1].removeprefix("generations.errors."))
        _leave()  # now the others notice
        refused = store.get(_REFUSED).decode() if store.check([_REFUSED]) else ""
        parted = store.add(_PARTED, 1)
        deadline = time.monotonic() + _FAREWELL.total_seconds()
        # one of them keeps the store
        while refused and parted < world_size and time.monotonic() < deadline:
            time.sleep(0.05)
            parted = store.add(_PARTED, 0)
        return refused
    except RuntimeError:  # who kept the store is gone
        return ""


_LOSS = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out waiting")


def _lost(error: Exception) -> str:
    """The process that an error reports as lost, or ''; some backends have no error type for it."""
    if not isinstance(error, RuntimeError) or isinstance(error, ProcessLostError):
        return ""
    text = str(error).lower()
    if "dataloader worker (pid" in text:
        return "a data-loading process"
    if isinstance(error, distributed.DistError) or any(sign in text for sign in _LOSS):
        return "the others; the first of them that failed says why"
    return ""


def seed_everything(*parts: int) -> None:
    """Seed the global generators (initialisation, dropout) from numbers such as (seed, rank)."""
    mixed = derive_seed(*parts)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def derive_seed(*parts: int) -> int:
    """One seed from several numbers, such as (seed, rank) or (seed, iteration)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def mean_over_ranks(values: Tensor, runtime: Runtime) -> Tensor:
    """Average a tensor of figures over all processes."""
    if runtime.world_size > 1:
        values = values.clone()
        distributed.all_reduce(values)
        values /= runtime.world_size
    return values


def wait_for_all(runtime: Runtime) -> None:
    """Return once every process has come here."""
    if runtime.world_size > 1:
        distributed.barrier()


def gather_lists(items: list, runtime: Runtime) -> list:
    """All processes' lists in rank order, joined, on every process."""
    if runtime.world_size == 1:
        return items
    parts: list[list] = [[] for _ in range(runtime.world_size)]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
