"""What the demo does, without its page: one caption painted, one image captioned."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from generations.clip import ClipModel
from generations.datasets import ImageRecord, clean_caption, read_split
from generations.errors import UserError
from generations.features import find_images, load_image
from generations.files import read_json
from generations.pipelines import assembly
from generations.pipelines.captioning import (
    CaptioningSettings,
    WrittenAlternatives,
    write_alternatives,
    write_captions,
)
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.extraction import remembered_extractor
from generations.pipelines.painting import PaintingSettings, painting_settings
from generations.pipelines.painting_steps import trace_painting
from generations.rewards import clip_score
from generations.runtime import Runtime, derive_seed

EXAMPLES = "examples"  # folder beside the weights: captions.json and pictures
MOST_EXAMPLES = 6


@dataclass(frozen=True)
class Picture:
    """A painted picture.

    Attributes:
        steps: (side, side, 3) uint8 after each step of mask-predict; the last one is finished.
        again: of each step, the cells that were masked again after it.
        grid_size: G; cells are numbered row by row.
        greedy: nothing was drawn.
        score: CLIPScore in [0, 250]; None without CLIP.
    """

    steps: list[np.ndarray]
    again: list[list[int]]
    grid_size: int
    greedy: bool
    score: float | None = None


@dataclass(frozen=True)
class Caption:
    """A written caption.

    Attributes:
        text: the caption.
        log_probability: natural logarithm, of the model; None for greedy captions.
        score: CLIPScore with the image in [0, 250]; None without CLIP.
    """

    text: str
    log_probability: float | None
    score: float | None


@dataclass(frozen=True)
class Example:
    """A caption of the dataset, and its image if that is there."""

    caption: str
    image: Path | None


class Demo:
    """A trained model, its image generator and, if its files are there, a CLIP; loaded once.

    Args:
        cfg: the configuration.
        here: where to run.

    Attributes:
        painting: how pictures are painted unless the caller wants it otherwise.
        captioning: how captions are written unless the caller wants it otherwise.
        ranks: whether there is a CLIP.

    Raises:
        UserError: a file is missing or does not fit.
    """

    def __init__(self, cfg: CfgNode, here: Runtime):
        self._cfg = cfg
        self._here = here
        self._model, start = assembly.load_trained_model(cfg, here)
        assembly.warn_of_guidance(cfg, start)
        self.source = Path(start.path)
        self._generator = assembly.load_image_generator(cfg, here)
        self._tokenizer = assembly.open_tokenizer(cfg)
        folder = assembly.run_folder(cfg) if cfg.exp_id else None
        self._extractor = remembered_extractor(cfg, folder, here.device)
        self._clip = _load_clip(cfg, here)
        self.ranks = self._clip is not None
        self.painting = painting_settings(cfg)
        self.captioning = CaptioningSettings(
            cfg.text_length, bool(cfg.collapse_repeats), seed=cfg.seed, **dict(cfg.decoding)
        )

    def paint(self, caption: str, settings: PaintingSettings | None = None) -> list[Picture]:
        """Paint a caption; with CLIP the best picture is first, else the greedy one.

        Args:
            caption: what to paint.
            settings: how; None: `painting`.

        Raises:
            UserError: the caption is empty.
        """
        settings = settings or self.painting
        text = clean_caption(caption)
        if not text:
            raise UserError("the caption is empty: type what to paint")
        text = text if text.endswith(".") else f"{text}."  # as every training caption
        ids = self._tokenizer.encode_for_painting(text, settings.text_length)
        with self._here.autocast():
            trace = trace_painting(
                self._model,
                self._generator,
                torch.tensor([ids], device=self._here.device),
                settings,
                [derive_seed(settings.seed, 1, 1)],  # as the first picture of sample_images.py
                derive_seed(settings.seed, 1),
            )
        pictures = [
            Picture(
                list(pixels.numpy()),
                [cells.nonzero().flatten().tolist() for cells in again],
                self._cfg.grid_size,
                greedy=place == 0 and (settings.num_samples > 1 or not settings.heat),
            )
            for place, (pixels, again) in enumerate(
                zip(trace.pixels[0], trace.again[0], strict=True)
            )
        ]
        scores = self._scores(trace.pixels[0, :, -1], [text] * len(pictures), settings.prompt)
        if scores is None:
            return pictures
        scored = [replace(item, score=score) for item, score in zip(pictures, scores, strict=True)]
        return sorted(scored, key=lambda item: -(item.score or 0))  # equal ones keep their order

    def describe(
        self, image: str | Path, settings: CaptioningSettings | None = None
    ) -> list[Caption]:
        """Caption an image file, the best caption first.

        Args:
            image: the file.
            settings: how; None: `captioning`.

        Raises:
            UserError: the file is no image.
        """
        settings = settings or self.captioning
        pixels = load_image(image, self._extractor.image_size)
        features = torch.from_numpy(self._extractor([pixels])).flatten(1, 2)  # (1, N, D)
        inputs = {"features": features}
        if not assembly.feature_levels(self._cfg).captioning:
            codebook = self._model.cluster_codebook.weight.cpu()
            inputs = {"cluster_ids": torch.cdist(features, codebook[None]).argmin(-1)}
        arguments = (self._model, self._tokenizer, [([0], inputs)], settings, self._here, 1)
        if settings.method == "greedy":
            found: list[tuple[str, float | None]] = [
                (entry["caption"], None) for entry in write_captions(*arguments)
            ]
        else:
            found = _different(write_alternatives(*arguments)[0])
        texts = [text for text, _ in found]
        tensor = torch.tensor(pixels).expand(len(texts), *pixels.shape)
        scores = self._scores(tensor, texts, self._cfg.clip.prompt) or [None] * len(texts)
        return [Caption(*entry, score) for entry, score in zip(found, scores, strict=True)]

    @torch.no_grad()
    def _scores(
        self, pixels: torch.Tensor, captions: Sequence[str], prompt: str
    ) -> list[float] | None:
        """CLIPScores of pixels (B, H, W, 3) uint8 and B captions; None without CLIP."""
        if self._clip is None:
            return None
        images = pixels.to(self._here.device).permute(0, 3, 1, 2).float() / 255
        return clip_score(self._clip, images, list(captions), prompt).tolist()

    def examples(self) -> list[Example]:
        """Captions to try: beside the weights, or of the dataset's test split; perhaps none."""
        folder = self.source.parent / EXAMPLES
        if (folder / "captions.json").exists():
            return read_examples(folder)
        try:
            records = read_split(self._cfg.dataset_coco, "test")
        except UserError:
            return []  # a demo does without
        return dataset_examples(records, self._cfg.images_dir)


