"""Where the time of training steps goes."""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

logger = logging.getLogger(__name__)

_WARM_UP = 3  # iterations; the first ones allocate and choose kernels
_ROWS = 20


class StepProfiler:
    """Profiles some iterations: a trace for tensorboard, and the most expensive operators.

    Args:
        folder: the run's; the trace goes into `profile` in it.
        steps: iterations that are profiled, after a few that are not; 0: none.
        device: cuda adds what the GPU does.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device):
        self._folder = folder / "profile"
        self._last = _WARM_UP + steps if steps else 0
        self._device = device
        self._done = 0
        self._running: profile | None = None

    def __call__(self) -> None:
        """Say that an iteration is over."""
        self._done += 1
        if self._done == _WARM_UP and self._last:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._running = profile(activities=activities)
            self._running.start()
        elif self._done == self._last:
            self.close()

    def close(self) -> None:
        """End the profile, also where the run is shorter; write and show it."""
        running, self._running = self._running, None
        if running is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        tensorboard_trace_handler(str(self._folder))(running)
        order = f"self_{'cuda' if self._device.type == 'cuda' else 'cpu'}_time_total"
        table = running.key_averages().table(sort_by=order, row_limit=_ROWS)
        logger.info(
            "profile of %d iterations (%s):\n%s", self._done - _WARM_UP, self._folder, table
        )
