"""The speed of a run, and its share of the peak of the card."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Speed:
    """Operations a second, of the tasks whose work is known.

    Args:
        operations: of one sample in an iteration of a task.
        processes: that share the samples, each with a card.
        peak: what a card can do, in 10^12 operations a second; None: not known.
    """

    operations: Mapping[str, float] = field(default_factory=dict)
    processes: int = 1
    peak: float | None = None
    _samples: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def record(self, task: str, samples: int) -> None:
        """Take an iteration's samples, over all processes."""
        self._samples[task] += samples

    def figures(self, seconds: float) -> dict[str, float]:
        """`tflops` of a card and its `share_of_peak` since the last call; {} if a task is unknown.

        Args:
            seconds: since then.
        """
        samples, self._samples = self._samples, defaultdict(int)
        if not samples or not samples.keys() <= self.operations.keys():
            return {}
        work = sum(self.operations[task] * count for task, count in samples.items())
        tflops = work / self.processes / max(seconds, 1e-9) / 1e12
        found = {"tflops": tflops}
        if self.peak:
            found["share_of_peak"] = tflops / self.peak
        return found
