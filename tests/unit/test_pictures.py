"""Scoring folders of painted pictures by CLIP."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generations import evaluate
from generations.clip import ClipTrainSettings, load_clip, save_clip, train_clip
from generations.commands import evaluate as commands
from generations.errors import UserError
from generations.pipelines.clip_metrics import embed
from generations.pipelines.pictures import read_painted_folder
from generations.rewards import clip_score

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)]
CAPTIONS = ["a red field.", "a green field.", "a blue field.", "a yellow field."]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with a CLIP that knows four colours."""
    folder = tmp_path_factory.mktemp("data")
    images = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in COLOURS])
    settings = ClipTrainSettings(train_steps=30, batch_size=4, image_width=4, text_width=32)
    save_clip(train_clip(images, [[text] for text in CAPTIONS], settings, seed=0), folder)
    return folder


@pytest.fixture
def painted(tmp_path) -> Path:
    """104 pictures with a manifest: 26 of each colour."""
    folder = tmp_path / "run" / "images_test_0000007"
    folder.mkdir(parents=True)
    items = []
    for number in range(104):
        name = f"img{number + 1}.png"
        Image.new("RGB", (32, 32), COLOURS[number % 4]).save(folder / name)
        items.append({"file": name, "caption": CAPTIONS[number % 4]})
    (folder / "manifest.json").write_text(json.dumps({"items": items}))
    return folder


def arguments(data: Path, painted: Path, *more: str) -> list[str]:
    return [
        *("exp_id", "run", "save_dir", str(painted.parents[1]), "data_dir", str(data)),
        *("clip.model", "", "clip.weights", "", "eval_fid", "0", *more),
    ]


def run_pictures(data: Path, painted: Path, *more: str, monkeypatch) -> dict:
    only = (commands.evaluate_painted_pictures,)
    monkeypatch.setattr(commands, "EVALUATORS", only)
    evaluate.main(arguments(data, painted, *more))
    return json.loads((painted.parent / "metrics_images_test_0000007.json").read_text())


def test_newest_pictures_of_a_run_get_the_clip_score_of_their_captions(data, painted, monkeypatch):
    found = run_pictures(data, painted, "--per-item", monkeypatch=monkeypatch)
    clip = load_clip(str(data / "clip.json"), str(data / "clip.safetensors"))
    pixels = torch.tensor(COLOURS, dtype=torch.float32)[:, :, None, None].expand(-1, -1, 32, 32)
    wanted = clip_score(clip, pixels / 255, CAPTIONS)
    assert found["figures"]["clip_score"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert found["per_item"][5]["clip_score"] == pytest.approx(float(wanted[1]), rel=1e-5)
    assert found["images"] == 104 and len(found["clip_weights_sha256"]) == 64


def test_pictures_of_the_wrong_captions_score_worse(data, painted, monkeypatch):
    right = run_pictures(data, painted, "eval_rprec", "1", monkeypatch=monkeypatch)["figures"]
    manifest = json.loads((painted / "manifest.json").read_text())
    for number, item in enumerate(manifest["items"], 1):
        item["caption"] = CAPTIONS[number % 4]
    (painted / "manifest.json").write_text(json.dumps(manifest))
    wrong = run_pictures(data, painted, "eval_rprec", "1", monkeypatch=monkeypatch)["figures"]
    assert wrong["clip_score"] < right["clip_score"]
    assert wrong["r_precision"] < 0.05 < right["r_precision"]


def test_what_does_not_fit_is_named(data, painted):
    clip = load_clip(str(data / "clip.json"), str(data / "clip.safetensors"))
    (painted / "img3.png").write_bytes(b"\x89PNG torn")
    (painted / "img9.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"img3\.png.*img9\.png"):
        embed(clip, read_painted_folder(painted), "", 2)
    (painted / "img3.png").unlink()
    Image.new("RGB", (4, 4)).save(painted / "extra.png")
    with pytest.raises(UserError, match=r"img3\.png is listed.*extra\.png is there"):
        read_painted_folder(painted)
    (painted / "manifest.json").write_text('{"items": []}')
    with pytest.raises(UserError, match="has no pictures"):
        read_painted_folder(painted)
    with pytest.raises(UserError, match="no folder"):
        read_painted_folder(painted / "gone")


def test_too_few_captions_for_r_precision(data, painted, monkeypatch):
    manifest = json.loads((painted / "manifest.json").read_text())
    for item in manifest["items"][50:]:
        (painted / item["file"]).unlink()
    (painted / "manifest.json").write_text(json.dumps({"items": manifest["items"][:50]}))
    with pytest.raises(UserError, match="100"):
        run_pictures(data, painted, "eval_rprec", "1", monkeypatch=monkeypatch)


def test_folders_without_a_manifest_are_read_by_their_names(data, tmp_path):
    for number in (10, 2):
        Image.new("RGB", (40, 20)).save(tmp_path / f"img{number}.a dog. it runs.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "img3.a cat..png")
    found = read_painted_folder(tmp_path)
    assert [picture.caption for picture in found] == ["a dog. it runs", "a cat.", "a dog. it runs"]
    clip = load_clip(str(data / "clip.json"), str(data / "clip.safetensors"))
    vectors = embed(clip, found, "", 3).images  # of different sizes in one batch
    assert torch.allclose(vectors, embed(clip, found, "", 1).images, atol=1e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither"):
        read_painted_folder(tmp_path / "empty")
