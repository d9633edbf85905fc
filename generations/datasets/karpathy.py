"""Read, check and write the images and captions of a Karpathy split file.

The file is `{"images": [{"filename", "filepath", "cocoid", "split", "sentences": [{"tokens":
[...]}]}]}`; `filepath` and `cocoid` may be absent, as they are from Flickr's.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from generations.datasets.caption_text import caption_words, has_inner_stops, without_stops
from generations.datasets.tally import Tally
from generations.datasets.tokenizer import clean_caption
from generations.errors import UserError
from generations.files import read_json, write_json

logger = logging.getLogger(__name__)

MAX_CAPTIONS = 5  # of an image that training draws from; all are scored against
PAINTED_CAPTIONS = 30000
IMAGE_SPLITS = ("train", "restval", "val", "test")  # of an image
_MEMBERS = {  # what may be asked for
    "train": ("train",),
    "restval": ("restval",),
    "trainrestval": ("train", "restval"),
    "val": ("val",),
    "test": ("test",),
}
_SPLIT_NAMES = {  # as others call them
    **dict.fromkeys(("training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("testing", "tst"), "test"),
}
INNER_STOPS = (
    "captions with full stops inside, which are removed because they would end the caption "
    "(u.s. -> us, 2.5 -> 2 5)"
)
_SHOWN = 5  # problems that are listed one by one


@dataclass(frozen=True)
class ImageRecord:
    """One captioned image.

    Attributes:
        name: file name without suffix; the key of feature and cluster stores.
        path: of the file, relative to the folder of images, with forward slashes.
        image_id: unique; of COCO images their COCO id.
        split: train, restval, val or test.
        captions: one text or more, each the words joined by spaces and a full stop.
    """

    name: str
    path: str
    image_id: int
    split: str
    captions: tuple[str, ...]


# --- reading -------------------------------------------------------------------------------------


def read_karpathy(path: str | Path, skip_bad: bool = False) -> list[ImageRecord]:
    """Read all images of a Karpathy split file, in its order.

    Args:
        path: `dataset_*.json`.
        skip_bad: leave out images without usable captions, with a warning, instead of refusing.

    Raises:
        UserError: not such a file; images that lack a file name or captions, empty captions, or
            two images of one name or id. All problems are counted, the first ones listed.

    Source: SPEC 3.
    """
    tally = Tally()
    records = karpathy_records(read_json(path, "captions"), path, skip_bad, tally)
    tally.log(logger, f"captions {path}")
    return records


def read_split(path: str | Path, splits: str) -> list[ImageRecord]:
    """The images of one or more splits of a Karpathy split file.

    Args:
        path: `dataset_*.json`.
        splits: train, restval, trainrestval (both), val, test, or a comma list of these.

    Raises:
        UserError: unknown split, or as `read_karpathy`.

    Source: SPEC 3.
    """
    return select_splits(read_karpathy(path), splits)


def select_splits(records: Iterable[ImageRecord], splits: str) -> list[ImageRecord]:
    """The records of a split or a comma list of splits; names match as a whole."""
    wanted: set[str] = set()
    for name in splits.split(","):
        if name.strip() not in _MEMBERS:
            raise UserError(f"the split must be one of {', '.join(_MEMBERS)}, not {name.strip()!r}")
        wanted.update(_MEMBERS[name.strip()])
    return [record for record in records if record.split in wanted]


def write_karpathy(path: str | Path, records: Iterable[ImageRecord], origin: str) -> None:
    """Write records as a Karpathy split file, atomically.

    Args:
        path: the file to write.
        records: what `read_karpathy` gives back for it.
        origin: the captions file they came from; it marks the file as ours.
    """
    images = [
        {
            "filename": PurePosixPath(record.path).name,
            "filepath": record.path.rpartition("/")[0],
            "cocoid": record.image_id,
            "split": record.split,
            "sentences": [{"tokens": text[:-1].split(" ")} for text in record.captions],
        }
        for record in records
    ]
    write_json(path, {"prepared_from": origin, "images": images})


# --- what is asked of the records ----------------------------------------------------------------


def reference_captions(records: Iterable[ImageRecord]) -> dict[int, list[str]]:
    """{image id: its captions}, against which written captions are scored."""
    return {record.image_id: list(record.captions) for record in records}


def painting_captions(
    records: Sequence[ImageRecord], test_val2014: bool, limit: int = PAINTED_CAPTIONS
) -> list[tuple[ImageRecord, str]]:
    """The captions to paint: the first one of each image, cleaned.

    Args:
        records: of all splits.
        test_val2014: test, then val, then restval, until `limit`; else the test split alone.
        limit: most captions.

    Source: SPEC 3.
    """
    order = ("test", "val", "restval") if test_val2014 else ("test",)
    chosen = [record for split in order for record in records if record.split == split]
    if test_val2014:
        chosen = chosen[:limit]
    return [(record, clean_caption(record.captions[0])) for record in chosen]


# --- parsing -------------------------------------------------------------------------------------


class Problem(ValueError):
    """What is wrong with one image; `name` says which."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"{name}: {problem}")


