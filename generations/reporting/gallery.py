"""The galleries of the report page: what is in them, and where their pictures are.

Texts and scores are JSON in the page. The pictures of a small run are there too, so that one file
is all. Those of a large run are put into packs beside the page, scripts that the page loads when
their cards come up: 60,000 pictures would make a page that no browser opens, a script can be
loaded from file:// (which `fetch` cannot), and some hundred packs are copied and moved sooner than
60,000 files and do not depend on where the real images are.
"""

import base64
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from generations.files import write_text
from generations.progress import progress_bar
from generations.reporting.pictures import read_picture
from generations.reporting.results import Painting, Results, Writing

ONE_FILE_UP_TO = 1000  # entries of a page that holds its pictures itself
FOLDER = "report_files"  # of the packs, beside the page
PACK = 60  # pictures a pack; a page of cards in the order of their scores needs many packs
SIDE_EMBEDDED, SIDE_PACKED = 256, 160  # most pixels a side
EXACT_UP_TO = 128  # smaller pictures are kept exact
SCORES = ("clip_score", "caption_clip_score", "cider_d", "bleu4")  # of cards, if they were measured


@dataclass(frozen=True)
class Gallery:
    """Cards and pictures.

    Attributes:
        cards: name of the gallery -> what gallery.js makes cards of.
        totals: how many cards there would be of each.
        pictures: files that the cards name by their places here.
    """

    cards: dict[str, dict[str, Any]]
    totals: dict[str, int]
    pictures: list[Path]

    @property
    def entries(self) -> int:
        """Cards in all galleries."""
        return sum(len(part["entries"]) for part in self.cards.values())


def lay_out(results: Results, labels: Mapping[str, str], most: int | None = None) -> Gallery:
    """Make cards of what a run has made.

    Args:
        results: of the run.
        labels: figure -> how it is called.
        most: cards of each gallery; None: all.
    """
    places: dict[Path, int] = {}  # a picture that several cards show is kept once

    def place(path: Path | None) -> int:
        return -1 if path is None else places.setdefault(path, len(places))

    def entry(item: Painting | Writing, scores: Sequence[str]) -> dict[str, Any]:
        is_painting = isinstance(item, Painting)
        shown = (item.painted, item.real) if is_painting else (item.image,)
        values = [item.scores.get(name) for name in scores]
        return {
            "text": item.caption,
            "pictures": [place(path) for path in shown],
            "references": [] if is_painting else list(item.references),
            "scores": [None if value is None else round(value, 4) for value in values],
        }

    cards: dict[str, dict[str, Any]] = {}
    totals: dict[str, int] = {}
    items: tuple[tuple[str, Sequence[Painting | Writing]], ...]
    items = (("painted", results.paintings), ("written", results.writings))
    for name, found in items:
        measured = [score for score in SCORES if any(score in item.scores for item in found)]
        totals[name] = len(found)
        cards[name] = {
            "scores": [{"name": score, "label": labels.get(score, score)} for score in measured],
            "entries": [entry(item, measured) for item in found[:most]],
        }
    return Gallery(cards, totals, list(places))


def one_file(gallery: Gallery) -> dict[str, Any]:
    """What gallery.js reads, with the pictures in it."""
    with progress_bar(len(gallery.pictures), "pictures", "picture") as bar:
        pictures = []
        for source in data_uris(gallery.pictures, SIDE_EMBEDDED):
            pictures.append(source)
            bar.update()
    return {"galleries": gallery.cards, "pictures": pictures}


def beside(gallery: Gallery, parent: Path) -> dict[str, Any]:
    """What gallery.js reads, with the pictures in packs in `parent`/report_files.

    Earlier packs there are replaced when all new ones are written.
    """
    with (
        tempfile.TemporaryDirectory(prefix=".report-", dir=parent) as draft,
        progress_bar(len(gallery.pictures), "pictures", "picture") as bar,
    ):
        sources = data_uris(gallery.pictures, SIDE_PACKED)
        for number, first in enumerate(range(0, len(gallery.pictures), PACK)):
            pack = [next(sources) for _ in gallery.pictures[first : first + PACK]]
            text = f"picturePack({number},{as_json(pack)});\n"
            (Path(draft) / f"pictures_{number:05d}.js").write_text(text, encoding="utf-8")
            bar.update(len(pack))
        remove_packs(parent)
        (parent / FOLDER).mkdir(exist_ok=True)
        for path in Path(draft).iterdir():
            path.replace(parent / FOLDER / path.name)
    return {"galleries": gallery.cards, "folder": FOLDER, "packSize": PACK}


