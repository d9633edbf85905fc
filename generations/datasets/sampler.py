"""The order in which training samples are drawn, over all epochs and processes."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class InfiniteSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index), a batch sampler for one process.

    The global batches cut one endless stream of samples; in the stream, each epoch is a
    permutation of the data that depends on (seed, epoch) alone. A process takes a contiguous slice
    of each global batch. So the only state is the number of samples that all processes have drawn
    together, and a run that goes on with another number of processes, or another batch size,
    repeats and skips nothing.

    Args:
        num_samples: of the data.
        batch_size: samples of this process in a batch.
        rank: of this process.
        world_size: number of processes.
        seed: of the permutations.
        start: samples already drawn, by all processes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start: int = 0,
    ):
        if num_samples < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"these numbers do not fit together: {num_samples} samples, batch size "
                f"{batch_size}, rank {rank} of {world_size}"
            )
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._offset = rank * batch_size
        self._global_batch = world_size * batch_size
        self._seed = seed
        self._start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        permutation, permuted_epoch = np.empty(0, np.int64), -1
        first = self._start + self._offset
        while True:
            batch = []
            for position in range(first, first + self._batch_size):
                epoch, place = divmod(position, self._num_samples)
                if epoch != permuted_epoch:
                    permutation = epoch_order(self._num_samples, self._seed, epoch)
                    permuted_epoch = epoch
                batch.append((epoch, int(permutation[place])))
            yield batch
            first += self._global_batch


class TaskSampler(Sampler[list[tuple[int, int, bool]]]):
    """Adds to each key of a batch whether its iteration reads dense features.

    Iteration i trains the task i mod n, so it is known before the batch is read, and features that
    the task does not look at need not be.

    Args:
        batches: of (epoch, index), the first one of them for the iteration after `iteration`.
        dense: for each of the n tasks, in their order, whether it reads dense features.
        iteration: the last one that is done.
    """

    def __init__(
        self, batches: Iterable[list[tuple[int, int]]], dense: Sequence[bool], iteration: int
    ):
        self._batches = batches
        self._dense = list(dense)
        self._iteration = iteration

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        for iteration, batch in enumerate(self._batches, self._iteration + 1):
            dense = self._dense[iteration % len(self._dense)]
            yield [(epoch, index, dense) for epoch, index in batch]


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: (num_samples,) int64, a permutation."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)
