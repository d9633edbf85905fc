import errno
import os
import pickle
import random
import subprocess
import sys
import zlib
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generations import convert_features as entry
from generations.batch import Batch
from generations.config import load_config
from generations.datasets import (
    CaptioningDataset,
    CaptionTokenizer,
    ImageRecord,
    InfiniteSampler,
    TaskSampler,
    collate,
    convert_features,
    open_cluster_store,
    open_feature_store,
    open_feature_writer,
    write_array_pickle,
)
from generations.datasets.packed import DTYPES, PackedFeatures, decode, encode, read_header
from generations.datasets.packed_writer import PackedWriter
from generations.errors import UserError
from generations.modeling import FeatureLevels
from generations.objectives import TASKS, reads_dense

G, D = 2, 3
SHAPE = (G, G, D)
NAMES = [f"COCO_train2014_{number:012d}" for number in range(7)]


def grid(name: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(SHAPE, np.float32)


def writer(path, signature="s", dtype="float32", part_size=2, **options) -> PackedWriter:
    return PackedWriter(path, signature, NAMES, SHAPE, dtype, part_size, **options)


def write(path, **options) -> bytes:
    file = writer(path, **options)
    for name in file.missing:
        file.add(name, grid(name))
    file.finish()
    return path.read_bytes()


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "train.packed"
    write(path)
    return path


# --- numbers -------------------------------------------------------------------------------------


def test_every_half_precision_number_is_read_as_numpy_reads_it():
    stored = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = stored[np.isfinite(stored)]
    np.testing.assert_array_equal(decode(finite, "float16"), finite.astype(np.float32))
    np.testing.assert_array_equal(decode(stored, "float16"), stored.astype(np.float32))


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=9))
def test_bfloat16_rounds_as_torch_does(values):
    numbers = np.array(values, np.float32)
    expected = torch.tensor(numbers).bfloat16().float().numpy()
    np.testing.assert_array_equal(decode(encode(numbers, "bfloat16"), "bfloat16"), expected)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_rounding_is_as_documented(dtype, error):
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 30
    rounded = decode(encode(numbers, dtype), dtype)
    normal = np.abs(numbers) > 6.2e-5
    assert (np.abs(rounded - numbers) <= error * np.abs(numbers))[normal].all()
    assert np.abs(rounded - numbers)[~normal].max(initial=0) <= 3e-8 or dtype == "bfloat16"


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(70000.0, "float16"), (np.nan, "float16"), (np.inf, "float32"), (3.4e38, "bfloat16")],
)
def test_numbers_too_large_are_refused(tmp_path, value, dtype):
    file = writer(tmp_path / "a.packed", dtype=dtype)
    with pytest.raises(UserError, match=f"too large for {dtype}.* set features.dtype"):
        file.add(NAMES[0], np.full(SHAPE, value, np.float32))


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(tmp_path, dtype):
    path = tmp_path / "train.packed"
    write(path, dtype=dtype)
    store = open_feature_store([path], G, D)
    assert list(store.names()) == NAMES
    for name in NAMES:
        found = store.read(name)
        assert found.dtype == np.float32 and found.shape == (G * G, D)
        expected = decode(encode(grid(name), dtype), dtype).reshape(-1, D)
        np.testing.assert_array_equal(found, expected)
        found[...] = 0  # a copy that may be written to
    with pytest.raises(UserError, match="of the image x in"):
        store.read("x")


