"""Captions in all the forms that people have them in (docs/data.md)."""

import io
import json
import logging
import tarfile

import pytest
from PIL import Image

from generations import prepare
from generations.datasets import CaptionTokenizer, read_intake, read_karpathy
from generations.errors import UserError
from generations.vocabulary import EOS

DOG, CATS = "A dog runs on the beach.", "Two cats sit on a sofa."
PLAIN = [("1.jpg", ["a dog runs on the beach."]), ("2.jpg", ["two cats sit on a sofa."])]
TOKENS = """1.jpg#0\tA dog runs on the beach .
1.jpg#1\tA wet dog .
2.jpg#0\tTwo cats sit on a sofa .
3.jpg.1#0\tA key without a picture .
"""
LISTS = {"trainImages": "1.jpg\n", "devImages": "2.jpg\n", "testImages": "4.jpg\n"}


def lines(*rows):
    return "\n".join(rows) + "\n"


def items(*pairs, key=("image", "caption")):
    return [dict(zip(key, pair, strict=True)) for pair in pairs]


PAIRS = items(("1.jpg", DOG), ("2.jpg", CATS))
TEXT = items(("1.jpg", DOG), ("2.jpg", CATS), key=("file_name", "text"))
COCO = {
    "images": [{"id": 139, "file_name": "1.jpg"}, {"id": 285, "file_name": "2.jpg"}],
    "annotations": [{"image_id": 139, "caption": DOG}, {"image_id": 285, "caption": CATS}],
}


def coco(**changes):
    return {**COCO, **changes}


def pictures(*entries):
    return [dict(zip(("id", "file_name"), entry, strict=True)) for entry in entries]


def notes(*entries):
    return [dict(zip(("image_id", "caption"), entry, strict=True)) for entry in entries]


def written(folder, content, name="captions.json"):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode())
    return path


def found(path, **more):
    return [(record.path, list(record.captions)) for record in read_intake(path, **more).records]


TABLE = lines("image,caption", f"1.jpg,{DOG}", f"2.jpg,{CATS}")
EXCEL = TABLE.replace(",", ";").replace("\n", "\r\n")
FORMS = {
    "open_clip": TABLE.replace("image,caption", "filepath,title"),
    "imagefolder": TABLE.replace("image,caption", "file_name,text"),
    "columns in other letters": TABLE.replace("image,caption", "File Name, Caption "),
    "semicolons": EXCEL,
    "semicolons and a mark for Excel": "sep=;\r\n" + EXCEL,
    "tabs": TABLE.replace(",", "\t"),
    "bars, of Flickr30k from Kaggle": lines(
        "image_name| comment_number| comment", f"1.jpg| 0| {DOG}", f"2.jpg| 0| {CATS}"
    ),
    "a mark of UTF-8": "\ufeff" + TABLE,
    "UTF-16 with its mark, of Excel": TABLE.replace(",", "\t").encode("utf-16"),
    "UTF-16 without a mark": TABLE.encode("utf-16-le"),
    "UTF-32": TABLE.encode("utf-32"),
    "lines of old Macs": TABLE.replace("\n", "\r"),
    "empty lines and cells": TABLE.replace("\n", "\n\n") + ",\n\n",
    "everything quoted": lines('"image","caption"', f'"1.jpg","{DOG}"', f'"2.jpg","{CATS}"'),
    "paths of Windows": TABLE.replace("1.jpg", ".\\1.jpg"),
    "a column of row numbers": lines(",image,caption", f"0,1.jpg,{DOG}", f"1,2.jpg,{CATS}"),
    "lines of JSON": lines(*map(json.dumps, TEXT)),
    "lines of JSON, with empty ones": "\n" + "\r\n\r\n".join(map(json.dumps, TEXT)),
    "a list": PAIRS,
    "a list with lists": items(("1.jpg", [DOG]), ("2.jpg", [CATS])),
    "a list of sentences": items(
        ("1.jpg", [{"raw": DOG}]),
        ("2.jpg", [{"tokens": CATS[:-1].split()}]),
        key=("filename", "sentences"),
    ),
    "a list under data": {"data": PAIRS},
    "names and captions": {"1.jpg": DOG, "2.jpg": [CATS]},
    "JSON with a mark": b"\xef\xbb\xbf" + json.dumps(PAIRS).encode(),
    "JSON in UTF-16": json.dumps(PAIRS).encode("utf-16"),
    "COCO": COCO,
    "COCO, ids as texts": coco(
        images=pictures(("000000000139", "1.jpg"), (285.0, "2.jpg")),
        annotations=notes((139, DOG), ("285", CATS)),
    ),
    "COCO, names in coco_url": coco(
        images=[
            {"id": 139, "coco_url": "http://x.org/a/1.jpg"},
            {"id": 285, "file_name": "2.jpg"},
        ]
    ),
    "Karpathy without tokens and splits": {
        "images": [
            {"filename": "1.jpg", "sentences": [{"raw": DOG}]},
            {"filename": "2.jpg", "sentences": [{"tokens": CATS[:-1].lower().split()}]},
        ]
    },
    "Flickr's tokens": TOKENS.replace("1.jpg#1\tA wet dog .\n", ""),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("name", ["captions", "captions.csv", "captions.json"])
def test_two_images_are_read_as_they_are(tmp_path, content, name):
    """What a file is, is told by its content."""
    assert found(written(tmp_path, content, name)) == PLAIN


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ('image,caption\n1.jpg,"A dog , black and wet , runs ."\n', "a dog black and wet runs."),
        ('image,caption\n1.jpg,"A sign says ""stop""."\n', "a sign says stop."),
        ('image\tcaption\n1.jpg\t"Stop" says a sign\n', "stop says a sign."),
        ('image\tcaption\n1.jpg\tA 5" plate\n', 'a 5" plate.'.replace('"', "")),
        ("image,caption\n1.jpg,“A man’s dog…”\n", "a man's dog."),
        ("image,caption\n1.jpg,Tom &amp; Jerry\n", "tom & jerry."),
        ("image,caption\n1.jpg,Une été\n".encode("cp1252"), "une été."),
        ("image,caption\n1.jpg,Ein Käfer\n".encode("utf-16"), "ein käfer."),
    ],
    ids=range(8),
)
def test_quotes_and_letters(tmp_path, content, captions):
    assert found(written(tmp_path, content, "c.csv")) == [("1.jpg", [captions])]


