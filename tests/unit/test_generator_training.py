"""Training of the image generator as a step of preparation: networks, resume, several processes."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import resnet50

from generations.config import load_config
from generations.errors import UserError
from generations.image_generator import (
    GeneratorSize,
    Hooks,
    ImageGenerator,
    PictureData,
    Sharing,
    TrainSettings,
    train_generator,
)
from generations.image_generator.perceptual import resnet50_features
from generations.metrics.inception import is_at_hand
from generations.pipelines.generator_networks import (
    PERCEPTUAL,
    ReconstructionDistance,
    open_perceptual,
)

G, S, D, K = 2, 8, 5, 6
SIZE = GeneratorSize(D, G, S, channels=4, bottleneck_channels=4, style_channels=4)
RECIPE = TrainSettings(train_steps=5, batch_size=4, discriminator_channels=4, log_every=1)
RNG = np.random.default_rng(0)
CENTROIDS = RNG.standard_normal((K, D)).astype(np.float32)
DATA = PictureData(
    RNG.integers(0, K, (9, G * G)), RNG.integers(0, 256, (9, 3, S, S)).astype(np.uint8)
)


def fresh() -> ImageGenerator:
    torch.manual_seed(0)
    return ImageGenerator(SIZE)


def weights(generator: ImageGenerator) -> torch.Tensor:
    return torch.cat([value.flatten() for value in generator.state_dict().values()])


def test_bfloat16_makes_the_products_and_weights_stay_float32():
    logged: dict[str, dict[str, float]] = {}
    trained = {}
    for precision in ("float32", "bfloat16"):
        hooks = Hooks(log=lambda step, scalars, to=precision: logged.update({to: dict(scalars)}))
        recipe = replace(RECIPE, precision=precision)
        trained[precision] = train_generator(
            fresh(), CENTROIDS, DATA, recipe, seed=1, hooks=hooks, perceptual=PerceptualStub()
        )
    assert all(value.dtype == torch.float32 for value in trained["bfloat16"].parameters())
    exact, rough = weights(trained["float32"]), weights(trained["bfloat16"])
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0.1)
    for name, value in logged["float32"].items():
        assert logged["bfloat16"][name] == pytest.approx(value, rel=0.1, abs=0.05), name


class PerceptualStub(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        kernel = torch.ones(2, 3, 3, 3) / 27
        return [torch.nn.functional.conv2d(images, kernel)]


# --- several processes ---------------------------------------------------------------------------


class Meeting:
    """Processes as threads: a tensor's mean over all of them, computed when all have come."""

    def __init__(self, count: int):
        self._barrier = threading.Barrier(count, timeout=60)
        self._parts: list[torch.Tensor] = [torch.empty(0)] * count

    @property
    def someone_waits(self) -> bool:
        return self._barrier.n_waiting > 0

    def of(self, rank: int) -> Sharing:
        def mean(tensor: torch.Tensor) -> torch.Tensor:
            self._parts[rank] = tensor
            self._barrier.wait()
            result = torch.stack(self._parts).mean(0)
            self._barrier.wait()
            return result

        return Sharing(rank, len(self._parts), mean)


def test_two_processes_train_as_one_does():
    alone: dict[int, dict] = {}
    hooks = Hooks(log=lambda step, scalars: alone.setdefault(step, {}).update(scalars))
    whole = train_generator(fresh(), CENTROIDS, DATA, RECIPE, seed=1, hooks=hooks)
    meeting, found = Meeting(2), {}
    heard: list[dict[int, dict]] = [{}, {}]
    generators = [fresh(), fresh()]  # made here: threads share the source of random numbers

    def run(rank: int) -> None:
        hooks = Hooks(log=lambda step, scalars: heard[rank].setdefault(step, {}).update(scalars))
        found[rank] = train_generator(
            *(generators[rank], CENTROIDS, DATA, RECIPE),
            seed=1,
            hooks=hooks,
            sharing=meeting.of(rank),
        )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    threads[0].start()
    while threads[0].is_alive() and not meeting.someone_waits:
        time.sleep(0.01)  # networks are drawn from the one source, so one after the other
    threads[1].start()
    for thread in threads:
        thread.join()
    assert torch.equal(weights(found[0]), weights(found[1]))
    # not the weights: Adam makes whole steps of gradients that are nothing but rounding
    grid = torch.randn(3, D, G, G, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found[0](grid), whole(grid), rtol=0, atol=5e-3)
        assert (whole(grid) - fresh().eval()(grid)).abs().max() > 0.05
    assert "train_l1" in heard[0][5] and "train_l1" not in heard[1][5]
    for step in (1, 2, 3):
        assert heard[0][step]["difference"] == pytest.approx(alone[step]["difference"], rel=1e-4)
        assert heard[1][step]["difference"] == heard[0][step]["difference"]


