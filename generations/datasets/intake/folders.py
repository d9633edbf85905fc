"""Which files of a folder hold the captions."""

import re
from collections.abc import Sequence
from pathlib import Path

from generations.datasets.intake.pairs import has_pairs
from generations.datasets.karpathy import Problem, split_name
from generations.errors import UserError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
USUAL_NAMES = ("metadata", "captions")
FORMS = (
    "Karpathy's or COCO's JSON, a JSON list of images and captions, .jsonl, .csv, .tsv, "
    "Flickr8k.token.txt, tars, or a folder of pictures and text files"
)
Parts = list[tuple[Path, str | None]]


def plan_folder(folder: Path) -> tuple[str, Parts]:
    """What a folder is, and its files, each with the split that its name says.

    Returns:
        "COCO" (train and val), "splits" (a file for each), "tars", "pairs" (no files), or "one"
        for a single file.

    Raises:
        UserError: none of these, or it is not clear which file.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"captions_file {folder} cannot be read: {error}") from None
    if any(re.fullmatch(r"captions_(train|val).*\.json", path.name) for path in files):
        return "COCO", _coco_parts(folder)
    if tokens := [path for path in files if _is_token_name(path.name)]:
        return "one", [(_only(folder, tokens), None)]
    if parts := _parts(folder, files):
        return "splits", parts
    if usual := [
        path
        for path in files
        if path.suffix in (*SUFFIXES, ".txt") and path.stem.lower() in USUAL_NAMES
    ]:
        return "one", [(_only(folder, usual), None)]
    if tars := [path for path in files if ".tar" in path.suffixes[-2:]]:
        return "tars", [(path, None) for path in tars]
    if has_pairs(folder):
        return "pairs", []
    return "one", [(_only(folder, [path for path in files if path.suffix in SUFFIXES]), None)]


def _is_token_name(name: str) -> bool:
    return re.search(r"\.token(\.txt)?$", name) is not None and ".lemma." not in name


def _coco_parts(folder: Path) -> Parts:
    found: Parts = []
    for part in ("train", "val"):
        paths = sorted(folder.glob(f"captions_{part}*.json"))
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths) or "none"
            raise UserError(
                f"captions_file {folder}: the folder must have one captions_{part}*.json, but has "
                f"{names}; give one file, or a folder with one of each"
            )
        found.append((paths[0], "train" if part == "train" else None))
    return found


def _parts(folder: Path, files: Sequence[Path]) -> Parts:
    """Files for single splits: train.csv, coco_karpathy_val.json, test/metadata.jsonl; or []."""
    found: dict[str, list[Path]] = {}
    named = [(path, path.stem) for path in files if path.suffix in SUFFIXES]
    below = sorted(path for path in folder.glob("*/metadata.*") if path.suffix in SUFFIXES)
    for path, name in [*named, *((path, path.parent.name) for path in below)]:
        splits = {split for word in re.split(r"[^A-Za-z0-9]+", name) if (split := _split(word))}
        if len(splits) == 1:
            found.setdefault(splits.pop(), []).append(path)
    if "train" not in found or len(found) < 2:
        return []
    return [(_only(folder, paths), split) for split, paths in found.items()]


def _split(word: str) -> str:
    try:
        return split_name(word, "")
    except Problem:
        return ""


def _only(folder: Path, paths: Sequence[Path]) -> Path:
    if len(paths) == 1:
        return paths[0]
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:5]) or "none found"
    raise UserError(
        f"captions_file {folder}: cannot tell which file of the folder has the captions ({names}); "
        f"give one file: {FORMS}"
    )
