"""Files that are truncated, bent, of other kinds or hostile: every reader names the file.

What a reader may do with a malformed file: raise our error with the file's name, or, where the
damage is in nothing it reads, read what was written. Never run anything, never hang.
"""

import copy
import faulthandler
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from generations.checkpoint import (
    pretrained,
    read_tensors,
    read_training_checkpoint,
    save_safetensors,
    write_training_checkpoint,
)
from generations.clip import load_clip
from generations.clip.loading import save_clip
from generations.clip.training import ClipTrainSettings, train_clip
from generations.commands.evaluate import read_results
from generations.config import load_config
from generations.datasets import (
    CaptionTokenizer,
    load_centroids,
    open_cluster_store,
    open_feature_store,
    read_captions,
    read_intake,
    read_karpathy,
    write_array_pickle,
)
from generations.datasets.feature_parts import signature_of
from generations.datasets.hard_samples import read_hard_samples
from generations.datasets.packed import PackedHeader
from generations.datasets.tokenizer import BUNDLED_VOCABULARY
from generations.errors import UserError
from generations.features import load_image
from generations.metrics.inception import load_inception
from generations.pipelines import assembly
from generations.pipelines.demo import read_examples
from generations.pipelines.extraction import description_of
from generations.pipelines.manifest import MANIFEST
from generations.pipelines.picture_files import picture_name
from generations.pipelines.pictures import read_painted_folder
from generations.reporting.results import RealImages, gather, read_figures
from generations.rewards import DocumentFrequency, build_document_frequency
from generations.training.checkpoint import latest_checkpoint

CASES = 200
GRID, DIM, CLUSTERS = 2, 3, 5
NAMES = [f"img_{number:012d}" for number in range(4)]


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes:
        write: makes a good file.
        read: reads it; gives something that can be compared as text.
        name: of the file.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    name: str


def karpathy() -> dict[str, Any]:
    images = [
        {
            "filename": f"{name}.png",
            "cocoid": number,
            "split": "train",
            "sentences": [{"tokens": ["a", "dog"]}, {"tokens": ["two", "cats"]}],
        }
        for number, name in enumerate(NAMES)
    ]
    return {"images": images}


def coco() -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate(NAMES)],
        "annotations": [{"image_id": n, "caption": "a dog"} for n in range(len(NAMES))],
    }


def table(path: Path) -> None:
    path.write_text("image,caption\n" + "".join(f'{name}.png,"a dog"\n' for name in NAMES))


def tokens(path: Path) -> None:
    path.write_text("".join(f"{name}.png#0\ta dog\n" for name in NAMES))


def json_lines(path: Path) -> None:
    rows = ({"file_name": f"{name}.png", "text": "a dog"} for name in NAMES)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tar_of_pairs(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in NAMES:
            for kind, content in ((".png", bytes(99)), (".txt", b"a dog"), (".json", b"{}")):
                member = tarfile.TarInfo(name + kind)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def features(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in NAMES:
            file.create_dataset(f"{name}/features", data=np.ones((GRID, GRID, DIM), np.float32))
        file.attrs["signature"] = "of the extractor"


def packed(path: Path) -> None:
    header, head = PackedHeader("float32", (GRID, GRID, DIM), "signature", NAMES).encode()
    path.write_bytes(head + bytes(header.file_bytes - header.data))


def read_features(path: Path) -> Any:
    store = open_feature_store([path], GRID, DIM)
    return {name: store.read(name).tolist() for name in NAMES}


def clusters(path: Path) -> None:
    write_array_pickle(path, {name: np.arange(GRID * GRID) for name in NAMES})


def old_clusters(path: Path) -> None:
    many = {f"{name}_{n}": np.arange(GRID * GRID) for name in NAMES for n in range(80)}
    path.write_bytes(pickle.dumps(many, protocol=2))


def read_clusters(path: Path) -> Any:
    store = open_cluster_store([path], GRID, CLUSTERS)
    return {name: store.read(name).tolist() for name in store.names()}


STATE = {"mask_feat": torch.arange(6.0), "pooler.dense.bias": torch.ones(2, 3)}


def training(path: Path) -> None:
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"params": [0], "lr": 1.0}]}
    state = {"optimizer": optimizer, "scheduler": {"last_epoch": 1}, "iteration": 3}
    write_training_checkpoint(path, {"model": STATE, **state}, seal=True)


def read_latest(path: Path) -> Any:
    found = latest_checkpoint(path.parent)
    assert found == path
    return "the same"


