import json
import pickle
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from generations.datasets import (
    CaptioningDataset,
    CaptionTokenizer,
    ImageRecord,
    InfiniteSampler,
    collapse_repeated_words,
    collate,
    cropped_captions,
    painting_captions,
    read_captions,
    read_karpathy,
    read_split,
    select_splits,
    write_karpathy,
)
from generations.datasets.caption_text import caption_words
from generations.datasets.captioning import encode_references
from generations.datasets.intake.entries import deal_out
from generations.errors import UserError
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

TOKENIZER = CaptionTokenizer()


def entry(name, split="train", captions=("a dog runs",), **more):
    sentences = [{"tokens": caption.split()} for caption in captions]
    return {"filename": f"{name}.jpg", "split": split, "sentences": sentences, **more}


def captions_file(folder, images):
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


# --- Karpathy and COCO files ---------------------------------------------------------------------


def test_reads_names_paths_and_ids(tmp_path):
    path = captions_file(
        tmp_path,
        [
            entry("COCO_val2014_000000000042", filepath="val2014", cocoid=7),
            entry("b", cocoid=5),
            entry("c", imgid=9),
            entry("d", captions=["a / b 🐶", "x", "y", "z", "v", "w"]),
        ],
    )
    found = read_karpathy(path)
    assert found[0] == ImageRecord(
        "COCO_val2014_000000000042",
        "val2014/COCO_val2014_000000000042.jpg",
        42,
        "train",
        ("a dog runs.",),
    )
    assert [record.image_id for record in found] == [42, 5, 9, 3]
    assert found[3].captions == ("a / b 🐶.", "x.", "y.", "z.", "v.", "w.")
    assert encode_references(found, TOKENIZER)[1].tolist()[3] == [7, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [("train", "a"), ("val", "c"), ("trainrestval", "ab"), ("val, test", "cd"), ("restval", "b")],
)
def test_splits_match_as_a_whole(tmp_path, splits, expected):
    images = [
        entry(*pair) for pair in zip("abcd", ("train", "restval", "val", "test"), strict=True)
    ]
    found = read_split(captions_file(tmp_path, images), splits)
    assert "".join(record.name for record in found) == expected


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="not 'valid'"):
        select_splits([], "train,valid")


bad_images = pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"filename": "bad.jpg", "split": "train"}, r"bad\.jpg: has no captions"),
        (entry("bad", captions=["a dog", "  "]), r"bad\.jpg: caption 2 is empty"),
        ({**entry("bad"), "sentences": [{"sentid": 3}]}, r"bad\.jpg: caption 1 has no tokens"),
        (entry("bad", split="some"), r"bad\.jpg: has the split 'some'"),
        (entry("good"), r"good\.jpg: has the same name as good\.jpg"),
        (entry("bad", cocoid=0), r"bad\.jpg: has the same id as good\.jpg"),
        (entry("bad", filepath="../.."), "outside of the folder"),
        (entry("bad", filepath="/etc"), "outside of the folder"),
        (entry("b\0ad"), "broken characters"),
        (entry("bad", captions=["half a \ud83d"]), "broken characters"),
        ({"split": "train"}, "image 2: has no filename"),
        (["bad"], "image 2: is a list"),
    ],
)


