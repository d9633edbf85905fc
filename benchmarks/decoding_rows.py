"""The rows of docs/decoding.md: what `benchmarks/decoding.py` measures, and the tables of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from generations.pipelines.painting import PaintingSettings

Row = dict[str, Any]


@dataclass(frozen=True)
class Captioning:
    """A row of the captions' table: greedy, beam or sample, with the options of that function."""

    method: str
    options: dict[str, Any]


def _captioning_rows() -> dict[str, Captioning]:
    rows = {"greedy": Captioning("greedy", {})}
    for size in (1, 2, 3, 5, 10, 20):
        rows[f"beam {size}"] = Captioning("beam", {"beam_size": size})
    for penalty in (0.5, 1, 2):
        options = {"beam_size": 5, "length_penalty": penalty}
        rows[f"beam 5, length_penalty {penalty:g}"] = Captioning("beam", options)
    rows["sample"] = Captioning("sample", {})
    for name, value in (("top_k", 5), ("top_p", 0.9), ("temperature", 0.5)):
        rows[f"sample, {name} {value}"] = Captioning("sample", {name: value})
    rows["best of 5, temperature 0.5"] = Captioning("sample", {"num": 5, "temperature": 0.5})
    rows["best of 5"] = Captioning("sample", {"num": 5})
    rows["best of 20"] = Captioning("sample", {"num": 20})
    return rows


def _painting_rows() -> dict[str, PaintingSettings]:
    usual = PaintingSettings()
    rows = {}
    for steps in (1, 2, 4, 8, 16):
        name = f"linear, {steps} step{'s' * (steps > 1)}{' (the default)' * (steps == 4)}"
        rows[name] = replace(usual, steps=steps)
    for steps in (2, 4, 8, 16):
        rows[f"cosine, {steps} steps"] = replace(usual, steps=steps, schedule="cosine")
    for heat in (0.3, 0.5, 1.0):
        rows[f"temperature {heat:g}"] = replace(usual, temperature=heat)
    rows["temperature 1, 16 steps"] = replace(usual, temperature=1.0, steps=16)
    for count in (2, 4, 8, 16):
        rows[f"num_samples {count}, rerank clip"] = replace(usual, num_samples=count)
    eight = replace(usual, num_samples=8)
    for heat in (0.5, 2.0):
        name = f"num_samples 8, rerank clip, temperature {heat:g}"
        rows[name] = replace(eight, temperature=heat)
    rows["num_samples 8, rerank clip, cosine, 8 steps"] = replace(eight, steps=8, schedule="cosine")
    return rows


CAPTIONING = _captioning_rows()
PAINTING = _painting_rows()
USUAL = "linear, 4 steps (the default)"
REAL, TRUE_CELLS = "real pictures", "painted from the true cells"


def spread(values: Sequence[float], digits: int, plus: bool = False) -> str:
    """The mean, and of several the standard deviation."""
    mean = f"{np.mean(values):{'+' * plus}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def difference(gain: Sequence[float], digits: int) -> str:
    return f"{gain[0]:+.{digits}f} ± {gain[1]:.{digits}f}"


def milliseconds(row: Row) -> str:
    return "" if "ms" not in row else f"{row['ms']:.{1 if row['ms'] < 10 else 0}f}"


def caption_table(rows: dict[str, Row]) -> str:
    lines = [
        "| | CIDEr-D | difference | BLEU-4 | log p | length | below | ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in CAPTIONING:
        row = rows.get(name, {})
        if "cider_d" in row:
            cells = [
                *(spread(row["cider_d"], 2), difference(row["gain"], 2)),
                *(spread(row["bleu4"], 3), spread(row["log_p"], 2)),
                *(f"{np.mean(row['length']):.1f}", f"{np.mean(row['below']):.0f}"),
            ]
            if name == "greedy":
                cells[1] = ""
            lines.append(f"| {name} | {' | '.join(cells)} | {milliseconds(row)} |")
    return "\n".join(lines)


def picture_table(rows: dict[str, Row]) -> str:
    lines = [
        "| | CLIPScore | difference | by the second CLIP | difference | ms |",
        "|---|---|---|---|---|---|",
    ]
    for name in (REAL, TRUE_CELLS, *PAINTING):
        row = rows.get(name, {})
        if "first" in row:
            cells = [
                text
                for key in ("first", "second")
                for text in (
                    spread(row[key], 2),
                    "" if name == USUAL else difference(row[f"{key}_gain"], 2),
                )
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {milliseconds(row)} |")
    return "\n".join(lines)
