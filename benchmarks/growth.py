"""How cost grows: captioning with images, memory with the dataset, training with processes.

    python benchmarks/growth.py [--size full|mini] [--batch 8] [--only PART,PART] [--out FILE.json]

captioning: seconds for 10, 20 and 40 images, ten at a time. loading: memory of a process that reads
batches of 64 in random order, from files of 200 and of 800 images. processes: samples a second of
training steps, by one process with two threads and by two with one each (gloo), and how much of a
step is the exchange of gradients. Every part runs in processes of its own. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_loading
import measures
import numpy as np
import torch

from generations import runtime
from generations.datasets import convert_features, open_feature_store
from generations.decoding import caption_tokens
from generations.objectives import TaskStep
from generations.training.optim import SolverSettings, build_optimizer, fill_absent_gradients

PARTS = ("captioning", "loading", "processes")
TASKS = ("xe_i2t", "xe_t2i")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    parser.add_argument("--batch", type=int, default=8, help="samples a process and step")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        row = CHILDREN[arguments.child](arguments)
        if int(os.environ.get("RANK", "0")) == 0:
            sys.stdout.write("\n" + json.dumps(row) + "\n")
        return
    parents = {"captioning": captioning, "loading": loading, "processes": processes}
    rows = []
    for part in arguments.only.split(","):
        rows += parents[part](arguments)
    for row in rows:
        figures = (f"{key} {value:.4g}" for key, value in row.items() if key != "name")
        sys.stdout.write(f"{row['name']}: {', '.join(figures)}\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def call(part: str, arguments: argparse.Namespace, *more: str, processes: int = 1) -> Any:
    """What a part gives in processes of its own."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [__file__, "--child", part, "--size", arguments.size]
    command += ["--batch", str(arguments.batch), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


# --- captioning ----------------------------------------------------------------------------------


def captioning(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return call("captioning", arguments)


def captioning_child(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    model = measures.new_model(arguments.size).eval()
    with torch.no_grad():
        model.classifier.predictions.bias[measures.EOS] = -1e4  # no caption ends early
    features = measures.random_batch(model, 40, 17).features
    assert features is not None

    def write(images: int) -> None:
        for part in features[:images].split(10):
            caption_tokens(model, part)

    write(10)
    rows = [
        {"name": "captioning", "images": n, "seconds": median(lambda n=n: write(n))}
        for n in (10, 20, 40)
    ]
    return [row | {"seconds_an_image": row["seconds"] / row["images"]} for row in rows]


def median(run: Callable[[], None]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


# --- memory of loading ---------------------------------------------------------------------------


def loading(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for images in (200, 800):
        with tempfile.TemporaryDirectory() as folder:
            original, packed = Path(folder) / "original.h5", Path(folder) / "ours.packed"
            data_loading.write_original(original, images)
            convert_features(original, packed, "float16")
            original.unlink()
            row = {"name": "loading", "images": images, "file_mb": packed.stat().st_size / 2**20}
            rows.append(row | call("loading", arguments, "--store", str(packed)))
    return rows


def loading_child(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of the process's own, and with what of the file is mapped, in MB."""
    store = open_feature_store([arguments.store], data_loading.GRID, data_loading.DIM)
    names, rng = sorted(store.names()), np.random.default_rng(0)
    peak = 0.0
    for _ in range(30):
        batch = store.read_batch([names[i] for i in rng.choice(len(names), data_loading.BATCH)])
        peak = max(peak, status("RssAnon"))
        del batch
    return {"own_memory_mb": peak, "with_file_mb": status("VmHWM")}


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


# --- processes -----------------------------------------------------------------------------------


def processes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    alone = call("processes", arguments)
    both = call("processes", arguments, processes=2)
    return [
        {"name": f"{count} process{'es' * (count > 1)}", **row}
        for count, row in ((1, alone), (2, both))
    ]


def processes_child(arguments: argparse.Namespace) -> dict[str, Any]:
    """Samples a second of all processes, over both tasks of stage 1."""
    with runtime.start("cpu") as here:
        model = measures.new_model(arguments.size)
        batch = measures.random_batch(model, arguments.batch, 17)
        step = runtime.data_parallel(TaskStep(model), here)
        optimizer = build_optimizer(model, SolverSettings())
        seconds: dict[str, list[float]] = {"step": [], "alone": [], "update": []}
        joined: set[str] = set()
        # alone: without an exchange of gradients, which DDP would then expect in the next one
        for sync in ("step", "alone"):
            for number in range(2 * ROUNDS + 2):
                context = measures.our_context(False)
                context.generator.manual_seed(number)
                runtime.wait_for_all(here)
                begun = time.perf_counter()
                with runtime.without_sync(step, sync == "alone"):
                    step(TASKS[number % 2], batch, context).loss.backward()
                runtime.wait_for_all(here)
                between = time.perf_counter()
                if sync == "step":
                    fill_absent_gradients(model, joined)
                    runtime.clip_gradients(model.parameters(), 1.0)
                    optimizer.step()
                    runtime.wait_for_all(here)
                    seconds["update"].append(time.perf_counter() - between)
                seconds[sync].append(between - begun)
                optimizer.zero_grad(set_to_none=True)
        # the first of each task warms up
        step_s, alone_s, update_s = (float(np.mean(times[2:])) for times in seconds.values())
        return {
            "samples_per_s": arguments.batch * here.world_size / (step_s + update_s),
            "step_s": step_s,
            "exchange_s": step_s - alone_s,
            "update_s": update_s,
            "peak_mb": status("VmHWM"),
        }


CHILDREN = {
    "captioning": captioning_child,
    "loading": loading_child,
    "processes": processes_child,
}


if __name__ == "__main__":
    main()
