"""Gather what a run has written: figures, written captions, painted pictures."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generations.datasets import ImageRecord
from generations.errors import UserError
from generations.features import find_images
from generations.files import read_json

NAME = re.compile(r"(?P<group>.+?)(?:_(?P<iteration>\d+))?")  # captions_test_0000200


@dataclass(frozen=True)
class Painting:
    """A caption, the picture painted from it, and the image the caption is of, if there is one.

    The scores are those of this one picture: figure -> value.
    """

    caption: str
    painted: Path
    real: Path | None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Writing:
    """An image, the caption written of it, those people wrote, and the caption's scores."""

    image: Path | None
    caption: str
    references: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """How a picture came about.

    Attributes:
        caption: that was painted.
        pictures: after each step of mask-predict.
        again: for each step, the cells that were masked again after it.
        grid_size: G; cells are numbered row by row.
    """

    caption: str
    pictures: list[Path]
    again: list[list[int]]
    grid_size: int


@dataclass(frozen=True)
class Results:
    """What there is of a run.

    Attributes:
        figures: name of the samples, such as captions_test -> figure -> value.
        paintings: in the manifest's order.
        writings: in the file's order.
        iteration: of the newest of these; None if there is nothing.
        notes: what is missing or does not fit together, for the reader.
        traces: of some paintings.
    """

    figures: dict[str, dict[str, float]]
    paintings: list[Painting]
    writings: list[Writing]
    iteration: int | None
    notes: list[str]
    traces: list[Trace] = field(default_factory=list)

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
        if image_id is None and isinstance(name, str):
            image_id = self._ids.get(name)
        return self._files.get(image_id) if isinstance(image_id, int) else None

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
        notes.append("No metrics yet: run evaluate.py.")
    written = _newest(folder.glob("captions_test_*.json")).get("captions_test")
    writings = _read_writings(written, images, scored) if written else []
    if not written:
        notes.append("No captions yet: run inference.py.")
    painted = _newest(path.parent for path in painted_folder.glob("images_test_*/manifest.json"))
    paintings: list[Painting] = []
    traces: list[Trace] = []
    if "images_test" in painted:
        paintings = _read_paintings(painted["images_test"], images, scored, notes)
        traces = _read_traces(painted["images_test"][1] / "steps.json")
    else:
        notes.append("No pictures yet: run sample_images.py.")
    found = [item.real for item in paintings] + [item.image for item in writings]
    if found and not any(found):
        notes.append("The real images are not shown, because they are not in images_dir.")
    parts = {
        "figures": scored.get("metrics_captions_test"),
        "captions": written,
        "pictures": painted.get("images_test"),
    }
    made = {what: part[0] for what, part in parts.items() if part and part[0] is not None}
    if len(set(made.values())) > 1:
        listed = ", ".join(f"{what} {number}" for what, number in made.items())
        notes.append(f"These results come from different iterations: {listed}.")
    iteration = max(made.values(), default=None)
    return Results(figures, paintings, writings, iteration, notes, traces)


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
        if match is None:  # not of ours
            continue
        iteration = int(match["iteration"]) if match["iteration"] else None
        before = newest.get(match["group"])
        if before is None or (iteration or 0) > (before[0] or 0):
            newest[match["group"]] = (iteration, path)
    return newest


def _read_figures(path: Path) -> dict[str, float]:
    content = read_json(path, "metrics")
    figures = content.get("figures") if isinstance(content, dict) else None
    if not isinstance(figures, dict):
        raise UserError(f"metrics: {path} has no metrics; run evaluate.py again")
    try:
        if not all(isinstance(value, (int, float)) for value in figures.values()):
            raise ValueError
        return {str(name): float(value) for name, value in figures.items()}
    except (ValueError, OverflowError):  # JSON's numbers have no end
        raise UserError(
            f"metrics: {path} has values that are not numbers; run evaluate.py again"
        ) from None


Newest = tuple[int | None, Path]  # an iteration, and what is of it


def _read_writings(
    written: Newest, images: RealImages, scored: Mapping[str, Newest]
) -> list[Writing]:
    iteration, path = written
    scores = _item_scores(scored.get("metrics_captions_test"), iteration, "image_id")
    return [
        Writing(
            images.path(entry["image_id"]),
            entry["caption"],
            images.captions(entry["image_id"]),
            scores.get(entry["image_id"], {}),
        )
        for entry in _entries(read_json(path, "captions"), path, {"image_id": int, "caption": str})
    ]


def _read_paintings(
    painted: Newest, images: RealImages, scored: Mapping[str, Newest], notes: list[str]
) -> list[Painting]:
    iteration, folder = painted
    manifest = folder / "manifest.json"
    content = read_json(manifest, "manifest")
    items = content.get("items") if isinstance(content, dict) else None
    scores = _item_scores(scored.get("metrics_images_test"), iteration, "file")
    paintings = [
        Painting(
            item["caption"],
            folder / Path(item["file"]).name,
            images.path(item.get("image_id"), item.get("image_name")),
            scores.get(item["file"], {}),
        )
        for item in _entries(items, manifest, {"file": str, "caption": str})
    ]
    there = [item for item in paintings if item.painted.is_file()]
    if len(there) < len(paintings):
        notes.append(
            f"{len(paintings) - len(there)} of {len(paintings)} painted pictures are gone from "
            f"{folder.name}."
        )
    return there


def _item_scores(
    found: Newest | None, iteration: int | None, key: str
) -> dict[Any, dict[str, float]]:
    """What `evaluate.py --per-item` says of each sample of this iteration; often nothing."""
    if found is None or found[0] != iteration:
        return {}
    content = read_json(found[1], "metrics")
    items = content.get("per_item", []) if isinstance(content, dict) else []
    return {
        item[key]: {
            name: value
            for name, value in item.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and isinstance(item.get(key), (int, str))
    }


def _read_traces(path: Path) -> list[Trace]:
    """Steps that `sample_images.py` kept; those whose pictures are gone are left out."""
    if not path.exists():
        return []
    content = read_json(path, "painting steps")
    items = content.get("items") if isinstance(content, dict) else None
    traces = []
    for item in _entries(items, path, {"caption": str, "steps": list, "grid_size": int}):
        steps = _entries(item["steps"], path, {"file": str, "again": list})
        files = [path.parent / "steps" / Path(step["file"]).name for step in steps]
        if all(file.is_file() for file in files):
            again = [[cell for cell in step["again"] if type(cell) is int] for step in steps]
            traces.append(Trace(item["caption"], files, again, item["grid_size"]))
    return traces


def _entries(found: Any, path: Path, keys: dict[str, type]) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), keys[key]) for key in keys)
        for entry in found
    ):
        raise UserError(
            f"{path} must be a list of entries with {' and '.join(keys)}; make it again"
        )
    return found
