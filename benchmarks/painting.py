"""Quality against time of guidance, orders and steps: the painting tables of docs/decoding.md.

    python benchmarks/painting.py --config configs/mini/stage1.yaml exp_id X [--sheet FILE]

Pictures of the test captions by the newest checkpoint of a stage-1 run that was trained with
caption_dropout. They are judged by the CLIP of clip.model, which ranks nothing here and rewarded
nothing in stage 1: R-precision, R-precision on hard captions, CLIPScore, and FID on its features.
Figures are kept in <run>/decoding/figures.json and not measured again. Milliseconds an image are
processor time of one thread, the image generator's included.
"""

import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from decoding import BATCH, Bench, in_batches, paint, real_pixels, requests, true_cells
from PIL import Image, ImageDraw
from torch import Tensor

from generations import cli
from generations.metrics.fid import FeatureStatistics, frechet_distance
from generations.pipelines.clip_metrics import (
    ClipEmbeddings,
    clip_hard_r_precision,
    clip_r_precision,
    clip_scores,
    encode_texts,
)
from generations.pipelines.painting import PaintingSettings
from generations.pipelines.picture_evaluation import hard_captions
from generations.pipelines.pictures import PaintedPicture

PAPER = "paper: confidence, 4 steps"
ORDERS = {
    "confidence": {},
    "confidence, noise 4.5": {"order_noise": 4.5},
    "halton": {"order": "halton"},
    "random": {"order": "random"},
}
SHEET_GUIDANCE, SHEET_CAPTIONS = (0, 1, 2, 4, 8), 8


def rows() -> dict[str, PaintingSettings]:
    """Name -> how to paint."""
    usual = PaintingSettings()
    found = {PAPER: usual}
    for scale in (0.5, 1, 2, 4, 8):
        found[f"guidance {scale:g}"] = replace(usual, guidance=scale)
    for scale in (2, 4):
        found[f"guidance {scale}, growing"] = replace(
            usual, guidance=float(scale), guidance_schedule="growing"
        )
    for scale in (0.5, 1):
        name = f"confidence, 16 steps, guidance {scale:g}"
        found[name] = replace(usual, steps=16, guidance=float(scale))
    for scale in (0, 2):
        for order, how in ORDERS.items():
            for steps in (4, 6, 8, 16):
                name = f"{order}, {steps} steps{f', guidance {scale}' * bool(scale)}"
                found[name] = replace(usual, steps=steps, guidance=float(scale), **how)
    del found["confidence, 4 steps"], found["confidence, 4 steps, guidance 2"]
    for steps in (1, 2):
        for scale in (0, 2):
            name = (
                f"confidence, {steps} step{'s' * (steps > 1)}{f', guidance {scale}' * bool(scale)}"
            )
            found[name] = replace(usual, steps=steps, guidance=float(scale))
    for heat, order in ((1.0, "confidence"), (1.0, "halton"), (0.5, "halton")):
        for scale in (0, 2, 4):
            name = f"temperature {heat:g}, {order}, 8 steps, guidance {scale}"
            found[name] = replace(
                usual, steps=8, temperature=heat, guidance=float(scale), order=order
            )
    return found


class Judge:
    """Scores all pictures of a row at once.

    Args:
        bench: model, captions and real pictures.
        texts: the captions.
        real: the pictures that these describe.
    """

    def __init__(self, bench: Bench, texts: list[str], real: Tensor):
        self._clip, self._cfg = bench.clip, bench.cfg
        pictures = [
            PaintedPicture(Path(record.path), text, record.image_id)
            for record, text in zip(bench.records, texts, strict=True)
        ]
        self._hard = hard_captions(bench.cfg, pictures)
        self._texts = encode_texts(bench.clip, texts, bench.cfg.clip.prompt)
        self._real = FeatureStatistics.of(self._embed(real).numpy())

    @torch.no_grad()
    def _embed(self, pixels: Tensor) -> Tensor:
        parts = [part.permute(0, 3, 1, 2).float() / 255 for part in pixels.split(BATCH)]
        return torch.cat([self._clip.encode_images(part) for part in parts])

    def __call__(self, pixels: Tensor) -> dict[str, float]:
        """Figures of pictures (M, S, S, 3) uint8, in the captions' order."""
        images = self._embed(pixels)
        found = ClipEmbeddings(images, self._texts, tuple(range(len(images))))
        ours = FeatureStatistics.of(images.numpy())
        seed, prompt = self._cfg.seed, self._cfg.clip.prompt
        hard = clip_hard_r_precision(self._clip, found, self._hard, prompt, seed)
        return {
            "r": 100 * clip_r_precision(found, seed)["r_precision"],
            **{name: 100 * value for name, value in hard.items() if not name.endswith("_std")},
            "clip": float(clip_scores(found).mean()),
            "fid": frechet_distance(
                ours.mean, ours.covariance, self._real.mean, self._real.covariance
            ),
        }