def remove_packs(parent: Path) -> None:
    """Remove the packs of an earlier page, and their folder if nothing else is in it."""
    folder = parent / FOLDER
    if folder.is_dir():
        for path in folder.glob("pictures_*.js"):
            path.unlink()
        if not any(folder.iterdir()):
            shutil.rmtree(folder)


def as_json(value: Any) -> str:
    """JSON that may stand in a script element: without "<", which could end it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def data_uris(paths: Sequence[Path], side: int) -> Iterator[str | None]:
    """Pictures as data URIs, in order; None for one that cannot be read.

    Args:
        paths: the files.
        side: most pixels a side.
    """
    workers = os.cpu_count() or 1
    ahead = 64 * workers  # not all at once: a large run's would fill the memory
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(paths), ahead):
            part = paths[first : first + ahead]
            yield from pool.map(lambda path: data_uri(path, side), part)


def data_uri(path: Path, side: int = SIDE_EMBEDDED) -> str | None:
    """A picture as a data URI, at most `side` pixels a side; None if it cannot be read."""
    picture = read_picture(path, side)
    return None if picture is None else encode(picture, side)


def encode(picture: Image.Image, side: int = SIDE_EMBEDDED) -> str:
    """A picture in RGB as a data URI, at most `side` pixels a side."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    exact = max(picture.size) <= EXACT_UP_TO
    buffer = io.BytesIO()
    if exact:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=85)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- what stands in the page ---------------------------------------------------------------------

SECTION = """<p class="lead">{lead}</p>
<div data-gallery="{name}">
<div class="bar" role="search">
<input type="search" placeholder="filter by word" aria-label="filter {name} by word">
<label>order <select><option value="">as listed</option></select></label>
<div class="pager"><button type="button" aria-label="first page">«</button>
<button type="button" aria-label="page before">‹</button><output aria-live="polite"></output>
<button type="button" aria-label="next page">›</button>
<button type="button" aria-label="last page">»</button></div>
</div>
<div class="grid"></div>
</div>
<noscript><p class="none">The gallery needs JavaScript.</p></noscript>"""


def framed(
    source: str, description: str = "", again: Sequence[int] = (), grid_size: int = 1
) -> str:
    """A picture, as HTML, some cells of whose grid are dark.

    Args:
        source: a data URI.
        description: what is on it.
        again: the cells, numbered row by row.
        grid_size: G.
    """
    cells = "".join(
        f'<rect x="{cell % grid_size}" y="{cell // grid_size}" width="1" height="1"/>'
        for cell in again
    )
    overlay = f'<svg viewBox="0 0 {grid_size} {grid_size}" aria-hidden="true">{cells}</svg>'
    return (
        f'<div class="frame"><img src="{source}" alt="{escape(description)}">'
        f"{overlay if cells else ''}</div>"
    )


def section(gallery: Gallery, name: str, what: str) -> str:
    """A gallery's place in the page; empty if it has no cards."""
    shown, total = len(gallery.cards[name]["entries"]), gallery.totals[name]
    if not shown:
        return ""
    count = f"The first {shown:,} of {total:,}" if shown < total else f"All {total:,}"
    return SECTION.format(lead=escape(f"{count} {what}."), name=name)


def extremes(gallery: Gallery) -> str:
    """The places of the best and the worst by CLIPScore; empty if that was not measured."""
    parts = []
    for name, what in (("painted", "pictures"), ("written", "captions")):
        scores = [score["name"] for score in gallery.cards[name]["scores"]]
        if any(score.endswith("clip_score") for score in scores):
            parts += [
                f'<h3>{end.capitalize()} {what}</h3><div class="grid" '
                f'data-extremes="{name} {end}"></div>'
                for end in ("best", "worst")
            ]
    return "\n".join(parts)


def write_gallery(gallery: Gallery, parent: Path, one_file_up_to: int = ONE_FILE_UP_TO) -> str:
    """Put the pictures where they belong; returns the JSON for the page.

    Args:
        gallery: cards and pictures.
        parent: the folder of the page.
        one_file_up_to: entries of a page that holds its pictures itself.
    """
    if gallery.entries <= one_file_up_to:
        return as_json(one_file(gallery))
    return as_json(beside(gallery, parent))


def write_page(path: Path, page: str, packed: bool) -> None:
    """Write the page; one that holds its pictures itself leaves no packs of an earlier one."""
    write_text(path, page)
    if not packed:
        remove_packs(path.parent)
