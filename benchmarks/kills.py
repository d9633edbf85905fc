"""Kill a training run over and over, at random moments, and compare it with one left alone.

    python benchmarks/kills.py [--kills 30] [--steps 300] [--processes 2] [--seed 0] [--folder DIR]

A small model on a small mini world trains the tasks of both stages. A kill is SIGKILL for a random
one of the processes or their launcher, while it starts, trains, reads or writes; then the same
command is given again. At the end the weights must be equal bit for bit, and no checkpoint that
bears its name may ever have been torn. Takes about 15 seconds a kill on two cores.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from generations.checkpoint import check_whole, read_tensors

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds for anything


def settings(world: Path, models: Path, steps: int) -> list[str]:
    values = {
        "data_dir": world,
        "images_dir": world / "images",
        "captions_file": world / "dataset_mini.json",
        "vocab_file": world / "vocab.txt",
        "save_dir": models,
        "model.hidden_size": 32,
        "model.num_heads": 2,
        "model.intermediate_size": 48,
        "model.language_layers": 1,
        "model.cross_layers": 1,
        "model.dropout": 0.1,
        "grid_cluster_num": 24,
        "text_length": 16,
        "generator.channels": 8,
        "generator.bottleneck_channels": 16,
        "generator.style_channels": 8,
        "generator.train_steps": 3,
        "clip.train_steps": 3,
        "clip.batch_size": 16,
        "iteration_tasks": "xe_i2t,rl_i2t,xe_t2i,rl_t2i",
        "mse_loss": 1,
        "samples_per_gpu": 4,
        "num_workers": 1,
        "scheduler.max_steps": steps,
        "scheduler.warmup_steps": 10,
        "checkpoint_time": 5,
        "keep_last": 4,
        "test_interval": 0,
        "log_time": 50,
    }
    config = ["--config", str(ROOT / "configs" / "mini" / "stage1.yaml")]
    return config + [str(word) for pair in values.items() for word in pair]


def start(arguments: list[str], processes: int, log: Path) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, str(ROOT / "generations" / "main.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=ROOT)


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found, queue = [], [pid]
    while queue:
        own = parents.get(queue.pop(), [])
        found += own
        queue += own
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_checkpoints(folder: Path) -> list[str]:
    """The names of all checkpoints; raises if one is torn."""
    names = sorted(path.name for path in folder.glob("model_*.pth"))
    for name in names:
        check_whole(folder / name)
    return names


def hurt(run: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> str:
    """Kill one process of a run at some moment; says which, or '' if the run ended before."""
    newest = max((path.name for path in folder.glob("model_*.pth")), default="")
    saves = chance.choice((0, 1, 1, 2))  # 0: some time while it starts
    began = time.monotonic()
    while saves and run.poll() is None and time.monotonic() < began + PATIENCE:
        now = max((path.name for path in folder.glob("model_*.pth")), default="")
        saves -= now > newest
        newest = max(now, newest)
        time.sleep(0.002)
    moment = time.monotonic() + chance.uniform(0, 0.3 if newest and not saves else 12)
    while time.monotonic() < moment and run.poll() is None:
        time.sleep(0.002)
    if run.poll() is not None:
        return ""
    all_processes = descendants(run.pid)
    ranks = [pid for pid in all_processes if b"RANK=" in environ_of(pid)]
    victims = {"launcher": run.pid} | {f"process {number}": pid for number, pid in enumerate(ranks)}
    name = chance.choice(sorted(victims))
    try:
        os.kill(victims[name], signal.SIGKILL)
    except ProcessLookupError:
        return ""
    run.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while any(map(is_alive, all_processes)):  # unaided: they have to end by themselves
        assert time.monotonic() < deadline, "processes stay behind"
        time.sleep(0.02)
    return name.split()[0]


def environ_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        torture(folder, arguments.kills, arguments.steps, arguments.processes, arguments.seed)


def torture(folder: Path, kills: int, steps: int, processes: int, seed: int) -> None:
    chance = random.Random(seed)
    world, models, log = folder / "world", folder / "models", folder / "log"
    small = settings(world, models, steps)
    prepare = [sys.executable, str(ROOT / "generations" / "prepare.py")]
    sizes = ["--sizes", "40", "10", "10"]
    subprocess.run([*prepare, "mini-world", *sizes, *small], check=True, cwd=ROOT)
    subprocess.run([*prepare, "all", *small], check=True, cwd=ROOT)
    assert start([*small, "exp_id", "alone"], processes, log).wait() == 0, log.read_text()[-3000:]
    began, done = time.monotonic(), Counter[str]()
    while done.total() < kills:
        run = start([*small, "exp_id", "killed"], processes, log)
        victim = hurt(run, models / "killed", chance)
        names = check_checkpoints(models / "killed")
        if not victim:
            run.wait(PATIENCE)
            if f"model_{steps:07d}.pth" in names:
                break
            raise SystemExit(f"a restart failed: {log.read_text()[-3000:]}")
        done[victim] += 1
        print(f"kill {done.total()}: {victim}, newest {names[-1] if names else 'none'}", flush=True)
    run = start([*small, "exp_id", "killed"], processes, log)
    assert run.wait() == 0, log.read_text()[-3000:]
    last = f"model_{steps:07d}.pth"
    one, other = (read_tensors(models / name / last) for name in ("alone", "killed"))
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    figures = {
        "kills": done.total(),
        "victims": dict(done),
        "tensors": len(one),
        "tensors_that_differ": len(unequal),
        "torn_checkpoints": 0,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures))
    if unequal or done.total() < kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