def read_examples(folder: Path) -> list[Example]:
    """Read a folder of examples: captions.json, [{"caption", "file"}], and the files.

    Raises:
        UserError: it is something else.
    """
    entries = read_json(folder / "captions.json", "examples")
    try:
        return [Example(str(item["caption"]), folder / Path(item["file"]).name) for item in entries]
    except (TypeError, KeyError):
        raise UserError(
            f"examples: {folder / 'captions.json'} must be a list of entries with caption and file"
        ) from None


def dataset_examples(records: Sequence[ImageRecord], images_dir: str) -> list[Example]:
    """The first captions of a split, and their images where these are found."""
    some = records[:MOST_EXAMPLES]
    files: list[Path | None] = [None] * len(some)
    if images_dir and Path(images_dir).is_dir():
        files = find_images(images_dir, [record.path for record in some])
    return [
        Example(clean_caption(record.captions[0]), file)
        for record, file in zip(some, files, strict=True)
    ]


def timed(work: Any, *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds it took."""
    started = time.perf_counter()
    return work(*arguments), time.perf_counter() - started


def _load_clip(cfg: CfgNode, here: Runtime) -> ClipModel | None:
    """The configured CLIP if it is on this disk, or asked for: a demo downloads nothing else."""
    at_hand = Path(cfg.clip.weights).is_file()
    if not (at_hand or cfg.rerank == "clip"):
        return None
    return load_configured_clip(cfg, here.device)


def _different(written: WrittenAlternatives) -> list[tuple[str, float | None]]:
    """Each caption once: samples may repeat, and a beam's may read alike."""
    found: dict[str, float | None] = {}
    for candidate in written["captions"]:
        found.setdefault(candidate["caption"], candidate["log_probability"])
    return list(found.items())
