"""CIDEr-D on token ids, for whole batches at once.

Equal to pycocoevalcap's scorer (the -D variant of Vedantam et al. 2015), but without tuples and
dictionaries: an n-gram is the number of its first n - 1 tokens and its last token, packed into one
int64 (so two n-grams never collide), and `np.unique` numbers and counts them.

    M hypotheses, I images, S sequences, P tokens of all sequences, G distinct n-grams
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generations.errors import UserError
from generations.files import atomic_path, read_arrays
from generations.vocabulary import EOS, PAD

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # width of the length penalty, in tokens
SCALE = 10.0
TOKEN_BITS = 32

Rows = Tensor | NDArray[np.integer] | Sequence[Sequence[int]]
References = Tensor | NDArray[np.integer] | Sequence[Rows]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' captions each n-gram occurs, counted over a corpus.

    Attributes:
        documents: number of images counted.
        keys: for n = 1..4 the sorted distinct n-grams (G,), each packed as the place of its first
            n - 1 tokens among the (n - 1)-grams (0 for n = 1), times 2^32, plus its last token.
        counts: for n = 1..4 the number of images (G,) with that n-gram.
    """

    documents: int
    keys: tuple[Ints, ...]
    counts: tuple[Ints, ...]

    def find(self, n: int, prefixes: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Look up n-grams.

        Args:
            n: their order.
            prefixes: (G,) places of their first n - 1 tokens in this table, -1 for none.
            tokens: (G,) their last tokens.

        Returns:
            Their places (G,), -1 for those not in the table, and their counts (G,), 0 for those.
        """
        keys, counts = self.keys[n - 1], self.counts[n - 1]
        if not len(keys):
            return np.full_like(tokens, -1), np.zeros_like(tokens)
        wanted = _pack(prefixes, tokens)  # negative without a prefix: equal to no key
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = keys[places] == wanted
        return np.where(found, places, -1), np.where(found, counts[places], 0)

    def save(self, path: str | Path) -> None:
        """Write the table to an .npz file."""
        tables = {"documents": np.asarray(self.documents)}
        tables |= {f"keys{n}": self.keys[n - 1] for n in ORDERS}
        tables |= {f"counts{n}": self.counts[n - 1] for n in ORDERS}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **tables)

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequency":
        """Read a table that `save` wrote.

        Raises:
            UserError: the file is absent, broken or something else.
        """
        names = [f"{kind}{n}" for kind in ("keys", "counts") for n in ORDERS]
        fix = "delete the file and build the table again from the training captions"
        what = "document frequencies"
        found = read_arrays(path, ["documents", *names], what, fix)
        keys, counts = ([found[f"{kind}{n}"] for n in ORDERS] for kind in ("keys", "counts"))
        fits = all(
            own.ndim == 1
            and own.shape == other.shape
            and own.dtype == other.dtype == np.int64
            and (own[1:] > own[:-1]).all()  # they are searched
            for own, other in zip(keys, counts, strict=True)
        )
        documents = found["documents"]
        if not fits or documents.shape != () or documents.dtype.kind not in "iu" or documents < 1:
            raise UserError(f"{what} {path}: its tables do not match each other; {fix}")
        return cls(int(documents), tuple(keys), tuple(counts))


def build_document_frequency(captions: References) -> DocumentFrequency:
    """Count in how many images each n-gram occurs.

    Args:
        captions: for every image its captions' token ids, as the references of `cider_d`.

    Source: SPEC 8 (the corpus-wide table).
    """
    tokens, lengths, image = _flatten_references(captions)
    tables = [
        (grams.keys, _count_documents(image[grams.sequence], grams.number, len(grams.keys)))
        for grams in _ngrams(tokens, lengths)
    ]
    keys, counts = zip(*tables, strict=True)
    return DocumentFrequency(len(captions), keys, counts)


def cider_d(
    hypotheses: Rows,
    references: References,
    image_of: Sequence[int] | None = None,
    document_frequency: DocumentFrequency | None = None,
) -> Tensor:
    """CIDEr-D of each hypothesis against the captions of its image.

    Every caption is cut after its first EOS, which belongs to it, as does CLS; negative ids are
    filler. A hypothesis without EOS is taken whole, PADs as words, as in the original; a reference
    ends at its last token that is not PAD, and one that is all PAD is none.

    Args:
        hypotheses: (M, L) ids, or M lists of ids.
        references: (I, R, C) ids, or for each of the I images a list (any number) of id lists.
        image_of: (M,) the image of each hypothesis, in 0..I-1; default 0..I-1, over and over, so
            that M is a multiple of I (samples of all images, then baselines of all images).
        document_frequency: table to weigh n-grams by; default the references of this call, the
            captions of each hypothesis's image being one document.

    Returns:
        (M,) float64 scores in [0, 10] on the CPU; 0 where an image has no references.

    Raises:
        ValueError: M, I and `image_of` do not fit.

    Source: SPEC 8; Vedantam et al. 2015.
    """
    tokens, lengths = _cut(*_flatten(hypotheses))
    ref_tokens, ref_lengths, ref_image = _flatten_references(references)
    total, images = len(lengths), len(references)
    image = _owners(image_of, total, images)  # (M,)
    if not total:
        return torch.zeros(0, dtype=torch.float64)
    pairs = _pair(image, ref_image, images)
    # one table of n-grams for both sides: sequences 0..M-1 are the hypotheses
    all_tokens = np.concatenate([tokens, ref_tokens])
    all_lengths = np.concatenate([lengths, ref_lengths])
    repeats = np.bincount(image, minlength=images)  # hypotheses of each image
    known = np.zeros(1, np.int64)  # places of the (n - 1)-grams in the corpus table
    scores = np.zeros(len(pairs.hypothesis))
    for n, grams in zip(ORDERS, _ngrams(all_tokens, all_lengths), strict=True):
        if document_frequency is None:
            documents = total
            reference = grams.sequence >= total
            counts = _count_documents(
                ref_image[grams.sequence[reference] - total],
                grams.number[reference],
                len(grams.keys),
                repeats,
            )
        else:
            documents = document_frequency.documents
            known, counts = document_frequency.find(n, known[grams.prefixes], grams.last_tokens)
        idf = np.log(float(max(documents, 1))) - np.log(np.maximum(1.0, counts))  # (G,)
        scores += _similarity(grams, idf, pairs, total, len(all_lengths))
    # the original takes a caption's length as its number of bigrams
    bigrams = np.maximum(all_lengths - 1, 0)
    gap = bigrams[pairs.hypothesis] - bigrams[total + pairs.reference]
    scores *= np.exp(-(gap**2) / (2 * SIGMA**2))
    sums = np.bincount(pairs.hypothesis, scores, minlength=total)
    found = np.bincount(pairs.hypothesis, minlength=total)
    return torch.from_numpy(SCALE / len(ORDERS) * sums / np.maximum(found, 1))


def self_critical_reward(
    sample_ids: Rows,
    greedy_ids: Rows,
    references: References,
    document_frequency: DocumentFrequency | None = None,
) -> Tensor:
    """CIDEr-D of sampled captions minus that of the greedy ones.

    Both sides are scored in one call, so that in the batch's document frequencies each image
    counts once per side.

    Args:
        sample_ids: (B, L) ids, or B lists.
        greedy_ids: (B, L) ids, or B lists.
        references: (B, R, C) ids, or nested lists, as in `cider_d`.
        document_frequency: as in `cider_d`.

    Returns:
        (B,) float64 in [-10, 10], on the CPU.

    Raises:
        ValueError: the numbers of samples, baselines and images differ.

    Source: SPEC 8; Rennie et al. 2017.
    """
    if not len(sample_ids) == len(greedy_ids) == len(references):
        raise ValueError(
            f"the numbers differ: {len(sample_ids)} samples, {len(greedy_ids)} baselines, "
            f"{len(references)} images"
        )
    both = [*_rows(sample_ids), *_rows(greedy_ids)]
    scores = cider_d(both, references, document_frequency=document_frequency)
    return scores[: len(sample_ids)] - scores[len(sample_ids) :]


# --- sequences of ids ----------------------------------------------------------------------------


def _rows(ids: Rows) -> Sequence[Sequence[int]]:
    if isinstance(ids, Tensor):
        return ids.tolist()
    return ids.tolist() if isinstance(ids, np.ndarray) else ids


def _flatten(ids: Rows) -> tuple[Ints, Ints]:
    """All tokens (P,) one after the other, and the lengths (S,) of the sequences."""
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu().numpy()
    if isinstance(ids, np.ndarray):
        return ids.astype(np.int64).reshape(-1), np.full(len(ids), ids.shape[1], np.int64)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum())), lengths


def _flatten_references(references: References) -> tuple[Ints, Ints, Ints]:
    """Tokens (P,), lengths (S,) and image (S,) of the references that are not empty."""
    if isinstance(references, Tensor | np.ndarray):
        images, each = references.shape[:2]
        counts = np.full(images, each)
        rows = references.reshape(images * each, references.shape[2])
    else:
        counts = np.fromiter(map(len, references), np.int64, len(references))
        rows = [row for image in references for row in _rows(image)]
    tokens, lengths = _cut(*_flatten(rows), strip=True)
    return tokens, lengths[lengths > 0], np.repeat(np.arange(len(counts)), counts)[lengths > 0]


def _cut(tokens: Ints, lengths: Ints, strip: bool = False) -> tuple[Ints, Ints]:
    """Cut each sequence after its first EOS; `strip`: and before its trailing PADs."""
    sequence = np.repeat(np.arange(len(lengths)), lengths)  # (P,)
    first = (np.cumsum(lengths) - lengths)[sequence]  # (P,) where each token's sequence starts
    ended = np.cumsum(tokens == EOS) - (tokens == EOS)  # EOS before each token
    keep = (tokens >= 0) & (ended == ended[first])
    if strip:
        words = np.flatnonzero(keep & (tokens != PAD))
        last = np.full(len(lengths), -1)
        np.maximum.at(last, sequence[words], words)
        keep &= np.arange(len(tokens)) <= last[sequence]
    return tokens[keep], np.bincount(sequence[keep], minlength=len(lengths))


def _owners(image_of: Sequence[int] | None, total: int, images: int) -> Ints:
    if image_of is None:
        if total % max(images, 1):
            raise ValueError(
                f"the number of hypotheses, {total}, is not a multiple of the number of images, "
                f"{images}"
            )
        return np.arange(total) % max(images, 1)
    image = np.asarray(image_of, dtype=np.int64)
    if image.shape != (total,) or (total and not 0 <= image.min() <= image.max() < images):
        raise ValueError(
            f"image_of must have the index of one of {images} images for each of {total} hypotheses"
        )
    return image


# --- n-grams -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grams:
    """Every n-gram of one order, where it stands and which it is."""

    sequence: Ints  # (positions,) the sequence it stands in
    number: Ints  # (positions,) which of the distinct n-grams it is
    keys: Ints  # (G,) the distinct ones, sorted, packed as in DocumentFrequency

    @property
    def prefixes(self) -> Ints:
        """Numbers (G,) of their first n - 1 tokens among the (n - 1)-grams."""
        return self.keys >> TOKEN_BITS

    @property
    def last_tokens(self) -> Ints:
        """Their last tokens (G,)."""
        return self.keys & ((1 << TOKEN_BITS) - 1)


def _pack(prefixes: Ints, tokens: Ints) -> Ints:
    return (prefixes << TOKEN_BITS) + tokens


def _ngrams(tokens: Ints, lengths: Ints) -> Iterator[_Grams]:
    """The n-grams of n = 1..4; those of order n are numbered through those of order n - 1."""
    sequence = np.repeat(np.arange(len(lengths)), lengths)  # (P,)
    room = np.cumsum(lengths)[sequence] - np.arange(len(tokens))  # (P,) tokens left in it
    prefix = np.zeros(len(tokens), np.int64)  # the (n - 1)-gram that starts at each token
    for n in ORDERS:
        at = np.flatnonzero(room >= n)
        keys, number = np.unique(_pack(prefix[at], tokens[at + n - 1]), return_inverse=True)
        yield _Grams(sequence[at], number, keys)
        prefix[at] = number


def _count_documents(image: Ints, number: Ints, grams: int, repeats: Ints | None = None) -> Ints:
    """Count the images that hold each of `grams` n-grams; `repeats`: what an image counts."""
    held = np.unique(image * grams + number)
    weights = None if repeats is None else repeats[held // grams]
    return np.bincount(held % grams, weights, minlength=grams).astype(np.int64)


# --- similarity ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Each hypothesis with each reference of its image, ordered by hypothesis."""

    first: Ints  # (M,) the first pair of a hypothesis
    count: Ints  # (M,) its number of pairs
    hypothesis: Ints  # (pairs,)
    reference: Ints  # (pairs,)


def _spread(first: Ints, count: Ints) -> Ints:
    """first[0], first[0] + 1, ... (count[0] of them), first[1], ..."""
    return np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)


