"""Running the project's commands as a user does."""

import atexit
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from subprocess import Popen

from warm import Warm

ROOT = Path(__file__).parents[2]


def SMALL(data: Path, models: Path | None = None) -> tuple[str, ...]:
    """The mini config, smaller still."""
    config = str(ROOT / "configs" / "mini" / "stage1.yaml")
    return (
        *("--config", config, "data_dir", str(data), "images_dir", str(data / "images")),
        *("captions_file", str(data / "dataset_mini.json"), "vocab_file", str(data / "vocab.txt")),
        *(("save_dir", str(models)) if models else ()),
        *("model.hidden_size", "32", "model.num_heads", "2", "model.intermediate_size", "48"),
        *("model.language_layers", "1", "model.cross_layers", "1", "grid_cluster_num", "24"),
        *("samples_per_gpu", "4", "scheduler.max_steps", "6", "scheduler.warmup_steps", "2"),
        *("checkpoint_time", "3", "log_time", "2", "generator.train_steps", "3"),
        *("generator.channels", "8", "generator.bottleneck_channels", "16"),
        *("generator.style_channels", "8", "clip.train_steps", "3", "clip.batch_size", "16"),
    )


def call(
    script: str, *arguments: str, folder: Path = ROOT, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run one of the entries; without a launcher in a fork of a process that is warm."""
    path = ROOT / "generations" / script
    name = path.name if folder == path.parent else str(path.relative_to(folder))
    if not launcher:
        return warm().run([name, *arguments], folder, environment(), timeout=300)
    return subprocess.run(
        [sys.executable, *launcher, name, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


# what users' machines are like: a home that cannot be written, another locale and time zone
ELSEWHERE = {"HOME": "/dev/null/home", "LC_ALL": "C", "LANG": "de_DE@euro", "TZ": "Asia/Kathmandu"}
ELSEWHERE |= {"JAVA_TOOL_OPTIONS": "-Duser.language=de -Duser.country=DE"}


@cache
def warm() -> Warm:
    """One for the process that runs the tests."""
    process = Warm(ROOT, environment())
    atexit.register(process.close)
    return process


def environment() -> dict[str, str]:
    """Variables of a command."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **ELSEWHERE}


def begin(
    script: str, *arguments: str, log: Path, launcher: tuple[str, ...] = (), **variables: str
) -> Popen[bytes]:
    """Start an entry, which writes what it says into a file."""
    command = [sys.executable, *launcher, str(ROOT / "generations" / script), *arguments]
    variables = {**environment(), **variables}
    with log.open("ab") as file:
        return Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file)


def two_processes(*options: str) -> tuple[str, ...]:
    """torchrun, which finds itself a free port."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(script: str, *arguments: str, **options) -> str:
    """Run an entry that has to succeed; returns what it said."""
    done = call(script, *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def fails(script: str, *arguments: str, **options) -> str:
    """Run an entry that has to refuse its input with one line; returns the line."""
    done = call(script, *arguments, **options)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]
