"""Quality against time of the decoding choices: both tables of docs/decoding.md, as markdown.

    python benchmarks/decoding.py --config configs/mini/stage1.yaml exp_id X [--only quality|time]

Captions and pictures of the whole test split, by the newest checkpoint of a run on a prepared mini
world. What is drawn is drawn with several seeds. A second CLIP, trained with another seed, scores
the pictures beside the one that ranks them; it is made where it is missing (about a minute).
Figures are kept in <run>/decoding/figures.json and not measured again, so the command goes on where
it was; --out names another folder. Times are processor time of one thread, which other work on the
machine changes little; of the rounds the fastest counts.
"""

import logging
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding_rows import (
    CAPTIONING,
    PAINTING,
    REAL,
    TRUE_CELLS,
    Captioning,
    Row,
    caption_table,
    picture_table,
)
from torch import Tensor
from yacs.config import CfgNode

from generations import cli
from generations.clip import ClipModel, load_clip
from generations.datasets import painting_captions, read_split
from generations.decoding import beam_captions, caption_tokens, draw_uniforms, sampled_captions
from generations.decoding.captions import caption_lengths, log_probability
from generations.decoding.prefixes import next_logits
from generations.features import ClusterAssigner, find_images, load_image
from generations.files import read_json, write_json
from generations.metrics.captions import evaluate_captions
from generations.modeling import UnifiedTransformer
from generations.pipelines import assembly
from generations.pipelines.clip import train_small_clip
from generations.pipelines.painting import (
    PaintingSettings,
    Samples,
    decode_pixels,
    paint_samples,
    rerank,
)
from generations.rewards import clip_score
from generations.runtime import Runtime, derive_seed
from generations.vocabulary import EOS, MASK, PAD

logger = logging.getLogger(__name__)

BATCH = 32
ROUNDING = 1e-3  # of a log-probability: what other batches and other orders of sums may change


class Bench:
    """What both tables need, loaded once: model, generator, CLIPs, test split."""

    def __init__(self, cfg: CfgNode, options: Namespace):
        self.cfg, self.options = cfg, options
        self.here = Runtime(torch.device("cpu"))
        self.folder = Path(options.out or assembly.run_folder(cfg) / "decoding")
        self.model, start = assembly.load_trained_model(cfg, self.here)
        self.tokenizer = assembly.open_tokenizer(cfg)
        self.generator = assembly.load_image_generator(cfg, self.here)
        self.records = read_split(cfg.dataset_coco, "test")[: options.images]
        self.file = self.folder / "figures.json"
        self.wanted = re.compile(options.rows)
        self.figures: dict[str, Any] = {"captions": {}, "pictures": {}}
        if self.file.exists():
            self.figures = read_json(self.file, "figures")
        measured = {"checkpoint": start.iteration, "images": len(self.records)}
        if self.figures.setdefault("of", measured) != measured:
            raise SystemExit(f"{self.file} is of {self.figures['of']}: give another --out")
        self.clip = load_clip(cfg.clip.model, cfg.clip.weights, self.here.device)

    def second_clip(self) -> ClipModel:
        """A CLIP like the data set's own, of the next seed."""
        folder = self.folder / "second_clip"
        files = [str(folder / name) for name in ("clip.json", "clip.safetensors")]
        if not Path(files[1]).exists():
            folder.mkdir(parents=True, exist_ok=True)
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.data_dir, (cfg.clip.model, cfg.clip.weights) = str(folder), files
            cfg.seed += 1
            train_small_clip(cfg, self.here)
        return load_clip(files[0], files[1], self.here.device)

    def missing(self, table: str, name: str, figure: str) -> bool:
        """Whether a row is asked for and has not this figure yet."""
        return bool(self.wanted.search(name)) and figure not in self.row(table, name)

    def row(self, table: str, name: str) -> Row:
        """The figures of a row; what is written into them is kept by `save`."""
        return self.figures[table].setdefault(name, {})

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.figures)

    def captioning_batches(self) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.samples_per_gpu = BATCH
        return assembly.captioning_batches(cfg, self.records)


# --- captions ------------------------------------------------------------------------------------


def write(
    bench: Bench, how: Captioning, ids: list[int], inputs: dict[str, Tensor], seed: int
) -> Tensor:
    """The best caption of each image, (B, T) ids; what `inference.py` would decode."""
    length, options = bench.cfg.text_length, dict(how.options)
    steps = length - 1
    if how.method == "greedy":
        return caption_tokens(bench.model, **inputs, text_length=length, steps=steps)
    if how.method == "beam":
        found = beam_captions(bench.model, **inputs, text_length=length, steps=steps, **options)
        return found.ids[:, 0]
    uniforms = draw_uniforms(
        [derive_seed(seed, number) for number in ids], options.pop("num", 1), steps
    )
    return sampled_captions(bench.model, uniforms, **inputs, text_length=length, **options).ids[
        :, 0
    ]


