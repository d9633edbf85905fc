"""Pictures with a text file of the same name, in a folder or in tars (img2dataset, webdataset)."""

import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from generations.datasets.intake.entries import PICTURES, Entries
from generations.datasets.intake.texts import decode, read_bytes
from generations.datasets.karpathy import Problem, file_of, split_name
from generations.datasets.tally import Tally
from generations.errors import UserError
from generations.files import atomic_path, short

TEXTS = (".txt", ".caption")
MOST_TEXT, MOST_PICTURE = 2**20, 2**28  # bytes


def is_tar(path: Path) -> bool:
    """Whether a file is a tar or the beginning of a compressed one says so by its name."""
    return ".tar" in path.suffixes[-2:] or read_bytes(path, 263)[257:262] == b"ustar"


# --- folders -------------------------------------------------------------------------------------


def has_pairs(folder: Path) -> bool:
    """Whether a picture in a folder, or below, has a text of its name."""
    return any(pictures.keys() & texts.keys() for pictures, texts in _walk(folder))


def read_pairs(folder: Path, entries: Entries, tally: Tally) -> None:
    """Add the pairs of a folder and all below to `entries`; each line of a text is a caption."""
    found: list[tuple[str, list[str]]] = []
    for pictures, texts in _walk(folder):
        for stem in sorted(pictures.keys() & texts.keys()):
            found.append(
                (
                    pictures[stem],
                    _lines(read_bytes(Path(folder, texts[stem])), str(folder / texts[stem]), tally),
                )
            )
        _orphans(pictures.keys() - texts.keys(), texts.keys() - pictures.keys(), tally)
    _add_all(found, entries, tally)


def _walk(folder: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Of each folder {stem: path} of its pictures, and of its texts."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        below = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        pictures: dict[str, str] = {}
        texts: dict[str, str] = {}
        for name in sorted(names):
            path = PurePosixPath(below, name)
            kind = path.suffix.lower()
            if kind in PICTURES:
                pictures[path.stem] = str(path)
            elif kind in TEXTS:
                texts[path.stem] = str(path)
        yield pictures, texts


# --- tars ----------------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """A damaged header is an error and not the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):  # so it is the end
                raise
            raise tarfile.ReadError(str(error)) from None


def read_tars(
    paths: Sequence[Path], entries: Entries, tally: Tally, unpack_to: Path | None
) -> None:
    """Add the pairs of tars to `entries`, each tar read once from its beginning to its end.

    A caption is the member `.txt`, a line each, or else the key "caption" of the member `.json`.

    Args:
        paths: of the tars.
        entries: what is added to.
        tally: counts pictures without text and texts without picture.
        unpack_to: folder that the pictures are written into; None: they are not.

    Raises:
        UserError: a tar that is damaged, or the folder cannot be written.
    """
    pictures: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    origin: dict[str, Path] = {}
    for path in paths:
        for name, content in _members(path, tally, unpack_to):
            kind = PurePosixPath(name).suffix
            stem = name.removesuffix(kind)
            if kind.lower() in PICTURES:
                if stem in pictures:
                    entries.add(f"in {path.name}", name, fault=f"is also in {origin[stem].name}")
                pictures[stem], origin[stem] = name, path
            elif kind.lower() == ".json":
                texts.setdefault(stem, _caption_of(content))
            else:
                texts[stem] = _lines(content, f"{path}: {name}", tally)
    texts = {stem: lines for stem, lines in texts.items() if lines}
    _orphans(pictures.keys() - texts.keys(), texts.keys() - pictures.keys(), tally)
    _add_all([(pictures[stem], texts[stem]) for stem in pictures if stem in texts], entries, tally)


def _members(path: Path, tally: Tally, unpack_to: Path | None) -> Iterator[tuple[str, bytes]]:
    """Name and content of texts, and names of pictures, which are unpacked as they come."""
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                kind = PurePosixPath(name).suffix.lower()
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    continue
                if kind in PICTURES and _taken(name, member.size, MOST_PICTURE, tally):
                    if unpack_to is not None:
                        _unpack(archive, member, unpack_to / name)
                    yield name, b""
                elif kind in (*TEXTS, ".json") and _taken(name, member.size, MOST_TEXT, tally):
                    stream = archive.extractfile(member)
                    yield name, stream.read() if stream else b""
    except FileNotFoundError:
        raise UserError(f"captions {path} does not exist") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"captions {path} cannot be read completely ({short(error)}): download or write it "
            "again"
        ) from None


def _taken(name: str, size: int, most: int, tally: Tally) -> bool:
    try:
        file_of({"file": name}, "file", 0)
    except Problem:
        tally.left_out["members of tars with paths outside of their folder"] += 1
        return False
    if size > most:
        tally.left_out[f"members of tars larger than {most:,} bytes"] += 1
        return False
    return True


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> None:
    """Write a picture, unless an earlier call has done it."""
    if file.is_file() and file.stat().st_size == member.size:
        return
    stream = archive.extractfile(member)
    with atomic_path(file, durable=False) as temporary:
        temporary.write_bytes(stream.read() if stream else b"")


def _caption_of(content: bytes) -> list[str]:
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return []
    caption = found.get("caption") if isinstance(found, dict) else None
    return [caption] if isinstance(caption, str) and caption.strip() else []


# --- both ----------------------------------------------------------------------------------------


def _lines(content: bytes, name: str, tally: Tally) -> list[str]:
    text, not_utf8 = decode(content, name)
    if not_utf8:
        tally.changed["text files that are not UTF-8, read as Windows-1252"] += 1
    return [line for line in text.splitlines() if line.strip()]


def _orphans(pictures: Any, texts: Any, tally: Tally) -> None:
    if pictures:
        tally.left_out["pictures without a text file"] += len(pictures)
    if texts:
        tally.left_out["text files without a picture"] += len(texts)


def _add_all(found: Sequence[tuple[str, list[str]]], entries: Entries, tally: Tally) -> None:
    """Add pairs; if all lie in folders named as splits are, these are their splits."""
    splits: dict[str, str] = {}
    for top in {name.partition("/")[0] for name, _ in found}:
        try:
            splits[top] = split_name(top, top)
        except Problem:
            splits = {}
            break
    if splits:
        tally.notes.append(f"splits of the folders {', '.join(sorted(splits))}")
    for name, captions in found:
        split = splits.get(name.partition("/")[0])
        entries.add(name, name, captions, split, fault="" if captions else "has an empty text file")
