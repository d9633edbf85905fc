"""Counts of what was left out or changed while reading a captions file."""

import logging
from collections import Counter
from dataclasses import dataclass, field


def _counted() -> Counter[str]:
    return Counter()


@dataclass
class Tally:
    """Counts by reason.

    Attributes:
        left_out: images and captions that were not taken.
        changed: captions that were taken otherwise than they were written.
        notes: how the file was read, where there was a choice.
    """

    left_out: Counter[str] = field(default_factory=_counted)
    changed: Counter[str] = field(default_factory=_counted)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> list[str]:
        """One line of what was left out, and one of what was changed, if anything was."""
        return [
            f"{what} " + "; ".join(f"{count:,} {reason}" for reason, count in counts.items())
            for what, counts in (("left out", self.left_out), ("changed", self.changed))
            if counts
        ]

    def log(self, logger: logging.Logger, source: str) -> None:
        """Log the notes, and warn of what was left out or changed."""
        for note in self.notes:
            logger.info("%s: read %s", source, note)
        for line in self.counts():
            logger.warning("%s: %s", source, line)
