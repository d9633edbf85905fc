"""Image -> text for many images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from generations.datasets import CaptionTokenizer
from generations.decoding import caption_tokens
from generations.modeling import UnifiedTransformer
from generations.progress import progress_bar
from generations.runtime import Runtime, gather_lists


class WrittenCaption(TypedDict):
    """One entry of a COCO results file."""

    image_id: int
    caption: str


@dataclass(frozen=True)
class CaptioningSettings:
    """How captions are written.

    Attributes:
        text_length: L.
        collapse_repeats: "a a dog" -> "a dog".
    """

    text_length: int = 17
    collapse_repeats: bool = True


def write_captions(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    batches: Iterable[tuple[list[int], dict[str, Tensor]]],
    settings: CaptioningSettings,
    runtime: Runtime,
    total: int | None = None,
) -> list[WrittenCaption]:
    """Greedy captions of this process's images, gathered from all processes.

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
    written: list[WrittenCaption] = []
    with progress_bar(total, "captions", "image", hidden=not runtime.is_main) as bar:
        for image_ids, inputs in batches:
            inputs = {name: tensor.to(runtime.device) for name, tensor in inputs.items()}
            with runtime.autocast():
                # the text is cropped to L ids, so the last of the T positions is never written
                ids = caption_tokens(
                    model,
                    **inputs,
                    text_length=settings.text_length,
                    steps=settings.text_length - 1,
                )
            for image_id, row in zip(image_ids, ids.tolist(), strict=True):
                caption = tokenizer.decode(row, collapse_repeats=settings.collapse_repeats)
                written.append({"image_id": image_id, "caption": caption})
            bar.update(len(image_ids))
    return sorted(gather_lists(written, runtime), key=lambda entry: entry["image_id"])
