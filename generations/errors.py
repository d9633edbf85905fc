"""Errors that a command ends with, and the exit status of each (docs/operations.md)."""

FAILED = 2  # wrong input: starting again would fail again
STOPPED = 75  # asked to stop, everything is saved: start again to go on
LOST = 76  # another process or the launcher is gone: start again to go on from a checkpoint


class UserError(ValueError):
    """Wrong input: a bad flag, file or value.

    The message is one line that says what was wrong, where (file, key, value) and what to do.
    The command-line entries print it without a traceback and exit with status 2.
    """


class StopRequested(Exception):
    """A signal asked for an end, and the state is saved; exit status 75."""


class ProcessLostError(RuntimeError):
    """Another process of the run died or does not answer; exit status 76."""
