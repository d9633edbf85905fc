"""Odd and bad image files on the whole road from a table of captions to features."""

import json

import numpy as np
import pytest
from PIL import Image

from generations import prepare
from generations.datasets import open_feature_store, read_karpathy
from generations.errors import UserError

S, G = 16, 2
D = (S // G) ** 2 * 3
RED, BLUE = (200, 30, 60), (20, 40, 220)


def save_all(folder):
    """Files that are to be read, each left half red and right half blue but for their colours."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:] = RED, BLUE
    plain = Image.fromarray(pixels)
    folder.mkdir()
    plain.save(folder / "plain.png")
    plain.convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257).save(
        folder / "sixteen.png"
    )
    plain.quantize().save(folder / "palette.png")
    plain.convert("L").save(folder / "gray.png")
    turned = plain.transpose(Image.Transpose.ROTATE_90)  # a viewer turns it back
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif, quality=100, subsampling=0)
    Image.new("RGB", (1, 1), RED).save(folder / "dot.png")
    plain.resize((20000, 40), Image.Resampling.NEAREST).save(folder / "wide.png")


BAD = {"empty.jpg": b"", "page.jpg": b"<!DOCTYPE html><html>404 Not Found</html>"}


def run(folder, *more):
    names = [*sorted(path.name for path in (folder / "images").iterdir())]
    rows = [f"{name},a {name.split('.')[0]} picture,train" for name in names]
    (folder / "captions.csv").write_text("\n".join(["path,caption,split", *rows]))
    for step in ("captions", "features"):
        prepare.main(
            [
                *(step, "images_dir", str(folder / "images"), "data_dir", str(folder / "out")),
                *("captions_file", str(folder / "captions.csv"), "num_workers", "0"),
                *("features.image_size", str(S), "grid_size", str(G), "grid_feat_dim", str(D)),
                *more,
            ]
        )


def test_odd_images_give_the_features_of_plain_ones(tmp_path):
    save_all(tmp_path / "images")
    run(tmp_path, "features.dtype", "float32")
    store = open_feature_store([tmp_path / "out/maskrcnn_train_grid8.packed"], G, D)
    plain = store.read("plain")
    assert len(list(store.names())) == 8
    for name in ("cmyk", "palette", "turned", "wide"):
        # cells of the left and the right half; edges differ with the size that was made smaller
        assert np.abs(store.read(name) - plain).mean() < 0.1, name
    assert np.abs(store.read("gray") - store.read("sixteen")).max() < 0.05
    assert np.abs(store.read("gray") - plain).mean() > 0.2
    assert np.ptp(store.read("dot").reshape(-1, 3), axis=0).max() == 0  # one colour


def test_files_that_are_no_images_are_named_counted_and_left_out(tmp_path, caplog):
    save_all(tmp_path / "images")
    for name, content in BAD.items():
        (tmp_path / "images" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"empty\.jpg cannot be read.*page\.jpg cannot be read"):
        run(tmp_path)
    run(tmp_path, "features.skip_bad", "1")
    assert "left out 2 images" in caplog.text
    assert "empty.jpg" in caplog.text and "page.jpg" in caplog.text
    names = {record.name for record in read_karpathy(tmp_path / "out/dataset_coco.json")}
    assert len(names) == 8 and not names & {"empty", "page"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["captions"]["left_out"] == 2
