"""A process that has imported PyTorch and the package, and forks for each command.

A small command is mostly imports. Apart from them a forked one is the real thing: a process of its
own with its own arguments, variables, folder and output, that runs the entry's file as __main__.
Here `Warm` asks; the file itself, as a script, answers: one line of JSON a command, then a line
with its exit status.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer

IMPORTED = (
    *("torch", "torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "faiss", "h5py"),
    *("torchvision", "open_clip", "pycocoevalcap.cider.cider"),
    *(f"generations.commands.{name}" for name in ("train", "caption", "paint", "evaluate")),
    *("generations.commands.prepare", "generations.commands.report"),
)


class Warm:
    """The asking side; one command at a time."""

    def __init__(self, root: Path, variables: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=root,
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, words: Sequence[str], folder: Path, variables: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python *words` in a folder."""
        assert self._process.stdin and self._process.stdout
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place) / "out", Path(place) / "err"
            request = [list(words), str(folder), dict(variables), str(out), str(err)]
            late = Timer(timeout, self.close)
            late.start()
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            late.cancel()
            said = [
                path.read_text(errors="replace") if path.exists() else "" for path in (out, err)
            ]
        assert answer, f"{words} took more than {timeout} seconds: {said}"
        return subprocess.CompletedProcess(list(words), int(answer), said[0], said[1])

    def close(self) -> None:
        """End the process, and what it forked."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
            self._process.wait()


def serve() -> None:
    """The answering side."""
    sys.path[0] = str(Path.cwd())
    for name in IMPORTED:
        __import__(name)
    tasks = list(Path("/proc/self/task").iterdir())
    assert len(tasks) == 1, "threads do not survive a fork"
    gc.freeze()  # else a child copies what the collector touches
    for line in sys.stdin:
        words, folder, variables, out, err = json.loads(line)
        child = os.fork()
        if child == 0:
            become(words, folder, variables, out, err)
            return
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def become(
    words: Sequence[str], folder: str, variables: dict[str, str], out: str, err: str
) -> None:
    """Go on as the command; its exit is this process's."""
    for number, path in enumerate((os.devnull, out, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve()