def hard_samples(path: Path) -> None:
    lists = [["a dog", "a cat"], ["two dogs", "two cats"]]
    for kind in ("verb", "color", "noun"):
        (path.parent / f"{kind}.json").write_text(json.dumps(lists))
    path.write_bytes(pickle.dumps(lists, protocol=2))


def documents(path: Path) -> None:
    build_document_frequency([[[101, 5, 6, 1012]], [[101, 5, 7, 1012]]]).save(path)


def read_documents(path: Path) -> Any:
    found = DocumentFrequency.load(path)
    return found.documents, [keys.tolist() for keys in found.keys]


def manifest(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path.parent / "img1.png")
    items = [{"file": "img1.png", "caption": "a dog", "image_id": 1}]
    path.write_text(json.dumps({"items": items}))


def picture(path: Path) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(path)


CLIP: dict[str, bytes] = {}


def clip(path: Path) -> None:
    if not CLIP:
        settings = ClipTrainSettings(train_steps=1, batch_size=4, image_width=4, text_width=16)
        pixels = np.zeros((4, 3, 32, 32), np.uint8).transpose(0, 2, 3, 1)
        model = train_clip(pixels, [["a dog"]] * 4, settings, seed=0)
        for file in save_clip(model, path.parent):
            CLIP[file.suffix] = file.read_bytes()
    (path.parent / "clip.json").write_bytes(CLIP[".json"])
    (path.parent / "clip.safetensors").write_bytes(CLIP[".safetensors"])


def read_clip(path: Path) -> Any:
    folder = path.parent
    load_clip(str(folder / "clip.json"), str(folder / "clip.safetensors"))
    return "a model"


def read_config(path: Path) -> Any:
    return load_config([path]).dump()


