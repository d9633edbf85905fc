"""What the options of speed bring on this machine, each beside its default.

    python benchmarks/options.py [--size full|mini] [--only PART,PART] [--out FILE.json]

compile: layers compiled by torch.compile (needs a C++ compiler), with the seconds that compiling
takes. channels_last: layout of the image generator, in float32 and bf16. cpu_bf16: autocast.
cpu_linear: oneDNN's products and torch's. split: 40 captions painted into files by the command's
way, and in the order of the captions, padded, one after the other. Each part runs in a process of
its own; its two sides alternate, and the medians of three rounds count, after one that warms up.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import measures
import torch
from torch import Tensor, nn

from generations.datasets import CaptionTokenizer
from generations.decoding import caption_tokens, image_tokens
from generations.image_generator import build_generator
from generations.modeling import UnifiedTransformer, choose_library, compile_layers
from generations.objectives import TASKS
from generations.pipelines.painting import (
    PaintingRequest,
    PaintingSettings,
    paint,
    paint_captions,
)
from generations.pipelines.picture_files import picture_name, save_png
from generations.runtime import Runtime
from generations.runtime.memory import keep_freed_memory

ROUNDS = 3
CPU = torch.device("cpu")
WORDS = ("a", "dog", "red", "man", "of", "on", "street", "with", "two", "people", "near", "water")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        keep_freed_memory()
        torch.set_num_threads(2)
        rows = PARTS[arguments.child](arguments.size)
        sys.stdout.write("\n" + json.dumps(rows) + "\n")
        return
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    rows = []
    for part in parts:
        command = [sys.executable, __file__, "--child", part, "--size", arguments.size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout.splitlines()[-1]):
            rows.append({"name": part, **row})
            sys.stdout.write(", ".join(f"{key} {_shown(value)}" for key, value in rows[-1].items()))
            sys.stdout.write("\n")
            sys.stdout.flush()
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def beside(what: str, plain: Callable[[], Any], other: Callable[[], Any]) -> Row:
    """Seconds of two sides, the first seconds of the other, and how far their results are apart."""
    seconds: tuple[list[float], list[float]] = ([], [])
    results = []
    for _ in range(ROUNDS + 1):
        for side, run in enumerate((plain, other)):
            begun = time.perf_counter()
            result = run()
            seconds[side].append(time.perf_counter() - begun)
            if len(results) < 2:
                results.append(result)
    plain_s, other_s = (median(times[1:]) for times in seconds)
    row = {"what": what, "default_s": plain_s, "with_s": other_s, "ratio": plain_s / other_s}
    one, two = results
    if isinstance(one, Tensor):
        far = measures.apart if one.is_floating_point() else measures.other_ids
        row["difference"] = far(two, one)
    return row | {"first_s": seconds[1][0] - other_s}


def eager(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.compiler.set_stance("force_eager")(run)


def compile_(size: str) -> list[Row]:
    model, runs = tasks(size)
    compile_layers(model, "1", CPU)
    return [beside(name, eager(run), run) for name, run in runs.items()]


def cpu_bf16(size: str) -> list[Row]:
    _, runs = tasks(size)
    return [beside(name, run, half(run)) for name, run in runs.items()]


def half(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.autocast("cpu", torch.bfloat16)(run)


def cpu_linear(size: str) -> list[Row]:
    model, runs = tasks(size)

    def by(library: str, run: Callable[[], Any]) -> Callable[[], Any]:
        def chosen() -> Any:
            choose_library(model, library)
            return run()

        return chosen

    return [
        beside(f"{name}, torch's and oneDNN's", by("torch", run), by("onednn", run))
        for name, run in runs.items()
    ]


def tasks(size: str) -> tuple[UnifiedTransformer, dict[str, Callable[[], Tensor]]]:
    """Captioning, painting, and steps of stage 1 without the update, which gives the loss."""
    model = measures.new_model(size)
    choose_library(model, "auto")
    measures.set_dropout(model, 0.0)
    batch = measures.random_batch(model, 8, 17)
    features = batch.features
    assert features is not None

    def step(task: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.train().zero_grad()
            context = measures.our_context(True)
            context.generator.manual_seed(1)
            loss = TASKS[task](model, batch, context).loss
            loss.backward()
            return loss.detach()

        return run

    return model, {
        "captions of 8 images": lambda: caption_tokens(model.eval(), features),
        "8 pictures": lambda: image_tokens(model.eval(), batch.text_ids),
        "xe_i2t, batch 8": step("xe_i2t"),
        "xe_t2i, batch 8": step("xe_t2i"),
    }


def channels_last(size: str) -> list[Row]:
    cfg = measures.configuration(size)
    sides = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        generator = build_generator(cfg).eval().requires_grad_(False)
        sides.append(generator.to(memory_format=memory_format))  # type: ignore[call-overload]
    grid, depth = cfg.grid_size, cfg.grid_feat_dim
    # as painting gives them: looked up by cell, so that the channels are last already
    features = torch.rand(10, grid, grid, depth).permute(0, 3, 1, 2)

    def run(generator: nn.Module) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: generator(features).float())

    plain, other = map(run, sides)
    rows = [beside("10 pictures, float32", plain, other)]
    return [*rows, beside("10 pictures, bf16", half(plain), half(other))]


def split(size: str, captions: int = 40) -> list[Row]:
    """The same pictures, in files, either way."""
    model = measures.new_model(size).eval()
    choose_library(model, "auto")
    generator = build_generator(measures.configuration(size)).eval().requires_grad_(False)
    length = 17
    asked = [
        " ".join(WORDS[(place + number) % len(WORDS)] for place in range(words)) + "."
        for number in range(captions)
        for words in [measures.CAPTION_LENGTHS[number % len(measures.CAPTION_LENGTHS)]]
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.txt").write_text(_vocabulary(model.size.vocab_size))
        tokenizer = CaptionTokenizer(folder / "vocab.txt")
        requests = [PaintingRequest(caption) for caption in asked]
        settings = PaintingSettings(length, batch_size=10)

        def ours() -> Tensor:
            path = paint_captions(
                model, generator, tokenizer, requests, folder / "ours", settings, Runtime(CPU)
            )
            items = json.loads(path.read_text())["items"]
            return torch.tensor([item["cluster_ids"] for item in items])

        def plainly() -> Tensor:
            (folder / "plain").mkdir(exist_ok=True)
            found = []
            for start in range(0, captions, settings.batch_size):
                some = asked[start : start + settings.batch_size]
                ids = [tokenizer.encode_for_painting(caption, length) for caption in some]
                pixels, cells = paint(model, generator, torch.tensor(ids))
                for number, picture in enumerate(pixels, start + 1):
                    save_png(folder / "plain" / picture_name(number, "x"), picture.numpy())
                found.append(cells)
            return torch.cat(found)

        with mock.patch("generations.pipelines.painting.progress_bar", mock.MagicMock()):
            return [beside(f"{captions} captions", plainly, ours)]


def _vocabulary(size: int) -> str:
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: "."}
    words |= dict(enumerate(WORDS, 1037))
    return "".join(words.get(number, f"[{number}]") + "\n" for number in range(size))


PARTS: dict[str, Callable[[str], list[Row]]] = {
    "compile": compile_,
    "channels_last": channels_last,
    "cpu_bf16": cpu_bf16,
    "cpu_linear": cpu_linear,
    "split": split,
}


if __name__ == "__main__":
    main()
