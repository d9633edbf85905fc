"""Reading pictures, and the contact sheet."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from generations.features.images import FORMATS
from generations.reporting.results import Painting, Writing

logger = logging.getLogger(__name__)

# a name that Pillow opens nothing by is an error; MPO, photographs of several, is opened as JPEG
OPENED = [name for name in FORMATS if name != "MPO"]
# the contact sheet, in pixels
SIDE, GAP, MARGIN, COLUMNS = 128, 12, 28, 3
CARD = 2 * SIDE + GAP + 96  # width of a card
LINE = 19  # height of a line of text
PAPER, INK, FAINT, ACCENT, ABSENT = "#ffffff", "#1c2430", "#7a8595", "#2f6fb0", "#e8ebef"


def read_picture(path: Path, side: int = 0) -> Image.Image | None:
    """A picture in RGB; None, with a warning, if it cannot be read.

    With a side, a JPEG may come smaller than it is, but not below that: that is quicker.
    """
    try:
        with Image.open(path, formats=OPENED) as picture:
            if side:
                picture.draft("RGB", (side, side))
            return picture.convert("RGB")
    except Exception as error:  # a damaged file can raise anything
        logger.warning("picture %s cannot be read: %s", path, error)
        return None


def contact_sheet(
    title: str, paintings: Sequence[Painting], writings: Sequence[Writing]
) -> Image.Image:
    """One picture that shows both directions.

    Args:
        title: its heading.
        paintings: painted beside real, under them the caption.
        writings: image, beside it the written caption and the first reference.
    """
    sections = [
        (heading, cards)
        for heading, cards in (
            (
                "From caption to picture: painted (left) beside the real one (right)",
                [_painting_card(item) for item in paintings],
            ),
            (
                "From image to caption: as written (dark), and by a person (grey)",
                [_writing_card(item) for item in writings],
            ),
        )
        if cards
    ]
    heights = [
        52 + -(-len(cards) // COLUMNS) * (cards[0].height + 2 * GAP) for _, cards in sections
    ]
    width = 2 * MARGIN + COLUMNS * CARD + (COLUMNS - 1) * 2 * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + 40 + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, font_of(26))
    top = MARGIN + 40
    for (heading, cards), height in zip(sections, heights, strict=True):
        draw.text((MARGIN, top + 14), heading, ACCENT, font_of(18))
        for place, card in enumerate(cards):
            row, column = divmod(place, COLUMNS)
            sheet.paste(
                card,
                (
                    MARGIN + column * (CARD + 2 * GAP),
                    top + 52 + row * (card.height + 2 * GAP),
                ),
            )
        top += height
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """Break text into at most `lines` lines of `width` pixels; "…" stands for the rest."""
    rows: list[str] = []
    words = text.split()
    while words and len(rows) < lines:
        row = words.pop(0)
        while words and font.getlength(f"{row} {words[0]}") <= width:
            row += f" {words.pop(0)}"
        rows.append(row)
    cut = bool(words)
    for place, row in enumerate(rows):
        more = cut and place == len(rows) - 1
        if more or font.getlength(row) > width:
            while row and font.getlength(f"{row}…") > width:
                row = row[:-1]
            rows[place] = f"{row.rstrip()}…"
    return rows


def _painting_card(item: Painting) -> Image.Image:
    card = Image.new("RGB", (CARD, SIDE + 6 + LINE * 2), PAPER)
    for place, path in enumerate((item.painted, item.real)):
        card.paste(square(path), (place * (SIDE + GAP), 0))
    _write(card, (0, SIDE + 6), [(item.caption, INK, 2)])
    return card


def _writing_card(item: Writing) -> Image.Image:
    card = Image.new("RGB", (CARD, SIDE), PAPER)
    card.paste(square(item.image), (0, 0))
    texts = [(item.caption or "(empty)", INK, 3)]
    texts += [(text, FAINT, 3) for text in item.references[:1]]
    _write(card, (SIDE + GAP, 2), texts)
    return card


def _write(
    card: Image.Image, corner: tuple[int, int], texts: Sequence[tuple[str, str, int]]
) -> None:
    """Write texts of a colour and a number of lines one under the other."""
    draw, font = ImageDraw.Draw(card), font_of(15)
    left, top = corner
    for text, colour, lines in texts:
        for row in wrap(text, font, card.width - left, lines):
            draw.text((left, top), row, colour, font)
            top += LINE
        top += 6


def square(path: Path | None, side: int = SIDE) -> Image.Image:
    """A picture fitted into a square of `side` pixels; a grey one if there is none."""
    square = Image.new("RGB", (side, side), ABSENT)
    picture = read_picture(path) if path else None
    if picture is not None:
        scale = side / max(picture.size)
        size = [max(1, round(length * scale)) for length in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font of sheets, `size` pixels high."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