def read_all(
    entries: Sequence[Any],
    parse: Callable[[Any, int], ImageRecord],
    source: str,
    skip_bad: bool,
) -> list[ImageRecord]:
    """The records of entries, whose names and ids must differ.

    Args:
        entries: one an image.
        parse: entry and index -> record; raises `Problem`.
        source: what they are in.
        skip_bad: leave out those with problems, with a warning.

    Raises:
        UserError: there are problems, all in one line, or no images.
    """
    records: list[ImageRecord] = []
    problems: list[str] = []
    seen: dict[tuple[str, str | int], str] = {}
    for index, entry in enumerate(entries):
        try:
            record = parse(entry, index)
            for key in (("name", record.name), ("id", record.image_id)):
                if key in seen:
                    raise Problem(record.path, f"has the same {key[0]} as {seen[key]}: {key[1]}")
        except Problem as problem:
            problems.append(str(problem))
            continue
        seen["name", record.name] = seen["id", record.image_id] = record.path
        records.append(record)
    report_problems(
        source, problems, skip_bad, "correct the file, or leave these out with features.skip_bad 1"
    )
    if not records:
        raise UserError(f"{source} has no images")
    return records


def report_problems(source: str, problems: Sequence[str], skip: bool, fix: str) -> None:
    """Raise a UserError with all problems in one line, or log them as a warning.

    Args:
        source: what they are in.
        problems: one text each; the first ones are shown, all are counted.
        skip: warn instead of refusing.
        fix: what the user can do.

    Raises:
        UserError: there are problems and `skip` is off.
    """
    if not problems:
        return
    text = "; ".join(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        text += f"; and {len(problems) - _SHOWN} more"
    if not skip:
        raise UserError(f"{source}: {text}; {fix}")
    logger.warning("%s: left out %d images: %s", source, len(problems), text)


def karpathy_records(
    content: Any, path: str | Path, skip_bad: bool, tally: Tally
) -> list[ImageRecord]:
    """The records of what a Karpathy file holds; as `read_karpathy`."""

    def parse(entry: Any, index: int) -> ImageRecord:
        where = file_of(entry, "filename", index)
        split = split_name(entry.get("split"), str(where))
        captions = tuple(_karpathy_captions(entry, str(where), tally))
        ids = (entry[key] for key in ("cocoid", "imgid") if key in entry)
        return ImageRecord(where.stem, str(where), image_id_of(where, ids, index), split, captions)

    return read_all(list_of(content, "images", path), parse, f"captions {path}", skip_bad)


def split_name(given: Any, name: str) -> str:
    """One of `IMAGE_SPLITS` for what a file calls it; raises `Problem`.

    >>> split_name("Validation", "1.jpg"), split_name("train2014", "1.jpg")
    ('val', 'train')
    """
    split = re.sub(r"20\d\d$", "", given.strip().lower()) if isinstance(given, str) else given
    if isinstance(split, str):
        split = _SPLIT_NAMES.get(split, split)
    if split not in IMAGE_SPLITS:
        raise Problem(
            name, f"has the split {given!r:.60}, which is not one of {', '.join(IMAGE_SPLITS)}"
        )
    return split


def _karpathy_captions(entry: Mapping[str, Any], name: str, tally: Tally) -> Iterator[str]:
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise Problem(name, "has no captions")
    for number, sentence in enumerate(sentences, 1):
        found = sentence if isinstance(sentence, dict) else {}
        tokens = found.get("tokens")
        if tokens is None and isinstance(found.get("raw"), str):
            tokens = caption_words(found["raw"])
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise Problem(name, f"caption {number} has no tokens")
        yield checked_caption(tokens, name, number, tally, " ".join(tokens))


def checked_caption(
    words: Sequence[str], name: str, number: int, tally: Tally, written: str
) -> str:
    """A caption of these words; raises `Problem` if it is empty or no Unicode.

    Args:
        words: of the caption; a full stop inside is taken out, since it would end the caption.
        name: of the image.
        number: of the caption.
        tally: counts captions with such full stops.
        written: the caption as it was written.
    """
    text = " ".join(words)
    if "." in written:
        text = " ".join(without_stops(words))
        tally.changed.update([INNER_STOPS] if has_inner_stops(written) else [])
    if not text.strip():
        raise Problem(name, f"caption {number} is empty")
    if not _is_readable(text):
        raise Problem(name, f"caption {number} has broken characters: {text!r:.60}")
    return f"{text}."


def _is_readable(text: str) -> bool:
    """Whether the text is Unicode throughout: JSON can hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def file_of(entry: Any, key: str, index: int) -> PurePosixPath:
    """The path of an entry's file, which must lie in the folder of images; raises `Problem`."""
    if not isinstance(entry, dict):
        raise Problem(f"image {index + 1}", f"is a {type(entry).__name__}, not an object")
    name, folder = entry.get(key), entry.get("filepath") or ""
    if not isinstance(name, str) or not name or not isinstance(folder, str):
        raise Problem(f"image {index + 1}", f"has no {key}")
    path = PurePosixPath(folder, name)
    if not _is_readable(str(path)) or "\0" in name + folder:
        raise Problem(f"image {index + 1}", f"has broken characters in its {key}")
    if path.is_absolute() or ".." in path.parts or path.stem.strip(".") == "":
        raise Problem(
            f"image {index + 1}", f"has the file {str(path)!r:.80}, outside of the folder"
        )
    if len(os.fsencode(path)) > 1000 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise Problem(f"image {index + 1}", f"has a {key} too long for a file: {name[:60]}...")
    return path


def image_id_of(path: PurePosixPath, given: Iterable[Any], index: int) -> int:
    """COCO's id from the name's last 12 digits, else one of the given ids, else the index.

    What is negative is no id: seeds are made of them.
    """
    if digits := re.search(r"[0-9]{12}$", path.stem):
        return int(digits[0])
    for number in given:
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return number
    return index


def list_of(content: Any, key: str, path: str | Path) -> list[Any]:
    """The list under a key; raises a UserError if there is none."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError(
            f"captions {path} has no list {key!r}; give a Karpathy split file or a COCO "
            "captions_*.json"
        )
    return found
