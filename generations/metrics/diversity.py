"""Diversity of captions, and the share of captions that break off."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from generations.errors import UserError

# words that no caption ends with; prepositions that may ("drives by", "to sit on") are not among
# them
BAD_ENDINGS = {
    *("a", "an", "the", "and", "or", "but", "of", "with", "at", "to", "for", "from", "into"),
    *("onto", "than", "as", "if", "while", "that", "his", "her", "its", "their"),
    *("is", "are", "was", "were"),
}


def bad_endings(captions: Sequence[str]) -> float:
    """Share of captions that end with a word of `BAD_ENDINGS`, or that are empty.

    Captions that CIDEr-D rewards without looking at their end come to break off ("a man with a").

    Args:
        captions: of any form; a full stop at the end does not count.

    Raises:
        UserError: no captions.
    """
    if not captions:
        raise UserError("bad_endings needs at least one caption")
    last = [caption.lower().replace(".", " ").split()[-1:] for caption in captions]
    return sum(not end or end[0] in BAD_ENDINGS for end in last) / len(captions)


def diversity(captions: Sequence[str], known: Iterable[str] = ()) -> dict[str, float]:
    """Variety of a set of captions.

    Args:
        captions: tokenised, words joined by spaces.
        known: captions of the training data, tokenised the same way; without any, "novel" is left
            out.

    Returns:
        distinct1, distinct2: different words and word pairs, as shares of all; vocabulary: number
        of different words; novel: share of captions that are not among the known ones.

    Raises:
        UserError: no words.

    Source: Li et al. 2016 (distinct-n).
    """
    words = [caption.split() for caption in captions]
    singles = [word for own in words for word in own]
    pairs = [pair for own in words for pair in pairwise(own)]
    if not singles:
        raise UserError("diversity needs captions with at least one word")
    figures = {
        "distinct1": len(set(singles)) / len(singles),
        "distinct2": len(set(pairs)) / max(1, len(pairs)),
        "vocabulary": float(len(set(singles))),
    }
    seen = set(known)
    if seen:
        figures["novel"] = sum(caption not in seen for caption in captions) / len(captions)
    return figures