def test_batches_are_read_as_their_images_are(tmp_path):
    paths = [tmp_path / f"{dtype}.packed" for dtype in DTYPES]
    for path, dtype in zip(paths, DTYPES, strict=True):
        write(path, dtype=dtype)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["other/features"] = grid("other")
    half, names = paths[0], NAMES[::2] + NAMES[:1]
    cases = [([half], np.float16, names), ([paths[1]], np.float32, names)]
    cases += [([half, tmp_path / "other.h5"], np.float32, ["other", *names])]
    cases += [
        ([paths[2], half], np.float32, names),
        ([tmp_path / "other.h5"], np.float32, ["other"]),
    ]
    for files, dtype, asked in cases:
        store = open_feature_store(files, G, D)
        found = store.read_batch(asked)
        assert found.dtype == dtype and found.shape == (len(asked), G * G, D)
        expected = np.stack([store.read(name) for name in asked])
        np.testing.assert_array_equal(found.astype(np.float32), expected)
        with pytest.raises(UserError, match="of the image x in"):
            store.read_batch(["x"])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_damaged_row_of_a_batch_is_named(tmp_path, value, dtype):
    path = tmp_path / "a.packed"
    write(path, dtype=dtype)
    header = read_header(path)
    with path.open("rb+") as file:
        file.seek(header.data + 4 * header.row_bytes)
        file.write(np.dtype(dtype).type(value).tobytes())
    store = open_feature_store([path], G, D)
    store.read_batch(NAMES[:4])
    with pytest.raises(
        UserError, match=f"a.packed: features of {NAMES[4]} contain NaN or infinity"
    ):
        store.read_batch(NAMES)


def test_half_precision_takes_half_the_room(tmp_path):
    rows = [write(tmp_path / f"{dtype}.packed", dtype=dtype) for dtype in ("float32", "float16")]
    data = [read_header(tmp_path / f"{dtype}.packed").data for dtype in ("float32", "float16")]
    assert len(rows[0]) - data[0] == 2 * (len(rows[1]) - data[1])


def test_packed_and_hdf5_files_may_be_mixed(packed, tmp_path):
    with h5py.File(tmp_path / "valid.h5", "w") as file:
        file["other/features"] = grid("other")
    store = open_feature_store([packed, tmp_path / "valid.h5"], G, D)
    np.testing.assert_array_equal(store.read("other"), grid("other").reshape(-1, D))
    np.testing.assert_array_equal(store.read(NAMES[3]), grid(NAMES[3]).reshape(-1, D))


def _read_all(store, results):
    results.put([store.read(name).tobytes() for name in NAMES])