@torch.no_grad()
def log_probabilities(
    model: UnifiedTransformer, inputs: dict[str, Tensor], ids: Tensor, steps: int
) -> Tensor:
    """(B,) of captions (B, T), read back from the model: the same measure for every method."""
    vision = model.encode_vision(**inputs)
    known = ids.clone()
    total = torch.zeros(len(ids))
    going = torch.ones(len(ids), dtype=torch.bool)
    for step in range(1, steps + 1):
        prefix = known.clone()
        prefix[:, step:] = MASK
        found = log_probability(next_logits(model, vision, prefix, step), ids[:, step])
        total += torch.where(going, found, 0)
        going = going & (ids[:, step] != EOS) & (ids[:, step] != PAD)
    return total


def describe(bench: Bench, how: Captioning, seed: int) -> dict[str, np.ndarray]:
    """Figures of each image's caption, in the order of the images, and BLEU-4 of all of them."""
    steps = bench.cfg.text_length - 1
    texts: dict[int, str] = {}
    log_probs, lengths = [], []
    for ids, inputs in bench.captioning_batches():
        written = write(bench, how, ids, inputs, seed)
        log_probs.append(log_probabilities(bench.model, inputs, written, steps))
        lengths.append(caption_lengths(written, steps))
        for image_id, row in zip(ids, written.tolist(), strict=True):
            texts[image_id] = bench.tokenizer.decode(
                row, collapse_repeats=bool(bench.cfg.collapse_repeats)
            )
    references = {record.image_id: list(record.captions) for record in bench.records}
    found = evaluate_captions(texts, references, ("cider_d", "bleu"))
    ciders = [found.per_item[record.image_id]["cider_d"] for record in bench.records]
    return {
        "cider_d": np.array(ciders),
        "bleu4": np.array(found.overall["bleu4"]),
        "log_p": torch.cat(log_probs).numpy(),
        "length": torch.cat(lengths).numpy(),
    }


def caption_quality(bench: Bench) -> None:
    greedy: dict[str, np.ndarray] = {}
    for name, how in CAPTIONING.items():
        row = bench.row("captions", name)
        if greedy and not bench.missing("captions", name, "cider_d"):
            continue
        seeds = bench.options.seeds if how.method == "sample" else bench.options.seeds[:1]
        draws = [describe(bench, how, seed) for seed in seeds]
        greedy = greedy or draws[0]
        for figure in ("cider_d", "bleu4", "log_p", "length"):
            row[figure] = [float(draw[figure].mean()) for draw in draws]
        row["below"] = [int((draw["log_p"] < greedy["log_p"] - ROUNDING).sum()) for draw in draws]
        row["gain"] = paired([draw["cider_d"] for draw in draws], greedy["cider_d"])
        bench.save()
        logger.info("%s: %s", name, row)


def paired(draws: Sequence[np.ndarray], usual: np.ndarray) -> list[float]:
    """Mean difference to the usual setting, image by image, and its standard error."""
    differences = np.mean(draws, axis=0) - usual
    return [float(differences.mean()), float(differences.std(ddof=1) / len(usual) ** 0.5)]


# --- pictures ------------------------------------------------------------------------------------


def requests(bench: Bench) -> tuple[list[str], Tensor]:
    """The test captions, and their ids (M, T)."""
    captions = [caption for _, caption in painting_captions(bench.records, test_val2014=False)]
    length = bench.cfg.text_length
    ids = [bench.tokenizer.encode_for_painting(caption, length) for caption in captions]
    return captions, torch.tensor(ids)


@torch.no_grad()
def paint(
    bench: Bench, settings: PaintingSettings, texts: Sequence[str], ids: Tensor, first: int
) -> Samples:
    """The samples of some captions, ranked where there are several; `first` of them all."""
    numbers = range(first + 1, first + 1 + len(texts))
    seeds = [derive_seed(settings.seed, number, 1) for number in numbers]
    found = paint_samples(bench.model, bench.generator, ids, settings, seeds)
    several = settings.num_samples > 1
    return rerank(found, bench.clip, texts, bench.cfg.clip.prompt) if several else found


