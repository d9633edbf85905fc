"""Curves for tensorboard and a progress line for people."""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from generations.libraries import library
from generations.runtime import Runtime, mean_over_ranks

tensorboard = library("torch.utils.tensorboard")

logger = logging.getLogger(__name__)


class Monitor:
    """Averages what the loop reports and writes it every `log_every` iterations.

    Figures stay on the device until they are written, so that logging does not make the device
    wait at every step. Only the main process writes.
    """

    def __init__(self, folder: Path, runtime: Runtime, first: int, last: int, log_every: int):
        self._runtime = runtime
        self._last = last
        self._log_every = log_every
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._samples = 0
        self._iterations = 0
        self._since = time.monotonic()
        self._writer = None
        if runtime.is_main:
            self._writer = tensorboard.SummaryWriter(str(folder), purge_step=first)
        # in a terminal a bar; in a log file the lines of `_write` instead
        self._bar = tqdm(
            total=last,
            initial=first - 1,
            desc="training",
            unit="it",
            disable=None if runtime.is_main else True,
        )

    def record(
        self, iteration: int, samples: int, figures: Mapping[str, Tensor]
    ) -> Mapping[str, float]:
        """Take one iteration's figures (scalars) and its number of samples over all processes.

        Returns:
            the means over the last iterations when they are written, alike on all processes; {} in
            between.
        """
        for name, value in figures.items():
            self._sums[name].append(value.detach().float())
        self._samples += samples
        self._iterations += 1
        self._bar.update()
        if iteration % self._log_every == 0 or iteration == self._last:
            return self._write(iteration)
        return {}

    def _write(self, iteration: int) -> Mapping[str, float]:
        if not self._sums:  # every update was skipped
            return {}
        means = {name: torch.stack(values).mean() for name, values in sorted(self._sums.items())}
        figures = dict(
            zip(
                means,
                mean_over_ranks(torch.stack(list(means.values())), self._runtime).tolist(),
                strict=True,
            )
        )
        now = time.monotonic()
        rate = self._samples / max(now - self._since, 1e-9)
        seconds_left = (now - self._since) / self._iterations * (self._last - iteration)
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, iteration)
            self._writer.add_scalar("samples_per_second", rate, iteration)
            line = " ".join(
                f"{name.removeprefix('loss/')} {value:.4g}" for name, value in figures.items()
            )
            self._bar.set_postfix_str(f"{line} {rate:.0f} samples/s")
            if self._bar.disable:
                minutes, seconds = divmod(round(seconds_left), 60)
                logger.info(
                    "iteration %d/%d %s %.0f samples/s, %d:%02d left",
                    *(iteration, self._last, line, rate, minutes, seconds),
                )
        self._sums.clear()
        self._samples = self._iterations = 0
        self._since = now
        return figures

    def scalars(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Write finished figures, such as a test's."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, iteration)

    def images(self, iteration: int, name: str, pictures: np.ndarray) -> None:
        """Write pictures (M, height, width, 3) uint8."""
        if self._writer is not None:
            self._writer.add_images(name, pictures, iteration, dataformats="NHWC")

    def text(self, iteration: int, name: str, text: str) -> None:
        """Write text (markdown)."""
        if self._writer is not None:
            self._writer.add_text(name, text, iteration)

    def close(self) -> None:
        """Flush and release the files."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
