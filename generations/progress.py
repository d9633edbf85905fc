"""Progress of long work: a live bar in a terminal, a line now and then in a log file."""

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 20.0  # between two lines in a log file


class _Lines:
    """A text file that gets lines where tqdm would overwrite one."""

    def write(self, text: str) -> None:
        sys.stderr.write(text.replace("\r", "\n"))

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    total: int | None, what: str, unit: str, initial: int = 0, hidden: bool = False
) -> tqdm:
    """A bar with rate and time left; use it in a `with` block and call `update`.

    Args:
        total: how much there is to do; None if unknown.
        what: the work, in a word or two.
        unit: what is counted.
        initial: how much was done before.
        hidden: show nothing (on all but the main process).
    """
    options: dict[str, Any] = {"total": total, "desc": what, "unit": unit, "initial": initial}
    if not sys.stderr.isatty():
        options |= {"file": _Lines(), "mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS}
        options["bar_format"] = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
    return tqdm(disable=hidden, **options)
