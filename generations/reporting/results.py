"""Gather what a run has written: figures, written captions, painted pictures."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generations.datasets import ImageRecord
from generations.errors import UserError
from generations.features import find_images
from generations.files import read_json

NAME = re.compile(r"(?P<group>.+?)(?:_(?P<iteration>\d+))?")  # captions_test_0000200


@dataclass(frozen=True)
class Painting:
    """A caption, the picture painted from it, and the image the caption is of, if there is one."""

    caption: str
    painted: Path
    real: Path | None


@dataclass(frozen=True)
class Writing:
    """An image, the caption written of it, and those people wrote."""

    image: Path | None
    caption: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """What there is of a run.

    Attributes:
        figures: name of the samples, such as captions_test -> figure -> value.
        paintings: in the manifest's order.
        writings: in the file's order.
        iteration: of the newest of these; None if there is nothing.
        notes: what is missing or does not fit together, for the reader.
    """

    figures: dict[str, dict[str, float]]
    paintings: list[Painting]
    writings: list[Writing]
    iteration: int | None
    notes: list[str]

    def summary(self) -> dict[str, Any]:
        """Flat: figures of the test split and counts."""
        summary: dict[str, Any] = {"iteration": self.iteration}
        for group, figures in sorted(self.figures.items()):
            if group.endswith("_test"):
                summary |= figures
        summary["captions_written"] = len(self.writings)
        summary["images_painted"] = len(self.paintings)
        return summary


class RealImages:
    """Finds the images that captions are of.

    Args:
        records: the captioned images; may be empty.
        folder: of the images; None if unknown.
    """

    def __init__(self, records: Iterable[ImageRecord], folder: Path | None):
        self._records = {record.image_id: record for record in records}
        self._ids = {record.name: record.image_id for record in self._records.values()}
        self._files: dict[int, Path | None] = {}
        if folder is not None and folder.is_dir():
            # a dataset's images may lie in other folders than its captions file says
            files = find_images(folder, [record.path for record in self._records.values()])
            self._files = dict(zip(self._records, files, strict=True))

    def path(self, image_id: int | None = None, name: str | None = None) -> Path | None:
        """File of an image given by its id or its name; None if there is none."""
        return self._files.get(self._ids.get(name or "", -1) if image_id is None else image_id)

    def captions(self, image_id: int) -> tuple[str, ...]:
        """What people wrote of it."""
        record = self._records.get(image_id)
        return record.captions if record else ()


def gather(folder: Path, painted_folder: Path, images: RealImages) -> Results:
    """Gather the newest results of a run's test split. What is missing becomes a note.

    Args:
        folder: of the run, with metrics_*.json and captions_test_<iteration>.json.
        painted_folder: with images_test_<iteration>/manifest.json.
        images: the real ones.

    Raises:
        UserError: a file is there but broken.
    """
    notes: list[str] = []
    scored = _newest(folder.glob("metrics_*.json"))
    figures = read_figures(folder)
    if not figures:
        notes.append("No metrics yet: evaluate.py scores the samples.")
    written = _newest(folder.glob("captions_test_*.json")).get("captions_test")
    writings = _read_writings(written[1], images) if written else []
    if not written:
        notes.append("No captions written yet: inference.py writes them.")
    painted = _newest(path.parent for path in painted_folder.glob("images_test_*/manifest.json"))
    paintings: list[Painting] = []
    if "images_test" in painted:
        paintings = _read_paintings(painted["images_test"][1] / "manifest.json", images, notes)
    else:
        notes.append("No pictures painted yet: sample_images.py paints them.")
    found = [item.real for item in paintings] + [item.image for item in writings]
    if found and not any(found):
        notes.append("The real images are not shown: images_dir does not hold them.")
    parts = {
        "figures": scored.get("metrics_captions_test"),
        "captions": written,
        "pictures": painted.get("images_test"),
    }
    made = {what: part[0] for what, part in parts.items() if part and part[0] is not None}
    if len(set(made.values())) > 1:
        listed = ", ".join(f"{what} {number}" for what, number in made.items())
        notes.append(f"These results are of different iterations: {listed}.")
    return Results(figures, paintings, writings, max(made.values(), default=None), notes)


def read_figures(folder: Path) -> dict[str, dict[str, float]]:
    """The newest figures of a run: name of the samples, such as captions_test -> figure -> value.

    Raises:
        UserError: a file is there but broken.
    """
    scored = _newest(folder.glob("metrics_*.json"))
    return {
        group.removeprefix("metrics_"): _read_figures(path) for group, (_, path) in scored.items()
    }


def _newest(paths: Iterable[Path]) -> dict[str, tuple[int | None, Path]]:
    """Of the files <group>_<iteration>.* of each group that of the highest iteration."""
    newest: dict[str, tuple[int | None, Path]] = {}
    for path in paths:
        match = NAME.fullmatch(path.stem)
        assert match is not None, path
        iteration = int(match["iteration"]) if match["iteration"] else None
        before = newest.get(match["group"])
        if before is None or (iteration or 0) > (before[0] or 0):
            newest[match["group"]] = (iteration, path)
    return newest


def _read_figures(path: Path) -> dict[str, float]:
    content = read_json(path, "metrics")
    figures = content.get("figures") if isinstance(content, dict) else None
    if not isinstance(figures, dict):
        raise UserError(f"metrics: {path} holds no figures; run evaluate.py again")
    if not all(isinstance(value, (int, float)) for value in figures.values()):
        raise UserError(f"metrics: {path} holds figures that are no numbers; run evaluate.py again")
    return {str(name): float(value) for name, value in figures.items()}


def _read_writings(path: Path, images: RealImages) -> list[Writing]:
    return [
        Writing(
            images.path(entry["image_id"]), entry["caption"], images.captions(entry["image_id"])
        )
        for entry in _entries(read_json(path, "captions"), path, {"image_id": int, "caption": str})
    ]


def _read_paintings(manifest: Path, images: RealImages, notes: list[str]) -> list[Painting]:
    content = read_json(manifest, "manifest")
    items = content.get("items") if isinstance(content, dict) else None
    paintings = [
        Painting(
            item["caption"],
            manifest.parent / Path(item["file"]).name,
            images.path(item.get("image_id"), item.get("image_name")),
        )
        for item in _entries(items, manifest, {"file": str, "caption": str})
    ]
    there = [item for item in paintings if item.painted.is_file()]
    if len(there) < len(paintings):
        notes.append(
            f"{len(paintings) - len(there)} of {len(paintings)} painted pictures are gone from "
            f"{manifest.parent.name}."
        )
    return there


def _entries(found: Any, path: Path, keys: dict[str, type]) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), keys[key]) for key in keys)
        for entry in found
    ):
        raise UserError(f"{path} must list entries with {' and '.join(keys)}; make it again")
    return found
