"""JSON: COCO's `captions_*.json`, Karpathy's files, lists of images, and a JSON object a line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from generations.datasets.caption_text import caption_words
from generations.datasets.intake.entries import (
    PICTURES,
    TRAIN_SHARES,
    VAL_SHARES,
    Entries,
    Entry,
    deal_out,
    without_splits,
)
from generations.datasets.intake.tables import CAPTION, IMAGE, SPLIT
from generations.datasets.karpathy import ImageRecord, karpathy_records, list_of
from generations.datasets.tally import Tally
from generations.errors import UserError
from generations.files import short

NO_CAPTIONS = ("is_precanned", "is_rejected")  # of VizWiz: an annotation says it of itself
_IMAGE_KEYS = (*IMAGE, "file_name", "file_path")
_ID_KEYS = ("image_id", "cocoid", "img_id", "imgid", "id")


def parse_json(text: str, path: Path) -> Any:
    """What a JSON file holds; of a file with an object a line, an iterator of (line, object).

    Raises:
        UserError: it is neither; the message names the line.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long, lists too deep
        first = text.lstrip().split("\n", 1)[0]
        if isinstance(_loaded(first), dict):
            return _lines(text, path)
        raise UserError(f"captions: {path} is not valid JSON: {short(error)}") from None


def _lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            found = _loaded(line)
            if found is None:
                raise UserError(f"captions {path}: line {number} is not valid JSON")
            yield number, found


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# --- Karpathy ------------------------------------------------------------------------------------


def read_karpathy_content(
    content: Mapping[str, Any], path: Path, seed: int, skip_bad: bool, tally: Tally
) -> list[ImageRecord]:
    """The records of a Karpathy file; if no image has a split, splits are assigned at random."""
    images = list_of(content, "images", path)
    if any(not isinstance(image, dict) or "split" in image for image in images):
        return karpathy_records(content, path, skip_bad, tally)
    images = [{**image, "split": "train"} for image in images]
    tally.notes.append(without_splits(TRAIN_SHARES, seed))
    return deal_out(karpathy_records({"images": images}, path, skip_bad, tally), TRAIN_SHARES, seed)


# --- COCO ----------------------------------------------------------------------------------------


def read_coco(content: Any, path: Path, entries: Entries, tally: Tally) -> Mapping[str, int]:
    """Add COCO's images and annotations to `entries`.

    Images without annotation, annotations without image and those that say that they are no
    captions are left out and counted.

    Returns:
        the shares in which its images are dealt out.

    Raises:
        UserError: an annotation that does not say which image it is of.
    """
    captions: dict[int | str, list[Any]] = {}
    refused: set[int | str] = set()
    for number, annotation in enumerate(list_of(content, "annotations", path), 1):
        image = _id(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if image is None:
            raise UserError(
                f"captions {path}: annotation {number} has no image_id: {annotation!r:.80}"
            )
        if reason := _no_caption(annotation):
            tally.left_out[reason] += 1
            refused.add(image)
        else:
            captions.setdefault(image, []).append(annotation.get("caption"))
    known: set[int | str] = set()
    for number, image in enumerate(list_of(content, "images", path), 1):
        entry, key = _coco_image(image, number, entries), None
        if isinstance(image, dict):
            key = _id(image.get("id"))
        if key is None:
            entry.problem = entry.problem or f"image {number} has no id"
        elif key not in captions:
            only = (
                "whose annotations were all left out" if key in refused else "without an annotation"
            )
            tally.left_out[f"images {only}"] += 1
            continue
        else:
            known.add(key)
            entry.ids = (key,) if isinstance(key, int) else ()
            _take(entry, captions[key])
        entry.split = entries.split
        entries.images[f"{path} {number}"] = entry
    lost = sum(len(texts) for key, texts in captions.items() if key not in known)
    tally.left_out.update({"annotations without an image": lost} if lost else {})
    return VAL_SHARES if "val" in path.stem else TRAIN_SHARES


def _coco_image(image: Any, number: int, entries: Entries) -> Entry:
    if not isinstance(image, dict):
        return Entry("", problem=f"image {number} is a {type(image).__name__}, not an object")
    name = _first(image, _IMAGE_KEYS)
    if name is None and isinstance(image.get("coco_url"), str):
        name = image["coco_url"].rpartition("/")[2]
    if not isinstance(name, str) or not name:
        return Entry("", problem=f"image {number} has no file_name")
    return Entry(entries.relative(name))


def _take(entry: Entry, texts: Sequence[Any]) -> None:
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            entry.problem = entry.problem or f"caption {number} is not a string"
        elif not caption_words(text):
            entry.problem = entry.problem or f"caption {number} is empty"
        else:
            entry.captions.append(text)


def _id(value: Any) -> int | str | None:
    """An id as a number where it is one: "000000000139", 139.0 and 139 are the same image."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        text = value.strip()
        return (
            int(text)
            if re.fullmatch(r"[0-9]{1,18}(\.0)?", text.removesuffix(".0"))
            else text or None
        )
    return value if isinstance(value, int) else None


def _no_caption(annotation: Mapping[str, Any]) -> str:
    """Why an annotation is none by its own words, or ''."""
    flag = next((flag for flag in NO_CAPTIONS if annotation.get(flag) in (True, 1)), "")
    return flag and f"annotations marked {flag}"


# --- lists ---------------------------------------------------------------------------------------


def items_of(content: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, object) of a list, of a mapping from names to captions, or of lines."""
    if isinstance(content, Iterator):
        for number, item in content:
            yield f"line {number}", item
        return
    if isinstance(content, dict):
        if content and all(name.lower().endswith(PICTURES) for name in content):
            content = [{"image": name, "caption": texts} for name, texts in content.items()]
        elif _first(content, _IMAGE_KEYS) is not None:
            content = [content]
        else:
            lists = [key for key in ("annotations", "data") if isinstance(content.get(key), list)]
            content = content[lists[0]] if lists else list_of(content, "images", path)
    for number, item in enumerate(content if isinstance(content, list) else [], 1):
        yield f"entry {number}", item


def read_items(content: Any, path: Path, entries: Entries, tally: Tally) -> None:
    """Add a list of `{"image", "caption"}` to `entries`; an image may come several times."""
    for place, item in items_of(content, path):
        if not isinstance(item, dict):
            entries.add(place, "", fault=f"is a {type(item).__name__}, not an object")
            continue
        if reason := _no_caption(item):
            tally.left_out[reason] += 1
            continue
        name, split = _first(item, _IMAGE_KEYS), _first(item, SPLIT)
        texts, fault = _texts(_first(item, (*CAPTION, "sentences")))
        number = _id(_first(item, _ID_KEYS))
        ids = (number,) if isinstance(number, int) else ()
        if not isinstance(name, str):
            name, fault = "", fault or f"has no image name ({', '.join(_IMAGE_KEYS[:4])}, ...)"
        if split is not None and not isinstance(split, str):
            fault = fault or f"has the split {split!r:.60}"
            split = None
        entries.add(place, name, texts, split, ids, fault)


def _texts(value: Any) -> tuple[list[str], str]:
    """The captions of an entry, and what is wrong with them."""
    found: list[str] = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            part = _first(part, (*CAPTION, "tokens"))
            part = " ".join(map(str, part)) if isinstance(part, list) else part
        if not isinstance(part, str):
            return [], "has no caption" if value is None else "has a caption that is not a string"
        found.append(part)
    return found, "" if found else "has no caption"


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of these keys that is there and not null."""
    return next((item[key] for key in keys if item.get(key) is not None), None)
