"""Curves for tensorboard and a progress line for people."""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from generations.libraries import library
from generations.runtime import Runtime, mean_over_ranks
from generations.training.speed import Speed

tensorboard = library("torch.utils.tensorboard")

logger = logging.getLogger(__name__)


class Monitor:
    """Averages what the loop reports and writes it every `log_every` iterations.

    Figures stay on the device until they are written, so that logging does not make the device
    wait at every step. Only the main process writes.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        first: int,
        last: int,
        log_every: int,
        tracker: Any = None,
        speed: Speed | None = None,
    ):
        self._speed = speed or Speed()
        self._tracker = tracker if runtime.is_main else None
        self._runtime = runtime
        self._last = last
        self._log_every = log_every
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._counted: dict[str, list[Tensor]] = defaultdict(list)
        self._skipped = 0
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
        self,
        iteration: int,
        samples: int,
        figures: Mapping[str, Tensor],
        counted: Tensor | None = None,
        skipped: int = 0,
    ) -> Mapping[str, float]:
        """Take one iteration's figures and its number of samples over all processes.

        Args:
            iteration: from 1.
            samples: of all processes.
            figures: scalars on the device.
            counted: bool scalar on the device: whether they go into the means; None: they do.
            skipped: updates skipped so far, shown if there are any.

        Returns:
            the means over the last iterations when they are written, alike on all processes; {} in
            between.
        """
        for name, value in figures.items():
            if name.startswith("loss/"):
                self._speed.record(name.removeprefix("loss/"), samples)
            self._values[name].append(value.detach().float())
            if counted is not None:
                self._counted[name].append(counted)
        self._skipped = skipped
        self._samples += samples
        self._iterations += 1
        self._bar.update()
        if iteration % self._log_every == 0 or iteration == self._last:
            return self._write(iteration)
        return {}

    def _write(self, iteration: int) -> Mapping[str, float]:
        if not self._values:
            return {}
        names = sorted(self._values)
        means = torch.stack([self._mean(name) for name in names])
        # the one place where the host waits for the device
        means, counts = mean_over_ranks(means, self._runtime).T.tolist()
        figures = {
            name: mean for name, mean, count in zip(names, means, counts, strict=True) if count
        }
        if self._skipped:
            figures["skipped_updates"] = float(self._skipped)
        now = time.monotonic()
        rate = self._samples / max(now - self._since, 1e-9)
        seconds_left = (now - self._since) / self._iterations * (self._last - iteration)
        if self._writer is not None:
            speed = self._speed.figures(now - self._since)
            self.scalars(iteration, figures | {"samples_per_second": rate} | speed)
            line = " ".join(
                f"{name.removeprefix('loss/')} {value:.4g}" for name, value in figures.items()
            )
            line += f" {rate:.0f} samples/s"
            if speed:
                line += f", {speed['tflops']:.3g} TFLOP/s"
            if "share_of_peak" in speed:
                line += f" ({100 * speed['share_of_peak']:.0f} % of the card's peak)"
            self._bar.set_postfix_str(line)
            if self._bar.disable:
                minutes, seconds = divmod(round(seconds_left), 60)
                logger.info(
                    "iteration %d/%d %s, %d:%02d left",
                    *(iteration, self._last, line, minutes, seconds),
                )
        self._values.clear()
        self._counted.clear()
        self._samples = self._iterations = 0
        self._since = now
        return figures

    def _mean(self, name: str) -> Tensor:
        """The mean of a figure over the iterations that count, and their number: (2,)."""
        values = torch.stack(self._values[name])
        if name not in self._counted:
            return torch.stack([values.mean(), torch.ones_like(values[0])])
        counted = torch.stack(self._counted[name])
        number = counted.sum()
        mean = torch.where(counted, values, 0.0).sum() / number
        # none counts: the number says so, and the mean must not look like a loss that is not finite
        return torch.stack([torch.where(number > 0, mean, 0.0), number.float()])

    def scalars(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Write finished figures, such as a test's."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, iteration)
        if self._tracker is not None:
            self._tracker.log(dict(figures), step=iteration)

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
        if self._tracker is not None:
            self._tracker.finish()


def start_tracker(name: str, run: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """The library wandb or trackio with a run begun, or gone on with; "none": None.

    Args:
        name: of the library; trackio has wandb's functions.
        run: its name there, in the project "generations".
        folder: for wandb's files.
        config: what is shown with it.

    Raises:
        UserError: the library is not installed.
    """
    if name == "none":
        return None
    tracker = library(name)
    own = {"id": run, "dir": str(folder)} if name == "wandb" else {}
    tracker.init(project="generations", name=run, config=dict(config), resume="allow", **own)
    return tracker
