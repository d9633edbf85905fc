"""Device, process group, seeds, precision, survival: the only room that sees torch.distributed."""

from generations.runtime.base import (
    Precision,
    Runtime,
    derive_seed,
    gather_lists,
    generator,
    mean_over_ranks,
    seed_everything,
    start,
    wait_for_all,
)
from generations.runtime.late import Later
from generations.runtime.machine import warn_of_little_shared_memory
from generations.runtime.parallel import (
    clip_gradients,
    data_parallel,
    distribute_moments,
    shard_like,
    whole,
    whole_weights,
    without_sync,
)
from generations.runtime.watch import Watch, ignore_stop_signals

__all__ = [
    "Later",
    "Precision",
    "Runtime",
    "Watch",
    "clip_gradients",
    "data_parallel",
    "derive_seed",
    "distribute_moments",
    "gather_lists",
    "generator",
    "ignore_stop_signals",
    "mean_over_ranks",
    "seed_everything",
    "shard_like",
    "start",
    "wait_for_all",
    "warn_of_little_shared_memory",
    "whole",
    "whole_weights",
    "without_sync",
]
