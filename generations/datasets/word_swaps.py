"""Captions with one word swapped for another of its kind: the hard negatives of R-precision.

Kinds are colour, number, noun and verb. Colours and numbers are listed here; nouns and verbs are
found in the dataset's own captions by where words stand and how they end, without a tagger.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KINDS = ("verb", "color", "noun", "number")
MOST = 9  # swapped captions of one caption
LEAST_SEEN = 2  # a noun or verb that a dataset has only once may be a slip


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLORS = _set(
    "red green blue yellow orange purple pink brown black white gray grey silver gold golden tan "
    "beige maroon turquoise teal violet"
)
NUMBERS = _set("one two three four five six seven eight nine ten eleven twelve dozen")
DETERMINERS = _set("a an the this that these those his her its their some")
FUNCTION_WORDS = DETERMINERS | _set(
    "in on at of with and or to from by for over under near next behind beside above below into "
    "onto around through across along while as is are was were be being it there which who up down "
    "out off front top we see here very several many few group other another each all both between "
    "against inside outside has have having not no"
)
ENDS = frozenset(".,;:!?")
AFTER_NOUNS = ENDS | (FUNCTION_WORDS - DETERMINERS - {"very", "several", "many", "few", "other"})
# end in -ing and are things
ING_NOUNS = _set(
    "building ceiling king ring string thing something anything nothing everything evening morning "
    "clothing railing wing wedding painting icing dressing opening awning siding bedding spring "
    "pudding topping stuffing landing"
)
PLURALS = _set("people men women children sheep geese feet teeth mice knives leaves")
# of the picture itself
NO_THINGS = _set("picture photo photograph image view scene shot place close")
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[.,;:!?]")


@dataclass(frozen=True)
class WordKinds:
    """The words of a dataset by what can take their place.

    Attributes:
        classes: kind and form, such as ("noun", "plural") -> words, sorted.
        of: kind -> word -> its form.
    """

    classes: Mapping[tuple[str, str], tuple[str, ...]]
    of: Mapping[str, Mapping[str, str]]


def find_words(captions: Sequence[str]) -> WordKinds:
    """Sort the words of a dataset's captions into kinds.

    Verbs are words in -ing that are not known things, and words in -s whose -ing form is there and
    at least as frequent. Nouns are words that mostly stand between a determiner, number or colour
    and the end of the phrase; plural and singular ones are kept apart.

    Args:
        captions: any number of them.
    """
    counts: Counter[str] = Counter()
    heads: Counter[str] = Counter()
    for caption in captions:
        words = _words(caption)
        counts.update(words)
        for before, word, after in zip(words, words[1:], [*words[2:], "."], strict=False):
            opens = before in DETERMINERS or before in COLORS or before in NUMBERS
            heads[word] += opens and (after in AFTER_NOUNS or after.endswith("ing"))
    forms: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    forms["color"] = {word: "" for word in COLORS if word in counts}
    forms["number"] = {word: "" for word in NUMBERS if word in counts}
    listed = COLORS | NUMBERS | FUNCTION_WORDS | ENDS | NO_THINGS
    frequent = [word for word, seen in counts.items() if seen >= LEAST_SEEN and word not in listed]
    for word in frequent:
        form = _verb_form(word, counts)
        if form:
            forms["verb"][word] = form
    for word in frequent:
        if word not in forms["verb"] and not word.isdigit() and 2 * heads[word] >= counts[word]:
            forms["noun"][word] = "plural" if _is_plural(word) else "singular"
    classes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for kind in KINDS:
        for word, form in sorted(forms[kind].items()):
            classes[kind, form].append(word)
    return WordKinds({key: tuple(words) for key, words in classes.items()}, forms)


def swapped_captions(
    caption: str, others: Sequence[str], words: WordKinds, kind: str, seed: int, most: int = MOST
) -> list[str]:
    """Copies of a caption with one word of a kind swapped for another.

    The word is drawn from those of that kind in the caption; what takes its place is in none of
    the image's captions.

    Args:
        caption: to swap in.
        others: more captions of the same image; may be empty.
        words: of the dataset.
        kind: one of `KINDS`.
        seed: with the same one and the same caption the swaps are the same.
        most: copies at most.

    Returns:
        Different captions; none if there is no such word.
    """
    tokens = [(match.group(), match.start(), match.end()) for match in WORD.finditer(caption)]
    forms = words.of[kind]
    places = [place for place, (token, _, _) in enumerate(tokens) if token.lower() in forms]
    if not places:
        return []
    rng = random.Random(f"{seed} {kind} {caption}")
    token, start, end = tokens[rng.choice(places)]
    used = {word for text in (caption, *others) for word in _words(text)}
    candidates = [word for word in words.classes[kind, forms[token.lower()]] if word not in used]
    chosen = rng.sample(candidates, min(most, len(candidates)))
    return [_replace(caption, start, end, word) for word in chosen]


def hard_sets(
    captions: Sequence[str], others: Sequence[Sequence[str]], words: WordKinds, seed: int
) -> dict[str, dict[int, list[str]]]:
    """kind -> place of a caption -> its swapped copies, for the captions that have such a word.

    Args:
        captions: of pictures.
        others: for each more captions of the same image; may be empty.
        words: of the dataset.
        seed: of the choices.

    Source: SPEC 10.
    """
    found: dict[str, dict[int, list[str]]] = {}
    for kind in KINDS:
        swaps = {
            place: swapped_captions(caption, own, words, kind, seed)
            for place, (caption, own) in enumerate(zip(captions, others, strict=True))
        }
        found[kind] = {place: texts for place, texts in swaps.items() if texts}
    return found


def _words(caption: str) -> list[str]:
    return WORD.findall(caption.lower())


def _is_plural(word: str) -> bool:
    return word in PLURALS or (word.endswith("s") and not word.endswith(("ss", "us", "is")))


def _verb_form(word: str, counts: Mapping[str, int]) -> str:
    if word.endswith("ing"):
        stem = word[:-3]
        return "ing" if len(stem) > 1 and word not in ING_NOUNS else ""
    if not word.endswith("s") or word.endswith("ss"):
        return ""
    stems = {word[:-1]}
    if word.endswith("es"):
        stems.add(word[:-2])
    if word.endswith("ies"):
        stems.add(f"{word[:-3]}y")
    ing = {f"{stem.removesuffix('e')}ing" for stem in stems}
    ing |= {f"{stem}{stem[-1]}ing" for stem in stems if stem}
    seen = max((counts.get(form, 0) for form in ing - ING_NOUNS), default=0)
    return "s" if seen >= counts[word] else ""


def _replace(caption: str, start: int, end: int, word: str) -> str:
    if caption[start].isupper():
        word = word[0].upper() + word[1:]
    before = caption[:start]
    article = re.search(r"\b([Aa])n? $", before)
    if article:
        vowel = word[0].lower() in "aeiou" and word != "one"
        before = f"{before[: article.start()]}{article[1]}{'n' if vowel else ''} "
    return before + word + caption[end:]
