"""What a mini-world scene is: things, what they do, where; and how one is drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

NOUNS = {
    "ball": "balls",
    "bird": "birds",
    "boat": "boats",
    "car": "cars",
    "cat": "cats",
    "cup": "cups",
    "flower": "flowers",
    "house": "houses",
    "mushroom": "mushrooms",
    "tree": "trees",
}
"""Singular -> plural of every kind of thing."""

COLORS = ("black", "blue", "green", "pink", "red", "yellow")
SIZES = ("small", "big")
PLACES = ("beach", "field", "road", "sea", "snow")
NUMBERS = ("one", "two", "three", "four")

COUNT_VERBS = ("stand", "jump", "sleep", "sing", "fly", "hang")
"""What a row of equal things can do alone."""

RELATION_VERBS = {
    "left": ("stand", "jump", "sleep", "sing"),
    "right": ("stand", "jump", "sleep", "sing"),
    "on": ("stand",),
    "over": ("fly",),
    "from": ("hang",),
    "pull": ("pull",),
    "chase": ("chase",),
}
"""What the first thing can do in each relation to the second."""

ABOVE = ("over", "from")
"""Relations with a row of air between the two things."""

SIDED = ("left", "right")
"""Relations that tell which side is which; other scenes may be mirrored."""

COUNT_SCENES = 0.45
"""Share of scenes with one row of equal things; the others have two unequal ones."""


@dataclass(frozen=True)
class Thing:
    """One kind of thing in a scene.

    Attributes:
        count: how many of it, 1..4.
        size: "small" (16 x 16 pixels) or "big" (32 x 32 pixels).
        color: one of COLORS.
        noun: one of NOUNS.
    """

    count: int
    size: str
    color: str
    noun: str


@dataclass(frozen=True)
class Scene:
    """All that a caption tells, and `mirrored`, which it does not: a painter has to choose a side.

    Attributes:
        place: the background, one of PLACES.
        verb: what the first thing does; one of COUNT_VERBS or RELATION_VERBS.
        first: the acting thing or things.
        relation: a key of RELATION_VERBS, or None in a scene with one kind of thing.
        second: the thing related to (count 1), or None.
        mirrored: left and right are exchanged.
    """

    place: str
    verb: str
    first: Thing
    relation: str | None = None
    second: Thing | None = None
    mirrored: bool = False


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene. Different scenes never look the same.

    Args:
        rng: the source of all randomness.

    Returns:
        A row of one to four equal things; or small things in a relation to one thing of another
        noun and colour, which is small if one is above the other, else big.
    """
    place = choose(rng, PLACES)
    if rng.random() < COUNT_SCENES:
        size = choose(rng, SIZES)
        count = int(rng.integers(1, 5 if size == "small" else 3))
        thing = Thing(count, size, choose(rng, COLORS), choose(rng, tuple(NOUNS)))
        # a big thing leaves no room for what it would hang from
        verbs = tuple(verb for verb in COUNT_VERBS if (verb, size) != ("hang", "big"))
        return Scene(place, choose(rng, verbs), thing, mirrored=rng.random() < 0.5)
    relation = choose(rng, tuple(RELATION_VERBS))
    count = int(rng.integers(1, 4)) if relation == "over" else 1
    nouns = rng.choice(tuple(NOUNS), 2, replace=False)
    colors = rng.choice(COLORS, 2, replace=False)
    first = Thing(count, "small", str(colors[0]), str(nouns[0]))
    size = "small" if relation in ABOVE else "big"
    second = Thing(1, size, str(colors[1]), str(nouns[1]))
    verb = choose(rng, RELATION_VERBS[relation])
    mirrored = relation not in SIDED and rng.random() < 0.5
    return Scene(place, verb, first, relation, second, mirrored)


