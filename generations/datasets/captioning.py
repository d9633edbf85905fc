"""Training samples: an image, one of its captions, and a masked copy of it."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from generations.batch import Batch
from generations.datasets.karpathy import MAX_CAPTIONS, ImageRecord
from generations.datasets.stores import ClusterStore, FeatureStore
from generations.datasets.tokenizer import MAX_CAPTION, CaptionTokenizer
from generations.errors import UserError
from generations.vocabulary import MASK, PAD

_ENCODED_AT_ONCE = 10000  # captions


@dataclass(frozen=True)
class DrawnCaption:
    """What `draw_sample` drew.

    Attributes:
        order: the captions' order after shuffling; the first one was taken.
        text_ids: T ids, [CLS] words [SEP] cropped to L, then PAD.
        masked_text_ids: the same with MASK at `position`.
        position: in 1..T-1.
        further: other captions of the image, each as text_ids.
    """

    order: list[int]
    text_ids: list[int]
    masked_text_ids: list[int]
    position: int
    further: list[list[int]]


def draw_sample(
    caption_ids: Sequence[Sequence[int]], rng: random.Random, text_length: int, captions: int = 1
) -> DrawnCaption:
    """Draw one caption of an image and the position to mask, and further captions.

    Args:
        caption_ids: the image's captions, each [CLS] words [SEP].
        rng: where the draws come from.
        text_length: L.
        captions: how many in all; where the image has fewer, the rest is PAD.

    Source: SPEC 3.
    """
    order = list(range(len(caption_ids)))
    rng.shuffle(order)

    def cropped(ids: Sequence[int]) -> list[int]:
        words = list(ids[:text_length])
        return words + [PAD] * (text_length + 1 - len(words))

    words = caption_ids[order[0]][:text_length]
    text_ids = cropped(words)
    # may be the first PAD, whose target is PAD
    position = rng.randint(1, len(words))
    masked = text_ids.copy()
    masked[position] = MASK
    further = [cropped(caption_ids[number]) for number in order[1:captions]]
    further += [cropped([])] * (captions - 1 - len(further))
    return DrawnCaption(order, text_ids, masked, position, further)


@dataclass(frozen=True)
class Sample:
    """One row of a `Batch`; the caption is what its ids say, cropped as they are."""

    image_id: str
    caption: str
    text_ids: list[int]
    masked_text_ids: list[int]
    mask_position: int
    cluster_ids: np.ndarray
    features: np.ndarray | None
    references: np.ndarray
    further_text_ids: list[list[int]]


class CaptioningDataset(Dataset[Sample]):
    """Images with captions, cluster ids and dense features.

    An item's key is (epoch, index), or (epoch, index, dense) with dense False where its features
    will not be looked at and are not read. What is drawn depends on (seed, epoch, index) alone, so
    it is the same for any number of workers and processes.

    Args:
        records: the images.
        tokenizer: of the captions, which are all encoded at once.
        clusters: cluster ids.
        features: dense features, or None if the run does not read them.
        text_length: L.
        seed: of the draws.
        captions: C, captions of an image in a sample.

    Raises:
        UserError: no images, or one without cluster ids or features.

    Source: SPEC 3.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        tokenizer: CaptionTokenizer,
        clusters: ClusterStore,
        features: FeatureStore | None,
        text_length: int,
        seed: int = 0,
        captions: int = 1,
    ):
        if not records:
            raise UserError(
                "there are no images to train on: dataset_coco has no images in train_split; set "
                "another train_split or run `python generations/prepare.py captions`"
            )
        # what is missing is found now and not in mid-training
        for store in (clusters, features) if features else (clusters,):
            known = set(store.names())
            for record in records:
                if record.name not in known:
                    store.read(record.name)  # raises
        self._records = list(records)
        self._tokenizer = tokenizer
        self._clusters = clusters
        self._features = features
        self._text_length = text_length
        self._seed = seed
        self._captions = captions
        self._references, self._lengths = encode_references(records, tokenizer)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def references(self) -> np.ndarray:
        """All captions of all images: (images, R, C) ids, PAD-filled."""
        return self._references

    def __getitem__(self, key: tuple[int, int] | tuple[int, int, bool]) -> Sample:
        features = None
        if self._features is not None and all(key[2:]):
            features = self._features.read(self._records[key[1]].name)
        return self._draw(key[0], key[1], features)

    def __getitems__(self, keys: Sequence[tuple[int, int] | tuple[int, int, bool]]) -> Batch:
        """A whole batch, its features read into one array; a DataLoader asks for it.

        Returns:
            The batch of the items, but with features in the type they are stored in.
        """
        batch = collate([self._draw(key[0], key[1], None) for key in keys])
        if self._features is None or not all(all(key[2:]) for key in keys):
            return batch
        features = self._features.read_batch([self._records[key[1]].name for key in keys])
        return replace(batch, features=torch.from_numpy(features))

    def _draw(self, epoch: int, index: int, features: np.ndarray | None) -> Sample:
        record, references = self._records[index], self._references[index]
        captions = [
            row[:length].tolist()
            for row, length in zip(references, self._lengths[index], strict=True)
            if length
        ]
        rng = random.Random(f"{self._seed} {epoch} {index}")
        drawn = draw_sample(captions, rng, self._text_length, self._captions)
        return Sample(
            record.name,
            # what CLIP reads in rl_t2i is what the model was given, as in the original
            self._tokenizer.decode(drawn.text_ids, collapse_repeats=False),
            drawn.text_ids,
            drawn.masked_text_ids,
            drawn.position,
            self._clusters.read(record.name),
            features,
            references,
            drawn.further,
        )


