"""Image -> text for many images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from torch import Tensor

from generations.datasets import CaptionTokenizer
from generations.decoding import (
    Hypotheses,
    beam_captions,
    caption_tokens,
    draw_uniforms,
    sampled_captions,
)
from generations.modeling import UnifiedTransformer
from generations.progress import progress_bar
from generations.runtime import Runtime, derive_seed, gather_lists


class WrittenCaption(TypedDict):
    """One entry of a COCO results file."""

    image_id: int
    caption: str


class Candidate(TypedDict):
    """One of several captions of an image.

    The score is log_probability / length ** length_penalty; see `generations.decoding`.
    """

    caption: str
    log_probability: float
    score: float


class WrittenAlternatives(TypedDict):
    """An image and all captions that were written for it, best score first."""

    image_id: int
    captions: list[Candidate]


Entry = TypeVar("Entry", WrittenCaption, WrittenAlternatives)


@dataclass(frozen=True)
class CaptioningSettings:
    """How captions are written.

    Attributes:
        text_length: L.
        collapse_repeats: "a a dog" -> "a dog".
        method: greedy, beam or sample; those below are of the latter two.
        beam_size: of beam.
        length_penalty: captions are ranked by log-probability / length ** length_penalty.
        temperature: of sample, as are top_k (0: off) and top_p (1: off).
        num_captions: captions an image.
        seed: of sample; with the image id it decides what is drawn.
    """

    text_length: int = 17
    collapse_repeats: bool = True
    method: str = "greedy"
    beam_size: int = 5
    length_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_captions: int = 1
    seed: int = 0


def write_captions(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    batches: Iterable[tuple[list[int], dict[str, Tensor]]],
    settings: CaptioningSettings,
    runtime: Runtime,
    total: int | None = None,
) -> list[WrittenCaption]:
    """The best captions of this process's images, gathered from all processes.

    Args:
        model: in eval mode, on the runtime's device.
        tokenizer: of the model.
        batches: (image ids, keyword arguments of `encode_vision`) of this process.
        settings: decoding settings.
        runtime: where to run.
        total: number of images of this process, for the progress bar.

    Returns:
        One entry per image, sorted by image id; the same list on every process.
    """

    def write(image_ids: list[int], inputs: dict[str, Tensor]) -> list[WrittenCaption]:
        if settings.method != "greedy":
            return best_captions(_candidates(model, tokenizer, image_ids, inputs, settings))
        # the text is cropped to L ids, so the last of the T positions is never written
        length = settings.text_length
        ids = caption_tokens(model, **inputs, text_length=length, steps=length - 1)
        return [
            {"image_id": image_id, "caption": _text(tokenizer, row, settings)}
            for image_id, row in zip(image_ids, ids.tolist(), strict=True)
        ]

    return _for_all(batches, write, runtime, total)


def write_alternatives(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    batches: Iterable[tuple[list[int], dict[str, Tensor]]],
    settings: CaptioningSettings,
    runtime: Runtime,
    total: int | None = None,
) -> list[WrittenAlternatives]:
    """As `write_captions` with method beam or sample, and all of an image's captions."""

    def write(image_ids: list[int], inputs: dict[str, Tensor]) -> list[WrittenAlternatives]:
        return _candidates(model, tokenizer, image_ids, inputs, settings)

    return _for_all(batches, write, runtime, total)


def best_captions(written: Iterable[WrittenAlternatives]) -> list[WrittenCaption]:
    """The entries of a COCO results file: of each image the caption of highest score."""
    return [
        {"image_id": entry["image_id"], "caption": entry["captions"][0]["caption"]}
        for entry in written
    ]


def _for_all(
    batches: Iterable[tuple[list[int], dict[str, Tensor]]],
    write: Callable[[list[int], dict[str, Tensor]], list[Entry]],
    runtime: Runtime,
    total: int | None,
) -> list[Entry]:
    """Write batch after batch; the entries of all processes, sorted by image id."""
    written: list[Entry] = []
    hidden = not runtime.is_main or total == 1
    with progress_bar(total, "captions", "image", hidden=hidden) as bar:
        for image_ids, inputs in batches:
            inputs = {name: tensor.to(runtime.device) for name, tensor in inputs.items()}
            with runtime.autocast():
                written += write(image_ids, inputs)
            bar.update(len(image_ids))
    return sorted(gather_lists(written, runtime), key=lambda entry: entry["image_id"])


def _candidates(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    image_ids: list[int],
    inputs: dict[str, Tensor],
    settings: CaptioningSettings,
) -> list[WrittenAlternatives]:
    found = _decode(model, image_ids, inputs, settings)
    written: list[WrittenAlternatives] = []
    rows = (found.ids.tolist(), found.log_probs.tolist(), found.scores.tolist())
    for image_id, *own in zip(image_ids, *rows, strict=True):
        captions: list[Candidate] = [
            {
                "caption": _text(tokenizer, row, settings),
                "log_probability": round(log_prob, 4),
                "score": round(score, 4),
            }
            for row, log_prob, score in zip(*own, strict=True)
        ]
        written.append({"image_id": image_id, "captions": captions})
    return written


def _decode(
    model: UnifiedTransformer,
    image_ids: list[int],
    inputs: dict[str, Tensor],
    settings: CaptioningSettings,
) -> Hypotheses:
    length = settings.text_length
    if settings.method == "beam":
        return beam_captions(
            model,
            **inputs,
            text_length=length,
            steps=length - 1,
            beam_size=settings.beam_size,
            length_penalty=settings.length_penalty,
            num_captions=settings.num_captions,
        )
    if settings.method != "sample":
        raise ValueError(f"method {settings.method!r} writes no alternatives; use beam or sample")
    seeds = [derive_seed(settings.seed, image_id) for image_id in image_ids]
    return sampled_captions(
        model,
        draw_uniforms(seeds, settings.num_captions, length - 1),
        **inputs,
        text_length=length,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        length_penalty=settings.length_penalty,
    )


def _text(tokenizer: CaptionTokenizer, row: list[int], settings: CaptioningSettings) -> str:
    return tokenizer.decode(row, collapse_repeats=settings.collapse_repeats)
