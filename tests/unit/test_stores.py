import io
import os
import pickle
import random
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from generations.datasets import (
    load_centroids,
    open_cluster_store,
    open_feature_store,
    read_array_pickle,
    write_array_pickle,
)
from generations.datasets.feature_parts import Hdf5Writer
from generations.errors import UserError

G, D, K = 2, 3, 7
RNG = np.random.default_rng(0)


def grid(value=None):
    if value is not None:
        return np.full((G, G, D), value, np.float32)
    return RNG.standard_normal((G, G, D)).astype(np.float32)


def write_h5(path, grids):
    with h5py.File(path, "w") as file:
        for name, values in grids.items():
            file[f"{name}/features"] = values
    return path


# --- dense features ------------------------------------------------------------------------------


@pytest.fixture
def features(tmp_path):
    """Two files of features and what is in them."""
    grids = {f"COCO_train2014_{number:012d}": grid() for number in range(6)}
    names = list(grids)
    paths = [
        write_h5(tmp_path / "train.h5", {name: grids[name] for name in names[:4]}),
        write_h5(tmp_path / "valid.h5", {name: grids[name] for name in names[4:]}),
    ]
    return paths, grids


def test_features_are_found_in_either_file(features):
    paths, grids = features
    store = open_feature_store(paths, G, D)
    for name, values in grids.items():
        found = store.read(name)
        assert found.dtype == np.float32
        assert np.array_equal(found, values.reshape(G * G, D))
    assert list(store.names()) == list(grids)


def test_features_are_read_where_there_are_no_locks(features):
    """On some network file systems a lock cannot be had; here another process has it."""
    fcntl = pytest.importorskip("fcntl")
    paths, grids = features
    with paths[0].open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        name = next(iter(grids))
        assert np.array_equal(
            open_feature_store(paths, G, D).read(name), grids[name].reshape(-1, D)
        )


def test_half_precision_features_come_as_float32(tmp_path):
    path = write_h5(tmp_path / "half.h5", {"a": grid(0.5).astype(np.float16)})
    assert open_feature_store([path], G, D).read("a").dtype == np.float32


def _read_all(store, names, results):
    results.put([store.read(name).tolist() for name in names])


def test_store_works_in_forked_processes(features):
    paths, grids = features
    store = open_feature_store(paths, G, D)
    expected = [store.read(name).tolist() for name in grids]  # opened here before the fork
    context = get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_read_all, args=(store, grids, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert results.get(timeout=60) == expected
    for worker in workers:
        worker.join()
    assert store.read(next(iter(grids))).tolist() == expected[0]


def test_store_can_be_sent_to_spawned_processes(features):
    paths, grids = features
    store = open_feature_store(paths, G, D)
    name = next(iter(grids))
    store.read(name)  # so that a file is open, which cannot be sent
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(name), store.read(name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((G, G, D + 1), np.float32), r"shape \(2, 2, 4\), not \(2, 2, 3\)"),
        (np.zeros((G * G, D), np.float32), r"shape \(4, 3\), not"),
        (np.float32(3), "shape None, not"),
        (np.zeros((G, G, D), np.int64), "must be floating point, not int64"),
        (np.full((G, G, D), np.nan, np.float32), "NaN"),
        (np.full((G, G, D), 1e300), "infinity"),
    ],
)
def test_wrong_grids_are_named(tmp_path, values, message):
    path = write_h5(tmp_path / "a.h5", {"good": grid(), "wrong": values})
    store = open_feature_store([path], G, D)
    store.read("good")
    with pytest.raises(UserError, match=message) as error:
        store.read("wrong")
    assert str(path) in str(error.value) and "wrong" in str(error.value)
    # the first image is looked at when the store is opened
    alone = write_h5(tmp_path / "b.h5", {"wrong": values})
    with pytest.raises(UserError, match=message):
        open_feature_store([alone], G, D)


def test_absent_image_and_files(features, tmp_path):
    paths, _ = features
    with pytest.raises(UserError, match=r"of the image x in .*train\.h5, .*valid\.h5"):
        open_feature_store(paths, G, D).read("x")
    with pytest.raises(UserError, match=r"none\.h5 does not exist"):
        open_feature_store([tmp_path / "none.h5"], G, D)
    with pytest.raises(UserError, match="suffix must be one of"):
        open_feature_store([tmp_path / "a.tsv"], G, D)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_features_are_refused(features, tmp_path, seed):
    content = bytearray(features[0][0].read_bytes())
    rng = random.Random(seed)
    if seed % 2:
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(800)] ^= 1 << rng.randrange(8)
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    try:
        store = open_feature_store([path], G, D)
        for name in features[1]:
            store.read(name)
    except UserError as error:
        assert "damaged.h5" in str(error)


