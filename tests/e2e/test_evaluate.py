"""evaluate.py on two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call, run, two_processes
from PIL import Image

from generations.clip import ClipTrainSettings, save_clip, train_clip

CAPTIONS = ("a red field.", "a green field.", "a blue field.")
LAUNCHER = two_processes()
COUNT = 101  # so that one process has a picture more


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with a CLIP, painted/ with a manifest, and real/."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (2 * COUNT, 32, 32, 3), dtype=np.uint8)
    for number in range(2 * COUNT):
        pixels[number, :, :, number % 3] += 200
    captions = [CAPTIONS[number % 3] for number in range(COUNT)]
    settings = ClipTrainSettings(train_steps=10, batch_size=32, image_width=4, text_width=32)
    save_clip(train_clip(pixels[:COUNT], [[text] for text in captions], settings, seed=0), folder)
    items = []
    for name, part in (("painted", pixels[:COUNT]), ("real", pixels[COUNT:])):
        (folder / name).mkdir()
        for number, picture in enumerate(part, 1):
            Image.fromarray(picture).save(folder / name / f"img{number}.png")
    items = [{"file": f"img{n}.png", "caption": text} for n, text in enumerate(captions, 1)]
    (folder / "painted" / "manifest.json").write_text(json.dumps({"items": items}))
    return folder


def arguments(pictures: Path, data: Path) -> tuple[str, ...]:
    return (
        *("evaluate_images_dir", str(pictures / "painted"), "data_dir", str(data)),
        *("gt_img_dir_5k", str(pictures / "real"), "test_val2014", "0", "eval_rprec", "1"),
        *("eval_protocol", "network", "clip.model", str(pictures / "clip.json"), "device", "cpu"),
        *("clip.weights", str(pictures / "clip.safetensors"), "eval_batch_size", "16"),
    )


def test_two_processes_give_the_figures_of_one(pictures, tmp_path):
    found = []
    for name, launcher in (("one", ()), ("two", LAUNCHER)):
        run("evaluate.py", *arguments(pictures, tmp_path / name), launcher=launcher)
        found.append(json.loads((pictures / "painted" / "metrics_images_painted.json").read_text()))
    one, two = found
    assert one["images"] == two["images"] == one["real_images"] == two["real_images"] == COUNT
    # the CLIP's batches are others, so its last bits are
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-4, abs=1e-6)


def test_a_bad_picture_ends_all_processes(pictures, tmp_path):
    for name in ("painted", "real"):
        (tmp_path / name).mkdir()
        for path in (pictures / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    for file in ("clip.json", "clip.safetensors"):
        (tmp_path / file).write_bytes((pictures / file).read_bytes())
    (tmp_path / "painted" / "img2.png").write_bytes(b"torn")
    done = call("evaluate.py", *arguments(tmp_path, tmp_path / "data"), launcher=LAUNCHER)
    assert done.returncode != 0
    assert "1 of 101 pictures are bad" in done.stderr and "img2.png" in done.stderr