def spelt(content: Any) -> Callable[[Path], None]:
    """Writes JSON."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(content))

    return write


PAINTED = "images_test_0000002"


def run_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == PAINTED else path.parent


def run_folder(path: Path) -> None:
    """What a report gathers: captions, metrics, a manifest, painting steps; one of them is bent."""
    folder = run_of(path)
    painted = folder / PAINTED
    (painted / "steps").mkdir(parents=True, exist_ok=True)
    item = {"file": "img1.png", "caption": "a dog", "image_id": 1, "image_name": NAMES[1]}
    step = {"file": "steps/img1.1.png", "again": [0, 3]}
    for picture in ("img1.png", "steps/img1.1.png"):
        Image.new("RGB", (4, 4)).save(painted / picture)
    trace = {"caption": "a dog", "steps": [step], "grid_size": 2}
    scored = {"figures": {"cider_d": 0.5}, "per_item": [{"image_id": 1, "cider_d": 0.5}]}
    for name, content in {
        "captions_test_0000002": [{"image_id": 1, "caption": "a dog"}],
        "metrics_captions_test_0000002": scored,
        "images_test_0000002/manifest": {"items": [item]},
        "images_test_0000002/steps": {"items": [trace]},
    }.items():
        spelt(content)(folder / f"{name}.json")


def read_run(path: Path) -> Any:
    folder = run_of(path)
    spelt(karpathy())(folder / "split.json")
    images = RealImages(read_karpathy(folder / "split.json"), folder)
    return gather(folder, folder, images)


EXTRACTOR = {"name": "patches", "image_size": 64, "grid_size": 2, "dim": 3, "weights": ""}


def read_extractor(path: Path) -> Any:
    return description_of(load_config(overrides=["data_dir", str(path.parent)]))


def model_config(path: Path) -> None:
    pretrained.write_config(load_config(), path.parent)


SEAL = "model_0000003.pth.json"
READERS = {
    "captions": Reader(
        lambda path: path.write_text(json.dumps(karpathy())) and None, read_karpathy, "c.json"
    ),
    "coco": Reader(
        lambda path: path.write_text(json.dumps(coco())) and None, read_captions, "captions.json"
    ),
    "table of captions": Reader(table, read_captions, "c.csv"),
    "keys and captions": Reader(tokens, read_captions, "c.token.txt"),
    "lines of captions": Reader(json_lines, read_captions, "c.jsonl"),
    "list of captions": Reader(
        lambda path: (
            path.write_text(json.dumps([{"image": f"{n}.png", "caption": "a"} for n in NAMES]))
            and None
        ),
        read_captions,
        "list.json",
    ),
    "tar of pairs": Reader(
        tar_of_pairs,
        lambda path: read_intake(path, images_dir=path.parent / "images", unpack=True).records,
        "c.tar",
    ),
    "features": Reader(features, read_features, "f.h5"),
    "packed features": Reader(packed, read_features, "f.packed"),
    "signature": Reader(features, signature_of, "f.h5"),
    "clusters": Reader(clusters, read_clusters, "c.pkl"),
    "old clusters": Reader(old_clusters, read_clusters, "c.pkl"),
    "centroids": Reader(
        lambda path: np.save(path, np.ones((CLUSTERS, DIM), np.float32)),
        lambda path: load_centroids(path, CLUSTERS, DIM).tolist(),
        "c.npy",
    ),
    "weights": Reader(lambda path: torch.save(STATE, path), read_tensors, "w.pth"),
    "safetensors": Reader(
        lambda path: save_safetensors(path, STATE), read_tensors, "w.safetensors"
    ),
    "training": Reader(training, read_training_checkpoint, "model_0000003.pth"),
    "latest": Reader(training, read_latest, "model_0000003.pth"),
    "hard captions": Reader(
        hard_samples,
        lambda path: read_hard_samples(path.parent, ["a dog", "two dogs"]),
        "number.pkl",
    ),
    "documents": Reader(documents, read_documents, "d.npz"),
    "manifest": Reader(manifest, lambda path: read_painted_folder(path.parent), "manifest.json"),
    "results": Reader(
        lambda path: path.write_text('[{"image_id": 1, "caption": "a dog"}]') and None,
        read_results,
        "r.json",
    ),
    "figures": Reader(
        lambda path: path.write_text('{"figures": {"bleu4": 0.5}}') and None,
        lambda path: read_figures(path.parent),
        "metrics_captions_test.json",
    ),
    "vocabulary": Reader(
        lambda path: path.write_bytes(BUNDLED_VOCABULARY.read_bytes()) and None,
        lambda path: len(CaptionTokenizer(path)),
        "v.txt",
    ),
    "config": Reader(
        lambda path: path.write_text("seed: 3\nsolver: {lr: 1.0e-3}\nexp_id: name\n") and None,
        read_config,
        "c.yaml",
    ),
    "png": Reader(picture, lambda path: load_image(path).shape, "p.png"),
    "jpeg": Reader(picture, lambda path: load_image(path).shape, "p.jpg"),
    "gif": Reader(picture, lambda path: load_image(path).shape, "p.gif"),
    "seal": Reader(
        lambda path: training(path.with_suffix("")),
        lambda path: read_latest(path.with_suffix("")),
        SEAL,
    ),
    "examples": Reader(
        spelt([{"caption": "a dog", "file": "1.png"}]),
        lambda path: read_examples(path.parent),
        "captions.json",
    ),
    "extractor": Reader(spelt({"features": {"extractor": EXTRACTOR}}), read_extractor, MANIFEST),
    "model configuration": Reader(
        model_config, lambda path: pretrained.read_config(path.parent).dump(), "config.json"
    ),
    "report captions": Reader(run_folder, read_run, "captions_test_0000002.json"),
    "report metrics": Reader(run_folder, read_run, "metrics_captions_test_0000002.json"),
    "report manifest": Reader(run_folder, read_run, "images_test_0000002/manifest.json"),
    "report steps": Reader(run_folder, read_run, "images_test_0000002/steps.json"),
    "clip weights": Reader(clip, read_clip, "clip.safetensors"),
    "clip config": Reader(clip, read_clip, "clip.json"),
}


def bend(content: bytes, chance: random.Random) -> bytes:
    """Malform a file's content in one of the ways in which files are."""
    how = chance.choice(["flip", "flip", "bytes", "cut", "cut", "insert", "double", "other"])
    if how == "other":
        others = (b"", b"\0" * 64, b"<html>404</html>", b"PK\x03\x04" + bytes(40), b"\x80\x04.")
        return chance.choice((*others, b"[" * 100_000, b'{"a": ' * 50_000, b"null", b"\xff" * 999))
    if how == "cut":
        return content[: chance.randrange(len(content))]
    bent = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        # the beginning and the end say what a file holds and where
        ends = (chance.randrange(min(64, len(bent))), -chance.randint(1, min(64, len(bent))))
        place = chance.choice((chance.randrange(len(bent)), *ends))
        if how == "flip":
            bent[place] ^= 1 << chance.randrange(8)
        elif how == "bytes":
            bent[place] = chance.randrange(256)
        elif how == "insert":
            bent[place:place] = chance.randbytes(chance.randint(1, 9))
        elif how == "double":
            bent[place:place] = bent[place : place + chance.randint(1, 99)]
    return bytes(bent)