def test_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(
        UserError, match=r"batch_size 4 must be a multiple of the number of processes, 3"
    ):
        train_generator(fresh(), CENTROIDS, DATA, RECIPE, seed=1, sharing=Sharing(0, 3))


def test_pictures_read_by_workers_train_the_same():
    whole = train_generator(fresh(), CENTROIDS, DATA, RECIPE, seed=1)
    by_workers = train_generator(fresh(), CENTROIDS, DATA, RECIPE, seed=1, workers=2)
    assert torch.equal(weights(whole), weights(by_workers))


# --- the perceptual loss -------------------------------------------------------------------------


def test_resnet_features_are_those_of_its_layers():
    torch.manual_seed(3)
    network = resnet50().eval()
    features = resnet50_features(network.state_dict())
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    found = features(images * 2 - 1)
    assert [tuple(f.shape[1:]) for f in found] == [
        *((64, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)),
    ]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x = network.relu(network.bn1(network.conv1(x)))
    torch.testing.assert_close(found[0], x)
    x = network.layer2(network.layer1(network.maxpool(x)))
    torch.testing.assert_close(found[2], x)
    found[-1].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in features.parameters())
    assert not features.training


class Blur(torch.nn.Module):
    """A network of one stage."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(images, 4)]


def test_perceptual_loss_joins_the_others():
    heard = []
    hooks = Hooks(log=lambda step, scalars: heard.append(dict(scalars)))
    recipe = replace(RECIPE, adversarial_weight=0.0, train_steps=60, reconstruction_weight=0.0)
    seen = train_generator(fresh(), CENTROIDS, DATA, recipe, seed=1, hooks=hooks, perceptual=Blur())
    assert heard[58]["perceptual"] < 0.8 * heard[0]["perceptual"]
    heavier = replace(recipe, perceptual_weight=20.0, reconstruction_weight=1.0)
    other = train_generator(fresh(), CENTROIDS, DATA, heavier, seed=1, perceptual=Blur())
    assert not torch.equal(weights(seen), weights(other))


def settings(*more: str):
    return load_config(overrides=["generator.perceptual", "resnet50", *more])


def test_perceptual_network_comes_by_name_and_file(tmp_path, monkeypatch):
    device = torch.device("cpu")
    assert open_perceptual(load_config(), device) is None
    with pytest.raises(UserError, match="must be one of efficientnet-lite0, resnet50"):
        open_perceptual(load_config(overrides=["generator.perceptual", "vgg"]), device)
    with pytest.raises(UserError, match="must be a file or one of IMAGENET1K_V1"):
        open_perceptual(settings("generator.perceptual_weights", "V9"), device)
    path = str(tmp_path / "resnet50.pth")
    with pytest.raises(UserError, match=r"resnet50\.pth does not exist"):
        open_perceptual(settings("generator.perceptual_weights", path), device)
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="do not fit a ResNet-50"):
        open_perceptual(settings("generator.perceptual_weights", path), device)
    torch.manual_seed(0)
    network = resnet50()
    torch.save(network.state_dict(), path)
    found = open_perceptual(settings("generator.perceptual_weights", path), device)
    assert found is not None
    assert torch.equal(found.get_parameter("stages.0.0.weight"), network.conv1.weight)
    monkeypatch.setitem(PERCEPTUAL, "blur", lambda weights, seed: Blur())
    mine = open_perceptual(load_config(overrides=["generator.perceptual", "blur"]), device)
    assert isinstance(mine, Blur)


# --- FID of reconstructions ----------------------------------------------------------------------


def test_nothing_is_downloaded_for_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not is_at_hand("torchvision") and not is_at_hand("tf", str(tmp_path / "none.pth"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "inception_v3_google-0cc3c7bd.pth").touch()
    assert is_at_hand("torchvision") and not is_at_hand("tf")


def test_distance_of_reconstructions(monkeypatch):
    class Network:
        label = "pixels"

        @staticmethod
        def measure(pixels):
            assert pixels.dtype == torch.uint8
            return pixels.flatten(1)[:, :7].float() / 255, None

    monkeypatch.setattr(
        "generations.pipelines.generator_networks.open_network", lambda *_: Network()
    )

    class Perfect(torch.nn.Module):
        def forward(self, grid, noise):
            return torch.as_tensor(DATA.images).float() / 127.5 - 1

    distance = ReconstructionDistance(load_config(), DATA, torch.device("cpu"))
    codebook = torch.tensor(CENTROIDS)
    perfect = distance(Perfect(), codebook)  # type: ignore[arg-type]
    found = distance(fresh().eval(), codebook)
    assert perfect["val_fid_pixels"] == pytest.approx(0, abs=1e-6)
    assert found["val_fid_pixels"] > 0.1
    assert found["val_kid_pixels"] > perfect["val_kid_pixels"]
