"""Measuring folders of pictures: every flag of evaluate.py, and what bad input gives."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generations import evaluate
from generations.clip import ClipTrainSettings, load_clip, save_clip, train_clip
from generations.config import load_config
from generations.datasets import ImageRecord, write_karpathy
from generations.datasets.hard_samples import read_hard_samples
from generations.errors import UserError
from generations.features import load_image
from generations.pipelines import image_statistics
from generations.pipelines.clip_metrics import caption_clip_scores, embed
from generations.pipelines.pictures import read_painted_folder, read_pictures
from generations.pipelines.protocols import PROTOCOLS, Protocol, apply_protocol
from generations.rewards.clip_score import clip_score
from generations.runtime import Runtime

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
COLOURS |= {"yellow": (250, 250, 10)}
NAMES = list(COLOURS)
COUNT = 104
HERE = Runtime(torch.device("cpu"))


def noisy(colour: str, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-9, 6, (32, 32, 3))
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """data/: a dataset of coloured fields, its images, and a CLIP that knows the colours."""
    folder = tmp_path_factory.mktemp("world")
    images, captions, records = [], [], []
    (folder / "images").mkdir()
    for number in range(2 * COUNT):
        colour = NAMES[number % 4]
        split = "test" if number < COUNT else "train"
        texts = (f"a {colour} field.", f"there is a {colour} field.")
        records.append(ImageRecord(f"i{number}", f"i{number}.png", number + 1, split, texts))
        images.append(noisy(colour, number))
        captions.append([texts[0]])
        Image.fromarray(images[-1]).save(folder / "images" / f"i{number}.png")
    write_karpathy(folder / "dataset_coco.json", records, "test")
    settings = ClipTrainSettings(train_steps=60, batch_size=64, image_width=4, text_width=32)
    save_clip(train_clip(np.stack(images), captions, settings, seed=0), folder)
    return folder


def paint(folder: Path, pictures: list[np.ndarray], captions: list[str]) -> Path:
    folder.mkdir(parents=True)
    items = []
    for number, (pixels, caption) in enumerate(zip(pictures, captions, strict=True), 1):
        Image.fromarray(pixels).save(folder / f"img{number}.png")
        items.append({"file": f"img{number}.png", "caption": caption, "image_id": number})
    (folder / "manifest.json").write_text(json.dumps({"items": items}))
    return folder


@pytest.fixture
def painted(tmp_path) -> Path:
    """A run's 104 pictures, with other noise than the real ones."""
    colours = [NAMES[number % 4] for number in range(COUNT)]
    return paint(
        tmp_path / "run" / "images_test_0000007",
        [noisy(colour, 1000 + number) for number, colour in enumerate(colours)],
        [f"a {colour} field." for colour in colours],
    )


def measure(world: Path, painted: Path, *more: str) -> dict:
    """Evaluate; `more` comes last and so wins. Figures and details of the pictures."""
    evaluate.main(
        [
            *("exp_id", "run", "save_dir", str(painted.parents[1]), "data_dir", str(world)),
            *("images_dir", str(world / "images"), "test_val2014", "0", "eval_image_size", "32"),
            *("clip.model", str(world / "clip.json"), "eval_protocol", "network"),
            *("clip.weights", str(world / "clip.safetensors"), "device", "cpu", "test_num", "-1"),
            *("eval_fid", "0", "eval_clipscore", "0", *more),
        ]
    )
    return json.loads((painted.parent / f"metrics_{painted.name}.json").read_text())


ALL = (
    "eval_fid",
    "1",
    "eval_clipscore",
    "1",
    "eval_rprec",
    "1",
    "eval_rprec_hard",
    "1",
    "eval_prc",
    "1",
)


@pytest.mark.slow
def test_good_pictures_have_good_figures_and_noise_bad_ones_in_every_metric(world, painted, caplog):
    with caplog.at_level(logging.WARNING):
        good = measure(world, painted, *ALL)["figures"]
    name = f"clip-{world.name}"
    rng = np.random.default_rng(0)
    captions = [item.caption for item in read_painted_folder(painted)]
    noise = list(rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8))
    bad_folder = paint(painted.parent / "images_noise_0000007", noise, captions)
    bad = measure(world, bad_folder, *ALL, "evaluate_images_dir", str(bad_folder))["figures"]
    assert good.keys() == bad.keys()
    assert {f"fid_{name}", f"kid_{name}", "r_precision", "clip_score"} < good.keys()
    assert "fid" not in good
    for figure in (f"fid_{name}", f"kid_{name}"):
        assert abs(good[figure]) < 0.05 * bad[figure]
    figures = (
        "clip_score",
        "r_precision",
        "r_precision_hard_color",
        f"precision_{name}",
        f"recall_{name}",
    )
    for figure in figures:
        assert good[figure] > bad[figure]
    # colour is the only kind that these captions have several words of
    assert "r_precision_hard" not in good
    assert "no caption has a verb or a noun or a number to swap" in caplog.text


