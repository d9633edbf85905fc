"""The original's detector: names, shapes, preprocessing, features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from generations.errors import UserError
from generations.features import ExtractorSettings
from generations.features.extractors.butd import (
    Butd,
    Detector,
    DetectorSize,
    box_level,
    load_detector,
    new_name,
    prepare_pixels,
)

TINY = DetectorSize((1, 2, 1, 1), groups=2, group_width=2, pyramid=8, head=12, classes=5)
RNG = np.random.default_rng(0)


def benchmark_shapes(size: DetectorSize) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors as maskrcnn-benchmark makes them from its configuration."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    body = "backbone.body"
    shapes[f"{body}.stem.conv1.weight"] = (64, 3, 7, 7)
    norm(f"{body}.stem.bn1", 64)
    channels = 64
    for stage, blocks in enumerate(size.blocks, 1):
        inner, out = size.groups * size.group_width * 2 ** (stage - 1), 256 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"{body}.layer{stage}.{block}"
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (out, channels, 1, 1)
                norm(f"{name}.downsample.1", out)
            shapes[f"{name}.conv1.weight"] = (inner, channels, 1, 1)
            shapes[f"{name}.conv2.weight"] = (inner, inner // size.groups, 3, 3)
            shapes[f"{name}.conv3.weight"] = (out, inner, 1, 1)
            for number, width in ((1, inner), (2, inner), (3, out)):
                norm(f"{name}.bn{number}", width)
            channels = out
        layer(f"backbone.fpn.fpn_inner{stage}", size.pyramid, out, 1, 1)
        layer(f"backbone.fpn.fpn_layer{stage}", size.pyramid, size.pyramid, 3, 3)
    for level in range(5):
        shapes[f"rpn.anchor_generator.cell_anchors.{level}"] = (3, 4)
    layer("rpn.head.conv", size.pyramid, size.pyramid, 3, 3)
    layer("rpn.head.cls_logits", 3, size.pyramid, 1, 1)
    layer("rpn.head.bbox_pred", 12, size.pyramid, 1, 1)
    layer("roi_heads.box.feature_extractor.fc6", size.head, size.pyramid * 49)
    layer("roi_heads.box.feature_extractor.fc7", size.head, size.head)
    predictor = "roi_heads.box.predictor"
    layer(f"{predictor}.cls_score", size.classes, size.head)
    layer(f"{predictor}.bbox_pred", size.classes * 4, size.head)
    if size.attributes:
        shapes[f"{predictor}.cls_embed.weight"] = (size.classes, 256)
        layer(f"{predictor}.attr_linear1", 512, size.head + 256)
        layer(f"{predictor}.attr_linear2", size.attributes, 512)
    return shapes


def checkpoint(size: DetectorSize, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights under maskrcnn-benchmark's names, of a size that keeps activations moderate."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in benchmark_shapes(size).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        elif len(shape) > 1:
            values /= max(1, np.prod(shape[1:])) ** 0.5
        tensors[name] = values
    return tensors


@pytest.mark.parametrize("attributes", [0, 400])
def test_the_full_size_has_a_place_for_every_tensor(attributes):
    size = DetectorSize(attributes=attributes)
    shapes = benchmark_shapes(size)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    detector = load_detector(tensors, "detectron_model.pth")
    found = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    assert found == {new_name(name): shape for name, shape in shapes.items()}
    assert len(found) == len(shapes)


def test_parameters_of_each_part():
    with torch.device("meta"):
        detector = Detector()

    def count(part: str) -> int:
        return sum(p.numel() for p in detector.get_submodule(part).parameters())

    # its frozen norms are no parameters; torchvision's ResNeXt-101 32x8d has 88,791,336, of these
    # 2,049,000 in the classifier and 202,880 in norms, and 4 + 13 blocks less
    more = 4 * (2 * 512**2 + 512 * 16 * 9) + 13 * (2 * 1024**2 + 1024 * 32 * 9)
    assert count("body") == 88_791_336 - 2_049_000 - 202_880 + more == 120_028_352
    assert count("pyramid") == 512 * (256 + 512 + 1024 + 2048) + 4 * 512 * (512 * 9 + 2)
    assert count("proposals") == 512 * (512 * 9 + 1) + 15 * (512 + 1)
    assert count("box_head.fc6") == 2048 * (512 * 49 + 1)
    assert count("box_head.fc7") == 2048 * (2048 + 1)
    assert count("predictor") == 5 * 1601 * (2048 + 1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_tensor_of_a_file_is_used(prefix):
    tensors = checkpoint(DetectorSize(**{**vars(TINY), "attributes": 7}))
    detector = load_detector({prefix + n: t for n, t in tensors.items()}, "a.pth", TINY)
    state = detector.state_dict()
    assert len(state) == len(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(state[new_name(name)], tensor), name


def test_files_of_another_network_are_refused():
    whole = checkpoint(TINY)
    fc6 = "roi_heads.box.feature_extractor.fc6.weight"
    with pytest.raises(UserError, match=r"1 are missing \(box_head\.fc6\.weight\)"):
        load_detector({n: t for n, t in whole.items() if n != fc6}, "a.pth", TINY)
    with pytest.raises(UserError, match=r"a\.pth .* 1 do not fit \(roi_heads\.mask\.x\)"):
        load_detector(whole | {"roi_heads.mask.x": torch.zeros(1)}, "a.pth", TINY)
    extra = "backbone.body.layer3.1.conv1.weight"
    with pytest.raises(UserError, match=r"1 do not fit \(backbone\.body\.layer3\.1"):
        load_detector(whole | {extra: torch.zeros(1)}, "a.pth", TINY)
    with pytest.raises(UserError, match=r"1 do not fit \(roi_heads\.box\.feature_extractor\.fc6"):
        load_detector(whole | {fc6: torch.zeros(3, 4)}, "a.pth", TINY)
    without_anchors = {n: t for n, t in whole.items() if "anchors" not in n}
    assert load_detector(without_anchors, "a.pth", TINY).state_dict()["anchors_0"].sum() == 0


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        *((480, 640, (800, 1056)), (640, 480, (1056, 800)), (427, 640, (800, 1184))),
        *((300, 640, (608, 1312)), (1, 1, (800, 800)), (5, 900, (32, 1312))),
    ],
)
def test_preprocessing_is_that_of_numpy_and_pillow(height, width, expected):
    picture = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = prepare_pixels(torch.from_numpy(picture)).numpy()
    assert found.shape == (3, *expected)
    means = (102.9801, 115.9465, 122.7717)
    for channel, mean in enumerate(means):  # blue, green, red
        plane = picture[:, :, 2 - channel].astype(np.float32) - np.float32(mean)
        # where a picture grows, Pillow's bilinear filter is the plain one
        larger = Image.fromarray(plane).resize(expected[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[channel], np.asarray(larger), atol=0.05)  # of 255


def test_pictures_that_shrink_are_sampled_and_not_averaged():
    picture = RNG.integers(0, 256, (1700, 2000, 3), dtype=np.uint8)
    found = prepare_pixels(torch.from_numpy(picture)).numpy()
    height, width = 800, int(2000 * 800 / 1700) // 32 * 32
    assert found.shape == (3, height, width)
    plane = picture[:, :, 2].astype(np.float64) - 102.9801
    y, x = (np.arange(height) + 0.5) * 1700 / height - 0.5, np.arange(width) + 0.5
    x = x * 2000 / width - 0.5
    (top, left), (down, right) = (y.astype(int), x.astype(int)), (y % 1, x % 1)
    rows = plane[top] * (1 - down)[:, None] + plane[top + 1] * down[:, None]
    expected = rows[:, left] * (1 - right) + rows[:, left + 1] * right
    np.testing.assert_allclose(found[0], expected, atol=0.05)


@pytest.mark.parametrize(
    ("height", "width", "level"),
    [
        *((100, 132, 3), (27, 27, 2), (111, 111, 3), (110, 110, 2), (223, 223, 4), (447, 447, 5)),
        *((4, 1000, 2), (2000, 2000, 5), (222, 223, 3)),
    ],
)
def test_boxes_find_their_level(height, width, level):
    assert box_level(height, width) == level


# --- the whole computation, written down once more from maskrcnn-benchmark's names ---------------


def plain_features(tensors, pixels: torch.Tensor, grid: int) -> np.ndarray:
    """fc6 by functions alone."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = (
            tensors[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / variance.sqrt() * weight + bias

    body = "backbone.body"
    x = F.conv2d(pixels, tensors[f"{body}.stem.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(norm(f"{body}.stem.bn1", x)), 3, 2, 1)
    stages = []
    for stage, blocks in enumerate(TINY.blocks, 1):
        for block in range(blocks):
            name = f"{body}.layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(f"{name}.bn1", F.conv2d(x, tensors[f"{name}.conv1.weight"])))
            weight = tensors[f"{name}.conv2.weight"]
            y = F.conv2d(y, weight, stride=stride, padding=1, groups=TINY.groups)
            y = F.conv2d(F.relu(norm(f"{name}.bn2", y)), tensors[f"{name}.conv3.weight"])
            if block == 0:
                x = F.conv2d(x, tensors[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(f"{name}.downsample.1", x)
            x = F.relu(norm(f"{name}.bn3", y) + x)
        stages.append(x)
    above, maps = None, {}
    for stage in (4, 3, 2, 1):
        name = f"backbone.fpn.fpn_inner{stage}"
        inner = F.conv2d(stages[stage - 1], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        if above is not None:
            inner = inner + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
        above = inner
        name = f"backbone.fpn.fpn_layer{stage}"
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        maps[stage + 1] = F.conv2d(inner, weight, bias, padding=1)[0].numpy()
    height, width = pixels.shape[2] // grid, pixels.shape[3] // grid
    level = box_level(height, width)
    rows = [
        pooled(maps[level], 0.5**level, x * width, y * height, (x + 1) * width, (y + 1) * height)
        for y in range(grid)
        for x in range(grid)
    ]
    name = "roi_heads.box.feature_extractor.fc6"
    weight, bias = tensors[f"{name}.weight"].numpy(), tensors[f"{name}.bias"].numpy()
    return np.maximum(np.stack(rows) @ weight.T + bias, 0)


def pooled(values: np.ndarray, scale: float, *box: float) -> np.ndarray:
    """7 x 7 means of 2 x 2 bilinear samples, without the half-pixel shift; flattened."""
    x0, y0, x1, y1 = (scale * side for side in box)
    _, height, width = values.shape
    found = np.zeros((values.shape[0], 7, 7))
    for row in range(14):
        for column in range(14):
            y = min(y0 + (row + 0.5) * (y1 - y0) / 14, height - 1)
            x = min(x0 + (column + 0.5) * (x1 - x0) / 14, width - 1)
            top, left = int(y), int(x)
            down, right = min(top + 1, height - 1), min(left + 1, width - 1)
            b, a = y - top, x - left
            sample = (1 - b) * ((1 - a) * values[:, top, left] + a * values[:, top, right])
            sample += b * ((1 - a) * values[:, down, left] + a * values[:, down, right])
            found[:, row // 2, column // 2] += sample / 4
    return found.reshape(-1)


def test_features_are_fc6_after_relu_of_the_boxes():
    tensors = checkpoint(TINY, seed=1)
    detector = load_detector(tensors, "a.pth", TINY).eval()
    pixels = torch.randn(1, 3, 256, 320, generator=torch.Generator().manual_seed(2)) * 60
    for grid, level in ((4, 2), (1, 4)):
        assert box_level(256 // grid, 320 // grid) == level
        with torch.no_grad():
            found = detector(pixels, grid).numpy()
            expected = plain_features(tensors, pixels, grid)
        assert found.shape == (1, grid, grid, TINY.head) and (found > 0).mean() > 0.2
        np.testing.assert_allclose(found.reshape(grid * grid, -1), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_pictures_of_all_sizes_from_a_file_and_from_random_weights(tmp_path):
    path = tmp_path / "detectron_model.pth"
    torch.save({"model": checkpoint(TINY), "iteration": 180000, "optimizer": {}}, path)
    pictures = [RNG.integers(0, 256, (*side, 3), dtype=np.uint8) for side in ((3, 90), (4, 4))]
    device = torch.device("cpu")
    hashes = set()
    for weights, seed in ((str(path), 0), ("random", 0), ("random", 1), ("random", 1)):
        settings = ExtractorSettings("butd", 256, 2, 12, weights=weights, seed=seed)
        butd = Butd(settings, device, TINY)
        found = butd(pictures)
        assert found.shape == (2, 2, 2, 12) and np.isfinite(found).all() and (found >= 0).all()
        np.testing.assert_allclose(butd(pictures[1:]), found[1:], rtol=1e-5)
        hashes.add(butd.weights_sha256)
    assert butd.image_size is None and len(hashes) == 3
    low = Butd(replace(settings, precision="bfloat16"), device, TINY)(pictures)
    exact = butd(pictures)
    assert 0 < np.linalg.norm(low - exact) / np.linalg.norm(exact) < 0.05
    with pytest.raises(UserError, match="set it to the file detectron_model"):
        Butd(ExtractorSettings("butd", 256, 2, 12), device, TINY)