def _pair(image: Ints, ref_image: Ints, images: int) -> _Pairs:
    per_image = np.bincount(ref_image, minlength=images)
    count = per_image[image]
    return _Pairs(
        np.cumsum(count) - count,
        count,
        np.repeat(np.arange(len(image)), count),
        _spread((np.cumsum(per_image) - per_image)[image], count),
    )


def _similarity(grams: _Grams, idf: Floats, pairs: _Pairs, total: int, sequences: int) -> Floats:
    """Clipped tf-idf cosine of each pair for one order; 0 where a side has no weight."""
    size = max(len(grams.keys), 1)
    entries, frequency = np.unique(grams.sequence * size + grams.number, return_counts=True)
    owner, number = np.divmod(entries, size)
    weight = frequency * idf[number]
    norm = np.sqrt(np.bincount(owner, weight**2, minlength=sequences))
    # each n-gram of a hypothesis against each of its references
    mine = np.searchsorted(owner, total)  # entries before are the hypotheses'
    count = pairs.count[owner[:mine]]
    pair = _spread(pairs.first[owner[:mine]], count)
    wanted = (total + pairs.reference[pair]) * size + np.repeat(number[:mine], count)
    place = np.minimum(np.searchsorted(entries, wanted), max(len(entries) - 1, 0))
    theirs = np.where(entries[place] == wanted, weight[place], 0.0)
    # clipped: a hypothesis gains nothing by repeating what its reference says once
    clipped = np.minimum(np.repeat(weight[:mine], count), theirs) * theirs
    dots = np.bincount(pair, clipped, minlength=len(pairs.hypothesis))
    norms = norm[pairs.hypothesis] * norm[total + pairs.reference]
    return np.divide(dots, norms, out=np.zeros(len(dots)), where=norms > 0)
