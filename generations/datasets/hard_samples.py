"""Read ready-made files of hard captions for R-precision, without running code in them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generations.datasets.array_pickle import SafeUnpickler
from generations.datasets.word_swaps import KINDS, WORD
from generations.errors import UserError
from generations.files import read_json

SUFFIXES = (".pkl", ".pickle", ".json")


def read_hard_samples(
    folder: str | Path, captions: Sequence[str]
) -> dict[str, dict[int, list[str]]]:
    """Read sets of captions with one swapped word, and match them with the pictures.

    The folder holds a file for each kind of word (verb, color, noun, number) with the kind in its
    name: a pickle or JSON of lists of captions, or a dictionary of such lists. In each list the
    right caption comes first. Lists belong to the picture whose caption has the same words.

    Args:
        folder: of the files.
        captions: of the pictures.

    Returns:
        kind -> place of a caption -> its swapped copies.

    Raises:
        UserError: a file is missing, unsafe, damaged or something else, or fits no caption.
    """
    folder = Path(folder)
    places: dict[tuple[str, ...], list[int]] = {}
    for place, caption in enumerate(captions):
        places.setdefault(_key(caption), []).append(place)
    found: dict[str, dict[int, list[str]]] = {}
    for kind in KINDS:
        path = _file_of(folder, kind)
        own: dict[int, list[str]] = {}
        for right, *swapped in _lists(path):
            own |= {place: swapped for place in places.get(_key(right), ())}
        if not own:
            raise UserError(
                f"rprec_hard_samples_dir: the captions in {path} are not those of the pictures; "
                "set rprec_hard_samples_dir '' to build hard captions from dataset_coco"
            )
        found[kind] = own
    return found


def _key(caption: str) -> tuple[str, ...]:
    return tuple(word for word in WORD.findall(caption.lower()) if word[0].isalnum())


def _file_of(folder: Path, kind: str) -> Path:
    names = [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
    fitting = [path for path in names if kind in path.stem.lower()]
    if kind == "number":
        fitting = fitting or [path for path in names if "num" in path.stem.lower()]
    if len(fitting) != 1:
        raise UserError(
            f"rprec_hard_samples_dir {folder} must have one file ({', '.join(SUFFIXES)}) with "
            f"{kind!r} in its name, but has {len(fitting)}; set the key to '' to build hard "
            "captions from dataset_coco"
        )
    return fitting[0]


def _lists(path: Path) -> list[list[str]]:
    content = read_json(path, "hard captions") if path.suffix == ".json" else _unpickle(path)
    lists = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(lists, list) or not all(
        isinstance(entry, (list, tuple))
        and len(entry) > 1
        and all(isinstance(text, str) for text in entry)
        for entry in lists
    ):
        raise UserError(
            f"rprec_hard_samples_dir: {path} must contain lists of captions, the right one first"
        )
    return [list(entry) for entry in lists]


def _unpickle(path: Path) -> Any:
    try:
        return SafeUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"rprec_hard_samples_dir: {path} cannot be read ({reason})") from None
