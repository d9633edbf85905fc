"""What a codebook loses of what captions speak of, and of colours.

    python benchmarks/codebook.py --config configs/flickr8k/base.yaml images_dir IMAGES \\
        [--specs 512:1,2048:1,2048:0.5,512:clip0.5] [--out FILE.json] [key value ...]

Each spec is a number of clusters and what the first 64 numbers of a cell (the colours of
`first2x2+last`) are multiplied by before k-means; `clip` in front: the other numbers are seen as
the judge's head sees them. The judge is a small CLIP trained on the cells themselves, 2 x 2 of them
pooled. R-precision (1 of 100, percent) of the val split when each cell becomes the mean of its
cluster, and PSNR when each becomes the mean of its cluster's pixels (8 x 8 of 64 x 64).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.clip import PROMPT
from generations.clip.backbone import CELLS, CellHead
from generations.clip.model import SmallTokenizer, used_tokens
from generations.clip.training import symmetric_cross_entropy
from generations.config import load_config
from generations.datasets import FeatureStore, ImageRecord, open_feature_store
from generations.features import ClusterAssigner, fit_kmeans, load_images
from generations.metrics.r_precision import r_precision
from generations.pipelines.sources import image_files

COLOURS = 64  # numbers of a cell that come from the first map
PAINTED = 2000  # train photographs that a cluster's means are taken of
SIDE = 64  # pixels that PSNR is measured at
CELLS_A_CLUSTER, ITERATIONS = 48, 10  # of k-means
STEPS, BATCH, LR, CONTEXT = 600, 128, 2e-3, 32  # of the judge
EMBED, WIDTH, HEADS, TEXT_WIDTH, DROPOUT = 128, 256, 4, 128, 0.3
Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Split:
    """Photographs of a split: cells (M, N, D) float16, their files and captions."""

    cells: np.ndarray
    files: list[Path]
    captions: list[list[str]]


class Judge(nn.Module):
    """A CLIP on cells; see `CellHead`."""

    def __init__(self, dim: int, texts: Sequence[str]):
        super().__init__()
        ids = used_tokens(texts)
        self.tokenize = SmallTokenizer(ids, CONTEXT)
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
        text = {
            "context_length": CONTEXT, "vocab_size": self.tokenize.vocab_size, "layers": 1,
            "width": TEXT_WIDTH, "heads": TEXT_WIDTH // 32, "mlp_ratio": 2.0,
        }  # fmt: skip
        self.network = open_clip.CLIP(EMBED, vision, text)
        self.network.visual = CellHead(dim, WIDTH, EMBED, HEADS, DROPOUT)

    def see(self, cells: np.ndarray) -> Tensor:
        """(B, N, D) -> (B, E), of length 1."""
        side = round(cells.shape[1] ** 0.5)
        grid = torch.from_numpy(cells).float().transpose(1, 2).unflatten(2, (side, side))
        return F.normalize(self.network.visual(F.adaptive_avg_pool2d(grid, CELLS)), dim=-1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (B, E), of length 1."""
        return self.network.encode_text(self.tokenize([PROMPT + t for t in texts]), normalize=True)


def main() -> None:
    """Train the judge, and measure each codebook by it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--specs", default="512:1,512:0.5,2048:1,2048:0.5")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments, overrides = parser.parse_known_args()
    cfg = load_config(arguments.config, overrides)
    size = (cfg.grid_size, cfg.grid_feat_dim)
    pairs = image_files(cfg)
    train = read_split(pairs, "train", open_feature_store([cfg.grid_feat_path_train], *size))
    val = read_split(pairs, "val", open_feature_store([cfg.grid_feat_path_valid], *size))
    judge = train_judge(train, cfg.seed)
    rows = [{"spec": "the cells themselves", "r_precision": judged(judge, val.cells, val)}]
    tell(rows[0])
    pixels = pixels_of(train.files[:PAINTED], cfg.grid_size), pixels_of(val.files, cfg.grid_size)
    for spec in arguments.specs.split(","):
        rows.append(measure(spec, train, val, pixels, judge, cfg.seed))
        tell(rows[-1])
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def tell(row: dict[str, object]) -> None:
    """Print a row."""
    sys.stdout.write(", ".join(f"{key} {value}" for key, value in row.items()) + "\n")
    sys.stdout.flush()


def read_split(pairs: Sequence[tuple[ImageRecord, Path]], split: str, store: FeatureStore) -> Split:
    """The cells, files and captions of a split."""
    chosen = [(record, file) for record, file in pairs if record.split == split]
    cells = np.stack([store.read(record.name) for record, _ in chosen]).astype(np.float16)
    return Split(cells, [f for _, f in chosen], [list(record.captions) for record, _ in chosen])


def train_judge(data: Split, seed: int) -> Judge:
    """A CLIP of the train photographs, each with one of its captions drawn every time."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    judge = Judge(data.cells.shape[2], [PROMPT + t for own in data.captions for t in own])
    optimizer = torch.optim.AdamW(judge.parameters(), LR, (0.9, 0.98), weight_decay=0.2)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=0.1)
    for _ in range(STEPS):
        chosen = rng.choice(len(data.cells), BATCH, replace=False)
        texts = [data.captions[i][rng.integers(len(data.captions[i]))] for i in chosen]
        scale = judge.network.logit_scale.exp()
        logits = scale * judge.see(data.cells[chosen]) @ judge.read(texts).T
        optimizer.zero_grad()
        symmetric_cross_entropy(logits).backward()
        optimizer.step()
        plan.step()
    return judge.eval()


