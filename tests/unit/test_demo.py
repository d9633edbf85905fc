"""The demo without its page, the steps of painting, and exported runs."""

import dataclasses
import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import COMMITTED, export_tiny, tiny_run

from generations import export, inference, runtime, sample_images
from generations.checkpoint import from_pretrained
from generations.commands.demo import painted_html, written_html
from generations.config import load_config
from generations.errors import UserError
from generations.pipelines import assembly
from generations.pipelines.demo import Caption, Demo, Picture
from generations.pipelines.painting import PaintingSettings, paint_samples
from generations.pipelines.painting_steps import trace_painting
from generations.pipelines.pictures import how_painted

HERE = runtime.Runtime(torch.device("cpu"))
NASTY = "<script>alert(1)</script> & ${1 + 1} {{value}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> list[str]:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def cfg(folder):
    return load_config([folder / "config.yaml"])


@pytest.fixture(scope="module")
def demo(cfg) -> Demo:
    return Demo(cfg, HERE)


# --- the steps of painting


@pytest.mark.parametrize(
    "settings",
    [
        PaintingSettings(),
        PaintingSettings(steps=6, schedule="cosine", temperature=0.7),
        PaintingSettings(num_samples=3),
        PaintingSettings(num_samples=3, temperature=0.0, order_noise=4.0, guidance=2.0),
        PaintingSettings(order="random", guidance=1.0, guidance_schedule="growing"),
        PaintingSettings(steps=1),
    ],
    ids=["greedy", "drawn", "samples", "noisy orders", "random order", "one step"],
)
def test_the_last_step_is_the_picture_and_steps_write_what_was_masked(cfg, settings):
    model, _ = assembly.load_trained_model(cfg, HERE)
    generator = assembly.load_image_generator(cfg, HERE)
    tokenizer = assembly.open_tokenizer(cfg)
    texts = ["a red boat.", "two blue cats sleep at sea."]
    ids = torch.tensor([tokenizer.encode_for_painting(text, 17) for text in texts])
    trace = trace_painting(model, generator, ids, settings, [3, 4])
    samples = paint_samples(model, generator, ids, settings, [3, 4])
    assert torch.equal(trace.cluster_ids[:, :, -1], samples.cluster_ids)
    assert torch.equal(trace.pixels[:, :, -1], samples.pixels)
    assert trace.pixels.shape[:3] == (2, settings.num_samples, settings.steps)
    before, after = trace.cluster_ids[:, :, :-1], trace.cluster_ids[:, :, 1:]
    assert torch.equal(before[~trace.again[:, :, :-1]], after[~trace.again[:, :, :-1]])
    counts = trace.again.sum(-1)
    assert (counts[:, :, :-1] > 0).all() and (counts.diff(dim=-1) < 0).all()
    assert (counts[:, :, -1] == 0).all()


def test_sample_images_keeps_the_steps_that_are_asked_for(run, tmp_path):
    arguments = (*run, "painting.keep_steps", "1", "--caption", "a red boat", "a cat")
    sample_images.main([*arguments, "--out", str(tmp_path)])
    items = json.loads((tmp_path / "steps.json").read_text())["items"]
    assert [item["caption"] for item in items] == ["a red boat."] and len(items[0]["steps"]) == 4
    manifest = json.loads((tmp_path / "manifest.json").read_text())["items"]
    assert items[0]["steps"][-1]["cluster_ids"] == manifest[0]["cluster_ids"]
    last = np.asarray(Image.open(tmp_path / items[0]["steps"][-1]["file"]))
    painted = np.asarray(Image.open(tmp_path / manifest[0]["file"]))
    # equal but for rounding: other pictures were painted in the same batch
    assert np.abs(last.astype(int) - painted).max() <= 1


def test_a_manifest_says_how_and_unprepared_models_are_guided_with_a_warning(run, tmp_path, caplog):
    arguments = (*run, "--caption", "a red boat", "--out", str(tmp_path))
    how = ("painting.guidance", "2", "painting.guidance_schedule", "growing", "num_samples", "2")
    sample_images.main([*arguments, *how, "painting.order_noise", "4", "--steps", "3"])
    assert "trained without caption_dropout" in caplog.text
    caplog.clear()
    told = how_painted(tmp_path)
    assert "items" not in told and told.items() >= {
        "steps": 3, "schedule": "linear", "temperature": 1.0, "num_samples": 2, "rerank": "none",
        "order": "confidence", "order_noise": 4.0, "guidance": 2.0, "seed": 123,
        "guidance_schedule": "growing", "averaged_weights": False,
    }.items()  # fmt: skip
    beside = Path(told["checkpoint"]).with_name("config.yaml")
    beside.write_text("caption_dropout: 0.1\n")
    sample_images.main([*arguments, *how])
    assert "caption_dropout" not in caplog.text


# --- the demo


