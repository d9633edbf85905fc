"""The mini world: small painted scenes with captions, made from a seed; the embedded data set."""

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from generations.datasets.mini_world.captions import (
    CAPTIONS,
    MAX_WORDS,
    WORDS,
    all_words,
    alternatives,
    describe,
)
from generations.datasets.mini_world.render import render
from generations.datasets.mini_world.scenes import Layout, Scene, Thing, layout, sample_scene
from generations.errors import UserError
from generations.files import write_json, write_text
from generations.progress import progress_bar

__all__ = [
    "CAPTIONS",
    "MAX_WORDS",
    "WORDS",
    "Layout",
    "Scene",
    "Thing",
    "all_words",
    "alternatives",
    "describe",
    "layout",
    "make_sample",
    "render",
    "sample_scene",
    "write_vocabulary",
    "write_world",
]

SPLITS = ("train", "val", "test")
HELD_OUT_TENTHS = {"val": 8, "test": 9}
"""Which tenth of all scenes a split draws from; train has the other eight."""

BERT_VOCABULARY = Path(__file__).parent.parent / "assets" / "bert-base-uncased-vocab.txt"
LAST_KEPT_ID = 1995
"""Special tokens, unused ones, punctuation and letters; words follow after it."""


def _split_of(scene: Scene, seed: int) -> str:
    scene = replace(scene, mirrored=False)  # a scene and its mirror image have the same captions
    digest = hashlib.blake2b(f"{seed} {scene}".encode(), digest_size=8).digest()
    tenth = int.from_bytes(digest, "big") % 10
    return next((split for split, held in HELD_OUT_TENTHS.items() if held == tenth), "train")


def make_sample(seed: int, split: str, index: int) -> tuple[Scene, Image.Image, list[list[str]]]:
    """Make one sample, which depends on nothing but the arguments.

    Every scene belongs to one split, so the same scene never occurs in two.

    Args:
        seed: of the whole world.
        split: "train", "val" or "test".
        index: of the sample in its split, from 0.

    Returns:
        The scene, its picture (64 x 64, RGB) and its captions as token lists.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    scene = sample_scene(rng)
    while _split_of(scene, seed) != split:
        scene = sample_scene(rng)
    return scene, render(scene, rng), describe(scene, rng)


def _entry(name: str, number: int, split: str, captions: list[list[str]]) -> dict:
    """One image of a Karpathy split file (SPEC 3)."""
    return {
        "filepath": "images",
        "filename": name,
        "cocoid": number,
        "imgid": number - 1,
        "split": split,
        "sentences": [
            {"tokens": tokens, "raw": " ".join(tokens).replace(" ,", ",") + "."}
            for tokens in captions
        ],
    }


def write_world(
    folder: str | Path, seed: int = 0, train: int = 6000, val: int = 500, test: int = 500
) -> Path:
    """Write pictures and captions in the layout of a real data set.

    Sample i of a split is the same whatever the sizes are; only the numbers in the names move.
    Files get their names when all are made, so an interruption leaves an earlier world whole.

    Args:
        folder: receives `images/mini_<split>_<12 digits>.png` and `dataset_mini.json`.
        seed: of the whole world, not negative.
        train: number of training images.
        val: number of validation images.
        test: number of test images.

    Returns:
        The path of dataset_mini.json, a Karpathy split file.

    Raises:
        UserError: a negative seed or size.
    """
    sizes = {"train": train, "val": val, "test": test}
    for name, value in {"seed": seed, **sizes}.items():
        if value < 0:
            raise UserError(f"mini world: {name} must be 0 or more, not {value}")
    images = Path(folder) / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries = []
    jobs = [(split, index) for split, size in sizes.items() for index in range(size)]
    with tempfile.TemporaryDirectory(prefix=".mini-world-", dir=folder) as draft:
        with progress_bar(len(jobs), "mini world", "image") as bar:
            for number, (split, index) in enumerate(jobs, 1):
                _, picture, captions = make_sample(seed, split, index)
                name = f"mini_{split}_{number:012d}.png"
                picture.save(Path(draft) / name)
                entries.append(_entry(name, number, split, captions))
                bar.update()
        for entry in entries:
            (Path(draft) / entry["filename"]).replace(images / entry["filename"])
    path = Path(folder) / "dataset_mini.json"
    write_json(path, {"dataset": "mini", "images": entries})
    return path


def write_vocabulary(path: str | Path) -> int:
    """Write a BERT vocabulary file that is just large enough for the mini world.

    Special tokens, punctuation and single characters keep the ids they have in bert-base-uncased;
    unknown words of plain letters and digits can still be spelt; then come the mini world's words.

    Args:
        path: the file to write, one token a line.

    Returns:
        The number of lines, which is the model's vocab_size.
    """
    kept = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()[: LAST_KEPT_ID + 1]
    pieces = [f"##{character}" for character in "abcdefghijklmnopqrstuvwxyz0123456789"]
    words = sorted(all_words().difference(kept))
    lines = kept + pieces + words
    write_text(path, "\n".join(lines) + "\n")
    return len(lines)
