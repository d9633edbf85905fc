"""Describes a mini-world scene in five different English sentences.

Every sentence names all that fixes the picture: how many of what size, colour and kind, what they
do, the relation to the other thing, and the place. Words that mean the same are interchangeable.
"""

import numpy as np

from generations.datasets.mini_world.scenes import (
    COLORS,
    NOUNS,
    NUMBERS,
    Scene,
    Thing,
    choose,
)

CAPTIONS = 5
MAX_WORDS = 15
"""Longest sentence in tokens, commas included: what fits in text_length 17 with CLS and EOS."""
TRIES = 8
"""Draws of synonyms before a sentence construction is given up as too long."""
ONE_SHARE = 0.4
"""How often a single acting thing is "one", not "a"."""

# meaning -> synonyms as (singular, plural, participle)
VERBS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "stand": (("stands", "stand", "standing"), ("sits", "sit", "sitting")),
    "jump": (("jumps", "jump", "jumping"),),
    "sleep": (("sleeps", "sleep", "sleeping"),),
    "sing": (("sings", "sing", "singing"),),
    "fly": (("flies", "fly", "flying"),),
    "hang": (("hangs", "hang", "hanging"),),
    "pull": (("pulls", "pull", "pulling"),),
    "chase": (("chases", "chase", "chasing"),),
}

TRANSITIVE = ("pull", "chase")

SIZE_WORDS = {"small": ("small",), "big": ("big",)}

RELATION_WORDS = {
    "left": ("left of",),
    "right": ("right of",),
    "on": ("on", "on top of"),
    "over": ("over", "above"),
    "from": ("from", "below"),
    "pull": ("",),
    "chase": ("",),
}

PLACE_WORDS = {
    "beach": ("on the beach", "at the beach"),
    "field": ("in the field", "in a field"),
    "road": ("on the road", "on a road"),
    "sea": ("on the sea", "at sea"),
    "snow": ("in the snow", "on snow"),
}
# for things alone in the air
AIR_WORDS = {
    "beach": ("over the beach", "above the beach"),
    "field": ("over the field", "above the field"),
    "road": ("over the road", "above the road"),
    "sea": ("over the sea", "above the sea"),
    "snow": ("over the snow", "above the snow"),
}

# {a} the acting things; {verb}, {verbing} what they do; {b} the relation and the second thing, or
# nothing; {place} where; {is} agrees with {a}.
PLAIN = (
    "{a} {verb} {b} {place}",
    "{a} {verbing} {b} {place}",
    "{a} {is} {verbing} {b} {place}",
    "{a} , {verbing} {b} {place}",
    "{place} , {a} {verb} {b}",
    "{place} there {is} {a} {verbing} {b}",
    "{place} we see {a} {verbing} {b}",
    "there {is} {a} {verbing} {b} {place}",
    "here {a} {verb} {b} {place}",
    "a picture of {a} {verbing} {b} {place}",
    "look at {a} {verbing} {b} {place}",
)
# not for verbs with an object
INVERTED = ("{place} {verb} {a} {b}", "here {verb} {a} {b} {place}")


def _phrase(thing: Thing, first: bool, rng: np.random.Generator) -> str:
    number = NUMBERS[thing.count - 1]
    if thing.count == 1 and not (first and rng.random() < ONE_SHARE):
        number = "a"
    noun = thing.noun if thing.count == 1 else NOUNS[thing.noun]
    return f"{number} {choose(rng, SIZE_WORDS[thing.size])} {thing.color} {noun}"


def _templates(scene: Scene) -> tuple[str, ...]:
    return PLAIN if scene.relation in TRANSITIVE else PLAIN + INVERTED


def _fill(template: str, scene: Scene, rng: np.random.Generator) -> list[str]:
    """One sentence of a template, with synonyms drawn at random."""
    one, many, doing = choose(rng, VERBS[scene.verb])
    single = scene.first.count == 1
    alone_in_air = scene.second is None and scene.verb in ("fly", "hang")
    fields = {
        "a": _phrase(scene.first, True, rng),
        "b": "",
        "verb": one if single else many,
        "verbing": doing,
        "place": choose(rng, (AIR_WORDS if alone_in_air else PLACE_WORDS)[scene.place]),
        "is": "is" if single else "are",
    }
    if scene.second is not None and scene.relation is not None:
        relation = choose(rng, RELATION_WORDS[scene.relation])
        fields["b"] = f"{relation} {_phrase(scene.second, False, rng)}"
    return template.format(**fields).split()


def describe(scene: Scene, rng: np.random.Generator) -> list[list[str]]:
    """Say what a scene shows, in five ways.

    Args:
        scene: any scene that `sample_scene` can draw.
        rng: chooses the sentences and the synonyms.

    Returns:
        CAPTIONS token lists of unlike construction, each of at most MAX_WORDS lower-case tokens,
        without the full stop.
    """
    captions: list[list[str]] = []
    templates = _templates(scene)
    for index in rng.permutation(len(templates)):
        for _ in range(TRIES):
            tokens = _fill(templates[index], scene, rng)
            if len(tokens) <= MAX_WORDS:
                captions.append(tokens)
                break
        if len(captions) == CAPTIONS:
            return captions
    # At least eight templates fit with short synonyms, whatever the scene.
    raise AssertionError(
        f"could not make {CAPTIONS} captions of at most {MAX_WORDS} words for {scene}"
    )


def _verb_forms() -> dict[str, tuple[str, int, bool]]:
    return {
        word: (meaning, form, meaning in TRANSITIVE)
        for meaning, verbs in VERBS.items()
        for verb in verbs
        for form, word in enumerate(verb)
        if word
    }


WORDS: dict[str, frozenset[str]] = {
    "noun": frozenset(NOUNS) | frozenset(NOUNS.values()),
    "color": frozenset(COLORS),
    "number": frozenset(NUMBERS),
    "verb": frozenset(_verb_forms()),
}
"""The words of each kind that decide what a caption means. Some verbs are synonyms."""


def alternatives(word: str) -> tuple[str, ...]:
    """Words that make a caption wrong when they stand in the place of `word`.

    Args:
        word: one token of a caption.

    Returns:
        Words of the same kind and grammatical form that mean something else, sorted; empty for a
        word of no kind in WORDS. (In the place of "one" only plural numbers are left.)
    """
    if word in WORDS["color"]:
        found = WORDS["color"] - {word}
    elif word in WORDS["number"]:
        found = WORDS["number"] - {word, "one"}
    elif word in NOUNS:
        found = frozenset(NOUNS) - {word}
    elif word in WORDS["noun"]:
        found = frozenset(NOUNS.values()) - {word}
    else:
        forms = _verb_forms()
        meaning, *form = forms.get(word, ("",))
        found = {
            other for other, (sense, *same) in forms.items() if sense != meaning and same == form
        }
    return tuple(sorted(found))


def all_words() -> set[str]:
    """Every word that a caption can hold, commas left out."""
    tables = (SIZE_WORDS, RELATION_WORDS, PLACE_WORDS, AIR_WORDS)
    phrases = [text for table in tables for texts in table.values() for text in texts]
    for template in PLAIN + INVERTED:
        phrases += [word for word in template.split() if word.isalpha()]
    words = {word for phrase in phrases for word in phrase.split()}
    return words.union({"a", "is", "are"}, *WORDS.values())