@torch.no_grad()
def judged(judge: Judge, cells: np.ndarray, data: Split) -> float:
    """R-precision in percent, of each photograph's first caption."""
    parts = range(0, len(cells), 250)
    images = torch.cat([judge.see(cells[start : start + 250]) for start in parts])
    firsts = [own[0] for own in data.captions]
    texts = torch.cat([judge.read(firsts[start : start + 250]) for start in parts])
    return round(100 * r_precision(images.numpy(), texts.numpy(), seed=0).mean, 1)


def pixels_of(files: Sequence[Path], grid: int) -> np.ndarray:
    """(M, N, 3 * p * p) float32 in 0..255: the pixels of each cell."""
    pictures = np.stack([p for batch in load_images(files, SIDE, 64, 0) for p in batch])
    p = SIDE // grid
    cells = pictures.reshape(len(pictures), grid, p, grid, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(len(pictures), grid * grid, -1).astype(np.float32)


def space(spec: str, judge: Judge, cells: np.ndarray) -> Map:
    """What is done to cells (P, D) before k-means."""
    weight = float(spec.removeprefix("clip"))
    if not spec.startswith("clip"):
        return lambda x: np.concatenate([weight * x[:, :COLOURS], x[:, COLOURS:]], axis=1)
    head = judge.network.visual
    norm, value = head.norm, head.value.weight.detach().flatten(1)
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    matrix = (value * scale).numpy().T.copy()  # (D, W)
    matrix[:COLOURS] = 0
    some = cells.reshape(-1, cells.shape[2])[::50].astype(np.float32)
    matrix *= np.sqrt(some[:, COLOURS:].var(0).sum() / (some @ matrix).var(0).sum())
    return lambda x: np.concatenate([weight * x[:, :COLOURS], x @ matrix], axis=1)


def measure(
    spec: str, train: Split, val: Split, pixels: tuple[np.ndarray, np.ndarray], judge: Judge,
    seed: int,
) -> dict[str, object]:  # fmt: skip
    """Make a codebook and see what comes through it."""
    number, _, how = spec.partition(":")
    clusters, change = int(number), space(how, judge, train.cells)
    flat = train.cells.reshape(-1, train.cells.shape[2])
    drawn = np.random.default_rng(seed).permutation(len(flat))[: clusters * CELLS_A_CLUSTER]
    points = np.ascontiguousarray(change(flat[drawn].astype(np.float32)), np.float32)
    assign = ClusterAssigner(fit_kmeans(points, clusters, ITERATIONS, seed))

    def ids(cells: np.ndarray) -> np.ndarray:
        rows = cells.reshape(-1, cells.shape[2]).astype(np.float32)
        return assign(np.ascontiguousarray(change(rows), np.float32))

    some = train.cells[:PAINTED]
    known, wanted = ids(some), ids(val.cells)
    features = means(known, some.reshape(len(known), -1), clusters)[wanted]
    painted = means(known, pixels[0].reshape(len(known), -1), clusters)[wanted]
    error = ((painted - pixels[1].reshape(painted.shape)) / 255) ** 2
    return {
        "spec": spec,
        "r_precision": judged(judge, features.reshape(val.cells.shape), val),
        "psnr": round(float(-10 * np.log10(error.mean())), 2),
    }


def means(ids: np.ndarray, values: np.ndarray, clusters: int) -> np.ndarray:
    """(K, C) float32 mean of the values (P, C) of each cluster; of an empty one, of all."""
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids, minlength=clusters)
    found = np.tile(values.mean(axis=0, dtype=np.float32), (clusters, 1))
    ends = np.cumsum(counts)
    for cluster in np.flatnonzero(counts):
        rows = order[ends[cluster] - counts[cluster] : ends[cluster]]
        found[cluster] = values[rows].mean(axis=0, dtype=np.float32)
    return found


if __name__ == "__main__":
    main()