@pytest.mark.parametrize(
    ("given", "split"),
    [("train", "train"), ("Training ", "train"), ("train2014", "train"), ("RESTVAL", "restval")]
    + [(name, "val") for name in ("val", "Valid", "validation", "dev", "val2017")]
    + [(name, "test") for name in ("test", "TEST", "testing")],
)
def test_splits_by_other_names(tmp_path, given, split):
    for content in (
        f"image;caption;subset\n1.jpg;{DOG};{given}\n",
        [{"image": "1.jpg", "caption": DOG, "split": given}],
        {"images": [{"filename": "1.jpg", "split": given, "sentences": [{"raw": DOG}]}]},
    ):
        (record,) = read_intake(written(tmp_path, content)).records
        assert record.split == split


REFUSED = {
    "no header": (lines(f"1.jpg\t{DOG}", f"2.jpg\t{CATS}"), "line 1 must be a header"),
    "one of two lines has no caption": (
        [{"image": "1.jpg", "caption": DOG}, {"image": "2.jpg"}],
        r"2\.jpg: entry 2 has no caption",
    ),
    "an entry without image": ([{"caption": DOG}], "entry 1 has no image name"),
    "a line that is no JSON": (lines(json.dumps(TEXT[0]), "{"), "line 2 is not valid JSON"),
    "an annotation without image_id": (
        coco(annotations=[{"caption": DOG}]),
        "annotation 1 has no image_id",
    ),
    "a line between Flickr's": (TOKENS + "2.jpg Two cats\n", "line 5 must be `name"),
    "a workbook": (b"PK\x03\x04" + bytes(99), "Excel workbook .* save the table as CSV"),
    "Parquet": (b"PAR1" + bytes(99), "Parquet: write it as CSV"),
    "images of two splits": (
        [{"image": "1.jpg", "caption": DOG, "split": s} for s in ("train", "val")],
        r"entry 2 has the split val, but an earlier row of the same image has train",
    ),
    "some without split": (
        [{"image": "1.jpg", "caption": DOG, "split": "train"}, {"image": "2.jpg", "caption": DOG}],
        r"2\.jpg: has no split, but others have one",
    ),
    "a path outside": (TABLE.replace("1.jpg", "/etc/1.jpg"), "outside of the folder"),
    "a byte of no encoding": (TABLE.encode() + b"3.jpg,\x81\n", "line 4 is not valid UTF-8; save"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_named(tmp_path, content, message):
    path = written(tmp_path, content, "mine.any")
    with pytest.raises(UserError, match=message) as stop:
        read_intake(path)
    assert str(path) in str(stop.value) and "\n" not in str(stop.value)


COUNTED = {
    "orphans of both kinds": (
        coco(annotations=notes((139, DOG), (77, CATS))),
        [PLAIN[0]],
        {"images without an annotation": 1, "annotations without an image": 1},
    ),
    "no captions by their own words": (
        coco(
            annotations=[
                *COCO["annotations"],
                {"image_id": 139, "caption": "Bad.", "is_precanned": True, "is_rejected": False},
                {"image_id": 285, "caption": "asdf", "is_rejected": True},
            ]
        ),
        PLAIN,
        {"annotations marked is_precanned": 1, "annotations marked is_rejected": 1},
    ),
    "nothing else of an image": (
        coco(annotations=[COCO["annotations"][0], {"image_id": 285, "is_rejected": True}]),
        [PLAIN[0]],
        {"annotations marked is_rejected": 1, "images whose annotations were all left out": 1},
    ),
    "rejected in a list": (
        [*PAIRS, {"image": "3.jpg", "caption": "asdf", "is_rejected": 1}],
        PLAIN,
        {"annotations marked is_rejected": 1},
    ),
    "a key without a picture": (
        TOKENS,
        [("1.jpg", ["a dog runs on the beach.", "a wet dog."]), PLAIN[1]],
        {"captions whose key is not a picture": 1},
    ),
    "equal rows": (TABLE + f"1.jpg,{DOG}\n", PLAIN, {"duplicate rows": 1}),
}


@pytest.mark.parametrize(("content", "kept", "counts"), COUNTED.values(), ids=COUNTED.keys())
def test_what_is_left_out_is_counted(tmp_path, content, kept, counts):
    path = written(tmp_path, content)
    assert found(path) == kept
    tally = read_intake(path).tally
    assert tally.left_out == counts and len(tally.counts()) == 1


def test_only_rejected_captions(tmp_path):
    path = written(tmp_path, coco(annotations=[{"image_id": 139, "is_rejected": True}]))
    with pytest.raises(
        UserError, match=r"no images with captions .*1 images without an annotation"
    ):
        read_intake(path)


def test_ids_of_coco_are_numbers(tmp_path):
    for content in (FORMS["COCO"], FORMS["COCO, ids as texts"]):
        records = read_intake(written(tmp_path, content)).records
        assert [record.image_id for record in records] == [139, 285]


# --- what is in a caption --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (
            "A U.S. flag, 2.5 m long, hangs at St. Mary's.",
            "a us flag 2 5 m long hangs at st mary's.",
        ),
        ("Mr. Smith drinks 0.5 l of milk. He smiles.", "mr smith drinks 0 5 l of milk he smiles."),
        ("A S.C.U.B.A. diver at www.x.org ...", "a scuba diver at www x org."),
    ],
)
def test_the_only_end_is_at_the_end(tmp_path, text, caption):
    tokens = text.lower().split()
    for content in (
        [{"image": "1.jpg", "caption": text}],
        {"images": [{"filename": "1.jpg", "split": "train", "sentences": [{"tokens": tokens}]}]},
    ):
        intake = read_intake(written(tmp_path, content))
        (read,) = intake.records[0].captions
        ids = CaptionTokenizer().encode(read, 99)
        assert ids.index(EOS) == len(ids) - 2
        assert sum(intake.tally.changed.values()) == 1
        assert [word.strip(",") for word in read.split()] == caption.split()