def test_group_without_features_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a/boxes"] = np.zeros(3)
    with pytest.raises(UserError, match="image a: damaged"):
        open_feature_store([path], G, D)


# --- writing features ----------------------------------------------------------------------------

NAMES = [f"{number:03d}" for number in range(7)]


def fill(writer, most=99):
    for name in writer.missing[:most]:
        writer.add(name, grid(int(name)))


@pytest.mark.parametrize("written", range(8))
def test_writing_goes_on_after_a_kill(tmp_path, written):
    path = tmp_path / "train.h5"
    fill(Hdf5Writer(path, "s", NAMES, part_size=3), written)  # and no finish: killed
    assert not path.exists()
    writer = Hdf5Writer(path, "s", NAMES, part_size=3)
    kept = 7 if written == 7 else written // 3 * 3
    assert writer.missing == NAMES[kept:]
    fill(writer)
    writer.finish()
    store = open_feature_store([path], G, D)
    assert list(store.names()) == NAMES
    assert [store.read(name)[0, 0] for name in NAMES] == list(range(7))
    assert [file.name for file in tmp_path.iterdir()] == ["train.h5"]


def test_finished_features_are_kept(tmp_path):
    path = tmp_path / "train.h5"
    for signature, expected in (("one", NAMES), ("one", []), ("two", NAMES)):
        writer = Hdf5Writer(path, signature, NAMES)
        assert writer.missing == expected
        fill(writer)
        writer.finish()


def test_parts_of_other_settings_are_not_used(tmp_path):
    path = tmp_path / "train.h5"
    fill(Hdf5Writer(path, "one", NAMES, part_size=2))
    assert Hdf5Writer(path, "two", NAMES, part_size=2).missing == NAMES


def test_features_of_others_are_not_overwritten(tmp_path):
    path = write_h5(tmp_path / "train.h5", {"a": grid()})
    before = path.read_bytes()
    with pytest.raises(UserError, match="not made by prepare"):
        Hdf5Writer(path, "s", NAMES)
    assert path.read_bytes() == before


def test_no_images_make_an_empty_file(tmp_path):
    path = tmp_path / "valid.h5"
    Hdf5Writer(path, "s", []).finish()
    assert list(open_feature_store([path], G, D).names()) == []


def test_images_come_in_their_order(tmp_path):
    writer = Hdf5Writer(tmp_path / "a.h5", "s", NAMES)
    with pytest.raises(ValueError, match="not the next one"):
        writer.add(NAMES[1], grid())
    with pytest.raises(ValueError, match="before all"):
        writer.finish()


# --- cluster ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["int64", ">i4", "uint8"])
def test_clusters_of_every_pickle_protocol(tmp_path, protocol, dtype):
    ids = {f"image{number}": RNG.integers(0, K, G * G).astype(dtype) for number in range(5)}
    ids["view"] = np.arange(12, dtype=dtype).reshape(4, 3)[:, 0] % K
    paths = [tmp_path / "train.pkl", tmp_path / "valid.pkl"]
    paths[0].write_bytes(pickle.dumps(ids, protocol))
    paths[1].write_bytes(pickle.dumps({"other": np.zeros(4, int)}, protocol))
    store = open_cluster_store(paths, G, K)
    assert list(store.names()) == [*ids, "other"]
    for name, expected in ids.items():
        assert store.read(name).dtype == np.int64
        assert store.read(name).tolist() == expected.tolist()
    assert store.read("other").tolist() == [0] * 4


def test_clusters_of_an_older_numpy(tmp_path):
    path = tmp_path / "a.pkl"
    new = pickle.dumps({"a": np.array([1, 2, 3, 4])}, 2)
    path.write_bytes(new.replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert open_cluster_store([path], G, K).read("a").tolist() == [1, 2, 3, 4]


def test_image_in_both_files_is_read_from_the_first(tmp_path):
    for name, value in (("train", 1), ("valid", 2)):
        ids = {"both": np.full(4, value), name: np.full(4, value)}
        write_array_pickle(tmp_path / f"{name}.pkl", ids)
    store = open_cluster_store([tmp_path / "train.pkl", tmp_path / "valid.pkl"], G, K)
    assert [store.read(name)[0] for name in ("both", "train", "valid")] == [1, 1, 2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            np.array([0, 1, K, 2]),
            f"cluster id {K}, which is not in 0..{K - 1}; set grid_cluster_num",
        ),
        (np.array([0, 1, -1, 2]), "cluster id -1"),
        (np.arange(5), r"shape \(5,\)"),
        (np.zeros((2, 2), int), r"shape \(2, 2\)"),
        (np.zeros(4), "type float64"),
        (np.zeros(4, bool), "type bool"),
    ],
)
def test_wrong_cluster_ids_are_named(tmp_path, ids, message):
    path = tmp_path / "clusters.pkl"
    write_array_pickle(path, {"good": np.zeros(4, int), "wrong": ids})
    with pytest.raises(UserError, match=message) as error:
        open_cluster_store([path], G, K)
    assert str(path) in str(error.value) and "wrong" in str(error.value)


