"""Captions to BERT word-piece ids and back."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase, digits

from tokenizers import BertWordPieceTokenizer

from generations.errors import UserError
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP, UNKNOWN

BUNDLED_VOCABULARY = Path(__file__).parent / "assets" / "bert-base-uncased-vocab.txt"
MAX_CAPTION = 25  # ids a caption is cropped to when it is read (SPEC 3)

_PLACES = {"[PAD]": PAD, "[UNK]": UNKNOWN, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK, ".": EOS}
_LAST_PLAIN = 1066  # id of "~": special and unused pieces, punctuation, digits and letters
_UNUSED = re.compile(r"\[unused\d+\]")
_PUNCTUATION = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)
_REPEATED_WORD = re.compile(r"\b(\w+)(?: \1\b)+")


class CaptionTokenizer:
    """BERT's lower-casing word-piece tokenizer, and the ways the system calls it.

    Args:
        vocab_file: one piece a line, the line number its id; None or '': bert-base-uncased.

    Raises:
        UserError: the file cannot be read, repeats a piece, or has a special piece elsewhere than
            `generations.vocabulary` says.
    """

    def __init__(self, vocab_file: str | Path | None = None):
        vocabulary = _read_vocabulary(Path(vocab_file or BUNDLED_VOCABULARY))
        self._tokenizer = BertWordPieceTokenizer(vocabulary)
        self._pieces = [""] * len(vocabulary)  # what an id is decoded to; '': left out
        for piece, place in vocabulary.items():
            special = piece in _PLACES and piece != "."
            self._pieces[place] = "" if special or _UNUSED.fullmatch(piece) else piece

    def __len__(self) -> int:
        return len(self._pieces)

    def encode(self, text: str, max_length: int = MAX_CAPTION) -> list[int]:
        """Ids of [CLS] text [SEP], cropped to the first `max_length`.

        Source: SPEC 3.
        """
        return self._tokenizer.encode(text).ids[:max_length]

    def encode_batch(self, texts: Sequence[str], max_length: int = MAX_CAPTION) -> list[list[int]]:
        """`encode` for many texts at once, which is several times faster."""
        return [found.ids[:max_length] for found in self._tokenizer.encode_batch(list(texts))]

    def lengths(self, texts: Iterable[str]) -> list[int]:
        """How many ids `encode` gives for each text, uncropped; each word is encoded once."""
        known: dict[str, int] = {}

        def pieces(word: str) -> int:
            known[word] = len(self._tokenizer.encode(word).ids) - 2
            return known[word]

        return [
            2 + sum(known[word] if word in known else pieces(word) for word in text.split(" "))
            for text in texts
        ]

    def encode_for_painting(self, text: str, text_length: int) -> list[int]:
        """Ids of a caption that is to be painted.

        Args:
            text: the caption.
            text_length: L.

        Returns:
            T = L + 1 ids: [CLS] and the words cropped to L, then [SEP], then PAD.

        Source: SPEC 7.
        """
        words = self._tokenizer.encode(text).ids[:-1]  # without the [SEP]
        ids = [*words[:text_length], SEP]
        return ids + [PAD] * (text_length + 1 - len(ids))

    def decode(self, ids: Sequence[int], collapse_repeats: bool = True) -> str:
        """The text of ids up to and including the first full stop.

        Special pieces, `[unused]` ones and ids beyond the vocabulary are left out.

        Args:
            ids: in 0..V-1.
            collapse_repeats: "a a dog" -> "a dog".

        Source: SPEC 7.
        """
        ids = list(ids)
        if EOS in ids:
            ids = ids[: ids.index(EOS) + 1]
        pieces = [self._pieces[number] for number in ids if number < len(self._pieces)]
        text = " ".join(piece for piece in pieces if piece).replace(" ##", "")
        for loose, joined in _PUNCTUATION:
            text = text.replace(loose, joined)
        return collapse_repeated_words(text) if collapse_repeats else text


def occurring_pieces(texts: Iterable[str]) -> list[str]:
    """The pieces of bert-base-uncased that texts consist of: a vocabulary just large enough.

    They are split into the same pieces by it. Special pieces, punctuation and letters keep their
    ids, and other words can be spelt, as long as they are of plain letters and digits.

    Args:
        texts: captions.

    Returns:
        The lines of a vocabulary file, the line number the id.
    """
    bundled = list(_read_vocabulary(BUNDLED_VOCABULARY))
    kept = _LAST_PLAIN + 1
    spelling = {f"##{character}" for character in ascii_lowercase + digits}
    used = {number for number, piece in enumerate(bundled) if piece in spelling}
    tokenizer = CaptionTokenizer()
    for ids in tokenizer.encode_batch(list(texts), max_length=sys.maxsize):
        used.update(ids)
    return bundled[:kept] + [bundled[number] for number in sorted(used) if number >= kept]


def collapse_repeated_words(text: str) -> str:
    """Write a word once where it stands several times in a row: "a a dog" -> "a dog".

    Source: SPEC 7.
    """
    return _REPEATED_WORD.sub(r"\1", text)


def clean_caption(text: str) -> str:
    r"""Make a caption fit to be painted and to name a file.

    Unreadable characters ("\ufffd\ufffd"), line breaks, "/" and runs of spaces become one space,
    " ." becomes ".", and the ends are stripped.

    Source: SPEC 3.
    """
    for odd in ("\ufffd\ufffd", "\n", "/"):
        text = text.replace(odd, " ")
    return re.sub(r" {2,}", " ", text).replace(" .", ".").strip()


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"vocab_file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"vocab_file {path} cannot be read: {error}") from None
    vocabulary = {piece.strip(): number for number, piece in enumerate(lines)}
    for piece, place in _PLACES.items():
        if vocabulary.get(piece) != place:
            found = f"in line {vocabulary[piece] + 1}" if piece in vocabulary else "missing"
            raise UserError(
                f"vocab_file {path}: {piece} must be in line {place + 1}, but is {found}; use a "
                "vocabulary with the special pieces of bert-base-uncased"
            )
    if len(vocabulary) != len(lines):
        raise UserError(
            f"vocab_file {path} has {len(lines)} lines, but only {len(vocabulary)} different ones; "
            "remove the duplicates"
        )
    return vocabulary
