"""Flickr8k and Flickr30k as they come: `name.jpg#0<TAB>caption` lines, and lists of the splits."""

import re
from collections.abc import Mapping
from pathlib import Path

from generations.datasets.intake.entries import PICTURES, Entries
from generations.datasets.intake.texts import read_text
from generations.datasets.tally import Tally

_LINE = re.compile(r"(\S.*?)#\d+[\t ]+(.*)")
_LIST = re.compile(r"(train|dev|val|test)(images)?\.txt$", re.IGNORECASE)


def is_token_file(start: str) -> bool:
    """Whether a text begins as such a file does."""
    return bool(_LINE.match(start.lstrip()))


def read_tokens(text: str, entries: Entries, tally: Tally) -> None:
    """Add the lines to `entries`; keys that are no picture's name are left out and counted."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            entries.add(f"line {number}", "", fault="must be `name.jpg#0`, a tab and a caption")
        elif not found[1].lower().endswith(PICTURES):
            tally.left_out["captions whose key is not a picture"] += 1
        else:
            entries.add(f"line {number}", found[1], [found[2]])


def split_lists(folder: Path) -> dict[str, Path]:
    """The lists of the splits' pictures in a folder, by split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        if name := _LIST.search(path.name):
            found["val" if name[1].lower() == "dev" else name[1].lower()] = path
    return found if "train" in found and len(found) > 1 else {}


def apply_lists(lists: Mapping[str, Path], entries: Entries, tally: Tally) -> None:
    """Give the images the splits whose list names them; the others are left out and counted."""
    for split, path in lists.items():
        for number, line in enumerate(read_text(path, tally).splitlines(), 1):
            if not (name := entries.relative(line)):
                continue
            entry = entries.images.get(name)
            if entry is None:
                tally.left_out["images of split lists without captions"] += 1
            elif entry.split not in (None, split):
                names = f"{lists[entry.split].name} and in line {number} of {path.name}"
                entry.problem = entry.problem or f"is in {names}"
            else:
                entry.split = split
    names = ", ".join(path.name for path in lists.values())
    tally.notes.append(f"splits of {names}")
    for name, entry in list(entries.images.items()):
        if entry.split is None and not entry.problem:
            del entries.images[name]
            tally.left_out["images in no split list"] += 1