def test_absent_clusters(tmp_path):
    path = tmp_path / "clusters.pkl"
    with pytest.raises(UserError, match="does not exist"):
        open_cluster_store([path], G, K)
    write_array_pickle(path, {})
    with pytest.raises(UserError, match="of the image x in"):
        open_cluster_store([path], G, K).read("x")


# --- pickles that must not be trusted ------------------------------------------------------------


class Malicious:
    """Calls something when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_cannot_execute(tmp_path, protocol):
    path, trace = tmp_path / "evil.pkl", tmp_path / "trace"
    for call in (
        (os.mkdir, (str(trace),)),
        (eval, (f"__import__('os').mkdir({str(trace)!r})",)),
        (io.open, (str(trace), "w")),
        (np.save, (str(trace), np.zeros(1))),
        (np.lib.format.open_memmap, (str(trace), "w+", "i8", (1,))),
    ):
        path.write_bytes(pickle.dumps({"a": Malicious(*call)}, protocol))
        with pytest.raises(UserError, match=r"evil\.pkl is refused: reading it would call"):
            read_array_pickle(path)
    assert not trace.exists() and not trace.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([np.zeros(3)], "holds a list"),
        ({"a": np.array([{}, "x"], object)}, "objects, not numbers|type 'O8'"),
        ({"a": np.array(["x"])}, "type 'U1'"),
        ({"a": [1, 2]}, "a list, which is not a numpy array"),
        ({1: np.zeros(3)}, "the name 1 is not a string"),
        ({"a": np.zeros(2, [("x", "i4")])}, ", not numbers"),
        ({"a": np.dtype("i4")}, "not a numpy array"),
        ({"a": np.float64(3)}, "would call numpy"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_array_pickle(path)
    assert "other.pkl is refused" in str(error.value)


arrays = hnp.arrays(
    hnp.integer_dtypes() | hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.array_shapes(max_dims=3)
)


@given(st.dictionaries(st.text(), arrays, max_size=3), st.integers(0, 5))
def test_arrays_are_read_as_they_were(tmp_path_factory, content, protocol):
    path = tmp_path_factory.mktemp("arrays") / "a.pkl"
    content = {name: np.asfortranarray(a) if protocol % 2 else a for name, a in content.items()}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_array_pickle(path)
    assert found.keys() == content.keys()
    for name, expected in content.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
        found[name][...] = 0  # a copy that may be written to


VALID = pickle.dumps({f"image{number}": np.arange(4) for number in range(3)}, 4)


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.booleans())
def test_damaged_pickles_are_refused(tmp_path_factory, place, value, cut):
    path = tmp_path_factory.mktemp("damaged") / "a.pkl"
    path.write_bytes(VALID[:place] if cut else VALID[:place] + bytes([value]) + VALID[place + 1 :])
    try:
        read_array_pickle(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


# --- centroids -----------------------------------------------------------------------------------


def test_centroids(tmp_path):
    path = tmp_path / "centroids.npy"
    values = RNG.standard_normal((K, D))
    np.save(path, values)
    found = load_centroids(path, K, D)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((K + 1, D)), r"shape \(8, 3\), not \(7, 3\); set grid_cluster_num"),
        (np.zeros((K, D), int), "must be an array of floating point"),
        (np.full((K, D), np.inf), "NaN or infinity"),
        (np.array([{}], object), "damaged, or no"),
    ],
)
def test_wrong_centroids_are_named(tmp_path, values, message):
    path = tmp_path / "centroids.npy"
    np.save(path, values, allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        load_centroids(path, K, D)
    assert str(path) in str(error.value)


def test_absent_and_damaged_centroids(tmp_path):
    path = tmp_path / "centroids.npy"
    with pytest.raises(UserError, match="does not exist"):
        load_centroids(path, K, D)
    np.save(path, np.zeros((K, D)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"centroids\.npy: damaged"):
        load_centroids(path, K, D)