def test_store_works_in_forked_and_spawned_processes(packed):
    store = open_feature_store([packed], G, D)
    expected = [store.read(name).tobytes() for name in NAMES]  # open here before the fork
    context = get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_read_all, args=(store, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert results.get(timeout=60) == expected
    for worker in workers:
        worker.join()
    content = pickle.dumps(store)
    assert len(content) < 500  # by path, without the index
    assert [pickle.loads(content).read(name).tobytes() for name in NAMES] == expected


def test_replaced_file_is_read_anew(packed):
    features = PackedFeatures(packed)
    features.close()
    other = PackedWriter(packed, "t", NAMES[::-1], SHAPE, "float32", 2)
    for name in other.missing:
        other.add(name, grid(name))
    other.finish()
    np.testing.assert_array_equal(features.read(NAMES[0]), grid(NAMES[0]))


@pytest.mark.parametrize("seed", range(60))
def test_damaged_headers_are_refused(packed, seed):
    content = bytearray(packed.read_bytes())
    header = content.rindex(b"}", 0, read_header(packed).data) + 1
    rng = random.Random(seed)
    if seed % 3 == 0:
        del content[rng.randrange(len(content)) :]
    elif seed % 3 == 1:
        content += b"\0" * rng.randrange(1, 99)
    else:
        content[rng.randrange(header)] ^= 1 << rng.randrange(8)
    packed.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.packed.*make it again with") as error:
        open_feature_store([packed], G, D)
    assert "\n" not in str(error.value)


def test_file_of_a_later_version_is_refused(packed, monkeypatch):
    monkeypatch.setattr("generations.datasets.packed.VERSION", 2)
    with pytest.raises(UserError, match="version 1 of the packed format, but this program reads"):
        open_feature_store([packed], G, D)


def test_sizes_of_the_configuration_are_checked(packed):
    with pytest.raises(UserError, match=r"shape \(2, 2, 3\), not \(3, 3, 3\); set grid_size"):
        open_feature_store([packed], 3, D)


def test_damaged_row_is_named(packed):
    header = read_header(packed)
    with packed.open("rb+") as file:
        file.seek(header.data + 4 * header.row_bytes)
        file.write(np.float32(np.inf).tobytes())
    store = open_feature_store([packed], G, D)
    store.read(NAMES[3])
    with pytest.raises(UserError, match=f"{NAMES[4]} contain NaN or infinity"):
        store.read(NAMES[4])


def test_file_that_is_cut_while_it_is_read(packed):
    features = PackedFeatures(packed)
    os.truncate(packed, packed.stat().st_size - 1)
    assert features.read(NAMES[0]) is not None
    with pytest.raises(UserError, match="truncated or replaced while in use"):
        features.read(NAMES[-1])


# --- writing -------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from test_packed import grid, writer
file = writer(sys.argv[1])
for number, name in enumerate(file.missing):
    file.add(name, grid(name))
    print(number, flush=True)
file.finish()
print("finished", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("added", [0, 1, 3, 6])
def test_killed_process_loses_the_unfinished_part_alone(tmp_path, packed, added):
    path = tmp_path / "other" / "train.packed"
    path.parent.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    while child.stdout.readline() != f"{added}\n":
        assert child.poll() is None
    child.kill()
    child.wait()
    child.stdout.close()
    file = writer(path)  # the child may have come further than it said, even to the file itself
    assert len(file.missing) <= len(NAMES) - (added + 1) // 2 * 2
    for name in file.missing:
        file.add(name, grid(name))
    file.finish()
    assert path.read_bytes() == packed.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["train.packed"]


@pytest.mark.parametrize("worlds", [(2,), (3, 1), (1, 2), (2, 5, 3)])
def test_several_processes_write_the_same_file(tmp_path, packed, worlds):
    """All but the last set of processes are killed when each has added a few images."""
    path = tmp_path / "other" / "train.packed"
    for number, world in enumerate(worlds):
        files = [writer(path, rank=rank, world_size=world) for rank in range(world)]
        missing = [name for file in files for name in file.missing]
        assert len(set(missing)) == len(missing) == len(NAMES) - files[0].done
        files[0].start()
        for file in files:
            last = number == len(worlds) - 1
            for name in file.missing if last else file.missing[:3]:
                file.add(name, grid(name))
    files[0].finish()
    assert path.read_bytes() == packed.read_bytes()


def test_rows_are_on_the_disk_before_they_count(tmp_path, monkeypatch):
    calls = []
    file = writer(tmp_path / "a.packed")
    file.start()
    for name in ("pwrite", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda *args, name=name, real=real: (calls.append((name, args)), real(*args))[1],
        )
    for name in NAMES[:2]:
        file.add(name, grid(name))
    started = [i for i, (name, args) in enumerate(calls) if name == "pwrite" and args[1] == b"\1"]
    rows = [i for i, (name, _) in enumerate(calls) if name == "pwrite"][-3:-1]
    assert len(started) == 1 and calls[started[0] - 1][0] == "fsync"
    assert calls[started[0] - 1][1] == (calls[rows[-1]][1][0],)  # of the rows' file
    assert max(rows) < started[0] - 1


def test_lost_rows_do_not_count(tmp_path):
    path = tmp_path / "a.packed"
    file = writer(path)
    for name in NAMES[:4]:
        file.add(name, grid(name))
    next(tmp_path.glob(".a.packed.*.parts/rows")).unlink()
    again = writer(path)
    assert again.missing == NAMES
    again.start()
    assert writer(path).missing == NAMES


def test_file_is_made_again_only_when_needed(packed):
    assert writer(packed).is_finished and writer(packed).missing == []
    for change in ({"signature": "t"}, {"dtype": "float16"}):
        assert writer(packed, **change).missing == NAMES
    assert writer(packed).is_finished  # nothing was changed


def test_earlier_file_stays_until_the_new_one_is_whole(packed):
    before = packed.read_bytes()
    file = writer(packed, signature="t")
    for name in file.missing[:-1]:
        file.add(name, grid(name))
    with pytest.raises(ValueError, match="before all"):
        file.finish()
    assert packed.read_bytes() == before


def test_images_come_in_their_order_and_shape(tmp_path):
    file = writer(tmp_path / "a.packed")
    with pytest.raises(ValueError, match="not the next one"):
        file.add(NAMES[1], grid(NAMES[1]))
    with pytest.raises(ValueError, match=r"\(2, 3\), not"):
        file.add(NAMES[0], grid(NAMES[0])[0])


def test_full_disk_is_said_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"a\.packed .* cannot be written \(No space left"):
        writer(tmp_path / "a.packed").start()


def test_no_images_make_an_empty_file(tmp_path):
    path = tmp_path / "valid.packed"
    file = open_feature_writer(path, "s", [], SHAPE)
    assert file.missing == []
    file.finish()
    assert list(open_feature_store([path], G, D).names()) == []


def test_parts_hold_whole_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("generations.datasets.feature_writers.PART_SIZE", 4)
    file = open_feature_writer(tmp_path / "a.packed", "s", NAMES, SHAPE, batch_size=3, world_size=2)
    assert file.missing == NAMES[:6]
    with pytest.raises(UserError, match="suffix must be one of"):
        open_feature_writer(tmp_path / "a.npy", "s", NAMES, SHAPE)


def test_damaged_file_in_the_way_is_named(packed):
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train\.packed.*; delete or move the file first"):
        writer(packed)


# --- converting ----------------------------------------------------------------------------------


@pytest.fixture
def original(tmp_path):
    """A file of the original's, its images not in the order of their names."""
    path = tmp_path / "maskrcnn_train_grid8.h5"
    with h5py.File(path, "w", track_order=True) as file:
        for name in NAMES[::-1]:
            file[f"{name}/features"] = grid(name)
    return path


def test_features_survive_the_way_there_and_back(original, tmp_path):
    target, back = tmp_path / "a.packed", tmp_path / "back.h5"
    entry.main([str(original), str(target), "--dtype", "float32"])
    assert convert_features(target, back) == len(NAMES)
    for path in (target, back):
        store = open_feature_store([path], G, D)
        assert set(store.names()) == set(NAMES)
        for name in NAMES:
            np.testing.assert_array_equal(store.read(name), grid(name).reshape(-1, D))


def test_conversion_is_rounded_to_half_precision(original, tmp_path):
    convert_features(original, tmp_path / "a.packed")
    store = open_feature_store([tmp_path / "a.packed"], G, D)
    for name in NAMES:
        expected = grid(name).astype(np.float16).reshape(-1, D)
        np.testing.assert_array_equal(store.read(name), expected)


def test_converted_features_are_not_overwritten(original, tmp_path):
    target = tmp_path / "a.packed"
    convert_features(original, target)
    before = target.read_bytes()
    convert_features(original, target)  # nothing to do
    for change in ({"dtype": "float32"}, {"signature": "t"}):
        with pytest.raises(
            UserError, match=r"a\.packed were made by convert_features.py and would be overwritten"
        ):
            writer(target, **change)
    assert target.read_bytes() == before


def test_features_of_ours_stay_ours_when_converted(packed, tmp_path):
    convert_features(packed, tmp_path / "a.h5")
    convert_features(tmp_path / "a.h5", tmp_path / "a.packed", "float32")
    assert (tmp_path / "a.packed").read_bytes() == packed.read_bytes()


def test_what_cannot_be_converted_is_named(original, tmp_path):
    with pytest.raises(UserError, match="the same file"):
        convert_features(original, original)
    with pytest.raises(UserError, match=r"none\.h5: the file does not exist"):
        convert_features(tmp_path / "none.h5", tmp_path / "a.packed")
    with pytest.raises(UserError, match=r"a\.npy: the suffix"):
        convert_features(original, tmp_path / "a.npy")
    with h5py.File(original, "a") as file:
        file["z/features"] = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(UserError, match="z contain NaN"):
        convert_features(original, tmp_path / "a.packed")
    assert not (tmp_path / "a.packed").exists()


# --- which file ----------------------------------------------------------------------------------


def path_of(folder, *more) -> str:
    cfg = load_config(overrides=["data_dir", str(folder), *more])
    return os.path.relpath(cfg.grid_feat_path_train, folder)


def test_the_file_that_is_there_is_read(tmp_path):
    name = "maskrcnn_train_grid8"
    assert path_of(tmp_path) == f"{name}.packed"
    assert path_of(tmp_path, "features.store", "hdf5") == f"{name}.h5"
    (tmp_path / f"{name}.h5").touch()
    assert path_of(tmp_path) == f"{name}.h5"
    assert path_of(tmp_path, "features.store", "packed") == f"{name}.packed"
    (tmp_path / f"{name}.packed").touch()
    assert path_of(tmp_path) == f"{name}.packed"
    mine = str(tmp_path / "mine.h5")
    assert path_of(tmp_path, "grid_feat_path_train", mine) == "mine.h5"
    for key in ("features.store", "features.dtype"):
        with pytest.raises(UserError, match=f"{key} must be one of .*, not 'zip'"):
            path_of(tmp_path, key, "zip")


# --- what training reads -------------------------------------------------------------------------


@pytest.fixture
def dataset(original, tmp_path):
    """Makes a training set on a file of features."""
    write_array_pickle(tmp_path / "ids.pkl", {name: np.zeros(G * G, int) for name in NAMES})
    clusters = open_cluster_store([tmp_path / "ids.pkl"], G, 5)
    records = [
        ImageRecord(name, f"{name}.jpg", number, "train", (f"a photo of {number}",))
        for number, name in enumerate(NAMES)
    ]

    def make(path):
        features = open_feature_store([path], G, D)
        return CaptioningDataset(records, CaptionTokenizer(), clusters, features, 17)

    return make


def batches(dataset, dense, count=6, iteration=0) -> list[Batch]:
    sampler = InfiniteSampler(len(NAMES), 3, seed=5, start=3 * iteration)
    keys = iter(TaskSampler(sampler, dense, iteration))
    return [collate(dataset.__getitems__(next(keys))) for _ in range(count)]


def test_batches_of_either_format_are_the_same(dataset, original, tmp_path):
    convert_features(original, tmp_path / "a.packed", "float32")
    for one, other in zip(
        batches(dataset(original), [True]), batches(dataset(tmp_path / "a.packed"), [True]),
        strict=True,
    ):  # fmt: skip
        assert one.image_ids == other.image_ids and one.captions == other.captions
        assert torch.equal(one.features, other.features)
        assert torch.equal(one.masked_text_ids, other.masked_text_ids)


def test_features_are_read_only_where_a_task_looks_at_them(dataset, packed):
    made = dataset(packed)
    everything = batches(made, [True])
    found = batches(made, [False, True])
    # iterations 1, 2, ... train tasks[1], tasks[0], ...
    assert [batch.features is not None for batch in found] == [True, False] * 3
    assert [batch.features is not None for batch in batches(made, [False, True], 2, 3)] == [0, 1]
    for one, other in zip(everything, found, strict=True):
        assert torch.equal(one.text_ids, other.text_ids) and one.image_ids == other.image_ids
        assert other.features is None or torch.equal(one.features, other.features)


def test_half_precision_becomes_single_on_the_device(dataset, tmp_path, packed):
    write(tmp_path / "half.packed", dtype="float16")
    for path, dtype in ((packed, torch.float32), (tmp_path / "half.packed", torch.float16)):
        made = dataset(path)
        batch = batches(made, [True], 1)[0]
        assert batch.features.dtype == dtype
        keys = next(iter(InfiniteSampler(len(NAMES), 3, seed=5)))
        items = collate([made[key] for key in keys])
        moved = batch.to("cpu")
        assert moved.features.dtype == torch.float32 and moved.text_ids.dtype == torch.int64
        assert torch.equal(moved.features, items.features)
        assert torch.equal(moved.text_ids, items.text_ids)


def test_which_tasks_look_at_dense_features():
    both, dense, discrete = FeatureLevels(), FeatureLevels(True, True), FeatureLevels(False, False)
    assert [task for task in TASKS if reads_dense(task, both)] == ["xe_i2t", "rl_i2t"]
    assert [task for task in TASKS if reads_dense(task, dense)] == ["xe_i2t", "xe_t2i", "rl_i2t"]
    assert not any(reads_dense(task, discrete) for task in TASKS)