@torch.no_grad()
def score(bench: Bench, clips: Sequence[ClipModel], pixels: Tensor, texts: list[str]) -> np.ndarray:
    """(B, CLIPs) CLIPScores of pictures (B, S, S, 3) uint8."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    prompt = bench.cfg.clip.prompt
    return torch.stack([clip_score(clip, images, texts, prompt) for clip in clips], 1).numpy()


def in_batches(count: int) -> Iterator[slice]:
    return (slice(first, min(first + BATCH, count)) for first in range(0, count, BATCH))


def picture_quality(bench: Bench) -> None:
    clips = (bench.clip, bench.second_clip())
    texts, ids = requests(bench)

    def of(pixels: Callable[[slice], Tensor]) -> np.ndarray:
        parts = [score(bench, clips, pixels(part), texts[part]) for part in in_batches(len(texts))]
        return np.concatenate(parts)

    def painted(settings: PaintingSettings) -> np.ndarray:
        return of(
            lambda part: paint(bench, settings, texts[part], ids[part], part.start).pixels[:, 0]
        )

    references = {REAL: lambda: of(real_pixels(bench)), TRUE_CELLS: lambda: of(true_cells(bench))}
    usual = painted(PaintingSettings(bench.cfg.text_length))
    for name in (*references, *PAINTING):
        row = bench.row("pictures", name)
        if not bench.missing("pictures", name, "first"):
            continue
        if name in references:
            draws = [references[name]()]
        else:
            settings = replace(PAINTING[name], text_length=bench.cfg.text_length)
            seeds = bench.options.seeds if settings.heat else bench.options.seeds[:1]
            draws = [painted(replace(settings, seed=seed)) for seed in seeds]
        for column, key in enumerate(("first", "second")):
            own = [draw[:, column] for draw in draws]
            row[key] = [float(scores.mean()) for scores in own]
            row[f"{key}_gain"] = paired(own, usual[:, column])
        bench.save()
        logger.info("%s: %s", name, row)


def real_pixels(bench: Bench) -> Callable[[slice], Tensor]:
    files = find_images(bench.cfg.images_dir, [record.path for record in bench.records])
    size = bench.cfg.generator.image_size
    pixels = [load_image(file, size) for file in files if file is not None]
    stacked = torch.from_numpy(np.stack(pixels))
    return lambda part: stacked[part]


def true_cells(bench: Bench) -> Callable[[slice], Tensor]:
    """The real pictures' cells as the model's codebook has them, whatever it was made from."""
    store = assembly.open_features(bench.cfg)
    nearest = ClusterAssigner(bench.model.cluster_codebook.weight.detach().numpy())
    features = np.stack([store.read(record.name) for record in bench.records])  # (M, N, D)
    ids = nearest(features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])
    cells = torch.from_numpy(ids)

    @torch.no_grad()
    def pixels(part: slice) -> Tensor:
        return decode_pixels(bench.generator, bench.model.cluster_codebook(cells[part]))

    return pixels


# --- time ----------------------------------------------------------------------------------------


def measure_times(bench: Bench, table: str) -> None:
    """Milliseconds of processor time an image, of rounds that alternate between the rows."""
    count = min(bench.options.timed, len(bench.records))
    if table == "captions":
        batches = list(bench.captioning_batches())[: max(1, count // BATCH)]
        jobs = {name: _captions_job(bench, how, batches) for name, how in CAPTIONING.items()}
        count = sum(len(ids) for ids, _ in batches)
    else:
        texts, ids = requests(bench)
        jobs = {
            name: _pictures_job(bench, settings, texts[:count], ids[:count])
            for name, settings in PAINTING.items()
        }
    jobs = {name: job for name, job in jobs.items() if bench.missing(table, name, "ms")}
    best: dict[str, float] = {}
    for job in list(jobs.values())[:2]:
        job()  # warm
    for _ in range(bench.options.rounds):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            seconds = time.process_time() - started
            best[name] = min(best.get(name, seconds), seconds)
    for name, seconds in best.items():
        bench.row(table, name)["ms"] = 1000 * seconds / count
    bench.save()


def _captions_job(
    bench: Bench, how: Captioning, batches: list[tuple[list[int], dict[str, Tensor]]]
) -> Callable[[], None]:
    def job() -> None:
        for ids, inputs in batches:
            write(bench, how, ids, inputs, 0)

    return job


def _pictures_job(
    bench: Bench, settings: PaintingSettings, texts: list[str], ids: Tensor
) -> Callable[[], None]:
    settings = replace(settings, text_length=bench.cfg.text_length)
    at_once = max(1, BATCH // settings.num_samples)  # as sample_images.py does

    def job() -> None:
        for first in range(0, len(texts), at_once):
            part = slice(first, first + at_once)
            paint(bench, settings, texts[part], ids[part], first)

    return job


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--only", choices=("quality", "time"), help="default: both")
    parser.add_argument("--table", choices=("captions", "pictures"), help="default: both")
    parser.add_argument("--rows", default="", help="those whose names this expression finds")
    parser.add_argument("--images", type=int, help="of the test split; default: all")
    parser.add_argument("--timed", type=int, default=96, help="images that times are taken on")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the draws")
    parser.add_argument("--out", metavar="FOLDER", help="default: decoding in the run's folder")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    options, cfg = cli.parse(__doc__ or "", argv, _options)
    torch.set_num_threads(1)
    bench = Bench(cfg, options)
    tables = [options.table] if options.table else ["captions", "pictures"]
    for table in tables:
        if options.only != "time":
            {"captions": caption_quality, "pictures": picture_quality}[table](bench)
        if options.only != "quality":
            measure_times(bench, table)
    for table in tables:
        show = caption_table if table == "captions" else picture_table
        sys.stdout.write(show(bench.figures[table]) + "\n\n")


if __name__ == "__main__":
    cli.run(main)
