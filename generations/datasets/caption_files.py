"""Captions of any kind: Karpathy's split file, COCO's `captions_*.json`, and tables.

Of a COCO file `images[].{id, file_name}` and `annotations[].{image_id, caption}` are read; a table
(.csv, .tsv) has a row for each caption.
"""

import csv
import io
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from generations.datasets.karpathy import (
    IMAGE_SPLITS,
    MAX_CAPTIONS,
    ImageRecord,
    Problem,
    checked_caption,
    file_of,
    image_id_of,
    karpathy_records,
    list_of,
    read_all,
)
from generations.errors import UserError
from generations.files import read_json

logger = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PATH_COLUMNS, CAPTION, SPLIT = ("image", "path", "file", "filename"), "caption", "split"
_TRAIN_SHARES = {"train": 18, "val": 1, "test": 1}
_VAL_SHARES = {"val": 1, "test": 1}
_BEYOND_COCO = 10**12  # ids of COCO's names have 12 digits


def read_captions(path: str | Path, seed: int = 0, skip_bad: bool = False) -> list[ImageRecord]:
    """Read captions of any kind.

    A COCO captions file says nothing of splits: if its name contains "val", its images are dealt
    out half and half to val and test, otherwise 90 : 5 : 5 to train, val and test, by the seed. Of
    a folder with `captions_train*.json` and `captions_val*.json`, all images of the first are
    train, and those of the second are dealt out.

    A table has a header, a column image (or path, file, filename), a column caption and perhaps a
    column split; several rows of an image are its captions, equal ones are taken once. Without
    a column split its images are dealt out 90 : 5 : 5.

    Args:
        path: Karpathy split file, COCO `captions_*.json`, a folder with two of these, .csv or .tsv.
        seed: of the dealing out.
        skip_bad: as in `read_karpathy`.

    Raises:
        UserError: as `read_karpathy`; a table without these columns, or not in UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        return _coco_folder(path, seed, skip_bad)
    if path.suffix.lower() in DELIMITERS:
        return _table_records(path, seed, skip_bad)
    content = read_json(path, "captions")
    if not (isinstance(content, dict) and "annotations" in content):
        return karpathy_records(content, path, skip_bad)
    entries = _with_annotations(content, path)
    records = read_all(entries, _coco_record, f"captions {path}", skip_bad)
    return deal_out(records, _VAL_SHARES if "val" in path.stem else _TRAIN_SHARES, seed)


def deal_out(
    records: Sequence[ImageRecord], shares: Mapping[str, int], seed: int
) -> list[ImageRecord]:
    """Assign splits at random.

    Args:
        records: their splits are replaced; the order stays.
        shares: split -> weight. Sizes are rounded down, the rest goes to the first split.
        seed: of the assignment.
    """
    total = sum(shares.values())
    first, *others = shares
    assigned = [split for split in others for _ in range(len(records) * shares[split] // total)]
    assigned += [first] * (len(records) - len(assigned))
    random.Random(seed).shuffle(assigned)
    return [replace(record, split=split) for record, split in zip(records, assigned, strict=True)]


# --- COCO ----------------------------------------------------------------------------------------


def _coco_folder(folder: Path, seed: int, skip_bad: bool) -> list[ImageRecord]:
    """All images of captions_train*.json as train, those of captions_val*.json as val and test."""
    files = []
    for part in ("train", "val"):
        found = sorted(folder.glob(f"captions_{part}*.json"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(
                f"captions_file {folder}: the folder must hold one captions_{part}*.json, "
                f"but there is {names}; give one file, or a folder with one of each"
            )
        files += found
    entries, train = [], 0
    for file in files:
        train = len(entries)
        content = read_json(file, "captions")
        entries += _with_annotations(content if isinstance(content, dict) else {}, file)
    ids = {id(entry) for entry in entries[:train]}
    splits: dict[str, bool] = {}

    def parse(entry: Any, index: int) -> ImageRecord:
        record = _coco_record(entry, index)
        splits[record.name] = id(entry) in ids
        return record

    records = read_all(entries, parse, f"captions {folder}", skip_bad)
    first = [record for record in records if splits[record.name]]
    second = [record for record in records if not splits[record.name]]
    return first + deal_out(second, _VAL_SHARES, seed)


def _with_annotations(content: Mapping[str, Any], path: str | Path) -> list[Any]:
    """COCO's images, each with the list of its captions."""
    captions: dict[Any, list[Any]] = {}
    for annotation in list_of(content, "annotations", path):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int):
            raise UserError(f"captions {path}: an annotation has no image_id: {annotation!r:.80}")
        captions.setdefault(annotation["image_id"], []).append(annotation.get("caption"))
    return [
        {**image, "captions": captions.get(image.get("id"), [])}
        if isinstance(image, dict) and isinstance(image.get("id"), int)
        else image
        for image in list_of(content, "images", path)
    ]