def test_full_stops_at_the_end_change_nothing(tmp_path):
    texts = ["A dog .", "A dog!..", 'A "dog."']
    path = written(tmp_path, [{"image": "1.jpg", "caption": texts}])
    intake = read_intake(path)
    assert intake.records[0].captions == ("a dog.",) * 3 and not intake.tally.changed


# --- folders -------------------------------------------------------------------------------------


def flickr8k(folder, **changes):
    written(folder, TOKENS + "5.jpg#0\tIn no list\n", "Flickr8k.token.txt")
    written(folder, "nothing", "Flickr8k.lemma.token.txt")
    for name, text in {**LISTS, **changes}.items():
        written(folder, text, f"Flickr_8k.{name}.txt")
    return folder


@pytest.mark.parametrize("name", ["", "Flickr8k.token.txt"])
def test_flickr8k_with_its_lists(tmp_path, name):
    intake = read_intake(flickr8k(tmp_path) / name)
    assert [(record.name, record.split) for record in intake.records] == [
        ("1", "train"),
        ("2", "val"),
    ]
    assert intake.tally.left_out == {
        "captions whose key is not a picture": 1,
        "images in no split list": 1,
        "images of split lists without captions": 1,
    }


def test_an_image_in_two_lists_is_refused(tmp_path):
    folder = flickr8k(tmp_path, testImages="2.jpg\n")
    both = r"2\.jpg: is in Flickr_8k\.devImages\.txt and in line 1 of Flickr_8k\.testImages\.txt"
    with pytest.raises(UserError, match=both):
        read_intake(folder)
    assert [record.name for record in read_intake(folder, skip_bad=True).records] == ["1"]


