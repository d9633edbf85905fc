"""Image metrics equal torch-fidelity, pytorch-fid and a direct use of open_clip."""

import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_fid import inception as pytorch_fid_inception
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.torch import save_file
from torch.nn import functional as F
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from generations.clip import load_clip
from generations.errors import UserError
from generations.metrics import inception
from generations.metrics.fid import FeatureStatistics, frechet_distance
from generations.metrics.inception import load_inception
from generations.metrics.inception_score import InceptionScoreSums, inception_score
from generations.metrics.kid import kernel_distance
from generations.pipelines.clip_metrics import clip_scores, embed
from generations.pipelines.pictures import PaintedPicture

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def features(seed: int, count: int, size: int = 24) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((size, size)) * np.logspace(0, -2, size)
    return (rng.standard_normal((count, size)) @ mixing + rng.random()).astype(np.float32)


def test_fid_equals_pytorch_fid():
    one, two = features(1, 300), features(2, 400)
    ours = [FeatureStatistics.of(part) for part in (one, two)]
    found = frechet_distance(*(ours[0].mean, ours[0].covariance, ours[1].mean, ours[1].covariance))
    parts = [(part.mean(0), np.cov(part, rowvar=False)) for part in (one, two)]
    assert found == pytest.approx(calculate_frechet_distance(*parts[0], *parts[1]), rel=1e-3)


def test_kid_equals_torch_fidelity():
    one, two = features(1, 300), features(2, 400)
    wanted = kid_features_to_metric(
        torch.from_numpy(one),
        torch.from_numpy(two),
        **{"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False},
    )
    mean, std = kernel_distance(one, two, subsets=20, subset_size=100)
    assert mean == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-4)
    assert std == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-4)