# --- well-formed files of the wrong shapes and types ---------------------------------------------

ODD = [None, True, -1, 2**70, 1.5, float("nan"), 1e999, "", "x\0y", "../../x", "a" * 5000, [], {}]
ODD += [[[]], {"": None}, ["x"], [1, "x"]]


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested containers."""
    keys = []
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    own = [(value, key) for key in keys]
    return own + [place for key in keys for place in places_in(value[key])]


def odd_array(chance: random.Random) -> np.ndarray:
    shape = [chance.randrange(4) for _ in range(chance.randrange(5))]
    kind = chance.choice(["f4", "f8", "f2", "i8", "u1", "?", "c8", "S3", "U2", "M8[s]", "f4"])
    array = np.zeros(shape, kind)
    return np.full(shape, np.nan, "f4") if chance.random() < 0.2 else array


def distort(value: Any, chance: random.Random, more: list[Any]) -> Any:
    """Nested containers with one or two of their values exchanged or gone."""
    for _ in range(chance.randint(1, 2)):
        places = places_in(value)
        if not places or chance.random() < 0.05:
            return copy.deepcopy(chance.choice(ODD))
        container, key = chance.choice(places)
        if chance.random() < 0.3:
            del container[key]
        else:
            container[key] = copy.deepcopy(chance.choice(ODD + more))
    return value


def misshape(path: Path, chance: random.Random) -> bool:
    """Make a good file one of the wrong shapes or types; False: not a kind that has any."""
    array = odd_array(chance)
    tensor = torch.zeros([chance.randrange(4) for _ in range(chance.randrange(4))])
    if path.suffix == ".json":
        value = distort(json.loads(path.read_text()), chance, [])
        path.write_text(json.dumps(value))
    elif path.suffix == ".yaml":
        path.write_text(json.dumps(distort(yaml.safe_load(path.read_text()), chance, [])))
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
        arrays[chance.choice(sorted(arrays))] = array
        np.savez(path, **arrays)
    elif path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            name = chance.choice(NAMES)
            del file[f"{name}/features"]
            kind = chance.randrange(3)
            if kind == 0 and array.dtype.kind in "fiu?":
                file[f"{name}/features"] = array
            elif kind == 1:
                file.create_group(f"{name}/features/features")
            file.attrs["signature"] = chance.choice([b"\xff", 3, "text", [1.0, 2.0]])
    elif path.suffix == ".pkl":
        value = distort(pickle.loads(path.read_bytes()), chance, [array, {1: 2}, (1, 2)])
        path.write_bytes(pickle.dumps(value, protocol=chance.choice([0, 2, 4])))
    elif path.suffix == ".pth":
        value = dict(torch.load(path))
        torch.save(distort(value, chance, [tensor, {1: tensor}, tensor.to_sparse()]), path)
    else:
        return False
    return True


@pytest.fixture(autouse=True)
def no_hang():
    """A reader that hangs ends the tests with its stack."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
