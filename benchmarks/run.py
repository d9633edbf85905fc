"""Time and memory of everything that takes long, beside the original's amount of work.

    python benchmarks/run.py [--out FILE.json] [--size full,mini] [--precision float32,bf16]
                             [--only NAME,NAME]

`naive` does what the original did (benchmarks/naive.py), over the same weights and in the same
precision. Each row is measured in a process of its own, on both cores: first the results of both
sides are compared, then rounds of the two alternate, and the medians count. docs/performance.md
explains the rows. Linux only; the full size needs 16 GB.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

NAMES = (
    "caption_greedy",
    "caption_greedy_natural",
    "image_sampling",
    "xe_i2t_step",
    "xe_t2i_step",
    "rl_i2t_step",
    "rl_t2i_step",
    "image_generator_forward",
    "xe_i2t_words_causal",
    "xe_i2t_words_causal5",
    "caption_greedy_causal",
    "rl_i2t_step_causal",
    "cider_d_reward",
    "fid_trace",
    "data_loading",
)
# only where they are asked for: docs/performance.md has what they cost and save
EXTRA = ("rl_i2t_step_kept", "rl_t2i_step_recompute")
# those without the model are measured once; what does not multiply much has one precision
MODEL_ROWS = (*NAMES[: NAMES.index("cider_d_reward")], *EXTRA)
HALF_ROWS = tuple(name for name in MODEL_ROWS if name != "caption_greedy_natural")
COUNTED_AFTER = 1.0  # seconds; a side that takes less runs more often
WARM_AFTER = 20.0  # seconds of the comparison; what takes longer needs no round to warm up
LONGEST = 15.0  # seconds of timed rounds; what takes longer runs less often
WIDE = 3072  # of the square matrices whose product shows what the machine can do
SIZES, PRECISIONS = ("full", "mini"), ("float32", "bf16")


def main() -> None:
    """Measure what is asked for, and show it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", default=",".join(SIZES), help="full, mini, or both")
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="float32, bf16, or both")
    parser.add_argument("--only", default=",".join(NAMES), help="names with commas between them")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, if they are short")
    parser.add_argument("--threads", type=int, default=2)
    libraries = ("auto", "torch", "onednn")
    parser.add_argument("--library", choices=libraries, default="auto", help="of linear layers")
    arguments = parser.parse_args()
    chosen = {
        key: _several(parser, key, getattr(arguments, key), known)
        for key, known in (
            ("size", SIZES),
            ("precision", PRECISIONS),
            ("only", (*NAMES, *EXTRA)),
        )
    }
    names = chosen["only"]
    common = (arguments.rounds, arguments.threads, arguments.library)
    rows, failed = [], []
    sys.stdout.write(HEAD)
    for name, size, precision in wanted(names, chosen["size"], chosen["precision"]):
        row = in_own_process(name, size, precision, *common)
        if row is None:  # told on stderr; the others are worth having
            failed.append(row_name(name, size, precision))
            continue
        rows.append(row)
        sys.stdout.write(line(rows[-1]))
        sys.stdout.flush()
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    if unequal := [row["name"] for row in rows if not row["equal"]]:
        raise SystemExit(f"ours and naive differ: {', '.join(unequal)}")
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def _several(
    parser: argparse.ArgumentParser, key: str, value: str, known: Sequence[str]
) -> list[str]:
    """The parts of an option, if all are known."""
    parts = value.split(",")
    if unknown := set(parts) - set(known):
        parser.error(f"--{key}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return parts


def wanted(
    names: Sequence[str], sizes: Sequence[str], precisions: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Rows to measure: name, size, precision; each where it means something."""
    for size in sizes:
        for precision in precisions:
            rows = HALF_ROWS if precision == "bf16" else MODEL_ROWS
            first = (size, precision) == (sizes[0], precisions[0])
            for name in names:
                if name in rows or (first and name not in MODEL_ROWS):
                    yield name, size, precision


def row_name(name: str, size: str, precision: str) -> str:
    """Full size and float32 go without saying."""
    parts = [name, "" if size == "full" else size, "" if precision == "float32" else precision]
    return "/".join(filter(None, parts))


def in_own_process(*task: Any) -> dict[str, Any] | None:
    """A row, measured in a process of its own; None if that failed.

    The process is a fork of one that has imported everything and computed nothing: a row does not
    wait for imports, and its peak of memory is its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["measures", "data_loading"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(sender, *task))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def tell(sender: Connection, *task: Any) -> None:
    """Measure a row and hand it over."""
    sender.send(measure(*task))


def measure(
    name: str, size: str, precision: str, rounds: int, threads: int, library: str
) -> dict[str, Any]:
    """One row."""
    torch = import_module("torch")
    torch.set_num_threads(threads)
    about = {"size": size, "precision": precision, "threads": threads}
    if name == "data_loading":
        return data_loading() | about
    import_module("generations.runtime.memory").keep_freed_memory()  # as the commands do
    measures = import_module("measures")
    rows = measures.MEASURES | import_module("causal_rows").ROWS
    sides = rows[name](size)
    gc.freeze()  # what is there stays: collecting between rounds need not look at it
    choose_library = import_module("generations.modeling").choose_library
    half = precision == "bf16"

    def prepare(side: str) -> None:
        sides.before_each()
        if sides.model is not None:
            ours = side == "ours" or sides.same_tools
            choose_library(sides.model, library if ours else "torch")

    def in_precision(call: Callable[[], Any]) -> Callable[[], Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=half)(call)

    comparison = sides.check or (sides.in_half if half and sides.in_half else sides.whole)
    results, gflop = [], []
    begun = time.perf_counter()
    for side in ("ours", "naive"):
        prepare(side)
        timed, compared = getattr(sides.whole, side), getattr(comparison, side)
        result, operations = counted(in_precision(timed))
        if compared is not timed:
            prepare(side)
            result = in_precision(compared)()
        if isinstance(result, tuple):  # loss, and the gradients as they are now
            result = (result[0], [gradient.clone() for gradient in result[1]()])
        results.append(result)
        gflop.append(operations / 1e9)
    difference = comparison.difference(*results)
    del results, result
    # training steps need one all the same: their memory is laid out anew in the first
    warm = sides.our_update is None and time.perf_counter() - begun > WARM_AFTER
    sides.before_timing()
    timings = {"ours": Timing(), "naive": Timing()}
    calls = {
        "ours": (in_precision(sides.whole.ours), sides.our_update),
        "naive": (
            in_precision(sides.whole.naive),
            sides.our_update if sides.same_tools else sides.naive_update,
        ),
    }
    for done in range(20 * rounds):
        spent = [sum(timing.seconds) for timing in timings.values()]
        if sum(spent) > LONGEST or (done > rounds and min(spent) > COUNTED_AFTER):
            break
        for side, (call, update) in calls.items():
            prepare(side)
            timings[side].run(call, update, first=done == 0, keep=warm or done > 0)
    ours, theirs = timings["ours"], timings["naive"]
    naive_samples = sides.naive_samples or sides.samples
    row = {
        "name": row_name(name, size, precision),
        "ours_s": ours.median,
        "naive_s": theirs.median,
        "ratio": sides.samples / ours.median / (naive_samples / theirs.median),
        "equal": difference <= measures.TOLERANCES[precision],
        "compared": comparison.what,
        "difference": difference,
        "peak_mb": max(ours.peaks),
        "naive_peak_mb": max(theirs.peaks),
        "samples_per_s": sides.samples / ours.median,
        "naive_samples_per_s": naive_samples / theirs.median,
        "rounds": len(ours.seconds),
        **about,
    }
    if gflop[0]:
        dtype = torch.bfloat16 if half else torch.float32
        peak, best = (matmul_peak(torch, library, dtype) for library in ("torch", "auto"))
        row |= {
            "gflop": gflop[0],
            "naive_gflop": gflop[1],
            "gflop_per_s": gflop[0] / ours.median,
            "naive_gflop_per_s": gflop[1] / theirs.median,
            "matmul_peak_gflop_per_s": peak,  # of torch's usual product
            "best_peak_gflop_per_s": best,  # of the library that is faster here
            "share_of_peak": gflop[0] / ours.median / peak,
            "share_of_best_peak": gflop[0] / ours.median / best,
            "naive_share_of_peak": gflop[1] / theirs.median / peak,
        }
    if sides.our_update is not None:
        forth = statistics.median(ours.without_update)
        row |= {
            "update_s": statistics.median(ours.updates),
            "naive_update_s": statistics.median(theirs.updates),
            "ratio_without_update": statistics.median(theirs.without_update) / forth,
            "share_of_peak_without_update": row["gflop"] / forth / row["matmul_peak_gflop_per_s"],
        }
    return row


class Timing:
    """Seconds and peak memory of one side."""

    def __init__(self):
        self.seconds: list[float] = []
        self.without_update: list[float] = []
        self.updates: list[float] = []
        self.peaks: list[float] = []

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def run(
        self, call: Callable[[], Any], update: Callable[[], None] | None, first: bool, keep: bool
    ) -> None:
        """Run once; the first round shows the peak of memory."""
        gc.collect()
        if first:
            ctypes.CDLL(None).malloc_trim(0)  # freed memory counts for nobody
            Path("/proc/self/clear_refs").write_text("5")
        begun = time.perf_counter()
        call()
        between = time.perf_counter()
        if update is not None:
            update()
        ended = time.perf_counter()
        if keep:
            self.seconds.append(ended - begun)
            self.without_update.append(between - begun)
            self.updates.append(ended - between)
        if first:
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = next(int(text.split()[1]) for text in lines if text.startswith("VmHWM"))
            self.peaks.append(peak / 1024)


def linear_operations(states: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Of oneDNN's product, of the shapes (M, I) and (O, I)."""
    return 2 * states[0] * states[1] * weight[0]


def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """A call's result and its floating-point operations in matrix products and convolutions."""
    product = import_module("torch").ops.mkldnn._linear_pointwise
    counter = import_module("torch.utils.flop_counter").FlopCounterMode(
        display=False, custom_mapping={product: linear_operations}
    )
    attention = import_module("torch.nn.attention")
    # written out as two products, which the counter knows on every device
    with attention.sdpa_kernel(attention.SDPBackend.MATH), counter:
        result = call()
    return result, counter.get_total_flops()


def matmul_peak(torch: Any, library: str, dtype: Any) -> float:
    """GFLOP/s of the best of several large products."""
    linear = import_module("generations.modeling.linear").linear
    left, right = torch.rand(2, WIDE, WIDE).to(dtype)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        linear(left, right, None, library)
        best = min(best, time.perf_counter() - begun)
    return 2 * WIDE**3 / best / 1e9


def data_loading() -> dict[str, Any]:
    """The row of benchmarks/data_loading.py."""
    row = import_module("data_loading").measure()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(text.split()[1]) for text in lines if text.startswith("VmHWM"))
    return row | {"name": "data_loading", "peak_mb": peak / 1024}


HEAD = (
    f"{'':34}{'ours s':>9}{'naive s':>9}{'ratio':>7}{'equal':>7}{'peak MB':>9}{'naive':>7}"
    f"{'samples/s':>11}{'% peak':>8}{'% best':>8}\n"
)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    text = f"{row['name']:34}{row['ours_s']:9.4f}{row['naive_s']:9.4f}{row['ratio']:7.2f}"
    text += f"{row['equal']!s:>7}{row['peak_mb']:9.0f}{row.get('naive_peak_mb', 0):7.0f}"
    text += f"{row.get('samples_per_s', 0):11.2f}"
    if "share_of_peak" in row:
        text += f"{100 * row['share_of_peak']:8.0f}{100 * row['share_of_best_peak']:8.0f}"
    return text + "\n"


if __name__ == "__main__":
    main()