def test_lists_are_about_flickrs_captions_alone(tmp_path):
    flickr8k(tmp_path)
    assert found(written(tmp_path, TABLE, "mine.csv")) == PLAIN
    kaggle = read_intake(written(tmp_path, TABLE, "captions.txt")).records
    assert [record.split for record in kaggle] == ["train", "val"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "val.csv"),
        ("coco_karpathy_train.json", "coco_karpathy_val.json"),
        ("train/metadata.jsonl", "validation/metadata.jsonl"),
    ],
)
def test_a_file_for_each_split(tmp_path, names):
    for name, item in zip(names, PAIRS, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        table = lines("image,caption", ",".join(item.values()))
        content = table if name.endswith("csv") else json.dumps([item])
        (tmp_path / name).write_text(json.dumps(item) if name.endswith("l") else content)
    records = read_intake(tmp_path).records
    assert [(record.name, record.split) for record in records] == [("1", "train"), ("2", "val")]
    assert records[1].path == ("validation/2.jpg" if "/" in names[0] else "2.jpg")


def test_a_folder_that_is_not_clear(tmp_path):
    written(tmp_path, TABLE, "a.csv")
    assert found(tmp_path) == PLAIN
    written(tmp_path, TABLE, "b.csv")
    with pytest.raises(UserError, match=r"cannot tell which file .*a\.csv, b\.csv"):
        read_intake(tmp_path)


# --- pairs ---------------------------------------------------------------------------------------


def picture(side=4):
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "JPEG")
    return stream.getvalue()


MEMBERS = {
    "1.jpg": picture(),
    "1.txt": f"{DOG}\r\n\nIt is wet\n".encode(),
    "2.JPG": picture(),
    "2.txt": "Une été".encode("cp1252"),
    "3.jpg": picture(),
    "4.txt": b"Nothing to see",
}
OF_PAIRS = [("1.jpg", ["a dog runs on the beach.", "it is wet."]), ("2.JPG", ["une été."])]
ORPHANS = {"pictures without a text file": 1, "text files without a picture": 1}


def tar(path, members):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_of_pairs(tmp_path):
    for name, content in MEMBERS.items():
        (tmp_path / name).write_bytes(content)
    assert found(tmp_path) == OF_PAIRS
    assert read_intake(tmp_path).tally.left_out == ORPHANS
    for split in ("train", "Val"):
        (tmp_path / "b" / split).mkdir(parents=True)
        for kind in ("jpg", "txt"):
            (tmp_path / "b" / split / f"{split}.{kind}").write_bytes(MEMBERS[f"1.{kind}"])
    assert {record.split for record in read_intake(tmp_path / "b").records} == {"train", "val"}


@pytest.mark.parametrize("name", ["00000.tar", "00000.tar.gz", "shards"])
def test_tars_of_pairs_are_read_as_a_stream(tmp_path, name):
    if name == "shards":
        (tmp_path / name).mkdir()
        split = list(MEMBERS.items())
        for number in range(2):
            tar(tmp_path / name / f"{number}.tar", dict(split[2 * number :][: 2 + 2 * number]))
    else:
        tar(tmp_path / name, MEMBERS)
    images = tmp_path / "images"
    intake = read_intake(tmp_path / name, images_dir=images)
    assert [(record.path, list(record.captions)) for record in intake.records] == OF_PAIRS
    assert intake.tally.left_out == ORPHANS and intake.packed and not images.exists()
    read_intake(tmp_path / name, images_dir=images, unpack=True)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == {
        name: content for name, content in MEMBERS.items() if name.lower().endswith("jpg")
    }


