"""Captions in tables: .csv and .tsv."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generations.datasets import read_captions, read_karpathy, select_splits, write_karpathy
from generations.errors import UserError


def table(folder, text, name="captions.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rows_of_an_image_are_its_captions(tmp_path):
    path = table(
        tmp_path,
        'split,note,Image,caption\ntrain,x,a/1.jpg,"A dog, black."\nval,y,2.png,A cat\n'
        "train,z,a/1.jpg,It runs\n",
    )
    first, second = read_captions(path)
    assert (first.name, first.path, first.split) == ("1", "a/1.jpg", "train")
    assert first.captions == ("a dog black.", "it runs.")
    assert (second.name, second.split, second.captions) == ("2", "val", ("a cat.",))
    assert first.image_id != second.image_id
    write_karpathy(tmp_path / "dataset.json", [first, second], "captions.csv")
    assert read_karpathy(tmp_path / "dataset.json") == [first, second]


@pytest.mark.parametrize("column", ["image", "path", "file", "filename"])
def test_tabs_byte_order_mark_and_windows_lines(tmp_path, column):
    text = f"\ufeff{column}\tcaption\r\n1.jpg\tA dog, black\r\n\r\n2.jpg\t«Une été»\r\n"
    records = read_captions(table(tmp_path, text, "captions.TSV"))
    assert [record.captions for record in records] == [("a dog black.",), ("«une été».",)]


def test_without_splits_the_seed_deals_them_out(tmp_path):
    lines = [f"{number}.jpg,photo {number}" for number in range(100)]
    path = table(tmp_path, "\n".join(["path,caption", *lines]))
    found = read_captions(path, seed=1)
    assert [len(select_splits(found, part)) for part in ("train", "val", "test")] == [90, 5, 5]
    assert found == read_captions(path, seed=1) != read_captions(path, seed=2)


def test_same_rows_count_once_and_all_others_are_taken(tmp_path, caplog):
    captions = ["one", "two", "one", "three", "four", "five", "six"]
    path = table(tmp_path, "\n".join(["image,caption", *(f"1.jpg,{text}" for text in captions)]))
    (record,) = read_captions(path)
    assert record.captions == ("one.", "two.", "three.", "four.", "five.", "six.")
    assert "1 duplicate rows" in caplog.text


def test_names_like_cocos_keep_their_ids_beside_others(tmp_path):
    path = table(tmp_path, "image,caption\n000000000001.jpg,a\nother.jpg,b\n")
    ids = [record.image_id for record in read_captions(path)]
    assert ids[0] == 1 and ids[1] > 10**11


HEAD = "image,caption,split\n"
hostile = pytest.mark.parametrize(
    ("text", "named"),
    [
        ("image,words\n1.jpg,a\n", r"must name one column image .* but it is 'image', 'words'"),
        ("caption\na\n", "line 1 must name one column"),
        ("image,path,caption\n1.jpg,2.jpg,a\n", "line 1 must name one column"),
        ("", "line 1 must name one column"),
        ("image,caption\n", "has no images"),
        (HEAD + "1.jpg,a,train\n2.jpg,  ,train\n", r"2\.jpg: line 3 has an empty caption"),
        (HEAD + "1.jpg,...,train\n", "line 2 has an empty caption"),
        (HEAD + ",a,train\n", "line 2 has no image name"),
        (
            HEAD + "1.jpg,a,some\n",
            r"line 2 has the split 'some', which is not one of train, restval",
        ),
        (HEAD + "1.jpg,a,\n", "line 2 has the split ''"),
        (HEAD + "1.jpg,a,train\n1.jpg,b,val\n", "line 3 has the split val, but an earlier row"),
        (HEAD + "1.jpg,a dog, black,train\n", r"line 2 has 4 fields and the header 3 \(.*quotes"),
        (HEAD + "1.jpg\n", "line 2 has 1 fields and the header 3"),
        (HEAD + "../1.jpg,a,train\n", r"\.\./1\.jpg', outside of the folder"),
        (HEAD + "/etc/1.jpg,a,train\n", "outside of the folder"),
        (HEAD + "x/1.jpg,a,train\ny/1.png,b,val\n", r"y/1\.png: has the same name as x/1\.jpg"),
        (HEAD + '1.jpg,"a,train\n', r"line 2 is not a valid row .* check its quotes"),
        (
            HEAD.encode() + b"1.jpg,a,train\n2.jpg,\x81t\xe9,train\n",
            "line 3 is not valid UTF-8; save",
        ),
        (HEAD + "a\0.jpg,a,train\n", "broken characters in its file|line"),
    ],
)


@hostile
def test_hostile_tables_are_named(tmp_path, text, named):
    with pytest.raises(UserError, match=named) as stop:
        read_captions(table(tmp_path, text))
    assert "captions.csv" in str(stop.value) and "\n" not in str(stop.value)


def test_bad_rows_can_be_left_out_with_their_image(tmp_path, caplog):
    path = table(tmp_path, HEAD + "1.jpg,a,train\n2.jpg,b,train\n2.jpg,,train\n../3.jpg,c,train\n")
    assert [record.name for record in read_captions(path, skip_bad=True)] == ["1"]
    assert "left out 2 images" in caplog.text


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read_captions(tmp_path / "none.csv")


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_any_table_is_read_or_refused(tmp_path_factory, rows):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("image", "caption"), *rows])
    path = table(tmp_path_factory.mktemp("any"), stream.getvalue())
    try:
        assert all(record.captions for record in read_captions(path))
    except UserError as error:
        assert str(path) in str(error)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, noise):
    path = table(tmp_path_factory.mktemp("any"), b"image,caption\n1.jpg,a\n" + noise)
    try:
        assert read_captions(path)
    except UserError as error:
        assert str(path) in str(error)