def test_painting_is_that_of_sample_images_and_the_best_comes_first(demo, folder, tmp_path):
    settings = dataclasses.replace(demo.painting, num_samples=4)
    pictures = demo.paint("a red boat", settings)
    assert sum(picture.greedy for picture in pictures) == 1
    assert all(len(picture.steps) == len(picture.again) == 4 for picture in pictures)
    scores = [picture.score for picture in pictures]
    assert demo.ranks and scores == sorted(scores, reverse=True)
    arguments = ["--config", str(folder / "config.yaml"), "num_samples", "4", "rerank", "clip"]
    sample_images.main([*arguments, "--caption", "a red boat", "--out", str(tmp_path)])
    item = json.loads((tmp_path / "manifest.json").read_text())["items"][0]
    written = [np.asarray(Image.open(tmp_path / sample["file"])) for sample in item["samples"]]
    assert all(
        np.array_equal(picture.steps[-1], other)
        for picture, other in zip(pictures, written, strict=True)
    )
    other = demo.paint("a red boat", dataclasses.replace(settings, seed=7))
    drawn = [[p.steps[-1] for p in some if not p.greedy] for some in (pictures, other)]
    assert not np.array_equal(np.stack(drawn[0]), np.stack(drawn[1]))


def test_captions_come_best_first_and_once(demo, folder):
    image = folder / "examples/1.png"
    settings = dataclasses.replace(demo.captioning, method="beam", num_captions=4, beam_size=4)
    captions = demo.describe(image, settings)
    chances = [caption.log_probability for caption in captions]
    assert len({caption.text for caption in captions}) == len(captions)
    assert chances == sorted(chances, reverse=True)
    assert all(0 <= (caption.score or 0) <= 250 for caption in captions)
    greedy = demo.describe(image, demo.captioning)
    assert len(greedy) == 1 and greedy[0].log_probability is None


def test_bad_input_is_a_user_error(demo, tmp_path):
    with pytest.raises(UserError, match="caption is empty"):
        demo.paint(" \n ", demo.painting)
    (tmp_path / "no.png").write_text("text")
    with pytest.raises(UserError, match="damaged or not an image"):
        demo.describe(tmp_path / "no.png", demo.captioning)


def test_odd_captions_are_painted(demo):
    for text in (NASTY, "word " * 400, "\U0001f600", "."):
        assert len(demo.paint(text, demo.painting)) == 1


def test_without_clip_the_greedy_picture_comes_first(cfg):
    bare = load_config(overrides=["clip.weights", "openai"])
    cfg = cfg.clone()
    cfg.defrost()
    cfg.clip.model, cfg.clip.weights = bare.clip.model, bare.clip.weights
    demo = Demo(cfg, HERE)
    pictures = demo.paint("a cat", dataclasses.replace(demo.painting, num_samples=3))
    assert not demo.ranks and [picture.greedy for picture in pictures] == [True, False, False]


def test_html_shows_texts_as_text():
    picture = Picture([np.zeros((8, 8, 3), np.uint8)], [[0]], 2, True, 3.5)
    for html in (
        painted_html(NASTY, [picture, picture], 0.1),
        written_html([Caption(NASTY, -1.0, None), Caption("b", -2.0, None)], 0.1),
    ):
        assert "<script" not in html and escape(NASTY) in html
    assert html.count("<td>") == 4  # without CLIP no column of its scores


# --- exported runs


def test_an_exported_folder_works_alone_and_wherever_it_is(folder, tmp_path, caplog):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (moved / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (moved / path.relative_to(folder)).write_bytes(path.read_bytes())
    cfg = load_config([moved / "config.yaml"])
    assert cfg.model_path == str(moved / "model.safetensors")
    model, read = from_pretrained(moved)
    trained, _ = assembly.load_trained_model(cfg, HERE)
    ours, theirs = model.state_dict(), trained.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert read.grid_cluster_num == cfg.grid_cluster_num == 24
    with caplog.at_level("INFO"):
        inference.main(
            ["--config", str(moved / "config.yaml"), "--image", str(moved / "examples/2.png")]
        )
    assert "examples/2.png: " in caplog.text


def test_the_card_says_what_is_in_the_folder(folder):
    card = (folder / "README.md").read_text()
    listed = dict(re.findall(r"\| `(\S+)` \| ([\d,]+) \|", card))
    there = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("README.md", "config.yaml")
    }
    assert {name: int(size.replace(",", "")) for name, size in listed.items()} == there
    assert "$" not in card


def test_exporting_nothing_or_onto_itself_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        export.main([*run, "exp_id", "other", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    weights = Path(run[run.index("save_dir") + 1]) / "tiny"
    with pytest.raises(UserError, match="is the folder of the model's weights"):
        export.main([*run, "--out", str(weights)])


def test_a_path_beside_its_file_is_not_one_under_the_root(tmp_path):
    (tmp_path / "a.yaml").write_text("vocab_file: ./vocab.txt\nimages_dir: pictures\n")
    cfg = load_config([tmp_path / "a.yaml"], ["root_path", str(tmp_path / "root")])
    assert cfg.vocab_file == str(tmp_path / "vocab.txt")
    assert cfg.images_dir == str(tmp_path / "root/pictures")


@pytest.mark.skipif(not (COMMITTED / "model.safetensors").exists(), reason="no models/mini")
def test_the_committed_model_is_small_and_complete():
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    demo = Demo(load_config([COMMITTED / "config.yaml"]), HERE)
    assert demo.ranks and len(demo.examples()) >= 3
