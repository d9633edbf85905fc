"""Read caption files of many forms; docs/data.md has the table of all forms.

What form a file has is told by its content, not by its name. Each form has a reader that adds an
entry for each image, and all entries become records in one way.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from generations.datasets.intake.entries import TRAIN_SHARES, VAL_SHARES, Entries
from generations.datasets.intake.flickr import (
    apply_lists,
    is_token_file,
    read_tokens,
    split_lists,
)
from generations.datasets.intake.folders import plan_folder
from generations.datasets.intake.json_files import (
    parse_json,
    read_coco,
    read_items,
    read_karpathy_content,
)
from generations.datasets.intake.pairs import is_tar, read_pairs, read_tars
from generations.datasets.intake.tables import read_table
from generations.datasets.intake.texts import read_text
from generations.datasets.karpathy import ImageRecord
from generations.datasets.tally import Tally
from generations.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intake:
    """What a captions file holds.

    Attributes:
        records: the images that can be used.
        tally: how the file was read, what was left out and what was changed.
        packed: the pictures lie in tars.
    """

    records: list[ImageRecord]
    tally: Tally
    packed: bool = False


def read_captions(path: str | Path, seed: int = 0, skip_bad: bool = False) -> list[ImageRecord]:
    """The records of `read_intake`; what was left out or changed is logged."""
    found = read_intake(path, seed, skip_bad)
    found.tally.log(logger, f"captions {path}")
    return found.records


def read_intake(
    path: str | Path,
    seed: int = 0,
    skip_bad: bool = False,
    images_dir: str | Path = "",
    unpack: bool = False,
) -> Intake:
    """Read captions of any form.

    Images without splits are dealt out 90 : 5 : 5 to train, val and test, by the seed; those of a
    COCO file whose name contains "val" half and half to val and test. Of a folder with
    `captions_train*.json` and `captions_val*.json`, all images of the first are train, and those
    of the second are dealt out.

    Args:
        path: a file, or a folder of files.
        seed: of the dealing out.
        skip_bad: leave out images with problems, with a warning, instead of refusing.
        images_dir: folder of the images; paths in it may be absolute.
        unpack: write the pictures of tars into images_dir.

    Raises:
        UserError: the file cannot be read, or images have problems; all are counted, and the
            first ones named with their lines.
    """
    path, tally = Path(path), Tally()
    entries, shares, partly, packed = Entries(tally, images_dir), TRAIN_SHARES, False, False
    source, unpack_to = f"captions {path}", Path(images_dir) if unpack else None
    if path.is_dir():
        kind, parts = plan_folder(path)
        if kind == "one":
            return read_intake(parts[0][0], seed, skip_bad, images_dir, unpack)
        tally.notes.append(f"as a folder of {kind}")
        if kind == "pairs":
            read_pairs(path, entries, tally)
        elif kind == "tars":
            read_tars([file for file, _ in parts], entries, tally, unpack_to)
            packed = True
        else:
            _read_parts(path, parts, entries, tally)
            if kind == "COCO":
                shares, partly = VAL_SHARES, True
    elif is_tar(path):
        read_tars([path], entries, tally, unpack_to)
        packed = True
    else:
        text = read_text(path, tally)
        content = parse_json(text, path) if _is_json(text) else None
        if isinstance(content, dict) and "images" in content and "annotations" not in content:
            tally.notes.append("as Karpathy's split file")
            return Intake(read_karpathy_content(content, path, seed, skip_bad, tally), tally)
        shares = _read_text(text, content, path, entries, tally)
        lists = split_lists(path.parent) if _is_flickrs(text, path) else {}
        if lists and all(entry.split is None for entry in entries.images.values()):
            apply_lists(lists, entries, tally)
    if not entries.images:
        why = ", ".join(tally.counts())
        raise UserError(f"{source} has no images with captions{why and f' ({why})'}")
    return Intake(entries.records(source, seed, skip_bad, shares, partly), tally, packed)


def _read_parts(
    folder: Path, parts: Sequence[tuple[Path, str | None]], entries: Entries, tally: Tally
) -> None:
    """Add what several files hold, one a split."""
    for path, split in parts:
        below = "" if path.parent == folder else path.parent.name
        entries.begin(str(path.relative_to(folder)), below, split)
        text = read_text(path, tally)
        _read_text(text, parse_json(text, path) if _is_json(text) else None, path, entries, tally)


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


def _is_flickrs(text: str, path: Path) -> bool:
    """Whether lists of splits beside a file are about it: of Flickr8k, also from Kaggle."""
    return path.name == "captions.txt" or is_token_file(text[:2000])


def _read_text(
    text: str, content: object, path: Path, entries: Entries, tally: Tally
) -> Mapping[str, int]:
    """Add what a file holds; gives the shares in which its images are dealt out."""
    if isinstance(content, dict) and "images" in content and "annotations" in content:
        tally.notes.append("as COCO's annotations")
        return read_coco(content, path, entries, tally)
    if content is not None:
        tally.notes.append("as a list of images in JSON")
        read_items(content, path, entries, tally)
    elif is_token_file(text[:2000]):
        tally.notes.append("as Flickr's lines of key and caption")
        read_tokens(text, entries, tally)
    else:
        read_table(text, path, entries, tally)
    return TRAIN_SHARES