def test_malformed_files_end_in_our_error_or_are_read(tmp_path, kind):
    """At least 200 files are refused in all; those that are as good as before do not count."""
    reader = READERS[kind]
    path = tmp_path / reader.name
    path.parent.mkdir(exist_ok=True)
    reader.write(path)
    reader.read(path)
    content = path.read_bytes()
    refused, quota = 0, -(-CASES // len(READERS))
    for case in range(20 * quota):
        chance = random.Random(f"{kind} {case}")
        path.write_bytes(content)
        if case % 2 or not misshape(path, chance):
            path.write_bytes(bend(content, chance))
        try:
            reader.read(path)
        except UserError as error:
            message = str(error)
            # a seal that is damaged speaks for its checkpoint
            assert (path.stem if kind == "seal" else path.name) in message, message
            assert "\n" not in message and len(message) < 2000, message
            refused += 1
        if refused >= quota and case >= 2 * quota:
            return
    raise AssertionError(f"only {refused} were refused: the cases are too tame")


# --- what claims to be more than it is -----------------------------------------------------------


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["clusters", "hard captions", "weights", "training", "centroids"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_do_not_execute(tmp_path, kind, protocol):
    reader, mark = READERS[kind], tmp_path / "mark"
    path = tmp_path / reader.name
    reader.write(path)
    evil = {NAMES[0]: Malicious(mark), "model": {"w": Malicious(mark)}}
    content = pickle.dumps(evil, protocol=protocol)
    if path.suffix == ".npy":
        np.save(path, np.array([Malicious(mark)], object), allow_pickle=True)
    elif path.suffix == ".pth":
        torch.save(evil, path, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        reader.read(path)
    assert not mark.exists()
    pickle.loads(content)  # the file does what the test says it does
    assert mark.exists()


def test_inception_weights_do_not_execute(tmp_path):
    path = tmp_path / "inception.pth"
    torch.save({"fc.weight": Malicious(tmp_path / "mark")}, path)
    with pytest.raises(UserError, match=r"inception\.pth"):
        load_inception("torchvision", str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"inception\.pth"):
        load_inception("torchvision", str(path))
    assert not (tmp_path / "mark").exists()


def test_a_pickle_that_remembers_too_much_takes_no_memory(tmp_path):
    """A flipped bit of a memo's number is a demand for gigabytes."""
    path = tmp_path / "c.pkl"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".")
    assert read_clusters(path) == {}
    path.write_bytes(b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.")
    with pytest.raises(UserError, match=r"c\.pkl"):
        read_clusters(path)


def test_an_array_larger_than_its_file_is_refused(tmp_path):
    path = tmp_path / "c.npy"
    np.save(path, np.ones(3, np.float32))
    content = path.read_bytes().replace(b"(3,)", b"(2**50,)"[:4])
    for claim in (b"(99999999999,), }", b"(99999, 99999), }"):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + claim
        header += b" " * (118 - len(header) - 1) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with pytest.raises(UserError, match=r"c\.npy"):
            load_centroids(path, CLUSTERS, DIM)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.npy"):
        load_centroids(path, CLUSTERS, DIM)


def test_packed_tables_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    documents(path)
    monkeypatch.setattr("generations.files.MOST_BYTES", 500)
    with pytest.raises(UserError, match=r"d\.npz.*unpacks to"):
        DocumentFrequency.load(path)


def test_tables_of_other_types_are_refused(tmp_path):
    path = tmp_path / "d.npz"
    documents(path)
    good = dict(np.load(path))
    for name, value in (
        ("documents", np.ones(3)),
        ("documents", np.array("two")),
        ("keys1", np.zeros((2, 2), np.int64)),
        ("keys2", good["keys2"][::-1]),
        ("counts1", good["counts1"].astype(np.float32)),
        ("counts4", np.zeros(99, np.int64)),
    ):
        np.savez(path, **{**good, name: value})
        with pytest.raises(UserError, match=r"d\.npz"):
            DocumentFrequency.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("documents.npy", b"no array")
    with pytest.raises(UserError, match=r"d\.npz"):
        DocumentFrequency.load(path)


@pytest.mark.parametrize("trick", ["external link", "soft link", "external storage", "virtual"])
def test_features_do_not_lead_into_other_files(tmp_path, trick):
    secret, path = tmp_path / "secret.h5", tmp_path / "f.h5"
    features(secret)
    shape = (GRID, GRID, DIM)
    with h5py.File(path, "w") as file:
        group = file.create_group(NAMES[0])
        if trick == "external link":
            group["features"] = h5py.ExternalLink(str(secret), f"/{NAMES[0]}/features")
        elif trick == "soft link":
            file["elsewhere"] = np.ones(shape, np.float32)
            group["features"] = h5py.SoftLink("/elsewhere")
        elif trick == "external storage":
            raw = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            group.create_dataset("features", shape, np.float32, external=raw)
        else:
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[:] = h5py.VirtualSource(secret, f"{NAMES[0]}/features", shape)
            group.create_virtual_dataset("features", layout)
    with pytest.raises(UserError, match=r"f\.h5"):
        open_feature_store([path], GRID, DIM)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b"[]",
        b'{"shape": [1e999, 2, 2, 3]}',
        b'{"shape": [4, 2, 2, 3], "names": "abcd", "dtype": "float32", "signature": "", "data": 0}',
        b'{"shape": [0, 2, 2, 3], "names": [], "dtype": "float32", "signature": 1, "data": -9}',
        b'{"shape": [0, 2, 2, 3], "names": [], "dtype": "float32", "signature": 1, "data": "x"}',
    ],
    ids=range(6),
)
def test_packed_headers_that_lie_with_a_good_checksum(tmp_path, text):
    path = tmp_path / "f.packed"
    checksum = zlib.crc32(text, zlib.crc32(struct.pack("<IQ", 1, len(text))))
    path.write_bytes(struct.pack("<8sIIQ", b"GRIDFEAT", 1, checksum, len(text)) + text)
    with pytest.raises(UserError, match=r"f\.packed.*is not valid"):
        open_feature_store([path], GRID, DIM)


def test_features_that_unpack_to_too_much_are_refused(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{NAMES[0]}/features", (2**14, 2**14), "f4", compression="gzip")
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"f\.h5"):
        open_feature_store([path], GRID, DIM)


def test_decompression_bombs_among_pictures_are_refused(tmp_path):
    path = tmp_path / "bomb.png"
    header = struct.pack(">II5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", header)
        PngImagePlugin.putchunk(file, b"IEND")
    with pytest.raises(UserError, match=r"bomb\.png has more than"):
        load_image(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nsolver: {lr: *b}\n",
        "seed: &s 3\nlog_time: *s\n",
        "&a solver: *a\n",
        "exp_id: !!python/object/apply:os.system ['true']\n",
        "seed: " + "[" * 5000,
        "seed: 2001-13-45\n",
        "seed: " + "9" * 6000 + "\n",
        "_BASE_: [1, 2]\n",
        "? {a: 1}\n: 2\n",
        "- seed\n- 3\n",
        "just a word\n",
        "seed: 3\nlog_time: 2\nseed: 4\n",
        "solver: {lr: 1.0, lr: 2.0}\n",
    ],
    ids=range(13),
)
def test_hostile_configurations_are_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config([path])
    assert yaml is not None


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/x.png", "/etc/x.png", "a/../../x.png", "x\0.png", "", "..", "..png", "...png"),
        *("a" * 300 + ".png", "a/" * 2000 + "x.png"),
    ],
    ids=range(10),
)
def test_captions_files_do_not_lead_out_of_the_folder(tmp_path, name):
    content = karpathy()
    content["images"][1]["filename"] = name
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"c\.json"):
        read_karpathy(tmp_path / "c.json")
    content["images"][1] |= {"filename": "x.png", "filepath": "../.."}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"c\.json"):
        read_karpathy(tmp_path / "c.json")


