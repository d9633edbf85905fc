"""The rows of Table 1 to look at: captions that all of them painted, images that all captioned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from generations.reporting.pictures import (
    ACCENT,
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PAPER,
    font_of,
    square,
    wrap,
)
from generations.reporting.results import Painting, RealImages, Writing, gather
from generations.reporting.table import ROWS, RUN

PAINTED, WRITTEN = 6, 4  # captions and images that are shown
SIDE = 112  # of a picture, in pixels
WIDTH = (len(ROWS) + 1) * (SIDE + GAP) - GAP  # of the real picture and those of all rows
NAMES = 2 * SIDE  # of the rows' names beside an image


@dataclass(frozen=True)
class Samples:
    """What a row has made with one seed: caption -> its picture, image -> its caption."""

    title: str
    paintings: Mapping[str, Painting]
    writings: Mapping[Path, Writing]


def first_seed(folder: Path) -> int:
    """The seed that most runs of Table 1 in a folder have; of several the lowest."""
    seeds = [int(match["seed"]) for path in folder.iterdir() if (match := RUN.fullmatch(path.name))]
    return min(sorted(set(seeds)), key=lambda seed: -seeds.count(seed), default=0)


def samples_of(folder: Path, seed: int, images: RealImages) -> list[Samples]:
    """What each row of Table 1 has made with a seed, nothing where it has not come so far.

    Raises:
        UserError: a file of a run is there but broken.
    """
    found = []
    for row in ROWS:
        runs = {run: folder / f"{run}_seed{seed}" for run in (row.captions, row.pictures)}
        results = {run: gather(path, path, images) for run, path in runs.items()}
        paintings = {item.caption: item for item in results[row.pictures].paintings}
        writings = {item.image: item for item in results[row.captions].writings if item.image}
        found.append(Samples(row.title, paintings, writings))
    return found


def comparison_sheet(rows: Sequence[Samples]) -> Image.Image | None:
    """The first captions and images, as all rows painted and captioned them.

    Returns:
        A picture; None if no row has painted or captioned anything.
    """
    captions = _first([row.paintings for row in rows], PAINTED)
    images = _first([row.writings for row in rows], WRITTEN)
    parts = []
    if captions:
        parts.append(_heading("The same captions, painted by each row"))
        parts.append(_titles(["real", *(row.title for row in rows)]))
        parts += [_painted(caption, rows) for caption in captions]
    if images:
        parts.append(
            _heading("The same images, captioned by each row; in grey, a person's caption")
        )
        parts += [_written(image, rows) for image in images]
    if not parts:
        return None
    height = sum(part.height for part in parts)
    sheet = Image.new("RGB", (2 * MARGIN + WIDTH, 2 * MARGIN + height), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height
    return sheet


def _first(mappings: Sequence[Mapping[Any, object]], count: int) -> list[Any]:
    """The first keys of the first mapping that has any."""
    return next(([*mapping][:count] for mapping in mappings if mapping), [])


def _strip(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    strip = Image.new("RGB", (WIDTH, height), PAPER)
    return strip, ImageDraw.Draw(strip)


def _heading(text: str) -> Image.Image:
    strip, draw = _strip(44)
    draw.text((0, 8), text, ACCENT, font_of(18))
    return strip


def _titles(titles: Sequence[str]) -> Image.Image:
    """Column titles, at the bottom of their strip."""
    font = font_of(13)
    columns = [wrap(title, font, SIDE, 3) for title in titles]
    height = max(map(len, columns))
    strip, draw = _strip(height * LINE + 4)
    for column, lines in enumerate(columns):
        for place, line in enumerate(lines, height - len(lines)):
            draw.text((column * (SIDE + GAP), place * LINE), line, FAINT, font)
    return strip


def _painted(caption: str, rows: Sequence[Samples]) -> Image.Image:
    """A caption, the real image, and beside it each row's picture."""
    strip, draw = _strip(SIDE + LINE + 2 * GAP)
    found = [row.paintings.get(caption) for row in rows]
    real = next((item.real for item in found if item and item.real), None)
    for column, path in enumerate([real, *(item and item.painted for item in found)]):
        strip.paste(square(path, SIDE), (column * (SIDE + GAP), 0))
    font = font_of(15)
    (line,) = wrap(caption, font, strip.width, 1) or [""]
    draw.text((0, SIDE + 4), line, INK, font)
    return strip


def _written(image: Path, rows: Sequence[Samples]) -> Image.Image:
    """An image, and beside it each row's caption."""
    found = [(row.title, row.writings.get(image)) for row in rows]
    references = next((item.references for _, item in found if item), ())
    texts = [(title, item.caption or "(empty)" if item else "", INK) for title, item in found]
    texts += [("a person", text, FAINT) for text in references[:1]]
    strip, draw = _strip(max(SIDE, len(texts) * LINE) + 2 * GAP)
    strip.paste(square(image, SIDE), (0, 0))
    font, left = font_of(15), SIDE + GAP
    for place, (title, text, colour) in enumerate(texts):
        draw.text((left, place * LINE), title, FAINT, font)
        for line in wrap(text, font, strip.width - left - NAMES, 1):
            draw.text((left + NAMES, place * LINE), line, colour, font)
    return strip
