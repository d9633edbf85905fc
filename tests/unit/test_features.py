import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from generations.config import load_config
from generations.errors import UserError
from generations.features import (
    ClusterAssigner,
    ExtractorSettings,
    build_extractor,
    extractor_settings,
    find_images,
    fit_kmeans,
    images,
    load_image,
    load_images,
    register,
    sample_cells,
)
from generations.files import atomic_path, remove_abandoned

RNG = np.random.default_rng(0)
RED, WHITE = (200, 30, 60), (255, 255, 255)


# --- images --------------------------------------------------------------------------------------


def photo(width=40, height=30):
    """A smooth picture: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 90], axis=-1).astype(np.uint8))


def near(pixels, expected, tolerance=4):
    return np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max() <= tolerance


@pytest.mark.parametrize("size", [(40, 30), (8, 8), (1, 1), (640, 3), (3, 500), (20000, 2)])
def test_any_size_becomes_a_square(tmp_path, size):
    photo(*size).save(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png", 8)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    if size == (8, 8):
        assert np.array_equal(found, np.asarray(photo(8, 8)))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "P", "1", "RGBA", "LA", "I;16", "YCbCr"])
def test_every_color_mode(tmp_path, mode):
    plain = Image.new("RGB", (16, 16), RED if mode not in ("1",) else WHITE)
    expected = np.asarray(plain.convert("L").convert("RGB") if mode in ("L", "LA") else plain)
    if mode == "I;16":
        stored = Image.fromarray(np.full((16, 16), 30000, np.uint16))
        expected = np.full((16, 16, 3), 30000 // 257)
    else:
        stored = plain.quantize() if mode == "P" else plain.convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    stored.save(path)
    with Image.open(path) as reopened:
        assert reopened.mode == ("RGB" if mode == "YCbCr" else mode)
    assert near(load_image(path, 16), expected)


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (*RED, 255)
    for name, picture in (
        ("rgba.png", Image.fromarray(pixels)),
        ("palette.gif", Image.fromarray(pixels).quantize()),
    ):
        picture.save(tmp_path / name, **({} if name == "rgba.png" else {"transparency": 0}))
    found = load_image(tmp_path / "rgba.png", 4)
    assert near(found[:2], RED) and near(found[2:], WHITE)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = photo(16, 16)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # stored turned the other way than the tag says
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture if turn == 1 else picture.transpose(undo[turn])
    stored.save(tmp_path / "a.png", exif=exif)
    assert near(load_image(tmp_path / "a.png", 16), picture)


def damage(path, kind):
    photo(64, 64).save(path, format="PNG")
    whole = path.read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "header": b"\x89PNG" + whole[6:],
    }
    path.write_bytes(content[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "html", "postscript", "header"])
def test_damaged_images_are_named(tmp_path, kind):
    path = tmp_path / "photo.jpg"
    damage(path, kind)
    with pytest.raises(UserError, match=r"photo\.jpg cannot be read") as error:
        load_image(path, 8)
    assert "\n" not in str(error.value)


def test_truncated_jpeg_is_named(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"photo\.jpg cannot be read"):
        load_image(path, 8)


def test_missing_image_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png", 8)
    with pytest.raises(UserError, match="cannot be read"):
        load_image(tmp_path, 8)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    photo(4, 4).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 20000, 20000)  # what it says of its size
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(UserError, match=r"bomb\.png has more than 100,000,000 pixels"):
        load_image(tmp_path / "bomb.png", 8)
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    photo(4, 4).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has more than 10 pixels"):
        load_image(tmp_path / "a.png", 8)


@given(st.binary(max_size=60), st.integers(0, 200), st.booleans())
@settings(max_examples=60)
def test_damaged_bytes_never_surprise(tmp_path_factory, noise, place, is_png):
    path = tmp_path_factory.mktemp("noise") / "a.bin"
    photo(9, 9).save(path, format="PNG" if is_png else "JPEG")
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    try:
        assert load_image(path, 4).shape == (4, 4, 3)
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_images_come_in_order_with_their_errors(tmp_path, workers):
    paths = []
    for number in range(7):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (5, 5), (number, 0, 0)).save(paths[-1])
    damage(paths[3], "empty")
    batches = list(load_images(paths, 5, 3, workers))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    found = [picture for batch in batches for picture in batch]
    assert isinstance(found.pop(3), UserError)
    assert [picture[0, 0, 0] for picture in found] == [0, 1, 2, 4, 5, 6]


def test_images_are_found_by_path_or_name(tmp_path):
    for name in ("train/a.png", "deep/down/b.png", "x/twice.png", "y/twice.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(
        tmp_path, ["train/a.png", "b.png", "other/b.png", "twice.png", "x/twice.png", "c.png"]
    )
    deep = tmp_path / "deep/down/b.png"
    expected = [tmp_path / "train/a.png", deep, deep, None, tmp_path / "x/twice.png", None]
    assert found == expected
    with pytest.raises(UserError, match="is not a folder"):
        find_images(tmp_path / "none", [])


# --- extractors ----------------------------------------------------------------------------------


def test_patches_are_the_standardised_pixels_of_cells():
    patches = build_extractor(ExtractorSettings("patches", 6, 2, 27))
    pixels = RNG.integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
    found = patches(pixels)
    assert found.shape == (4, 2, 2, 27) and found.dtype == np.float32
    cell = (pixels[3, 3:6, 0:3].astype(float) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found[3, 1, 0], cell.reshape(-1), atol=1e-6)
    np.testing.assert_array_equal(patches(list(pixels)), found)


def test_settings_that_do_not_fit_are_named():
    cfg = load_config(overrides=["features.image_size", "64"])
    with pytest.raises(UserError, match=r"set grid_feat_dim 192 or change features\.image_size"):
        build_extractor(extractor_settings(cfg))
    with pytest.raises(UserError, match="must be a multiple of grid_size 8"):
        build_extractor(ExtractorSettings("patches", 60, 8, 192))
    with pytest.raises(UserError, match=r"must be one of .*patches.*, not 'resnet'"):
        build_extractor(ExtractorSettings("resnet", 64, 8, 192))


def test_new_extractors_join_the_registry():
    @register("test-mean")
    class Mean:
        def __init__(self, settings, device):
            self.name, self.image_size, self.grid_size = settings.name, 4, 1
            self.dim, self.weights_sha256 = 3, ""

        def __call__(self, pictures):
            return np.asarray(pictures, np.float32).mean((1, 2))[:, None, None]

    found = build_extractor(ExtractorSettings("test-mean", 4, 1, 3))
    assert found(np.full((2, 4, 4, 3), 7, np.uint8)).tolist() == [[[[7, 7, 7]]]] * 2


# --- clustering ----------------------------------------------------------------------------------


def blobs(clusters=8, each=40, dim=6):
    centers = RNG.standard_normal((clusters, dim)) * 20
    points = np.repeat(centers, each, 0) + RNG.standard_normal((clusters * each, dim)) * 0.1
    return points.astype(np.float32), centers


def test_kmeans_finds_separate_blobs():
    points, centers = blobs()
    assign = ClusterAssigner(fit_kmeans(points, 8, 10, seed=3))
    ids = assign(points).reshape(8, 40)
    assert (ids == ids[:, :1]).all() and len(set(ids[:, 0])) == 8
    quality = assign.quality()
    assert (quality.points, quality.used, quality.clusters) == (320, 8, 8)
    assert quality.inertia == pytest.approx(6 * 0.1**2, rel=0.2)
    gaps = np.linalg.norm(centers[:, None] - centers, axis=-1) + 1e9 * np.eye(8)
    assert quality.nearest_centroid == pytest.approx(gaps.min(0).mean(), rel=0.01)


def test_equal_points_do_not_share_out_the_codebook():
    points, _ = blobs()
    flat = np.zeros((20000, 6), np.float32)
    assign = ClusterAssigner(fit_kmeans(np.concatenate([flat, points]), 9, 10))
    assert len(set(assign(points))) == 8
    assert assign(flat[:5]).tolist() == [assign(flat[:1])[0]] * 5


def test_kmeans_depends_on_the_seed_alone():
    points = RNG.standard_normal((500, 4)).astype(np.float32)
    first = fit_kmeans(points, 20, 3, seed=1)
    assert np.array_equal(first, fit_kmeans(points, 20, 3, seed=1))
    assert not np.array_equal(first, fit_kmeans(points, 20, 3, seed=2))


def test_as_many_clusters_as_points():
    points = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert sorted(fit_kmeans(points, 6).tolist()) == points.tolist()


def test_too_few_points_are_refused():
    points = np.zeros((100, 2), np.float32)
    points[:3, 0] = [1, 2, 3]
    with pytest.raises(UserError, match=r"grid_cluster_num 5 .* 4 different cells \(100 in all\)"):
        fit_kmeans(points, 5)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 40), st.integers(0, 3))
@settings(max_examples=50)
def test_sampled_cells_are_different_cells(count, cells, most, seed):
    stored = {str(n): np.arange(cells)[:, None] + [[n * cells, 0]] for n in range(count)}
    found = sample_cells(stored.__getitem__, list(stored), cells, most, seed)
    assert found.shape == (min(most, count * cells), 2)
    assert len(set(found[:, 0].tolist())) == len(found)
    assert (set(found[:, 0]) <= set(range(count * cells)) and not found[:, 1].any()) or cells > 1


# --- files of killed processes -------------------------------------------------------------------


def test_what_killed_processes_left_is_removed_once_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # killed: nothing is tidied up
    for name in ("manifest.json", "new.pth"):
        with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / name):
            raise KeyboardInterrupt
    monkeypatch.undo()
    (tmp_path / ".features.packed.0123.parts").mkdir()
    (tmp_path / "mine-12345678.tmp.json").touch()
    (old,) = tmp_path.glob(".manifest-*")
    for path in tmp_path.iterdir():
        if not path.name.startswith(".new-"):
            os.utime(path, (0, 0))
    remove_abandoned(tmp_path)
    assert not old.exists()
    assert len(list(tmp_path.iterdir())) == 3