@bad_images
def test_bad_images_are_named(tmp_path, image, message):
    path = captions_file(tmp_path, [entry("good"), image])
    with pytest.raises(UserError, match=message) as error:
        read_karpathy(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@bad_images
def test_bad_images_can_be_left_out(tmp_path, caplog, image, message):
    path = captions_file(tmp_path, [entry("good"), image])
    assert [record.name for record in read_karpathy(path, skip_bad=True)] == ["good"]
    assert "left out 1 images" in caplog.text


def test_all_problems_are_counted(tmp_path):
    images = [entry(f"bad{number}", captions=[]) for number in range(8)]
    with pytest.raises(UserError, match=r"bad4\.jpg: has no captions; and 3 more; correct"):
        read_karpathy(captions_file(tmp_path, images))


@pytest.mark.parametrize("content", ["[]", '{"images": 3}', '{"images": []}', "{", '{"imag'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        read_captions(path)


KEYS = ["images", "filename", "split", "sentences", "tokens"]
KEYS += ["annotations", "file_name", "id", "image_id", "caption"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=200)
def test_any_json_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "captions.json"
    path.write_text(json.dumps(content))
    try:
        assert all(record.captions for record in read_captions(path))
    except UserError as error:
        assert str(path) in str(error)


captions = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1).filter(str.strip),
    min_size=1,
    max_size=5,
)


@given(captions, st.sampled_from(["", "train2014", ".hidden/x"]))
def test_written_records_are_read_back(tmp_path_factory, texts, folder):
    path = tmp_path_factory.mktemp("written") / "dataset.json"
    records = [
        ImageRecord("a", f"{folder}/a.jpg".lstrip("/"), 4, "val", tuple(f"{t}." for t in texts))
    ]
    write_karpathy(path, records, "elsewhere.json")
    assert read_karpathy(path) == records


def coco_file(folder, name, count=100, first=0):
    path = folder / name
    content = {
        "images": [{"id": 1000 + i, "file_name": f"{i}.png"} for i in range(first, first + count)],
        "annotations": [
            {"image_id": 1000 + i, "caption": f"A Dog, no. {i} ({word}).\n"}
            for i in range(first, first + count)
            for word in ("brown", "small")
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_reads_coco_captions(tmp_path):
    found = read_captions(coco_file(tmp_path, "captions_train2014.json"), seed=3)
    assert found[7].image_id == 1007
    assert found[7].captions == ("a dog no 7 brown.", "a dog no 7 small.")
    assert [len(select_splits(found, split)) for split in ("train", "val", "test")] == [90, 5, 5]
    assert found == read_captions(tmp_path / "captions_train2014.json", seed=3)
    assert found != read_captions(tmp_path / "captions_train2014.json", seed=4)
    of_val = read_captions(coco_file(tmp_path, "captions_val2014.json"))
    assert [len(select_splits(of_val, split)) for split in ("val", "test")] == [50, 50]


def test_folder_of_coco_captions_keeps_train_and_divides_val(tmp_path):
    """As annotations_trainval2017.zip unpacks."""
    coco_file(tmp_path, "captions_train2017.json")
    coco_file(tmp_path, "captions_val2017.json", 20, first=100)
    (tmp_path / "instances_val2017.json").write_text("{}")
    found = read_captions(tmp_path)
    train, val, test = (select_splits(found, split) for split in ("train", "val", "test"))
    assert [len(part) for part in (train, val, test)] == [100, 10, 10]
    assert {record.image_id for record in train} == set(range(1000, 1100))
    assert {record.image_id for record in val + test} == set(range(1100, 1120))
    coco_file(tmp_path, "captions_val2014.json", 20)
    with pytest.raises(UserError, match=r"one captions_val\*\.json, but has captions_val2014"):
        read_captions(tmp_path)


def test_reads_flickr30k_of_karpathy(tmp_path):
    """Its images have no cocoid and no filepath, and ten digits at most in their names."""
    images = [
        {
            **entry(f"{1000092795 + number}", split, ["two young guys", "a man"]),
            "imgid": number,
            "sentids": [2 * number, 2 * number + 1],
        }
        for number, split in enumerate(("train", "val", "test", "train"))
    ]
    path = tmp_path / "dataset_flickr30k.json"
    path.write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    found = read_captions(path)
    assert [record.image_id for record in found] == [0, 1, 2, 3]
    assert (found[0].name, found[0].path) == ("1000092795", "1000092795.jpg")
    assert [record.split for record in found] == ["train", "val", "test", "train"]
    assert found[2].captions == ("two young guys.", "a man.")


def test_coco_image_without_captions(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}))
    with pytest.raises(
        UserError, match=r"no images with captions .* 1 images without an annotation"
    ):
        read_captions(path)


def test_caption_words():
    assert caption_words('A man\'s dog (black): "wow", 🐶 and/or T-shirt!') == (
        ["a", "man's", "dog", "black", "wow", "🐶", "and/or", "t-shirt"]
    )
    assert caption_words(" . ") == []


@given(st.integers(1, 50), st.integers(0, 5))
def test_dealing_out_loses_nothing(count, seed):
    records = [ImageRecord(str(i), "", i, "", ("x.",)) for i in range(count)]
    dealt = deal_out(records, {"train": 18, "val": 1, "test": 1}, seed)
    assert [record.name for record in dealt] == [record.name for record in records]
    assert sum(record.split == "train" for record in dealt) == count - 2 * (count // 20)


def test_order_of_captions_to_paint():
    splits = ("train", "val", "restval", "test", "val", "test")
    records = [
        ImageRecord(str(i), "", i, split, (f"a {i}/b .", "other."))
        for i, split in enumerate(splits)
    ]
    assert painting_captions(records, test_val2014=True, limit=4) == [
        (records[3], "a 3 b."),
        (records[5], "a 5 b."),
        (records[1], "a 1 b."),
        (records[4], "a 4 b."),
    ]
    assert [r.name for r, _ in painting_captions(records, test_val2014=False)] == ["3", "5"]


# --- tokenizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 9, 17])
@pytest.mark.parametrize(
    "text", ["a dog.", "a b c d e f.", "a b c d e f g.", "word " * 500, "🐶/🐶"]
)
def test_text_to_paint_ends_in_one_separator(text, length):
    ids = TOKENIZER.encode_for_painting(text, length)
    assert len(ids) == length + 1
    end = ids.index(SEP)
    assert ids[end + 1 :] == [PAD] * (length - end)
    assert ids[:end] == TOKENIZER.encode(text, 1000)[:-1][:length]


def test_repeated_words_collapse():
    assert collapse_repeated_words("a a dog dog dog and an ant ant.") == "a dog and an ant."
    assert collapse_repeated_words("cat cats the then") == "cat cats the then"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], r"\[PAD\] must be in line 1, but is missing"),
        (lambda lines: lines[:103], r"\[MASK\] must be in line 104, but is missing"),
        (lambda lines: ["new", *lines], r"\[PAD\] must be in line 1, but is in line 2"),
        (lambda lines: [*lines, "again", "again"], "remove the duplicates"),
    ],
)
def test_other_vocabularies_are_refused(tmp_path, change, message):
    lines = ["[PAD]", *map(str, range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines += [f"w{number}" for number in range(908)] + ["."]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines))
    assert CaptionTokenizer(path).encode("w1.") == [101, 105, 1012, 102]
    path.write_text("\n".join(change(lines)))
    with pytest.raises(UserError, match=message):
        CaptionTokenizer(path)


