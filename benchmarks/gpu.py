"""What one card makes of training, captioning and painting, beside the original's amount of work.

    python benchmarks/gpu.py [--out FILE.json] [--seconds 230] [--only NAME,NAME] [--how HOW,HOW]
    python benchmarks/gpu.py --device cpu --size mini --batch 2 --seconds 60      # a rehearsal

`naive` does what the original did (benchmarks/naive.py), over the same weights, in the same
precision and on the same card. A row is the mean of calls that follow each other without waiting,
the best of three such groups. What does not fit into the seconds is named and left out; the rows
that matter most come first. docs/gpu.md explains the rows. One process, one card.
"""

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the checkout's package, wherever this is called from
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_rows import CASES, Bench, Case, xe_i2t, xe_t2i
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from generations.modeling import compile_layers
from generations.runtime.cards import card_name, peak_tflops
from generations.runtime.graphs import Graphs, at_once

ROUNDS, GROUP_SECONDS = 3, 0.6
HOWS = ("eager", "graphs", "compile")
WIDE = 8192  # of the square product that shows what the card can do
Row = dict[str, Any]


# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Clock:
    """Seconds left of those that were asked for."""

    end: float

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of the first call, and the mean of calls that follow each other, at their best."""
    begun = time.perf_counter()
    call()
    wait(device)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    call()  # kernels are chosen, memory is there
    wait(device)
    once = time.perf_counter() - begun
    calls = max(1, min(50, round(GROUP_SECONDS / max(once, 1e-6))))
    best = float("inf")
    for _ in range(ROUNDS if once < GROUP_SECONDS else 1):
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        best = min(best, (time.perf_counter() - begun) / calls)
    return first, best


def measured(call: Callable[[], Any], device: torch.device) -> Row:
    """Milliseconds, and megabytes at the peak above what stays, weights and moments; on a GPU."""
    gc.collect()
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    try:
        first, best = seconds_of(call, device)
    except torch.OutOfMemoryError:
        return {"error": "does not fit"}
    row: Row = {"ms": 1e3 * best, "first_s": first}
    if device.type == "cuda":
        row["peak_mb"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return row


def operations(call: Callable[[], Any]) -> float:
    """Floating-point operations of a call in matrix products and convolutions, 10^12."""
    counter = FlopCounterMode(display=False)
    # written out as two products, which the counter knows on every device
    with uncompiled(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops() / 1e12


def uncompiled() -> AbstractContextManager[Any]:
    return torch.compiler.set_stance("force_eager")


def rows_of(case: Case, how: str, bench: Bench, peak: float | None, base: Row | None) -> Row:
    """One row; with a `base`, the row of the same case in eager mode, naive is not run again."""
    row: Row = {"name": case.name, "how": how}
    try:
        if base is None:
            row["tflop"] = operations(case.ours)
            if case.equal is not None:
                row["difference"] = case.equal()
            if case.naive is not None:
                row["naive"] = measured(case.naive, bench.device)
        else:
            row |= {key: base[key] for key in ("tflop", "naive") if key in base}
        row |= measured(case.ours, bench.device)
    except torch.OutOfMemoryError:
        row["error"] = "does not fit"
    if "ms" in row:
        seconds = row["ms"] / 1e3
        row["samples_per_s"] = case.samples / seconds
        row["tflops"] = row["tflop"] / seconds
        if peak:
            row["share_of_peak"] = row["tflops"] / peak
        if "ms" in row.get("naive", {}):
            row["ratio"] = row["naive"]["ms"] / row["ms"]
    return row


def product_tflops(device: torch.device, wide: int) -> float:
    """10^12 operations a second of a large product in bfloat16."""
    left, right = torch.rand(2, wide, wide, device=device, dtype=torch.bfloat16)
    _, best = seconds_of(lambda: left @ right, device)
    return 2 * wide**3 / best / 1e12


def largest_batch(
    make: Callable[[Bench, int], Case], bench: Bench, start: int, most: int, clock: Clock
) -> Row:
    """The largest batch of those that double which fits."""
    size, fits, error = start, 0, ""
    while size <= most and clock.left > 5:
        try:
            case = make(bench, size)
            case.ours()
            wait(bench.device)
            fits = size
        except torch.OutOfMemoryError:
            error = "does not fit"
            break
        finally:
            bench.model.zero_grad(set_to_none=True)
            gc.collect()
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
        size *= 2
    return {"name": make.__name__, "largest_batch": fits, "next": size, "ended": error or "limit"}


# --- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    clock = Clock(time.perf_counter() + arguments.seconds)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no usable GPU; --device cpu --size mini --batch 2 rehearses")
    torch.set_float32_matmul_precision("high")
    bench = Bench(device, arguments.size, arguments.batch)
    name = card_name(device)
    peak = peak_tflops(name)
    about: Row = {
        "card": name,
        "peak_tflops": peak,
        "product_tflops": product_tflops(device, WIDE if device.type == "cuda" else 256),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "size": arguments.size,
    }
    found: Row = {"about": about, "rows": [], "largest": [], "left_out": []}
    sys.stdout.write(f"{', '.join(f'{key} {value}' for key, value in about.items())}\n{HEAD}")
    names, hows = arguments.only.split(","), arguments.how.split(",")
    base: dict[str, Row] = {}
    for how in hows:
        if how == "compile":
            compile_layers(bench.model, "1", device)
        for key in names:
            make, own = CASES[key]
            if how == "graphs" and not key.startswith("xe_"):
                continue
            if how == "compile" and not make(bench, 1).compiled:
                continue
            if clock.left < 0:
                found["left_out"].append(f"{key} {how}")
                continue
            case = make(bench, bench.batch or own)
            bench.run = Graphs() if how == "graphs" and device.type == "cuda" else at_once
            quiet = nullcontext() if how == "compile" else uncompiled()
            with quiet:
                row = rows_of(case, how, bench, peak or None, base.get(key))
            if how == "eager":
                base[key] = row
            found["rows"].append(row)
            sys.stdout.write(line(row))
            sys.stdout.flush()
            written(arguments.out, found)
        if how == "eager":
            bench.original.state.clear()  # its moments take room from ours
            for make in (xe_i2t, xe_t2i):
                entry = largest_batch(make, bench, *arguments.largest, clock)
                found["largest"].append(entry)
                sys.stdout.write(
                    f"{entry['name']}: batch {entry['largest_batch']} fits ({entry['ended']})\n"
                )
                written(arguments.out, found)
    if found["left_out"]:
        sys.stdout.write(f"no time was left for: {', '.join(found['left_out'])}\n")
    written(arguments.out, found)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    parser.add_argument("--batch", type=int, default=0, help="of all rows; 0: each row's own")
    parser.add_argument("--seconds", type=float, default=230.0, help="after which no row begins")
    parser.add_argument("--only", default=",".join(CASES), help="names with commas between them")
    parser.add_argument("--how", default=",".join(HOWS), help="eager, graphs, compile")
    parser.add_argument(
        "--largest", type=int, nargs=2, default=(512, 16384), metavar=("FIRST", "LAST"),
        help="batches that are tried for the largest one; 1 0: none",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    for key, known in (("only", CASES), ("how", HOWS)):
        if unknown := set(getattr(arguments, key).split(",")) - set(known):
            parser.error(f"--{key}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return arguments


def written(path: Path | None, found: Row) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


HEAD = (
    f"{'':34}{'':9}{'ms':>10}{'naive ms':>10}{'ratio':>7}{'samples/s':>11}{'TFLOP/s':>9}"
    f"{'% peak':>8}{'MB':>8}{'naive':>8}{'apart':>9}\n"
)


def line(row: Row) -> str:
    """A row as text."""
    theirs = row.get("naive", {})
    if "share_of_peak" in row:
        row = row | {"percent": 100 * row["share_of_peak"]}
    cells = (
        ("ms", row, "10.2f"), ("ms", theirs, "10.2f"), ("ratio", row, "7.2f"),
        ("samples_per_s", row, "11.1f"), ("tflops", row, "9.4g"), ("percent", row, "8.1f"),
        ("peak_mb", row, "8.0f"), ("peak_mb", theirs, "8.0f"), ("difference", row, "9.1e"),
    )  # fmt: skip
    text = "".join(
        format(part[key], form) if key in part else " " * int(form.split(".")[0])
        for key, part, form in cells
    )
    return f"{row['name']:34}{row['how']:9}{text}{row.get('error', '')}\n"


if __name__ == "__main__":
    main()
