"""The common form of all caption files: an entry for each image, and its record."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from generations.datasets.caption_text import caption_words
from generations.datasets.karpathy import (
    ImageRecord,
    Problem,
    checked_caption,
    file_of,
    image_id_of,
    read_all,
    split_name,
)
from generations.datasets.tally import Tally

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
TRAIN_SHARES = {"train": 18, "val": 1, "test": 1}
VAL_SHARES = {"val": 1, "test": 1}
_BEYOND_COCO = 10**12  # ids of COCO's names have 12 digits


@dataclass
class Entry:
    """One image as a file names it.

    Attributes:
        path: of the image, as written but with forward slashes.
        split: as `split_name` gives it, or None if nothing is said.
        captions: as written.
        ids: numbers that may serve as the image's id.
        problem: the first thing that is wrong with it.
    """

    path: str
    split: str | None = None
    captions: list[str] = field(default_factory=list)
    ids: tuple[Any, ...] = ()
    problem: str = ""


class Entries:
    """Collects the rows of a file by image.

    Args:
        tally: counts what is left out.
        images_dir: a path that begins with it is taken as relative to it.

    Attributes:
        images: by path.
        once: equal captions of an image are taken once.
        split: of the images that say none.
    """

    def __init__(self, tally: Tally, images_dir: str | Path = ""):
        self.images: dict[str, Entry] = {}
        self._tally = tally
        self._folder = PurePosixPath(str(images_dir)) if str(images_dir) else None
        self.once = False
        self._file, self._below = "", ""
        self.split: str | None = None

    def begin(self, file: str, below: str = "", split: str | None = None) -> None:
        """Say which of several files is read next.

        Args:
            file: for messages.
            below: folder that its paths begin at.
            split: of its images, where it says none.
        """
        self._file, self._below, self.split = f"{file} ", below, split

    def add(
        self,
        place: str,
        path: str,
        captions: Sequence[str] = (),
        split: str | None = None,
        ids: tuple[Any, ...] = (),
        fault: str = "",
    ) -> None:
        """Add what one row says.

        Args:
            place: "line 3", for messages.
            path: of the image.
            captions: as written.
            split: as written; None if nothing is said.
            ids: see `Entry`.
            fault: what is wrong with the row.
        """
        path, place = self.relative(path), f"{self._file}{place}"
        split = self.split if split is None else split
        entry = self.images.setdefault(path or place, Entry(path, ids=ids))
        fault = fault or _fault(entry, captions, split)
        for caption in () if fault else captions:
            if self.once and caption in entry.captions:
                self._tally.left_out["duplicate rows"] += 1
            else:
                entry.captions.append(caption)
        entry.problem = entry.problem or (fault and f"{place} {fault}")

    def relative(self, path: str) -> str:
        """A path as it may be looked for in images_dir: of Windows, or of that very folder."""
        path = path.strip().replace("\\", "/")  # no name of a picture has a backslash
        if self._folder and path.startswith("/") and self._folder in PurePosixPath(path).parents:
            return str(PurePosixPath(path).relative_to(self._folder))
        return f"{self._below}/{path}" if self._below and path else path

    def records(
        self,
        source: str,
        seed: int,
        skip_bad: bool,
        shares: Mapping[str, int] = TRAIN_SHARES,
        partly: bool = False,
    ) -> list[ImageRecord]:
        """The records of all images, with their own splits, or random ones if none has a split.

        Args:
            source: for messages.
            seed: of the dealing out.
            skip_bad: as in `read_karpathy`.
            shares: as in `deal_out`.
            partly: deal out those images that have no split; else all or none must have one.

        Raises:
            UserError: as `read_karpathy`.
        """
        entries = list(self.images.values())
        without = [entry for entry in entries if entry.split is None and not entry.problem]
        if not partly and any(entry.split is not None for entry in entries):
            for entry in without:
                entry.problem = "has no split, but others have one"
        if not all(
            entry.ids for entry in entries if not entry.problem
        ):  # some numbers could be those of others
            for entry in entries:
                entry.ids = ()
        named = any(re.search(r"[0-9]{12}$", PurePosixPath(entry.path).stem) for entry in entries)
        open_splits: set[str] = set()

        def parse(entry: Entry, index: int) -> ImageRecord:
            record = _record_of(entry, index, index + _BEYOND_COCO * named, self._tally)
            if entry.split is None:
                open_splits.add(record.name)
            return record

        records = read_all(entries, parse, source, skip_bad)
        if not open_splits:
            return records
        self._tally.notes.append(without_splits(shares, seed))
        dealt = deal_out([r for r in records if r.name in open_splits], shares, seed)
        by_name = {record.name: record for record in dealt}
        return [by_name.get(record.name, record) for record in records]


def _fault(entry: Entry, captions: Sequence[str], split: str | None) -> str:
    """What is wrong with a row; notes the split of the image."""
    if not entry.path:
        return "has no image name"
    if not all(caption_words(caption) for caption in captions):
        return "has an empty caption"
    if split is None:
        return ""
    try:
        split = split_name(split, "")
    except Problem as problem:
        return str(problem).removeprefix(": ")
    if entry.split not in (None, split):
        return f"has the split {split}, but an earlier row of the same image has {entry.split}"
    entry.split = split
    return ""


def _record_of(entry: Entry, index: int, number: int, tally: Tally) -> ImageRecord:
    if entry.problem:
        raise Problem(entry.path or "an image", entry.problem)
    where = file_of({"file": entry.path}, "file", index)
    if not entry.captions:
        raise Problem(str(where), "has no captions")
    texts = [
        checked_caption(caption_words(text), str(where), place, tally, text)
        for place, text in enumerate(entry.captions, 1)
    ]
    image_id = image_id_of(where, [*entry.ids, number], index)
    return ImageRecord(where.stem, str(where), image_id, entry.split or "train", tuple(texts))


def without_splits(shares: Mapping[str, int], seed: int) -> str:
    """A log note about the random splits."""
    parts = (f"{part} {100 * share // sum(shares.values())} %" for part, share in shares.items())
    return f"without splits; assigned at random: {', '.join(parts)} (seed {seed})"


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
