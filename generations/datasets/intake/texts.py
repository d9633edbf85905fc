"""Read text files in different encodings."""

import codecs
from pathlib import Path

from generations.datasets.tally import Tally
from generations.errors import UserError

FALLBACK = "cp1252"  # of Windows in Western Europe and America
_MARKS = {  # UTF-32's before UTF-16's, which it begins with
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {
    b"PK\x03\x04": "an Excel workbook or another zip: save the table as CSV UTF-8, or unpack it",
    b"PAR1": "Parquet: write it as CSV, for example with pandas' to_csv(index=False)",
    b"\x1f\x8b": "gzip: unpack it",
    b"\x89HDF": "HDF5: write a table or JSON",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


def read_text(path: Path, tally: Tally) -> str:
    """The text of a captions file; if the encoding was guessed, the tally notes it.

    Raises:
        UserError: the file cannot be read, is of a kind that holds no text, or in no known
            encoding.
    """
    content = read_bytes(path)
    for start, what in _OTHERS.items():
        if content.startswith(start):
            raise UserError(f"captions {path} is {what}")
    text, line = decode(content, str(path))
    if line:
        tally.notes.append(f"{path.name} as Windows-1252, because line {line} is not UTF-8")
    return text


def decode(content: bytes, name: str) -> tuple[str, int]:
    """Text by the mark at its beginning, else as UTF-8, else as Windows-1252; without marks.

    Returns:
        the text, and the first line that is not UTF-8, or 0.

    Raises:
        UserError: it is in none of these.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "")
    encoding, line = encoding or _without_mark(content[:200]), 0
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        try:
            text = content.decode(FALLBACK) if encoding == "utf-8" else "\0"
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise UserError(
                f"captions {name}: line {line} is not valid {encoding.upper()}; save the file as "
                "UTF-8"
            ) from None
    return text.replace("\ufeff", ""), line


def read_bytes(path: Path, most: int = -1) -> bytes:
    """A file's first bytes, or all of it; raises a UserError that names it."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise UserError(f"captions {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"captions {path} cannot be read: {error}") from None


def _without_mark(start: bytes) -> str:
    """UTF-16 is known by its zeros, in every second byte of Western texts."""
    half = len(start) // 2
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros, others = start[first::2].count(0), start[1 - first :: 2].count(0)
        if half > 1 and zeros > half * 3 // 4 and not others:
            return encoding
    return "utf-8"