def encode_references(
    records: Sequence[ImageRecord], tokenizer: CaptionTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """All captions of images as ids.

    Returns:
        (images, R, C) int32, PAD-filled, and the lengths (images, R), 0 for absent captions;
        R = 5, the first captions, of C = 25 ids.
    """
    ids = np.full((len(records), MAX_CAPTIONS, MAX_CAPTION), PAD, np.int32)
    lengths = np.zeros((len(records), MAX_CAPTIONS), np.int32)
    places = [
        (image, number, caption)
        for image, record in enumerate(records)
        for number, caption in enumerate(record.captions[:MAX_CAPTIONS])
    ]
    for start in range(0, len(places), _ENCODED_AT_ONCE):
        part = places[start : start + _ENCODED_AT_ONCE]
        encoded = tokenizer.encode_batch([caption for _, _, caption in part])
        for (image, number, _), caption_ids in zip(part, encoded, strict=True):
            ids[image, number, : len(caption_ids)] = caption_ids
            lengths[image, number] = len(caption_ids)
    return ids, lengths


def cropped_captions(
    records: Iterable[ImageRecord], tokenizer: CaptionTokenizer, text_length: int
) -> tuple[int, int]:
    """Number of captions that are too long: cropping removes their full stop, so they do not end.

    Args:
        records: the images; of each the captions that training draws from are looked at.
        tokenizer: of the captions.
        text_length: L.

    Returns:
        their number, and that of all captions.
    """
    lengths = tokenizer.lengths(
        caption for record in records for caption in record.captions[:MAX_CAPTIONS]
    )
    most = min(text_length, MAX_CAPTION) + 1  # the [SEP] may be cropped
    return sum(length > most for length in lengths), len(lengths)


def collate(samples: Sequence[Sample] | Batch) -> Batch:
    """Put samples together, with features if they have them; a batch is left as it is."""
    if isinstance(samples, Batch):
        return samples
    dense = [sample.features for sample in samples if sample.features is not None]
    further = [sample.further_text_ids for sample in samples]
    return Batch(
        image_ids=[sample.image_id for sample in samples],
        captions=[sample.caption for sample in samples],
        text_ids=torch.tensor([sample.text_ids for sample in samples]),
        masked_text_ids=torch.tensor([sample.masked_text_ids for sample in samples]),
        mask_positions=torch.tensor([sample.mask_position for sample in samples]),
        cluster_ids=torch.from_numpy(np.stack([sample.cluster_ids for sample in samples])),
        features=torch.from_numpy(np.stack(dense)) if dense else None,
        references=torch.from_numpy(np.stack([sample.references for sample in samples])).long(),
        further_text_ids=torch.tensor(further) if further[0] else None,
    )