def painted(
    bench: Bench, settings: PaintingSettings, texts: list[str], ids: Tensor
) -> tuple[Tensor, float]:
    """The first pictures (M, S, S, 3) of all captions, and the milliseconds an image."""
    started = time.process_time()
    parts = [
        paint(bench, settings, texts[part], ids[part], part.start).pixels[:, 0]
        for part in in_batches(len(texts))
    ]
    return torch.cat(parts), 1000 * (time.process_time() - started) / len(texts)


def measure(bench: Bench) -> None:
    texts, ids = requests(bench)
    everything = slice(0, len(texts))
    real = real_pixels(bench)(everything)
    judge = Judge(bench, texts, real)
    figures = bench.figures.setdefault("painting", {})
    references = {
        "real pictures": lambda: real,
        "true cells": lambda: true_cells(bench)(everything),
    }
    for name, pixels in references.items():
        if name not in figures:
            figures[name] = [judge(pixels())]
            bench.save()
    for name, settings in rows().items():
        if not bench.wanted.search(name) or name in figures:
            continue
        drawn = settings.heat or settings.order_noise or settings.order == "random"
        draws = []
        for seed in bench.options.seeds if drawn else bench.options.seeds[:1]:
            how = replace(settings, text_length=bench.cfg.text_length, seed=seed)
            pixels, took = painted(bench, how, texts, ids)
            draws.append({**judge(pixels), "ms": took})
        figures[name] = draws
        bench.save()
        sys.stderr.write(f"{name}: {draws}\n")


def table(figures: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| | R-precision, hard | R-precision | CLIPScore | FID | ms | times paper's |",
        "|---|---|---|---|---|---|---|",
    ]
    usual = np.mean([draw["ms"] for draw in figures[PAPER]])
    for name in ("real pictures", "true cells", *rows()):
        draws = figures.get(name)
        if not draws:
            continue
        cells = []
        for key, digits in (("r_precision_hard", 1), ("r", 1), ("clip", 1), ("fid", 4)):
            values = [draw[key] for draw in draws]
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
        if "ms" in draws[0]:
            took = np.mean([draw["ms"] for draw in draws])
            cells += [f"{took:.0f}", f"{took / usual:.1f}"]
        else:
            cells += ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sheet(bench: Bench, file: Path) -> None:
    """The same captions by guidance, one a column, the real picture at the end."""
    texts, ids = requests(bench)
    some = list(_different(texts))[:SHEET_CAPTIONS]
    columns: list[Tensor] = []
    for scale in SHEET_GUIDANCE:
        settings = PaintingSettings(bench.cfg.text_length, guidance=float(scale))
        columns.append(paint(bench, settings, [texts[i] for i in some], ids[some], 0).pixels[:, 0])
    columns.append(real_pixels(bench)(slice(None))[some])
    side, left, top = 128, 330, 30
    image = Image.new(
        "RGB", (left + (side + 8) * len(columns), top + (side + 8) * len(some)), "white"
    )
    draw = ImageDraw.Draw(image)
    names = [f"guidance {scale}" for scale in SHEET_GUIDANCE] + ["real"]
    for column, (name, pictures) in enumerate(zip(names, columns, strict=True)):
        x = left + column * (side + 8)
        draw.text((x, 8), name, "black", font_size=15)
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(picture.numpy()).resize((side, side), Image.Resampling.NEAREST)
            image.paste(tile, (x, top + row * (side + 8)))
    for row, i in enumerate(some):
        for line, words in enumerate(_lines(texts[i])):
            draw.text((8, top + row * (side + 8) + 36 + 20 * line), words, "black", font_size=15)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def _different(texts: Sequence[str]) -> Iterator[int]:
    """Places of captions with different beginnings."""
    seen: set[str] = set()
    for place, text in enumerate(texts):
        start = " ".join(text.split()[:3])
        if start not in seen:
            seen.add(start)
            yield place


def _lines(text: str, width: int = 40) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", default="", help="those whose names this expression finds")
    parser.add_argument("--images", type=int, help="of the test split; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the draws")
    parser.add_argument("--out", metavar="FOLDER", help="default: decoding in the run's folder")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a picture, by guidance")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    options, cfg = cli.parse(__doc__ or "", argv, _options)
    torch.set_num_threads(1)
    bench = Bench(cfg, options)
    measure(bench)
    if options.sheet:
        sheet(bench, options.sheet)
    sys.stdout.write(table(bench.figures["painting"]) + "\n")


if __name__ == "__main__":
    cli.run(main)