# Lengths are in eighths of the picture. Things begin and end at even ones, so that on a grid of
# 4 x 4 cells a small thing is one cell and a big one four, whatever it does and wherever it is:
# a few hundred different cells make up every picture.
Box = tuple[int, int, int, int]
HORIZON = 6
"""First row that shows ground; things stand on its upper edge."""
CELLS = {"small": (2, 2), "big": (4, 4)}
"""Columns and rows that a thing of a size takes."""

# (size, count) -> first columns of the boxes
ROW = {
    ("small", 1): (2,),
    ("small", 2): (2, 6),
    ("small", 3): (0, 2, 4),
    ("small", 4): (0, 2, 4, 6),
    ("big", 1): (2,),
    ("big", 2): (0, 4),
}

# verb -> row on whose upper edge small and big things rest that are not on the ground
FOOT = {
    "jump": {"small": 4, "big": 4},
    "hang": {"small": 4},
    "fly": {"small": 2, "big": 4},
}


@dataclass(frozen=True)
class Layout:
    """Where everything is; a box is (left, top, right, bottom), right and bottom outside.

    Attributes:
        things: (thing, its box), the second kind first.
        marks: (verb, box) of the signs that show what things do, where no thing is.
    """

    things: tuple[tuple[Thing, Box], ...]
    marks: tuple[tuple[str, Box], ...]


def _boxes(size: str, columns: tuple[int, ...], foot: int) -> list[Box]:
    width, height = CELLS[size]
    return [(left, foot - height, left + width, foot) for left in columns]


def _verb_marks(verb: str, boxes: list[Box]) -> list[tuple[str, Box]]:
    marks = []
    for left, top, right, bottom in boxes:
        middle = (left + right) // 2
        if verb in ("sleep", "sing"):
            marks.append((verb, (middle - 1, top - 1, middle + 1, top)))
        elif verb == "jump":
            marks.append((verb, (middle - 1, bottom, middle + 1, bottom + 1)))
        elif verb == "hang":
            marks.append((verb, (middle - 1, 0, middle + 1, top)))
        elif verb == "chase":
            marks.append((verb, (left - 1, bottom - 2, left, bottom)))
    return marks


def _mirror(box: Box) -> Box:
    left, top, right, bottom = box
    return 8 - right, top, 8 - left, bottom


def layout(scene: Scene) -> Layout:
    """Place everything a scene names.

    Args:
        scene: any scene that `sample_scene` can draw.

    Returns:
        The boxes of things and signs.
    """
    arranged = _arrange(scene)
    if not scene.mirrored:
        return arranged
    return Layout(
        tuple((thing, _mirror(box)) for thing, box in arranged.things),
        tuple((verb, _mirror(box)) for verb, box in arranged.marks),
    )


def _arrange(scene: Scene) -> Layout:
    first, second, relation = scene.first, scene.second, scene.relation
    foot = FOOT.get(scene.verb, {}).get(first.size, HORIZON)
    columns = ROW[first.size, first.count]
    if second is None:
        boxes = _boxes(first.size, columns, foot)
        return Layout(tuple((first, box) for box in boxes), tuple(_verb_marks(scene.verb, boxes)))
    other_column, other_foot = ROW[second.size, 1][0], HORIZON
    if relation in ("left", "chase"):
        columns, other_column = ((0,) if relation == "left" else (2,)), 4
    elif relation in ("right", "pull"):
        columns, other_column = (6,), 0
    elif relation == "on":
        foot = HORIZON - CELLS["big"][1]
    elif relation == "from":
        foot, other_foot = HORIZON, CELLS["small"][1]
    boxes = _boxes(first.size, columns, foot)
    others = _boxes(second.size, (other_column,), other_foot)
    if relation == "from":
        marks = [("hang", (2, 2, 4, 4))]
    elif relation == "pull":
        marks = [("pull", (4, HORIZON - 1, 6, HORIZON))]
    elif relation == "over":
        marks = []
    else:
        marks = _verb_marks(scene.verb, boxes)
    things = [(second, box) for box in others] + [(first, box) for box in boxes]
    return Layout(tuple(things), tuple(marks))
