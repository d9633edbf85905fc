"""Draws a mini-world scene: flat colours under one sky.

Where everything is follows from the scene alone; the random source only adds a jitter far below
one cell. Things fill whole cells of a 4 x 4 grid (small 1, big 2 x 2), and never overlap, so
that a few hundred different cells make up every picture. Lengths are in units of 1/64 of the
picture's width; a layout's are 8 units. The picture is drawn four times too
large and averaged down, which smooths the edges.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from generations.datasets.mini_world.scenes import Box, Scene, layout

OVERSAMPLING = 4
CELL = 8.0
JITTER = 0.3
"""Largest shift of a thing to either side."""

Color = tuple[int, int, int]

PAINT: dict[str, Color] = {
    "black": (40, 40, 46),
    "blue": (36, 92, 226),
    "green": (52, 186, 84),
    "pink": (244, 92, 182),
    "red": (222, 38, 42),
    "yellow": (255, 208, 28),
}
WHITE: Color = (252, 252, 250)
DARK: Color = (78, 56, 48)
ORANGE: Color = (245, 140, 36)
LEAF: Color = (86, 150, 60)
STEAM: Color = (168, 182, 204)
INK: Color = (70, 78, 110)

# One sky for all places: each sky of its own would need its own cell of everything in the air.
SKY: Color = (214, 236, 250)
# place -> (upper row of the ground, lower row of the ground)
GROUND: dict[str, tuple[Color, Color]] = {
    "beach": ((244, 221, 160), (231, 199, 128)),
    "field": ((150, 208, 104), (122, 186, 84)),
    "road": ((150, 152, 158), (122, 124, 130)),
    "sea": ((84, 170, 214), (58, 142, 196)),
    "snow": ((250, 252, 255), (222, 232, 244)),
}

SCALE = {"small": 15.2, "big": 31.2}
"""Height of a thing of a size."""


class _Pen:
    """Draws in one thing's own coordinates: x 0..1 to the right, y 0..1 down, (0.5, 1) its foot."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        unit: float,
        left: float = 0.0,
        top: float = 0.0,
        scale: float = 1.0,
    ):
        self._draw, self._unit, self._left, self._top, self._scale = draw, unit, left, top, scale

    def _pixels(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [
            (
                (self._left + x * self._scale) * self._unit,
                (self._top + y * self._scale) * self._unit,
            )
            for x, y in points
        ]

    def _frame(
        self, left: float, top: float, right: float, bottom: float
    ) -> tuple[float, float, float, float]:
        (x0, y0), (x1, y1) = self._pixels((left, top), (right, bottom))
        # Pillow paints the last column and row too: without -1 every shape would be one too wide.
        return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)

    def polygon(self, color: Color, *points: tuple[float, float]) -> None:
        self._draw.polygon(self._pixels(*points), fill=color)

    def box(self, color: Color, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.rectangle(self._frame(left, top, right, bottom), fill=color)

    def disc(self, color: Color, x: float, y: float, rx: float, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse(self._frame(x - rx, y - ry, x + rx, y + ry), fill=color)

    def dome(self, color: Color, x: float, y: float, rx: float, ry: float) -> None:
        """The upper half of an ellipse whose middle is (x, y)."""
        self._draw.pieslice(self._frame(x - rx, y - ry, x + rx, y + ry), 180, 360, fill=color)


def _ball(pen: _Pen, color: Color) -> None:
    pen.disc(color, 0.5, 0.5, 0.5)
    pen.disc(WHITE, 0.34, 0.3, 0.11)


def _bird(pen: _Pen, color: Color) -> None:
    pen.polygon(ORANGE, (0.8, 0.14), (0.98, 0.27), (0.8, 0.38))
    pen.polygon(color, (0.01, 0.26), (0.3, 0.46), (0.18, 0.76))
    pen.disc(color, 0.44, 0.62, 0.4, 0.32)
    pen.disc(color, 0.64, 0.25, 0.25)
    pen.disc(WHITE, 0.7, 0.22, 0.08)
    pen.box(DARK, 0.32, 0.9, 0.4, 1.0)
    pen.box(DARK, 0.5, 0.9, 0.58, 1.0)


def _boat(pen: _Pen, color: Color) -> None:
    pen.box(DARK, 0.46, 0.0, 0.54, 0.66)
    pen.polygon(WHITE, (0.58, 0.04), (0.98, 0.56), (0.58, 0.56))
    pen.polygon(WHITE, (0.42, 0.14), (0.42, 0.56), (0.1, 0.56))
    pen.polygon(color, (0.0, 0.66), (0.98, 0.66), (0.81, 0.98), (0.17, 0.98))


def _car(pen: _Pen, color: Color) -> None:
    waist, top = 0.52, 0.12
    pen.polygon(color, (0.14, waist), (0.28, top), (0.72, top), (0.86, waist))
    pen.polygon(WHITE, (0.26, waist), (0.34, top + 0.09), (0.46, top + 0.09), (0.46, waist))
    pen.polygon(WHITE, (0.54, waist), (0.54, top + 0.09), (0.66, top + 0.09), (0.74, waist))
    pen.box(color, 0.02, waist, 0.98, 0.86)
    for x in (0.23, 0.77):
        pen.disc(DARK, x, 0.85, 0.15)


def _cat(pen: _Pen, color: Color) -> None:
    pen.polygon(color, (0.06, 0.0), (0.06, 0.5), (0.46, 0.24))
    pen.polygon(color, (0.94, 0.0), (0.94, 0.5), (0.54, 0.24))
    pen.disc(color, 0.5, 0.58, 0.5, 0.42)
    for x in (0.3, 0.7):
        pen.disc(WHITE, x, 0.52, 0.1)
    pen.polygon(WHITE, (0.4, 0.72), (0.6, 0.72), (0.5, 0.84))


def _cup(pen: _Pen, color: Color) -> None:
    pen.disc(color, 0.79, 0.74, 0.2)
    pen.disc(WHITE, 0.79, 0.74, 0.1)
    pen.box(color, 0.08, 0.474, 0.75, 1.0)
    for x in (0.24, 0.415, 0.59):
        pen.box(STEAM, x - 0.04, 0.06, x + 0.04, 0.38)


def _flower(pen: _Pen, color: Color) -> None:
    pen.box(LEAF, 0.45, 0.4, 0.55, 1.0)
    for x in (0.28, 0.72):
        pen.disc(LEAF, x, 0.86, 0.18, 0.09)
    for x, y in ((0.5, 0.14), (0.5, 0.52), (0.31, 0.33), (0.69, 0.33)):
        pen.disc(color, x, y, 0.14)
    pen.disc(ORANGE, 0.5, 0.33, 0.13)


def _house(pen: _Pen, color: Color) -> None:
    roof = 0.474
    pen.box(WHITE, 0.12, 0.34, 0.88, 1.0)
    pen.polygon(color, (0.5, 0.0), (0.98, roof), (0.0, roof))
    pen.box(DARK, 0.58, 0.64, 0.76, 1.0)
    pen.box(DARK, 0.24, 0.64, 0.44, 0.82)


def _mushroom(pen: _Pen, color: Color) -> None:
    cap = 0.62
    pen.box(WHITE, 0.36, 0.3, 0.64, 1.0)
    pen.dome(color, 0.5, cap, 0.5, cap)
    for x, y in ((0.26, 0.68), (0.5, 0.4), (0.74, 0.68)):
        pen.disc(WHITE, x, y * cap, 0.08)


def _tree(pen: _Pen, color: Color) -> None:
    pen.box(DARK, 0.42, 0.4, 0.58, 1.0)
    pen.polygon(color, (0.5, 0.0), (0.8, 0.38), (0.2, 0.38))
    pen.polygon(color, (0.5, 0.14), (0.96, 0.7), (0.04, 0.7))


SPRITES: dict[str, Callable[[_Pen, Color], None]] = {
    "ball": _ball,
    "bird": _bird,
    "boat": _boat,
    "car": _car,
    "cat": _cat,
    "cup": _cup,
    "flower": _flower,
    "house": _house,
    "mushroom": _mushroom,
    "tree": _tree,
}


def _ground(pen: _Pen, place: str) -> None:
    """The sky, and a ground whose pattern repeats with the cells."""
    upper, lower = GROUND[place]
    pen.box(SKY, 0, 0, 64, 48)
    pen.box(upper, 0, 48, 64, 56)
    pen.box(lower, 0, 56, 64, 64)
    for x in range(0, 64, 16):
        if place == "beach":
            pen.disc((250, 246, 236), x + 8, 54, 2.2, 1.6)
            pen.box(GROUND["sea"][0], x, 60, x + 16, 64)
            for middle in (x + 4, x + 12):
                pen.disc(GROUND["sea"][0], middle, 60.5, 4, 2.5)
        elif place == "field":
            pen.disc(WHITE, x + 4, 60, 1.5)
            pen.disc(PAINT["yellow"], x + 12, 60, 1.5)
            for left in (x + 1.5, x + 9.5):
                pen.polygon((104, 168, 72), (left, 55), (left + 1, 51), (left + 2, 55))
                pen.polygon((104, 168, 72), (left + 2.5, 55), (left + 3.7, 50), (left + 4.7, 55))
        elif place == "road":
            pen.box((196, 198, 202), x, 48, x + 16, 50)
            pen.box(WHITE, x + 3, 55, x + 13, 57)
        elif place == "sea":
            for middle in (x + 4, x + 12):
                for top, wave, water in (
                    (48, (216, 240, 250), upper),
                    (56, (120, 190, 226), lower),
                ):
                    pen.disc(wave, middle, top + 3, 3.6, 2.8)
                    pen.disc(water, middle, top + 2, 3.8, 2.0)
        else:
            pen.disc(lower, x + 4, 52, 2)
            pen.disc(upper, x + 12, 60, 2)


def _letters(pen: _Pen, box: Box) -> None:
    middle, y = (box[0] + box[2]) * CELL / 2, (box[1] + box[3]) * CELL / 2
    for x, half in ((middle - 4, 2.3), (middle + 4, 3.0)):
        left, right, top, bottom = x - half, x + half, y - half, y + half
        pen.box(INK, left, top, right, top + 1.4)
        pen.box(INK, left, bottom - 1.4, right, bottom)
        pen.polygon(INK, (right - 2, top), (right, top), (left + 2, bottom), (left, bottom))


def _notes(pen: _Pen, box: Box) -> None:
    middle, bottom = (box[0] + box[2]) * CELL / 2, box[3] * CELL
    for x in (middle - 5, middle + 3):
        pen.disc(INK, x, bottom - 2.2, 1.9, 1.5)
        pen.box(INK, x + 1, bottom - 7.2, x + 2.2, bottom - 2.2)
    pen.box(INK, middle - 4, bottom - 7.4, middle + 5.2, bottom - 5.6)


def _strokes(pen: _Pen, box: Box) -> None:
    middle, top, bottom = (box[0] + box[2]) * CELL / 2, box[1] * CELL + 1.5, box[3] * CELL - 2
    for x, slant in ((middle - 5, -1.6), (middle, 0.0), (middle + 5, 1.6)):
        feet = (x + slant + 0.7, bottom), (x + slant - 0.7, bottom)
        pen.polygon(INK, (x - 0.7, top), (x + 0.7, top), *feet)


def _string(pen: _Pen, box: Box) -> None:
    middle = (box[0] + box[2]) * CELL / 2
    pen.box(INK, middle - 0.7, box[1] * CELL, middle + 0.7, box[3] * CELL)


def _rope(pen: _Pen, box: Box) -> None:
    y = box[3] * CELL - 4
    pen.box(DARK, box[0] * CELL, y - 0.9, box[2] * CELL, y + 0.9)


def _speed(pen: _Pen, box: Box) -> None:
    right, bottom = box[2] * CELL - 0.5, box[3] * CELL
    for rise, length in ((4, 5.0), (8, 6.5), (12, 5.0)):
        pen.box(INK, right - length, bottom - rise - 0.6, right, bottom - rise + 0.6)


MARKS: dict[str, Callable[[_Pen, Box], None]] = {
    "sleep": _letters,
    "sing": _notes,
    "jump": _strokes,
    "hang": _string,
    "pull": _rope,
    "chase": _speed,
}


def render(scene: Scene, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """Paint a scene.

    Args:
        scene: what to paint.
        rng: the source of the jitter, one number for each thing.
        size: width and height in pixels.

    Returns:
        An RGB picture.
    """
    canvas = Image.new("RGB", (size * OVERSAMPLING, size * OVERSAMPLING))
    draw, unit = ImageDraw.Draw(canvas), size * OVERSAMPLING / 64
    pen = _Pen(draw, unit)
    _ground(pen, scene.place)
    arranged = layout(scene)
    for verb, box in arranged.marks:
        MARKS[verb](pen, box)
    for thing, (left, _, right, bottom) in arranged.things:
        scale = SCALE[thing.size]
        x = (left + right) * CELL / 2 - scale / 2 + float(rng.uniform(-JITTER, JITTER))
        own = _Pen(draw, unit, x, bottom * CELL - scale, scale)
        SPRITES[thing.noun](own, PAINT[thing.color])
    return canvas.reduce(OVERSAMPLING)