def test_clip_score_is_the_mean_of_the_single_scores(world, painted):
    found = measure(world, painted, "eval_clipscore", "1", "--per-item")
    clip = load_clip(str(world / "clip.json"), str(world / "clip.safetensors"))
    pixels = np.stack([load_image(painted / f"img{number}.png") for number in range(1, 9)])
    inputs = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    wanted = clip_score(clip, inputs, [item["caption"] for item in found["per_item"][:8]])
    scores = [item["clip_score"] for item in found["per_item"]]
    np.testing.assert_allclose(scores[:8], wanted.numpy(), rtol=1e-4)
    assert found["figures"]["clip_score"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert found["images"] == COUNT and len(found["clip_weights_sha256"]) == 64


def test_batch_size_changes_nothing(world, painted):
    # precision and recall count neighbours, and here many features are equal but for rounding
    some = (*ALL, "eval_prc", "0")
    one = measure(world, painted, *some, "eval_batch_size", "7")["figures"]
    other = measure(world, painted, *some, "eval_batch_size", "64")["figures"]
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_statistics_of_real_images_are_measured_once_and_again_when_an_image_changes(
    world, painted, monkeypatch
):
    read: list[int] = []
    reading = image_statistics.read_pictures

    def counted(files, places, *rest, **more):
        read.append(len(places))
        return reading(files, places, *rest, **more)

    monkeypatch.setattr(image_statistics, "read_pictures", counted)
    reals = painted.parent / "reals"
    reals.mkdir()
    for number in range(COUNT):
        Image.fromarray(noisy("red", number)).save(reals / f"{number}.png")
    options = ("eval_fid", "1", "gt_img_dir_5k", str(reals))
    first = measure(world, painted, *options)["figures"]
    again = measure(world, painted, *options)["figures"]
    assert read == [COUNT] and first == again
    Image.fromarray(noisy("blue", 1)).resize((40, 30)).save(reals / "5.png")
    changed = measure(world, painted, *options)["figures"]
    assert read == [COUNT, COUNT] and changed != again


def test_interrupted_measuring_of_real_images_goes_on(world, painted, monkeypatch):
    options = ("eval_fid", "1", "seed", "5")
    monkeypatch.setattr(image_statistics, "SAVE_EVERY", 20)
    whole = measure(world, painted, *options, "seed", "6")["figures"]
    reading = image_statistics.read_pictures
    read: list[int] = []

    def torn(files, places, *rest, **more):
        for number, part in enumerate(reading(files, places, *rest, **more)):
            if number == 3:
                raise KeyboardInterrupt
            yield part

    def counted(files, places, *rest, **more):
        read.append(len(places))
        return reading(files, places, *rest, **more)

    monkeypatch.setattr(image_statistics, "read_pictures", torn)
    with pytest.raises(KeyboardInterrupt):
        measure(world, painted, *options, "eval_batch_size", "10")
    monkeypatch.setattr(image_statistics, "read_pictures", counted)
    rest = measure(world, painted, *options, "eval_batch_size", "10")["figures"]
    assert read == [COUNT - 20]
    assert rest == pytest.approx(whole, rel=1e-4, abs=1e-7)


def test_a_damaged_cache_is_made_again(world, painted, caplog):
    options = ("eval_fid", "1", "seed", "9")
    before = set((world / "evaluation").glob("*.npz")) if (world / "evaluation").exists() else set()
    first = measure(world, painted, *options)["figures"]
    (path,) = set((world / "evaluation").glob("*.npz")) - before
    path.write_bytes(path.read_bytes()[:300])
    assert measure(world, painted, *options)["figures"] == first
    assert "damaged" in caplog.text


def test_bad_pictures_are_all_named_and_left_out_only_on_request(world, painted):
    (painted / "img3.png").write_bytes((painted / "img3.png").read_bytes()[:60])
    (painted / "img90.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 104 .*img3\.png.*img90\.png.*eval_skip_bad 1"):
        measure(world, painted, "eval_clipscore", "1")
    assert not (painted.parent / f"metrics_{painted.name}.json").exists()
    found = measure(world, painted, *ALL, "eval_skip_bad", "1", "--per-item")
    assert (found["images"], found["images_listed"]) == (COUNT - 2, COUNT)
    assert "img3.png" not in [item["file"] for item in found["per_item"]]
    files = [painted / "img3.png", painted / "img90.png"]
    with pytest.raises(UserError, match="2 of 2"):
        list(read_pictures(files, range(2), 4, HERE, skip_bad=True))


def test_real_images_that_are_gone_are_named(world, painted):
    reals = painted.parent / "reals"
    reals.mkdir()
    Image.new("RGB", (4, 4)).save(reals / "0.png")
    (reals / "1.png").symlink_to(reals / "gone.png")
    with pytest.raises(UserError, match=r"1 of 2 .*1\.png does not exist"):
        measure(world, painted, "eval_fid", "1", "gt_img_dir_5k", str(reals))


def test_captions_and_pictures_must_belong_together(world, painted):
    (painted / "img3.png").unlink()
    Image.new("RGB", (4, 4)).save(painted / "extra.png")
    with pytest.raises(UserError, match=r"img3\.png is listed.*extra\.png is there"):
        measure(world, painted, "eval_clipscore", "1")


def test_folders_of_the_original_have_their_captions_in_the_names(world, tmp_path):
    for number in (10, 2):
        Image.new("RGB", (40, 20)).save(tmp_path / f"img{number}.a dog. it runs.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "img3.a cat..png")
    found = read_painted_folder(tmp_path)
    assert [picture.caption for picture in found] == ["a dog. it runs", "a cat.", "a dog. it runs"]
    clip = load_clip(str(world / "clip.json"), str(world / "clip.safetensors"))
    vectors = embed(clip, found, "", 3).images  # of different sizes in one batch
    assert torch.allclose(vectors, embed(clip, found, "", 1).images, atol=1e-5)
    Image.new("RGB", (4, 4)).save(tmp_path / "extra.png")
    with pytest.raises(UserError, match=r"extra\.png has no caption"):
        read_painted_folder(tmp_path)


def test_any_folder_of_images_has_a_fid(world, painted):
    folder = painted.parent / "loose"
    (folder / "deep").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(noisy("red", number)).save(folder / "deep" / f"{number}.jpg")
    options = ("evaluate_images_dir", str(folder), "exp_id", "")
    with pytest.raises(UserError, match="eval_clipscore 0"):
        measure(world, painted, "eval_fid", "1", "eval_clipscore", "1", *options)
    evaluated = folder / "metrics_images_loose.json"
    with pytest.raises(FileNotFoundError):  # of the run: the figures lie beside the pictures
        measure(world, painted, "eval_fid", "1", *options)
    assert f"fid_clip-{world.name}" in json.loads(evaluated.read_text())["figures"]
    empty = painted.parent / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="has no images"):
        measure(world, painted, "eval_fid", "1", "evaluate_images_dir", str(empty))


def test_fewer_pictures_than_feature_dimensions_are_warned_of(world, painted, caplog):
    manifest = json.loads((painted / "manifest.json").read_text())
    for item in manifest["items"][50:]:
        (painted / item["file"]).unlink()
    (painted / "manifest.json").write_text(json.dumps({"items": manifest["items"][:50]}))
    measure(world, painted, "eval_fid", "1")
    assert "50 pictures and 64 feature dimensions" in caplog.text
    with pytest.raises(UserError, match="needs at least 100 captions, not 50"):
        measure(world, painted, "eval_rprec", "1")


def test_what_cannot_be_measured_is_said_before_the_work(world, painted, monkeypatch):
    def unexpected(*_, **__):
        raise AssertionError("pictures were read")

    monkeypatch.setattr("generations.pipelines.picture_evaluation.read_pictures", unexpected)
    with pytest.raises(UserError, match="needs a classifier"):
        measure(world, painted, "eval_is", "1")
    with pytest.raises(UserError, match="set images_dir or gt_img_dir_5k"):
        measure(world, painted, "eval_fid", "1", "images_dir", "")
    with pytest.raises(UserError, match=r"eval_weights: .*nowhere\.pth does not exist"):
        measure(
            *(world, painted, "eval_is", "1", "eval_protocol", "tf", "eval_weights", "nowhere.pth")
        )
    (painted.parent / "w.pth").write_bytes(pickle.dumps({"a": np.zeros(3)}))
    with pytest.raises(UserError, match="cannot be read as weights"):
        measure(
            *(world, painted, "eval_is", "1", "eval_protocol", "tf"),
            *("eval_weights", str(painted.parent / "w.pth")),
        )


def test_a_run_without_pictures_is_scored_by_its_captions_alone(world, tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="nothing to score"):
        measure(world, run / "images_test_1", *ALL)
    written = [
        {"image_id": number + 1, "caption": f"a {NAMES[number % 4]} field."}
        for number in range(COUNT)
    ]
    (run / "captions_test_0000007.json").write_text(json.dumps(written))
    with caplog.at_level(logging.INFO), pytest.raises(FileNotFoundError):
        measure(world, run / "images_test_1", *ALL, "--caption-metrics", "diversity,clip_score")
    assert "no painted pictures to score" in caplog.text
    found = json.loads((run / "metrics_captions_test_0000007.json").read_text())["figures"]
    assert found["vocabulary"] == 6 and found["novel"] == 0
    assert found["caption_clip_score"] > 0
    # each caption is also one of its references: the cosine of the two is 1
    clip, reference = found["caption_clip_score"], 100
    assert found["ref_clip_score"] == pytest.approx(
        2 * clip * reference / (clip + reference), rel=0.02
    )


def test_caption_scores_by_hand():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    captions = torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    references = [torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])]
    scores, with_references = caption_clip_scores(images, captions, references)
    np.testing.assert_allclose(scores, [150, 0], rtol=1e-6)
    np.testing.assert_allclose(with_references, [2 * 150 * 80 / 230, 0], rtol=1e-6)