def _coco_record(entry: Any, index: int) -> ImageRecord:
    where = file_of(entry, "file_name", index)
    if not entry.get("captions"):
        raise Problem(str(where), "has no captions")
    texts = []
    for number, caption in enumerate(entry["captions"][:MAX_CAPTIONS], 1):
        if not isinstance(caption, str):
            raise Problem(str(where), f"caption {number} is no text")
        texts.append(checked_caption(caption_words(caption), str(where), number))
    image_id = image_id_of(where, [entry["id"]], index)
    return ImageRecord(where.stem, str(where), image_id, "train", tuple(texts))


def caption_words(text: str) -> list[str]:
    """A caption's words as the Karpathy file has them: lower case, without punctuation around them.

    >>> caption_words("A dog (black), near the kids' toys.")
    ['a', 'dog', 'black', 'near', 'the', "kids'", 'toys']
    """
    words = (word.strip('.,;:!?"()[]`') for word in text.lower().split())
    return [word for word in words if word]


# --- tables --------------------------------------------------------------------------------------


@dataclass
class _TableImage:
    """The rows of one image."""

    path: str
    split: str | None = None
    captions: list[str] = field(default_factory=list)
    problem: str = ""  # the first one


def _table_records(path: Path, seed: int, skip_bad: bool) -> list[ImageRecord]:
    rows = _rows(path)
    columns = next(rows, (0, []))[1]
    image, caption, split = _columns(columns, path)
    images: dict[str, _TableImage] = {}
    twice = 0
    for line, row in rows:
        name = row[image].strip() if image < len(row) else ""
        entry = images.setdefault(name or f"line {line}", _TableImage(name))
        if len(row) != len(columns):
            fault = (
                f"has {len(row)} fields and the header {len(columns)} (a caption with "
                f"{'commas' if path.suffix.lower() == '.csv' else 'tabs'} needs quotes around it)"
            )
        else:
            fault = _fault(entry, row[caption], None if split is None else row[split])
            if not fault:
                twice += _add(entry, row[caption])
        entry.problem = entry.problem or (fault and f"line {line} {fault}")
    if twice:
        logger.warning("captions %s: %d rows say what an earlier one says, once each", path, twice)
    named = any(re.search(r"[0-9]{12}$", Path(name).stem) for name in images)

    def parse(entry: _TableImage, index: int) -> ImageRecord:
        if entry.problem:
            raise Problem(entry.path or "an image", entry.problem)
        where = file_of({"file": entry.path}, "file", index)
        texts = [
            checked_caption(caption_words(text), str(where), number)
            for number, text in enumerate(entry.captions[:MAX_CAPTIONS], 1)
        ]
        number = image_id_of(where, [index + _BEYOND_COCO * named], index)
        return ImageRecord(where.stem, str(where), number, entry.split or "train", tuple(texts))

    records = read_all(list(images.values()), parse, f"captions {path}", skip_bad)
    return records if split is not None else deal_out(records, _TRAIN_SHARES, seed)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the line that each row ends in, and its fields; empty lines are passed over."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"captions {path} does not exist") from None
    except OSError as error:
        raise UserError(f"captions {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"captions {path}: line {line} is not UTF-8; save it as UTF-8") from None
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=DELIMITERS[path.suffix.lower()], strict=True
    )
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise UserError(
            f"captions {path}: line {rows.line_num} is no row ({error}); check its quotes"
        ) from None


def _columns(header: Sequence[str], path: Path) -> tuple[int, int, int | None]:
    """Where image and caption are, and the split if there is one."""
    names = [name.strip().lower() for name in header]
    images = [number for number, name in enumerate(names) if name in PATH_COLUMNS]
    captions = [number for number, name in enumerate(names) if name == CAPTION]
    splits = [number for number, name in enumerate(names) if name == SPLIT]
    if len(images) != 1 or len(captions) != 1 or len(splits) > 1:
        raise UserError(
            f"captions {path}: line 1 must name one column {' or '.join(PATH_COLUMNS)}, one column "
            f"{CAPTION} and at most one {SPLIT}, but has {', '.join(map(repr, names))[:200]}"
        )
    return images[0], captions[0], splits[0] if splits else None


def _fault(entry: _TableImage, caption: str, split: str | None) -> str:
    """What is wrong with a row; notes the split of the image."""
    if not entry.path:
        return "names no image"
    if not caption_words(caption):
        return "has an empty caption"
    if split is None:
        return ""
    split = split.strip().lower()
    if split not in IMAGE_SPLITS:
        return f"has the split {split!r}, none of {', '.join(IMAGE_SPLITS)}"
    if entry.split not in (None, split):
        return f"has the split {split}, but an earlier row of the image {entry.split}"
    entry.split = split
    return ""


def _add(entry: _TableImage, caption: str) -> bool:
    """Take a caption; True if the image has it already."""
    if caption in entry.captions:
        return True
    entry.captions.append(caption)
    return False
