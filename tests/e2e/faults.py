"""Finding, hurting and ending the processes of a command."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

PATIENCE = 90.0  # seconds; far more than anything here takes


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def ended(process: Popen[bytes], log: Path) -> int:
    """The exit status of a command that has to end by itself."""
    try:
        return process.wait(PATIENCE)
    except Exception:
        process.kill()
        raise AssertionError(f"it goes on: {log.read_text()[-3000:]}") from None


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def process_of_rank(launcher: int, rank: int) -> int:
    """The process that torchrun started as this rank."""
    for pid in children(launcher):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if b"RANK=%d" % rank in variables:
            return pid
    raise AssertionError(f"no process of rank {rank}")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