def test_hard_captions_of_files_belong_to_the_pictures_with_the_same_words(tmp_path):
    lists = [["A red dog .", "A blue dog .", "A green dog ."], ["two cats", "three cats"]]
    for kind in ("verb", "noun", "num"):
        (tmp_path / f"{kind}.json").write_text(json.dumps(lists))
    (tmp_path / "color.pkl").write_bytes(pickle.dumps({7: lists[0], 9: lists[1]}))
    found = read_hard_samples(tmp_path, ["a red dog.", "something else.", "two cats."])
    assert found["color"] == {0: lists[0][1:], 2: lists[1][1:]} == found["number"]
    (tmp_path / "color.pkl").write_bytes(pickle.dumps({1: Path("x")}))
    with pytest.raises(UserError, match=r"color\.pkl cannot be read \(reading it would call"):
        read_hard_samples(tmp_path, ["a red dog."])
    (tmp_path / "color.pkl").unlink()
    with pytest.raises(UserError, match=r"one file .* 'color'"):
        read_hard_samples(tmp_path, ["a red dog."])
    (tmp_path / "color.json").write_text(json.dumps(lists))
    with pytest.raises(UserError, match="are not those of the pictures"):
        read_hard_samples(tmp_path, ["nothing."])


# --- protocols -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_fixes_every_choice(name):
    cfg = apply_protocol(load_config(), name)
    assert (cfg.eval_fid, cfg.eval_clipscore, cfg.eval_rprec) == (1, 1, 1)
    assert (cfg.eval_image_size, cfg.test_val2014, cfg.test_num, cfg.seed) == (256, 1, -1, 123)
    assert cfg.eval_resize == {"coco30k": "crop", "original": "squash"}[name]
    assert apply_protocol(cfg, name) == cfg and cfg.is_frozen()
    with pytest.raises(
        UserError, match=f"--protocol {name} sets eval_image_size to 256, but .* 64"
    ):
        apply_protocol(load_config(overrides=["eval_image_size", "64"]), name)


