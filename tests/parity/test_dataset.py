"""Captions, samples and tokens against what the original produced (m_dataset.json)."""

import json
import random

import goldens
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from generations.datasets import (
    CaptionTokenizer,
    clean_caption,
    draw_sample,
    read_split,
    reference_captions,
)
from generations.datasets.captioning import encode_references
from generations.datasets.karpathy import MAX_CAPTIONS
from generations.datasets.tokenizer import BUNDLED_VOCABULARY

RECORDED = json.loads((goldens.FOLDER / "m_dataset.json").read_text(encoding="utf-8"))
TOKENIZER = CaptionTokenizer()
ORACLE = BertTokenizerFast(str(BUNDLED_VOCABULARY))
SPLITS = [("train", 17), ("trainrestval", 17), ("train", 9)]


@pytest.fixture(scope="module")
def captions_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "dataset_coco.json"
    path.write_text(json.dumps(RECORDED["karpathy_json"]))
    return path


@pytest.mark.parametrize(("split", "text_length"), SPLITS)
def test_samples_of_the_original(captions_file, split, text_length):
    recorded = RECORDED[f"split_{split}_len{text_length}"]
    records = read_split(captions_file, split)
    assert [record.name for record in records] == [
        image["image_id"] for image in recorded["pool_before_shuffling"]
    ]
    captions = [TOKENIZER.encode_batch(record.captions[:MAX_CAPTIONS]) for record in records]
    assert captions == [image["captions"] for image in recorded["pool_before_shuffling"]]

    rng = random.Random(recorded["random_seed"])
    for item in recorded["items_in_call_order"]:
        index = item["index"]
        drawn = draw_sample(captions[index], rng, text_length)
        # the original shuffles in place, so the next draw starts from this order
        captions[index] = [captions[index][place] for place in drawn.order]
        assert drawn.text_ids == item["input_token_id"]
        assert drawn.masked_text_ids == item["masked_token_id"]
        assert drawn.masked_text_ids[drawn.position] == 103
        width = len(item["gt_captions"][0])
        assert [row + [0] * (width - len(row)) for row in captions[index]] == item["gt_captions"]


def test_references_of_the_original(captions_file):
    recorded = RECORDED["split_trainrestval_len17"]["pool_before_shuffling"]
    ids, lengths = encode_references(read_split(captions_file, "trainrestval"), TOKENIZER)
    assert ids.shape == (len(recorded), 5, 25)
    for image, rows, sizes in zip(recorded, ids, lengths, strict=True):
        assert [row[:size].tolist() for row, size in zip(rows, sizes, strict=True)] == image[
            "captions"
        ]
        assert not np.any(rows[np.arange(25) >= sizes[:, None]])


def test_test_split_of_the_original(captions_file):
    recorded = RECORDED["test_split"]
    records = read_split(captions_file, "test")
    assert [record.name for record in records] == recorded["samples"]
    assert reference_captions(records) == {
        int(image): [entry["caption"] for entry in entries]
        for image, entries in recorded["id2captions"].items()
    }


def test_token_ids_of_the_original():
    for text, ids in RECORDED["encode"]:
        assert TOKENIZER.encode(text, 100) == ids
        assert TOKENIZER.encode(text) == ids[:25]


@pytest.mark.parametrize("recorded", RECORDED["decode"])
def test_decoded_text_of_the_original(recorded):
    plain = TOKENIZER.decode(recorded["ids"], collapse_repeats=False)
    assert plain == recorded["decoded_end_flags"]
    assert TOKENIZER.decode(recorded["ids"]) == recorded["deduplicated"]


def test_cleaned_text_of_the_original():
    for text, cleaned in RECORDED["clean_text"]:
        assert clean_caption(text) == cleaned


ODD = ["a", "café/bar", "naïve", "🐶", "don't", "CAT,", "ﬁne", "犬", "\u200b", "x-y", "1/2", "$5"]
words = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.lists(st.sampled_from(ODD), max_size=60).map(" ".join),
    st.sampled_from(["word " * 500, "/" * 200, "👩‍👩‍👧 eats", "a [SEP] b [MASK]"]),
)


@given(words)
def test_encodes_as_bert_does(text):
    assert TOKENIZER.encode(text, 10**6) == ORACLE(text)["input_ids"]
    assert TOKENIZER.encode_batch([text, "a dog."])[0] == TOKENIZER.encode(text)


pieces = [number for number in range(999, 30522) if number != 1012]


@given(st.lists(st.sampled_from(pieces), max_size=20))
def test_decodes_as_bert_does(ids):
    # ids without a full stop: at one we stop
    expected = ORACLE.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    assert TOKENIZER.decode(ids, collapse_repeats=False) == expected