@pytest.mark.parametrize("count", [500, 497])
def test_streamed_inception_score_equals_torch_fidelity(count):
    logits = torch.from_numpy(3 * features(4, count))
    wanted = isc_features_to_metric(logits, splits=10, shuffle=False)
    probs = logits.double().softmax(1).numpy()
    sums = InceptionScoreSums(count, probs.shape[1])
    halves = [InceptionScoreSums(count, probs.shape[1]) for _ in range(2)]
    for start in range(0, count, 32):
        places = range(start, min(start + 32, count))
        sums.update(places, probs[start : start + 32])
        halves[start // 32 % 2].update(places, probs[start : start + 32])
    names = ("inception_score_mean", "inception_score_std")
    for found in (sums.score(), inception_score(probs)):
        np.testing.assert_allclose(found, [wanted[name] for name in names], rtol=1e-6)
    halves[0].merge(halves[1])
    np.testing.assert_allclose(halves[0].score(), sums.score(), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(10, 60), classes=st.integers(2, 12))
def test_streamed_inception_score_equals_the_whole(seed, count, classes):
    probs = np.random.default_rng(seed).dirichlet(np.full(classes, 0.1), count)
    sums = InceptionScoreSums(count, classes)
    sums.update(range(count), probs)
    np.testing.assert_allclose(sums.score(), inception_score(probs), rtol=1e-9, atol=1e-12)


# --- Inception -----------------------------------------------------------------------------------


def inception_weights(classes: int, aux: bool) -> dict[str, torch.Tensor]:
    """Seeded random weights in the form of the published ones, that keep signals alive."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.inception_v3(
            weights=None, num_classes=classes, aux_logits=aux, init_weights=False
        )
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    return network.state_dict()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    coarse = torch.rand((3, 3, 8, 8), generator=rng)
    return F.interpolate(coarse, (64, 48), mode="bicubic").mul(255).clamp(0, 255).byte()


@pytest.mark.slow
def test_tf_protocol_equals_pytorch_fid_with_weights_of_a_local_file(tmp_path, pixels, monkeypatch):
    state = inception_weights(1008, aux=False)
    torch.save(state, tmp_path / "pt_inception.pth")
    network, digest = load_inception("tf", str(tmp_path / "pt_inception.pth"))
    found, logits = network(pixels)
    monkeypatch.setattr(pytorch_fid_inception, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = pytorch_fid_inception.InceptionV3(resize_input=False).eval()
    # TensorFlow 1 samples at x * scale and scales by 128
    grid = [torch.arange(299) * (side / 299) for side in pixels.shape[2:]]
    rows, columns = torch.meshgrid(*grid, indexing="ij")
    height, width = pixels.shape[2:]
    places = torch.stack([columns / (width - 1), rows / (height - 1)], -1) * 2 - 1
    resized = F.grid_sample(
        pixels.float(), places.expand(3, -1, -1, -1), padding_mode="border", align_corners=True
    )
    wanted = theirs((resized - 128) / 256 + 0.5)[0].flatten(1)
    assert wanted.std() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    np.testing.assert_allclose(logits, found @ state["fc.weight"].T, rtol=1e-3, atol=1e-4)
    save_file(state, tmp_path / "same.safetensors")
    assert load_inception("tf", str(tmp_path / "same.safetensors"))[1] == digest


def test_torchvision_protocol_equals_torchvision(tmp_path, pixels):
    state = inception_weights(1000, aux=True)
    torch.save(state, tmp_path / "inception_v3.pth")
    network, _ = load_inception("torchvision", str(tmp_path / "inception_v3.pth"))
    theirs = torchvision.models.inception_v3(
        weights=None, init_weights=False, transform_input=False
    ).eval()
    theirs.load_state_dict(state)
    seen: list[torch.Tensor] = []
    theirs.avgpool.register_forward_hook(lambda module, args, out: seen.append(out.flatten(1)))
    inputs = F.interpolate(pixels / 255 * 2 - 1, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        wanted = theirs(inputs)
    found, logits = network(pixels)
    assert wanted.std() > 1e-3
    np.testing.assert_allclose(found, seen[0], rtol=1e-3, atol=1e-3 * float(seen[0].std()))
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    with pytest.raises(UserError, match="do not fit the tf Inception"):
        load_inception("tf", str(tmp_path / "inception_v3.pth"))


@pytest.mark.parametrize("protocol", ["tf", "torchvision"])
def test_what_to_do_without_network_access_is_said(protocol, monkeypatch):
    def offline(url, **_):
        raise URLError("no route")

    monkeypatch.setattr(inception, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no route.*get https://\S+\.pth and set eval_weights"):
        load_inception(protocol)


# --- CLIP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "tolerance"),
    # open_clip rounds what it resizes to 8 bits, which is a step of 0.1 in a score of 0 to 250
    [(((32, 32),) * 3, 1e-3), (((50, 44), (60, 44), (70, 44)), 0.25)],
)
def test_clip_score_equals_a_direct_open_clip_computation(tmp_path: Path, sizes, tolerance):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = open_clip.CLIP(**CLIP).eval()
        # captions and pictures near each other, or the score is often cut at 0
        network.visual.proj.data += 0.1
        network.text_projection.data += 0.1
    (tmp_path / "clip.json").write_text(json.dumps({"model_cfg": CLIP}))
    save_file(network.state_dict(), tmp_path / "clip.safetensors")
    rng = np.random.default_rng(0)
    captions = ["a red dog.", "two cats on a bus.", "the sea."]
    pictures = []
    for number, caption in enumerate(captions):
        path = tmp_path / f"{number}.png"
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(sizes[number]).save(path)
        pictures.append(PaintedPicture(path, caption))
    preprocess = open_clip.image_transform(32, is_train=False)
    images = torch.stack([preprocess(Image.open(picture.file)) for picture in pictures])
    tokens = open_clip.SimpleTokenizer()([f"A photo depicts {text}" for text in captions])
    with torch.no_grad():
        one = network.encode_image(images, normalize=True)
        other = network.encode_text(tokens, normalize=True)
    wanted = 2.5 * (100 * (one * other).sum(1)).clamp(min=0)
    clip = load_clip(str(tmp_path / "clip.json"), str(tmp_path / "clip.safetensors"))
    found = clip_scores(embed(clip, pictures, "A photo depicts ", 2))
    assert wanted.min() > 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
