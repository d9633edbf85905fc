"""Seals: small files with the size and SHA-256 of a checkpoint, which show if it is damaged.

`model_0000200.pth.json` holds size and SHA-256 of each file of `model_0000200.pth`, and the score
of its test, if there was one. It is written before the checkpoint gets its name, so a checkpoint
of a run is whole if and only if it agrees with its seal. Checkpoints from elsewhere have none;
then their own checksums have to do.
"""

import hashlib
from pathlib import Path
from typing import Any

from generations.checkpoint.files import PTH_SUFFIXES, WEIGHTS_FILE, read_pth, read_safetensors
from generations.errors import UserError
from generations.files import read_json, write_json


def seal_path(path: Path) -> Path:
    """The seal of a checkpoint."""
    return path.with_name(f"{path.name}.json")


def write_seal(path: Path, written: Path) -> None:
    """Seal a checkpoint that still lies under a temporary name.

    Args:
        path: the name that it will get.
        written: file or folder.
    """
    files = sorted(written.iterdir()) if written.is_dir() else [written]
    facts = {
        file.name if written.is_dir() else path.name: {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        for file in files
    }
    write_json(seal_path(path), {"files": facts})


def note_score(path: Path, score: float) -> None:
    """Write the test score of a checkpoint into its seal."""
    if seal_path(path).exists():
        write_json(seal_path(path), {**_read(path), "score": score})


def score_of(path: Path) -> float | None:
    """The score in a checkpoint's seal, or None."""
    try:
        score = _read(path).get("score") if seal_path(path).exists() else None
    except UserError:
        return None
    return float(score) if isinstance(score, (int, float)) else None


def check_whole(path: Path) -> None:
    """Check a checkpoint against its seal, or against its own checksums if it has no seal.

    Raises:
        UserError: it is torn or damaged.
    """
    if not seal_path(path).exists():
        _check_unsealed(path)
        return
    files = _read(path)["files"]
    for name, facts in files.items():
        file = path / name if path.is_dir() else path
        try:
            size = file.stat().st_size
            if size != facts["bytes"]:
                raise UserError(f"{file} has {size} bytes, but {facts['bytes']} were written")
            if _sha256(file) != facts["sha256"]:
                raise UserError(f"{file} changed after it was written (its SHA-256 differs)")
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})") from None


def _check_unsealed(path: Path) -> None:
    if path.suffix in PTH_SUFFIXES:
        read_pth(path)
    else:
        read_safetensors(path / WEIGHTS_FILE)


def _read(path: Path) -> dict[str, Any]:
    seal = read_json(seal_path(path), "seal of a checkpoint")
    match seal:
        case {"files": {**files}} if files and all(
            isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys()
            for facts in files.values()
        ):
            return seal
    raise UserError(f"{seal_path(path)} is not a valid seal file of a checkpoint: delete it")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
