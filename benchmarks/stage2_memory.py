"""Peak memory of a stage-2 step, here and with the original's amount of work.

    python benchmarks/stage2_memory.py [--size full|mini] [--batch 2] [--out FILE.json]

Each figure is measured in a process of its own: the highest resident memory during forward and
backward, less the weights, which are there before, and the gradients, which are there after (as in
training, they are made anew in each step). What is left is what the step itself needs. The image
generator and CLIP are left out on both sides. Linux only; "full" needs 16 GB.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import naive
import torch

from generations.batch import Batch
from generations.config import load_config
from generations.modeling import FeatureLevels, UnifiedTransformer, build_model
from generations.objectives import TASKS, SequenceSettings, TaskContext

ROOT = Path(__file__).resolve().parents[1]
TEXT_LENGTH = 16
TASK_NAMES = ("rl_i2t", "rl_t2i")


def main() -> None:
    """Measure all four and show the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", choices=TASK_NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("ours", "naive"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        measured = measure(arguments.task, arguments.mode, arguments.size, arguments.batch)
        sys.stdout.write(json.dumps(measured))
        return
    rows = [compare(task, arguments.size, arguments.batch) for task in TASK_NAMES]
    sys.stdout.write(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


def compare(task: str, size: str, batch: int) -> dict[str, float | str]:
    """One task: both ways, each in its own process."""
    found = {}
    for mode in ("ours", "naive"):
        command = [sys.executable, __file__, "--task", task, "--mode", mode]
        command += ["--size", size, "--batch", str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[mode] = json.loads(done.stdout)
    return {
        "name": f"{task}_memory_{size}_batch{batch}",
        "ours_mb": found["ours"]["peak_mb"],
        "naive_mb": found["naive"]["peak_mb"],
        "ratio": found["naive"]["peak_mb"] / found["ours"]["peak_mb"],
        "ours_s": found["ours"]["seconds"],
        "naive_s": found["naive"]["seconds"],
    }


def measure(task: str, mode: str, size: str, batch_size: int) -> dict[str, float]:
    """One step: seconds, and MB above weights and gradients."""
    files = [ROOT / "configs" / "mini" / "stage2.yaml"] if size == "mini" else []
    cfg = load_config(files, ("model.dropout", "0.1"))
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = random_batch(model, batch_size)
    reset_peak()
    before = resident("VmRSS")
    started = time.monotonic()
    loss = _loss(task, mode, model, batch)
    loss.backward()
    seconds = time.monotonic() - started
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None) / 1024
    return {"seconds": seconds, "peak_mb": (resident("VmHWM") - before - gradients) / 1024}


def _loss(task: str, mode: str, model: UnifiedTransformer, batch: Batch) -> torch.Tensor:
    if mode == "naive":
        if task == "rl_i2t":
            return naive.rl_i2t_loss(model, batch, TEXT_LENGTH)
        return naive.rl_t2i_loss(model, batch)
    settings = SequenceSettings(TEXT_LENGTH, recompute=True, mse_weight=1.0)
    context = TaskContext(torch.Generator(), FeatureLevels(), sequence=settings)
    return TASKS[task](model, batch, context).loss


def random_batch(model: UnifiedTransformer, batch_size: int) -> Batch:
    """Random ids and features of a model's sizes."""
    size = model.size
    cells = size.grid_size**2
    text_ids = torch.randint(1037, size.vocab_size, (batch_size, TEXT_LENGTH + 1))
    text_ids[:, 0], text_ids[:, -1] = 101, 102
    return Batch(
        image_ids=[str(number) for number in range(batch_size)],
        captions=["a dog."] * batch_size,
        text_ids=text_ids,
        masked_text_ids=text_ids,
        mask_positions=torch.ones(batch_size, dtype=torch.long),
        cluster_ids=torch.randint(0, size.clusters, (batch_size, cells)),
        features=torch.rand(batch_size, cells, size.feature_size),
        references=torch.randint(1037, size.vocab_size, (batch_size, 5, 12)),
    )


def reset_peak() -> None:
    """Let the process's memory peak start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def table(rows: list[dict[str, float | str]]) -> str:
    """The rows as text."""
    lines = [f"{'':32}{'ours MB':>10}{'naive MB':>10}{'ratio':>8}{'ours s':>9}{'naive s':>9}"]
    for row in rows:
        figures = [row[key] for key in ("ours_mb", "naive_mb", "ratio", "ours_s", "naive_s")]
        numbers = "{:>10.0f}{:>10.0f}{:>8.1f}{:>9.1f}{:>9.1f}".format(*figures)
        lines.append(f"{row['name']:32}{numbers}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
