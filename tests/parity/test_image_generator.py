"""The image generator computes what the original's computed, with the names of G_60.pth."""

import goldens
import numpy as np
import pytest
import torch

from generations.config import load_config
from generations.image_generator import ImageGenerator, build_generator

GOLD = goldens.arrays("h_gan")
EMBEDDING = np.random.default_rng(0).standard_normal((1, 2048, 8, 8)).astype(np.float32)


@pytest.fixture
def generator() -> ImageGenerator:
    """The full-size generator with the golden weights."""
    generator = build_generator(load_config())
    goldens.fill(generator)
    with torch.no_grad():
        for key, value in generator.state_dict().items():
            if key.endswith(("weight_u", "weight_v")):
                value.div_(value.norm())
    return generator


def paint(generator: ImageGenerator, **options) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and what went into the final tanh, of the golden input."""
    tanh, seen = torch.tanh, []

    def spy(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return tanh(x)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "tanh", spy)
        image = generator(torch.from_numpy(EMBEDDING), **options)
    assert image.shape == (1, 3, 256, 256)
    return image.numpy(), seen[-1].numpy()


def close(image: np.ndarray, before: np.ndarray, prefix: str) -> None:
    np.testing.assert_allclose(image[:, :, ::8, ::8], GOLD[f"{prefix}_out_s8"], 1e-5, 1e-4)
    np.testing.assert_allclose(before[:, :, ::8, ::8], GOLD[f"{prefix}_pretanh_s8"], 1e-5, 1e-4)
    for name in ("mean", "std"):
        measured = getattr(image, name)(dtype=np.float64)
        np.testing.assert_allclose(measured, GOLD[f"{prefix}_out_{name}"], 1e-5, 1e-7)


def sigmas(generator: ImageGenerator) -> list[float]:
    """u^T W v of every spectrally normalised convolution, in the order of the golden names."""
    convs = [generator.get_submodule(str(name)) for name in GOLD["sigma_names"]]
    return [float(c.weight_u @ c.weight_orig.detach().flatten(1) @ c.weight_v) for c in convs]


def test_names_and_shapes_are_those_of_the_released_checkpoint():
    state = build_generator(load_config()).state_dict()
    ours = {f"module.{key}": list(value.shape) for key, value in state.items()}
    assert ours == {key: shape for key, (shape, _) in goldens.keys("g60").items()}


def test_eval_mode(generator):
    np.testing.assert_allclose(sigmas(generator), GOLD["sigma_eval"], 1e-4, 1e-6)
    state = {key: value.clone() for key, value in generator.state_dict().items()}
    image, before = paint(generator)
    # random sigmas near zero blow this one up to 1e10: only the relative error means anything
    np.testing.assert_allclose(
        before[:, :, ::8, ::8], GOLD["eval_pretanh_s8"], 1e-3, 1e-5 * np.abs(before).max()
    )
    np.testing.assert_allclose(before.std(dtype=np.float64), GOLD["eval_pretanh_std"], 1e-4)
    np.testing.assert_allclose(image[:, :, ::8, ::8], GOLD["eval_out_s8"], 1e-5, 1e-4)
    # painting changes nothing, so that pictures do not depend on what was painted before
    for key, value in generator.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_noise_with_zero_weights_is_no_noise(generator):
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "noise" in name:
                parameter.zero_()
    image, _ = paint(generator, noise=True, rng=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(image[:, :, ::8, ::8], GOLD["noise0_out_s8"], 1e-5, 1e-4)
    np.testing.assert_allclose(image.mean(dtype=np.float64), GOLD["noise0_out_mean"], 1e-5, 1e-7)


def test_training_mode_moves_the_spectral_norm_vectors_as_the_original_did(generator):
    generator.train()
    for call in range(3):
        image, before = paint(generator)
        close(image, before, f"trainmode_call{call}")
        vector = generator.get_submodule("resblocks.0.conv1").weight_u
        np.testing.assert_allclose(vector, GOLD[f"trainmode_call{call}_rb0conv1_u"], 0, 1e-5)
    with torch.no_grad():
        for name in GOLD["sigma_names"]:
            conv = generator.get_submodule(str(name))
            for _ in range(17):  # a call on any input is one power iteration
                conv(torch.zeros(1, conv.in_channels, 3, 3))
    np.testing.assert_allclose(sigmas(generator), GOLD["sigma_after20"], 1e-5)
    close(*paint(generator.eval()), "after20_eval")
