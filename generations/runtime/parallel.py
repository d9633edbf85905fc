"""One model on several processes: DDP, or FSDP2, which shards what DDP repeats."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from generations.errors import UserError
from generations.libraries import library
from generations.runtime.base import Runtime

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# they take a second to import, and one process does without
device_mesh = library("torch.distributed.device_mesh")
fsdp = library("torch.distributed.fsdp")
tensor = library("torch.distributed.tensor")


def data_parallel(
    module: nn.Module,
    runtime: Runtime,
    method: str = "ddp",
    unread: Mapping[str, set[str]] | None = None,
) -> nn.Module:
    """Wrap a module so that its gradients are averaged over all processes.

    Args:
        module: whose `forward` is a training step; its weights are alike on all processes.
        runtime: of this process.
        method: ddp, or fsdp: gradients and the optimiser's moments are sharded, and weights are
            gathered for a step as one group. Sharding layer by layer would save more, but stage 2
            decodes word by word, and each word would gather every layer again.
        unread: first argument of `forward` -> parameters that get no gradient then. On GPUs DDP
            need not look for them in every iteration, which waits for the device; it takes arrays
            as large as the gradients for each.

    Raises:
        UserError: fsdp with float16, whose loss scaling is per process.
    """
    if runtime.world_size == 1:
        return module
    if method == "fsdp":
        if runtime.autocast_dtype == torch.float16:
            raise UserError(
                "parallel fsdp cannot scale losses for float16, and this GPU has no bfloat16: set "
                "fp16 0, or parallel ddp"
            )
        mesh = device_mesh.init_device_mesh(runtime.device.type, (runtime.world_size,))
        fields = _FieldsOf(module)
        fsdp.fully_shard(fields, mesh=mesh)  # in place
        return _Fields(fields)
    devices = [runtime.device.index] if runtime.device.type == "cuda" else None
    arguments: dict[str, Any] = {
        "device_ids": devices,
        "gradient_as_bucket_view": True,  # else every gradient is copied, there and back
    }
    if unread is not None and runtime.device.type == "cuda":
        return ddp_for_each(module, unread, arguments)
    # which parameters a task uses differs from iteration to iteration
    return DistributedDataParallel(module, find_unused_parameters=True, **arguments)


def ddp_for_each(
    module: nn.Module, unread: Mapping[str, set[str]], arguments: Mapping[str, Any]
) -> nn.Module:
    """A module whose `forward` goes through a DDP of its first argument, each without some weights.

    Only the one that a forward pass went through exchanges gradients in the backward pass.
    """
    wrappers = {}
    for key, names in unread.items():
        module._ddp_params_and_buffers_to_ignore = sorted(names)  # type: ignore[assignment]
        wrappers[key] = DistributedDataParallel(module, **arguments)
    return _ForEach(module, wrappers)


class _ForEach(nn.Module):
    def __init__(self, module: nn.Module, wrappers: dict[str, DistributedDataParallel]):
        super().__init__()
        self.module = module
        self._wrappers = (wrappers,)  # the module is a part once

    def forward(self, key: str, *arguments: Any) -> Any:
        return self._wrappers[0][key](key, *arguments)


class _FieldsOf(nn.Module):
    """Gives a dataclass's fields as a dictionary, in which FSDP finds the loss."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.kind: type | None = None

    def forward(self, *arguments: Any) -> dict[str, Any]:
        output = self.module(*arguments)
        self.kind = type(output)
        return dict(vars(output))


class _Fields(nn.Module):
    """Makes the dataclass again."""

    def __init__(self, sharded: _FieldsOf):
        super().__init__()
        self.sharded = sharded

    def forward(self, *arguments: Any) -> Any:
        fields = self.sharded(*arguments)
        assert self.sharded.kind is not None
        return self.sharded.kind(**fields)


def _sharded(module: nn.Module) -> "FSDPModule | None":
    return cast("FSDPModule", module.sharded) if isinstance(module, _Fields) else None


def _is_shard(value: Any) -> "TypeGuard[DTensor]":
    # while nothing is sharded, the module need not be imported to know
    return "torch.distributed.tensor" in sys.modules and isinstance(value, tensor.DTensor)


def without_sync(module: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Context in which, if `skip`, forward and backward only accumulate on each process."""
    if (sharded := _sharded(module)) is not None:
        sharded.set_requires_gradient_sync(not skip)
    elif skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Context in which the model in a wrapped module can be used by itself, on every process."""
    sharded = _sharded(module)
    if sharded is None:
        yield
        return
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()


def clip_gradients(
    parameters: Iterable[nn.Parameter], limit: float, zeros: Iterable[nn.Parameter] = ()
) -> Tensor:
    """Scale gradients down to a norm; 0 does not clip.

    Args:
        parameters: those without a gradient are left out.
        limit: the largest norm.
        zeros: parameters whose gradient, not there yet, is 0. They do not change the norm, but
            without them its sum would be taken in another order.

    Returns:
        the norm before, over all processes' shards.
    """
    plain = [p for p in zeros if type(p) is nn.Parameter]  # not FSDP's
    empty = dict.fromkeys(plain, plain[0].new_zeros(())) if plain else {}
    parameters = list(parameters)
    gradients = [empty.get(p, p.grad) for p in parameters]
    norm = nn.utils.get_total_norm([g for g in gradients if g is not None])
    nn.utils.clip_grads_with_norm_(parameters, limit or torch.inf, norm)
    return norm.full_tensor() if _is_shard(norm) else norm


def whole(value: Any, keep: bool = True) -> Any:
    """A state with whole tensors in place of shards; all processes call it together.

    Args:
        value: a state_dict, or what is in one.
        keep: what is gathered is wanted here, on the CPU; else there is an empty tensor.
    """
    if _is_shard(value):
        gathered = value.full_tensor()
        return gathered.cpu() if keep else gathered.new_empty(0)
    if isinstance(value, dict):
        return {key: whole(entry, keep) for key, entry in value.items()}
    if isinstance(value, list):
        return [whole(entry, keep) for entry in value]
    return value


def distribute_moments(optimizer: Optimizer) -> None:
    """Shard moments that were loaded as whole tensors as the parameters are."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.ndim:
                moments[name] = shard_like(value, parameter)


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which all processes have, sharded as another one is; or as it was."""
    if not _is_shard(other) or _is_shard(value):
        return value
    mesh, placements = other.device_mesh, other.placements
    return tensor.distribute_tensor(value, mesh, placements, src_data_rank=None)