def test_captions_of_img2dataset_in_json(tmp_path):
    members = {"0.jpg": picture(), "0.json": json.dumps({"caption": DOG, "key": "0"}).encode()}
    assert found(tar(tmp_path / "a.tar", members)) == [("0.jpg", ["a dog runs on the beach."])]


@pytest.mark.parametrize("name", ["../1.jpg", "/tmp/1.jpg", "a/../../1.jpg"])
def test_members_of_tars_stay_in_their_folder(tmp_path, name):
    path = tar(tmp_path / "a.tar", {name: picture(), **MEMBERS})
    intake = read_intake(path, images_dir=tmp_path / "in" / "images", unpack=True)
    assert intake.tally.left_out["members of tars with paths outside of their folder"] == 1
    outside = [p for p in tmp_path.rglob("*.jpg") if (tmp_path / "in" / "images") not in p.parents]
    assert not outside


def test_the_same_name_in_two_tars_is_refused(tmp_path):
    for name in ("a.tar", "b.tar"):
        tar(tmp_path / name, MEMBERS)
    with pytest.raises(UserError, match=r"1\.jpg: in b\.tar is also in a\.tar"):
        read_intake(tmp_path)


def test_a_cut_tar_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar", MEMBERS)
    content = path.read_bytes()
    for cut in (700, 1500, len(MEMBERS["1.jpg"]) + 1100):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a\.tar"):
            read_intake(path)


# --- the step captions ---------------------------------------------------------------------------

LONG = "a dog " * 20


def prepared(folder, *more):
    where = ("data_dir", str(folder / "data"), "images_dir", str(folder / "images"))
    prepare.main(["captions", *where, "device", "cpu", "num_workers", "0", *more])


def test_check_says_what_a_file_holds_and_changes_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "images").mkdir()
    for name in ("1.jpg", "2.jpg", "8.jpg", "9.jpg"):
        (tmp_path / "images" / name).write_bytes(b"is not looked at")
    content = coco(annotations=notes((139, DOG), (285, LONG), (285, "A U.S. dog"), (7, CATS)))
    path = written(tmp_path, content)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    prepared(tmp_path, "--check", "captions_file", str(path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    for told in (
        "read as COCO's annotations",
        "left out 1 annotations without an image",
        "changed 1 captions with full stops inside",
        "2 images with 3 captions; train 2",
        "1 of 3 captions (33.3%) are longer than text_length 17 and are cropped",
        "2 pictures without captions, 0 captioned images without a picture",
    ):
        assert told in caplog.text, told
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"2\.jpg is missing"):
        prepared(tmp_path, "--check", "captions_file", str(path))
    prepare.main(["captions", "--check", "captions_file", str(path), "images_dir", ""])
    with pytest.raises(UserError, match="--check works only with the step captions"):
        prepare.main(["features", "--check", "captions_file", str(path)])


def test_a_tar_becomes_a_dataset(tmp_path):
    path = tar(tmp_path / "00000.tar", {**MEMBERS, "2.JPG": picture(5)})
    for _ in range(2):  # the second time nothing has to be unpacked
        prepared(tmp_path, "captions_file", str(path))
    records = read_karpathy(tmp_path / "data" / "dataset_coco.json")
    assert [(record.path, list(record.captions)) for record in records] == OF_PAIRS


def test_pictures_are_found_whatever_the_letter_case(tmp_path):
    (tmp_path / "images" / "below").mkdir(parents=True)
    names = {"Dog.JPG": "dog.jpg", "e\u0301te\u0301.jpg": "\u00e9t\u00e9.jpg"}
    for name in names:
        (tmp_path / "images" / "below" / name).write_bytes(picture())
    rows = [f"C:\\mine\\{name},{DOG}" for name in names.values()]
    path = written(tmp_path, lines("image,caption", *rows), "c.csv")
    prepared(tmp_path, "captions_file", str(path))
    assert len(read_karpathy(tmp_path / "data" / "dataset_coco.json")) == 2


def test_absolute_paths_may_lie_in_images_dir(tmp_path):
    table = TABLE.replace("1.jpg", f"{tmp_path}/images/a/1.jpg")
    path = written(tmp_path, table)
    records = read_intake(path, images_dir=tmp_path / "images").records
    assert [record.path for record in records] == ["a/1.jpg", "2.jpg"]