@pytest.mark.parametrize("name", ["../x", "..", "/tmp/x", "a/b", ".", "a\0b"])
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(UserError, match="exp_id"):
        assembly.run_folder(load_config(overrides=["exp_id", name]))


@pytest.mark.parametrize(
    "caption", ["../../x", "/etc/passwd", "a\0b", "..", "x" * 9000, "\u00e9" * 999, "a\nb", "CON"]
)
def test_what_is_painted_stays_in_its_folder(tmp_path, caption):
    """The caption is the only text of others in the name of a file that is written."""
    name = picture_name(3, caption)
    (tmp_path / name).write_bytes(b"")
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name.startswith("img3") and name.endswith(".png") and len(name.encode()) <= 255


@pytest.mark.parametrize("file", ["../../secret.png", "/etc/secret.png", "..", "steps/../../x", ""])
def test_reports_and_demos_do_not_show_other_files(tmp_path, file):
    folder = tmp_path / "run"
    folder.mkdir()
    run_folder(folder / "x")
    for place in (tmp_path / "secret.png", tmp_path / "x"):
        Image.new("RGB", (4, 4)).save(place, format="PNG")
    painted = folder / "images_test_0000002"
    spelt({"items": [{"file": file, "caption": "a dog"}]})(painted / "manifest.json")
    trace = {"caption": "a", "steps": [{"file": file, "again": []}], "grid_size": 2}
    spelt({"items": [trace]})(painted / "steps.json")
    found = read_run(folder / "x")
    assert found.paintings == [] and found.traces == []
    spelt([{"caption": "a dog", "file": file}])(folder / "captions.json")
    (example,) = read_examples(folder)
    assert not example.image.is_file()


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path):
    folder = tmp_path / "painted"
    folder.mkdir()
    manifest(folder / "manifest.json")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    items = [{"file": "../outside.png", "caption": "a dog"}]
    (folder / "manifest.json").write_text(json.dumps({"items": items}))
    with pytest.raises(UserError, match=r"outside\.png is listed, but not there"):
        read_painted_folder(folder)


def test_a_foreign_safetensors_file_is_refused_whole(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path)
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"w\.safetensors"):
            read_tensors(path)
