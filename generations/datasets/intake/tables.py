"""Tables: a row for each caption, the columns named in the first line."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from generations.datasets.intake.entries import PICTURES, Entries
from generations.datasets.tally import Tally
from generations.errors import UserError

IMAGE = ("image", "path", "file", "filename", "filepath", "img", "picture")
IMAGE += ("image_path", "image_file", "image_name", "image_filename", "img_path")
CAPTION = ("caption", "captions", "text", "title", "sentence", "description", "comment", "raw")
SPLIT = ("split", "subset", "partition", "set")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True)
class _Columns:
    separator: str
    count: int
    image: int
    caption: int
    split: int | None


def read_table(text: str, path: Path, entries: Entries, tally: Tally) -> None:
    """Add the rows of a table to `entries`.

    Raises:
        UserError: no header, or one that does not name the columns; quotes that never end.
    """
    lines = text[:100_000].splitlines() or [""]
    skip = int(lines[0].lower().startswith("sep=") and len(lines[0]) <= 6)  # written for Excel
    first = next((line for line in lines[skip:] if line.strip()), "")
    columns = _columns(first, path)
    tally.notes.append(f"a table with columns separated by {SEPARATORS[columns.separator]}s")
    entries.once = True
    rows = _rows(text, path, columns.separator, skip)
    next(rows, None)
    for line, row in rows:
        place = f"line {line}"
        name = row[columns.image] if columns.image < len(row) else ""
        if len(row) > columns.count and not any(map(str.strip, row[columns.count :])):
            row = row[: columns.count]
        if len(row) != columns.count:
            entries.add(place, name, fault=_of_another_length(row, columns))
            continue
        split = None if columns.split is None else row[columns.split]
        entries.add(place, name, [row[columns.caption]], split)


def _of_another_length(row: Sequence[str], columns: _Columns) -> str:
    return (
        f"has {len(row)} fields and the header {columns.count} (a caption with "
        f"{SEPARATORS[columns.separator]}s needs quotes around it)"
    )


def _rows(text: str, path: Path, separator: str, skip: int) -> Iterator[tuple[int, list[str]]]:
    """The number of the line that each row ends in, and its fields; empty lines are passed over."""
    quoting = csv.QUOTE_MINIMAL
    if separator in "\t|" and not _quotes_are_even(text, separator):
        quoting = csv.QUOTE_NONE  # of tables with tabs many have quotes that only are quotes
    stream = io.StringIO(text, newline="")
    for _ in range(skip):
        stream.readline()
    rows = csv.reader(stream, delimiter=separator, quoting=quoting, strict=True)
    try:
        for row in rows:
            if any(map(str.strip, row)):
                yield rows.line_num + skip, row
    except csv.Error as error:
        raise UserError(
            f"captions {path}: line {rows.line_num + skip} is not a valid row ({error}); check its "
            "quotes"
        ) from None


def _quotes_are_even(text: str, separator: str) -> bool:
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            if any("\n" in field for field in row):
                return False
    except csv.Error:
        return False
    return True


def _columns(header: str, path: Path) -> _Columns:
    """What the header says; the separator is the one under which it names the columns."""
    tried: list[list[str]] = []
    for separator in SEPARATORS:
        try:
            names = next(csv.reader([header], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        names = [_plain(name) for name in names]
        tried.append(names)
        image, caption, split = (_places(names, kind) for kind in (IMAGE, CAPTION, SPLIT))
        if len(image) == len(caption) == 1 and len(split) <= 1:
            return _Columns(
                separator, len(names), image[0], caption[0], split[0] if split else None
            )
    names = max(tried, key=len, default=[])
    said = ", ".join(map(repr, names))[:200]
    if any(name.endswith(PICTURES) for name in names):
        raise UserError(
            f"captions {path}: line 1 must be a header that names the columns, such as "
            f"image,caption or image,caption,split (or with tabs), but it is {said}"
        )
    raise UserError(
        f"captions {path}: the header in line 1 must name one column image (or "
        f"{', '.join(IMAGE[1:5])}, ...), one column caption (or {', '.join(CAPTION[2:4])}, ...) "
        f"and at most one column split, but it is {said}"
    )


def _plain(name: str) -> str:
    """A column's name in lower case: "File Name" is file_name."""
    return name.strip().strip("#").strip().lower().replace(" ", "_").replace("-", "_")


def _places(names: Sequence[str], kind: Sequence[str]) -> list[int]:
    """Where columns of a kind are; if one has the kind's own name, that alone."""
    names = ["filename" if name == "file_name" else name for name in names]
    names = ["filepath" if name == "file_path" else name for name in names]
    found = [place for place, name in enumerate(names) if name in kind]
    named = [place for place in found if names[place] == kind[0]]
    return named if named and kind is not IMAGE else found
