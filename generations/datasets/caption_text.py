"""The text of a caption: its words, and the one full stop at its end."""

import html
import re
from collections.abc import Sequence

_AROUND = '.,;:!?"()[]`“”„…'
_SINGLE_LETTERS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_](?:'s)?", re.IGNORECASE)


def caption_words(text: str) -> list[str]:
    """A caption's words as the Karpathy file has them: lower case, without punctuation around them.

    Typographic apostrophes become plain ones, HTML's `&amp;` an `&`.

    >>> caption_words("A dog (black), near the kids’ toys.")
    ['a', 'dog', 'black', 'near', 'the', "kids'", 'toys']
    """
    if "&" in text:
        text = html.unescape(text)
    words = (word.strip(_AROUND) for word in text.lower().replace("’", "'").split())
    return [word for word in words if word]


def has_inner_stops(text: str) -> bool:
    """Whether a full stop stands before a caption's end."""
    return "." in text.rstrip(" \t\r\n\"'”)]!?.")


def without_stops(words: Sequence[str]) -> list[str]:
    """Words without full stops, which would end a caption for the model and for its reward.

    >>> without_stops(["a", "u.s", "flag", "2.5", "m", "long", "."])
    ['a', 'us', 'flag', '2', '5', 'm', 'long']
    """
    found: list[str] = []
    for word in words:
        if "." not in word:
            found.append(word)
        elif _SINGLE_LETTERS.fullmatch(word.strip(".")):
            found.append(word.replace(".", ""))
        else:
            found += [part for part in map(str.strip, word.split(".")) if part]
    return found