def test_a_protocol_is_written_beside_the_figures(world, painted, monkeypatch):
    keys = {"eval_protocol": "network", "eval_resize": "crop", "eval_fid": 1, "eval_rprec": 1}
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol("coloured fields", COUNT, keys))
    content = json.loads((painted / "manifest.json").read_text())
    (painted / "manifest.json").write_text(json.dumps({"steps": 4, "seed": 5, **content}))
    options = ("eval_fid", "1", "eval_rprec", "1")
    found = measure(world, painted, *options, "eval_resize", "crop", "--protocol", "tiny")
    assert (found["protocol_name"], found["protocol_text"]) == ("tiny", "coloured fields")
    assert found["choices"]["eval_resize"] == "crop"
    assert found["sampling"] == {"steps": 4, "seed": 5}
    assert {"r_precision", f"fid_clip-{world.name}"} <= found["figures"].keys()
    monkeypatch.setitem(PROTOCOLS, "tiny", Protocol("coloured fields", COUNT + 1, keys))
    with pytest.raises(UserError, match=r"--protocol tiny is of 105 pictures, but there are 104"):
        measure(world, painted, *options, "--protocol", "tiny")


def test_real_images_are_squashed_or_cropped(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255  # the middle square
    Image.fromarray(pixels).save(tmp_path / "wide.png")

    def read(crop: bool) -> np.ndarray:
        ((_, (found,)),) = read_pictures([tmp_path / "wide.png"], [0], 1, HERE, size=10, crop=crop)
        return found

    assert read(True).shape == read(False).shape == (10, 10, 3)
    assert read(True).min() == 255 and read(False).min() == 0