def test_missing_vocabulary(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        CaptionTokenizer(tmp_path / "none.txt")


def test_ids_beyond_a_small_vocabulary_are_left_out():
    assert TOKENIZER.decode([CLS, 1037, 30522, 99999, 3899, 1012]) == "a dog."


# --- samples -------------------------------------------------------------------------------------


class Store:
    """Stands in for feature and cluster stores."""

    def __init__(self, names, value):
        self._values = {name: value + number for number, name in enumerate(names)}

    def names(self):
        return iter(self._values)

    def read(self, name):
        if name not in self._values:
            raise UserError(f"{name} is not there")
        return self._values[name]

    def read_batch(self, names):
        return np.stack([self.read(name) for name in names])


NAMES = ["a", "b", "c"]


def dataset(seed=0, text_length=9, clusters=NAMES, features=NAMES):
    texts = ("two dogs run on the beach.", "a cat.", "word " * 500 + ".")
    records = [ImageRecord(name, "", i, "train", texts[: i + 1]) for i, name in enumerate(NAMES)]
    return CaptioningDataset(
        records,
        TOKENIZER,
        Store(clusters, np.arange(4)),
        Store(features, np.zeros((4, 6), np.float32)) if features else None,
        text_length,
        seed,
    )


def test_batch_of_samples():
    data = dataset()
    batch = collate([data[0, index] for index in range(3)])
    assert batch.image_ids == NAMES
    assert batch.captions[0] == "two dogs run on the beach."
    assert batch.cluster_ids.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert batch.features.shape == (3, 4, 6) and batch.features.dtype == torch.float32
    assert batch.text_ids.shape == (3, 10) and batch.text_ids.dtype == torch.int64
    assert batch.references.shape == (3, 5, 25) and batch.references.dtype == torch.int64
    assert ((batch.references != PAD).any(-1).sum(-1) == torch.tensor([1, 2, 3])).all()
    rows = torch.arange(3)
    assert (batch.masked_text_ids[rows, batch.mask_positions] == MASK).all()
    restored = batch.masked_text_ids.clone()
    restored[rows, batch.mask_positions] = batch.text_ids[rows, batch.mask_positions]
    assert torch.equal(restored, batch.text_ids)
    for caption, ids in zip(batch.captions, batch.text_ids.tolist(), strict=True):
        cropped = TOKENIZER.encode(caption)[:9]
        assert ids == cropped + [PAD] * (10 - len(cropped))


def test_every_caption_and_position_is_drawn():
    data = dataset(text_length=4)
    drawn = [data[epoch, 2] for epoch in range(300)]
    assert {sample.caption for sample in drawn} == {"two dogs run", "a cat.", "word word word"}
    # 4 ids and one PAD, whose position counts too
    assert {sample.mask_position for sample in drawn} == {1, 2, 3, 4}


def test_cropped_captions_are_counted():
    """Those whose full stop is lost: 9 ids hold [CLS], 7 words and the stop."""
    records = [
        ImageRecord(str(n), "", n, "train", ("word " * (n - 1) + "word.", "a cat."))
        for n in range(1, 40)
    ]
    assert cropped_captions(records, TOKENIZER, 9) == (32, 78)
    assert cropped_captions(records, TOKENIZER, 99) == (39 - 23, 78)  # 25 ids are read at most
    ids, lengths = encode_references(records, TOKENIZER)
    ends = (ids[:, :, :9] == EOS).any(2)
    assert ((lengths > 0) & ~ends).sum() == 32


@given(st.lists(st.text(max_size=20), max_size=4))
def test_lengths_are_those_of_the_ids(texts):
    assert TOKENIZER.lengths(texts) == [len(TOKENIZER.encode(text, 999)) for text in texts]


def test_draws_depend_on_seed_epoch_and_index_alone():
    def texts(loader):
        return [(batch.captions, batch.masked_text_ids.tolist()) for batch in islice(loader, 6)]

    def loader(seed, workers, start=0):
        sampler = InfiniteSampler(3, 2, seed=seed, start=2 * start)
        return DataLoader(
            dataset(seed), batch_sampler=sampler, collate_fn=collate, num_workers=workers
        )

    reference = texts(loader(1, 0))
    assert texts(loader(1, 2)) == reference
    assert texts(loader(1, 0, start=3))[:3] == reference[3:]
    assert texts(loader(2, 0)) != reference


def test_dense_features_are_read_only_on_demand():
    data = dataset(features=None)
    assert collate([data[0, 0], data[0, 1]]).features is None


@pytest.mark.parametrize("lost", [{"clusters": ["a", "b"]}, {"features": ["a", "b"]}])
def test_missing_images_show_before_training(lost):
    with pytest.raises(UserError, match="c is not there"):
        dataset(**lost)


def test_dataset_can_be_sent_to_spawned_workers():
    copy = pickle.loads(pickle.dumps(dataset()))
    assert copy[3, 2].masked_text_ids == dataset()[3, 2].masked_text_ids


# --- sampler -------------------------------------------------------------------------------------

sizes = st.integers(1, 12)


@given(sizes, sizes, st.sampled_from([1, 2, 3]), st.integers(0, 5))
def test_each_epoch_is_a_permutation(num_samples, batch_size, world_size, seed):
    ranks = [
        islice(InfiniteSampler(num_samples, batch_size, rank, world_size, seed), num_samples * 3)
        for rank in range(world_size)
    ]
    stream = [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch]
    for epoch in range(3):
        part = stream[epoch * num_samples : (epoch + 1) * num_samples]
        assert {found for found, _ in part} == {epoch}
        assert sorted(index for _, index in part) == list(range(num_samples))


@given(sizes, st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=2, max_size=4))
def test_resume_with_other_processes_and_batches_goes_on(num_samples, legs):
    """Each leg is two iterations of some processes with some batch size."""
    drawn: list[tuple[int, int]] = []
    for batch_size, world_size in legs:
        ranks = [
            islice(InfiniteSampler(num_samples, batch_size, rank, world_size, start=len(drawn)), 2)
            for rank in range(world_size)
        ]
        drawn += [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch]
    uncut = chain.from_iterable(InfiniteSampler(num_samples, 1))
    assert drawn == list(islice(uncut, len(drawn)))


def test_epochs_and_seeds_differ():
    stream = [batch for batch in islice(InfiniteSampler(50, 50, seed=1), 2)]
    other = next(iter(InfiniteSampler(50, 50, seed=2)))
    orders = [[index for _, index in batch] for batch in (*stream, other)]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_impossible_samplers_are_refused():
    for wrong in ((0, 1), (1, 0), (1, 1, 2, 2)):
        with pytest.raises(ValueError, match="batch size"):
            InfiniteSampler(*wrong)
