"""Kill the preparation of a dataset over and over, and compare it with one left alone.

    python benchmarks/preparation_kills.py [--kills 4] [--images 60] [--seed 0] [--folder DIR]

The steps features, clusters and generator each meet SIGKILL at random moments of their work (not
while they start), `--kills` of them for each step, and are then left to finish. Every start is a
process of its own, forked from this one, which has imported what they need. A step that is done
before its moment begins anew from nothing, and the kill does not count. At the end the packed
features, the codebook, the cluster ids and the generator's weights must be equal, byte for byte, to
those of a folder that was prepared without any kill.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from generations import cli, prepare
from generations.checkpoint import read_tensors
from generations.datasets import feature_writers
from generations.datasets.mini_world import write_vocabulary, write_world
from generations.features.extractors import Patches
from generations.image_generator.trainer import GeneratorTrainer
from generations.pipelines import preparation

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0  # seconds for anything
STEPS = ("features", "clusters", "generator")
FEATURES = ("maskrcnn_train_grid8.packed", "maskrcnn_valid_grid8.packed")
IDS = ("cluster_ids_train.pkl", "cluster_ids_valid.pkl")
OUTPUTS = {
    "features": FEATURES,
    "clusters": (*IDS, "centroids.npy"),
    "generator": ("generator.pth", "generator_training.pth"),
}
DONE = OUTPUTS | {"generator": ("generator.pth",)}
FORK = multiprocessing.get_context("fork")
SLOW = (  # what takes its time
    *((Patches, "__call__"), (GeneratorTrainer, "step")),
    *((preparation, name) for name in ("sample_cells", "fit_kmeans", "write_array_pickle", "note")),
)


def work(arguments: Sequence[str], mark: Path, log: Path) -> None:
    """`prepare.py` with small parts, and work that takes long enough to be killed in its midst.

    Args:
        arguments: of the entry.
        mark: a file that appears when the work begins.
        log: what is said is added here.
    """
    os.setsid()  # with its children, a group that is killed as a whole
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    marks = [mark]

    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if marks:
                marks.pop().touch()
            time.sleep(0.04)
            return function(*arguments, **more)

        return call

    feature_writers.PART_SIZE = 2
    for place, name in SLOW:
        setattr(place, name, slowly(getattr(place, name)))
    sys.argv = ["prepare.py", *arguments]
    cli.run(prepare.main)


def command(world: Path, out: Path, step: str) -> list[str]:
    """Arguments of one step of preparation, with an image generator of few channels."""
    values = {
        "images_dir": world / "images",
        "captions_file": world / "dataset_mini.json",
        "vocab_file": world / "vocab.txt",
        "data_dir": out,
        "device": "cpu",
        "grid_cluster_num": 24,
        "features.batch_size": 2,
        "generator.channels": 8,
        "generator.bottleneck_channels": 16,
        "generator.style_channels": 8,
        "generator.train_steps": 30,
        "generator.batch_size": 4,
        "generator.adversarial_weight": 1,
        "generator.discriminator_channels": 4,
        "generator.report_every": 3,
    }
    pairs = [str(part) for pair in values.items() for part in pair]
    return [step, "--config", str(ROOT / "configs" / "mini" / "stage1.yaml"), *pairs]


def begin(world: Path, out: Path, step: str) -> BaseProcess:
    """Start a step."""
    mark, log = Path(f"{out}.working"), Path(f"{out}.log")
    mark.unlink(missing_ok=True)
    process = FORK.Process(target=work, args=(command(world, out, step), mark, log))
    process.start()
    return process


def finish(world: Path, out: Path, step: str) -> float:
    """Do a step to its end; the seconds that its work took."""
    process = begin(world, out, step)
    start = wait_for_work(process, out)
    process.join(PATIENCE)
    if process.exitcode != 0:
        raise SystemExit(f"the step {step} failed: {Path(f'{out}.log').read_text()[-3000:]}")
    return time.perf_counter() - start


def wait_for_work(process: BaseProcess, out: Path) -> float:
    """Wait until a step works, or is over; the moment."""
    mark = Path(f"{out}.working")
    deadline = time.perf_counter() + PATIENCE
    while process.is_alive() and not mark.exists():
        if time.perf_counter() > deadline:
            raise SystemExit(f"nothing happens: {Path(f'{out}.log').read_text()[-3000:]}")
        time.sleep(0.002)
    return time.perf_counter()


def kill_at_random(world: Path, out: Path, step: str, within: float, rng: random.Random) -> str:
    """Start a step and kill it after up to `within` seconds; what it left, '' if it was done."""
    process = begin(world, out, step)
    wait_for_work(process, out)
    process.join(rng.uniform(0, 1) * within)
    if not process.is_alive():
        return ""
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if all((out / name).exists() for name in DONE[step]):
        return ""
    if step == "features":
        done = sum(sum(file.read_bytes()) for file in out.glob(".*.parts/done-*"))
        return f"{done} parts and {len(list(out.glob('*.packed')))} files done"
    if step == "generator":
        return "a state" if (out / "generator_training.pth").exists() else "nothing yet"
    return f"{sum((out / name).exists() for name in IDS)} files of cluster ids"


def equal(one: Path, other: Path) -> dict[str, bool]:
    """What is equal, byte for byte."""
    found = {
        name: (one / name).read_bytes() == (other / name).read_bytes()
        for name in (*FEATURES, "centroids.npy", *IDS)
    }
    weights, others = (read_tensors(folder / "generator.pth") for folder in (one, other))
    found["generator weights"] = weights.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in weights.items()
    )
    return found


def measure(folder: Path, kills: int, images: int, seed: int) -> dict[str, Any]:
    """Prepare two folders, one with kills.

    Args:
        folder: where to; empty.
        kills: for each step.
        images: of the mini world, in the split train; a sixth of it in val and test.
        seed: of the moments.

    Returns:
        what each kill left behind, by step; what is equal; hidden files left over.
    """
    world = folder / "world"
    write_world(world, train=images, val=max(2, images // 6), test=max(2, images // 6))
    write_vocabulary(world / "vocab.txt")
    whole, killed = folder / "whole", folder / "killed"
    rng = random.Random(seed)
    rows: dict[str, list[str]] = {}
    for out in (whole, killed):
        finish(world, out, "captions")
    for step in STEPS:
        seconds = finish(world, whole, step)
        rows[step] = []
        while len(rows[step]) < kills:
            left = kill_at_random(world, killed, step, seconds, rng)
            if not left:
                for name in OUTPUTS[step]:
                    (killed / name).unlink(missing_ok=True)
                continue
            rows[step].append(left)
            sys.stderr.write(f"{step}: kill {len(rows[step])}: {left}\n")
        finish(world, killed, step)
    litter = [path.name for path in killed.iterdir() if path.name.startswith(".")]
    return {"kills": rows, "equal": equal(whole, killed), "left_over": litter}


def main(argv: Sequence[str] | None = None) -> None:
    """Kill, compare, and end with status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(
            *(options.folder or Path(temporary), options.kills, options.images, options.seed)
        )
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if not all(found["equal"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
