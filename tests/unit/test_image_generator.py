"""The image generator, its losses and its training, on toy pictures."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generations.config import load_config
from generations.errors import UserError
from generations.image_generator import (
    GeneratorSize,
    Hooks,
    ImageGenerator,
    PictureData,
    TrainSettings,
    build_generator,
    codebook_grid,
    measure_reconstruction,
    train_generator,
    training_settings,
)
from generations.image_generator.discriminator import build_discriminator
from generations.image_generator.generator import spread_bottleneck
from generations.image_generator.losses import (
    cluster_classification,
    feature_matching,
    hinge_discriminator,
    hinge_generator,
    reconstruction,
)
from generations.image_generator.trainer import GeneratorTrainer, learning_rate_factor
from generations.image_generator.training import batch_indices

K, D, G, S = 6, 10, 4, 16
SIZE = GeneratorSize(D, G, S, channels=8, bottleneck_channels=16, style_channels=8)
PLAIN = TrainSettings(
    train_steps=80, batch_size=4, lr=5e-3, beta1=0.9, cosine=True, bottleneck_std=2.0,
    reconstruction_weight=1.0, contrast=1.0, adversarial_weight=0.0,
)  # fmt: skip
ADVERSARIAL = replace(PLAIN, train_steps=6, adversarial_weight=1.0, discriminator_channels=8)
CENTROIDS = np.random.default_rng(0).standard_normal((K, D)).astype(np.float32)
TILES = np.random.default_rng(1).integers(0, 256, (K, 3, 1, 1)).repeat(4, 2).repeat(4, 3)
TILES[:, :, :, 2:] //= 2  # cells are two-coloured


def pictures(count: int, seed: int) -> PictureData:
    """Every cell shows the tile of its cluster."""
    ids = np.random.default_rng(seed).integers(0, K, (count, G * G))
    tiles = TILES[ids].reshape(count, G, G, 3, 4, 4)
    return PictureData(ids, tiles.transpose(0, 3, 1, 4, 2, 5).reshape(count, 3, S, S).astype("u1"))


def fresh(size: GeneratorSize = SIZE, seed: int = 0) -> ImageGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageGenerator(size).eval()


def noisy(generator: ImageGenerator) -> ImageGenerator:
    """With noise scales as a training leaves them: not zero."""
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "noise" in name:
                parameter.fill_(0.3)
    return generator


def features(count: int = 2, size: GeneratorSize = SIZE) -> torch.Tensor:
    rng = torch.Generator().manual_seed(5)
    shape = (count, size.feature_size, size.grid_size, size.grid_size)
    return torch.randn(shape, generator=rng)


# --- network -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "image"), [(2, 4), (2, 32), (3, 12), (4, 8), (8, 64)])
def test_the_image_has_the_size_that_was_asked_for(grid, image):
    size = GeneratorSize(5, grid, image, channels=4, bottleneck_channels=8, style_channels=4)
    generator = fresh(size)
    painted = generator(features(3, size))
    assert painted.shape == (3, 3, image, image)
    assert painted.abs().max() <= 1
    assert len(generator.resblocks) == np.log2(image / grid)


@pytest.mark.parametrize("image_size", [8, 24, 60, 100])
def test_an_image_size_that_blocks_cannot_reach_is_named(image_size):
    with pytest.raises(UserError, match=f"generator.image_size {image_size} .*grid_size 8"):
        build_generator(load_config(overrides=("generator.image_size", str(image_size))))


def test_widths_that_cannot_be_grouped_are_named():
    with pytest.raises(UserError, match=r"generator.channels 6 .*multiple of 4"):
        build_generator(load_config(overrides=("generator.channels", "6")))


@pytest.mark.parametrize("shape", [(2, G, G, D), (2, D, G, G + 1), (D, G, G), (2, D, G * G)])
def test_features_of_another_layout_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 10, 4, 4\)"):
        fresh()(torch.zeros(shape))


def test_painting_in_eval_mode_is_repeatable_and_independent_of_the_batch():
    generator = noisy(fresh())
    first = generator(features())
    assert torch.equal(generator(features()), first)
    torch.testing.assert_close(generator(features()[:1]), first[:1])
    generator.train()
    assert not torch.equal(generator(features()), first)  # the spectral norms have moved


def test_noise_comes_from_its_generator_and_only_when_asked_for():
    generator = noisy(fresh())

    def draw(seed: int, noise: bool | None = True) -> torch.Tensor:
        return generator(features(), noise=noise, rng=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(draw(1, noise=None), generator(features()))  # off by default
    with pytest.raises(ValueError, match="rng"):
        generator(features(), noise=True)
    by_config = noisy(fresh(replace(SIZE, noise=True)))
    assert torch.equal(by_config(features(), rng=torch.Generator().manual_seed(1)), draw(1))


def test_fresh_weights_follow_the_seed_of_the_configuration_alone():
    small = ("grid_feat_dim", "8", "generator.image_size", "16", "seed")
    before = torch.random.get_rng_state()
    one, same, other = (
        build_generator(load_config(overrides=(*small, seed))) for seed in ("1", "1", "2")
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "to_RGB_blocks.0.conv.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert not one.training


def test_clusters_are_looked_up_row_by_row():
    ids = torch.arange(2 * G * G).reshape(2, -1) % K
    grid = codebook_grid(torch.tensor(CENTROIDS), ids)
    assert grid.shape == (2, D, G, G)
    for row, column in [(0, 0), (0, 3), (2, 1)]:
        np.testing.assert_array_equal(grid[1, :, row, column], CENTROIDS[ids[1, row * G + column]])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_spreading_suits_the_first_layer_to_features_of_any_scale(scale):
    generator, codebook = fresh(), torch.tensor(CENTROIDS) * scale + 3 * scale
    spread_bottleneck(generator, codebook, 2.0)
    outputs = generator.bottleneck_emb[0](codebook[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(outputs.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.std(0), torch.full((16,), 2.0), atol=1e-4, rtol=1e-4)


# --- discriminator -------------------------------------------------------------------------------


def test_the_classifier_of_the_discriminator_is_the_codebook_and_stays_so():
    codebook = torch.tensor(CENTROIDS)
    discriminator = build_discriminator(codebook, G, S, 8, seed=0)
    images = torch.rand(3, 3, S, S) * 2 - 1
    seen = []
    discriminator.to_feature.register_forward_hook(lambda _, __, output: seen.append(output))
    judgement = discriminator(images)
    assert judgement.scores.shape == (3, 1, G, G)
    assert [f.shape[-1] for f in judgement.features] == [8, 4]
    expected = torch.einsum("bdij,kd->bkij", seen[0], codebook)
    torch.testing.assert_close(judgement.cluster_logits, expected, atol=1e-4, rtol=1e-4)

    trainer = GeneratorTrainer(fresh(), codebook, ADVERSARIAL, seed=0)
    before = trainer.discriminator.to_feature.weight.clone()
    trainer.step(torch.zeros(2, G * G, dtype=torch.int64), images[:2])
    assert torch.equal(trainer.discriminator.codebook, codebook)
    assert not torch.equal(trainer.discriminator.to_feature.weight, before)


# --- losses --------------------------------------------------------------------------------------

scores = st.lists(st.floats(-5, 5), min_size=1, max_size=8).map(torch.tensor)


@given(scores, scores)
def test_hinge_loss_of_the_discriminator(real, fake):
    loss = float(hinge_discriminator(real, fake))
    assert loss >= 0
    assert (loss == 0) == bool((real >= 1).all() and (fake <= -1).all())
    assert float(hinge_discriminator(real + 1, fake)) <= loss + 1e-6
    assert float(hinge_discriminator(real, fake - 1)) <= loss + 1e-6


@given(scores, st.floats(0, 3))
def test_hinge_loss_of_the_generator_falls_as_the_scores_rise(fake, rise):
    lower = float(hinge_generator(fake + rise))
    assert lower == pytest.approx(float(hinge_generator(fake)) - rise, abs=1e-5)


def test_feature_matching_averages_over_layers_and_pulls_only_the_painted_side():
    fake = [torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 1, 4, requires_grad=True)]
    real = [torch.ones(2, 3, requires_grad=True), torch.full((2, 1, 4), 3.0, requires_grad=True)]
    loss = feature_matching(fake, real)
    assert loss.item() == 2.0  # (1 + 3) / 2, whatever the layers' sizes
    loss.backward()
    assert fake[0].grad is not None and real[0].grad is None
    assert feature_matching(real, real).item() == 0


def test_reconstruction_is_the_mean_difference_with_weight_on_what_stands_out():
    target = torch.zeros(1, 3, 20, 20)
    target[..., 10, 10] = 1
    blank = torch.zeros_like(target)
    assert float(reconstruction(blank, target)) == pytest.approx(1 / 400)
    # the dot misses its surroundings' mean, 1/81, by 80/81
    weighted = float(reconstruction(blank, target, contrast=4))
    assert weighted == pytest.approx((1 + 4 * 80 / 81) / 400, rel=1e-5)
    flat = torch.full_like(target, 0.5)
    assert float(reconstruction(blank, flat, contrast=4)) == pytest.approx(0.5)
    assert float(reconstruction(target, target, contrast=4)) == 0


def test_classification_reads_cells_row_by_row():
    ids = torch.arange(2 * G * G).reshape(2, -1) % K
    right = 50 * torch.nn.functional.one_hot(ids, K).float().reshape(2, G, G, K).movedim(3, 1)
    assert float(cluster_classification(right, ids)) < 1e-6
    assert float(cluster_classification(right.transpose(2, 3), ids)) > 1


# --- training ------------------------------------------------------------------------------------


def weights(generator: ImageGenerator) -> torch.Tensor:
    return torch.cat([value.flatten() for value in generator.state_dict().values()])


def test_training_paints_pictures_it_has_not_seen():
    held_out, codebook, heard, shown = pictures(20, 2), torch.tensor(CENTROIDS), {}, []
    before = measure_reconstruction(fresh(), codebook, held_out, batch_size=7)
    hooks = Hooks(
        log=lambda step, scalars: heard.update(scalars, step=step),
        show=lambda step, images: shown.append(images),
    )
    generator = train_generator(
        fresh(), CENTROIDS, pictures(60, 1), PLAIN, seed=0, held_out=held_out, hooks=hooks
    )
    after = measure_reconstruction(generator, codebook, held_out, batch_size=7)
    assert after["l1"] < 0.4 * before["l1"]
    assert after["psnr"] > before["psnr"] + 5
    assert not generator.training
    assert heard["step"] == PLAIN.train_steps
    assert heard["val_l1"] == pytest.approx(after["l1"], rel=1e-4)
    assert shown[0].shape == (16, 3, S, S) and shown[0].min() >= 0 and shown[0].max() <= 1
    np.testing.assert_allclose(shown[0][:8] * 255, held_out.images[:8], atol=1e-3)


def test_measures_are_those_of_pixels_between_0_and_1():
    data = pictures(5, 3)
    generator, codebook = fresh(), torch.tensor(CENTROIDS)
    with torch.no_grad():
        painted = generator(codebook_grid(codebook, torch.tensor(data.cluster_ids)))
    difference = (painted.numpy() + 1) / 2 - data.images / 255
    measured = measure_reconstruction(generator, codebook, data, batch_size=2)
    assert measured["l1"] == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    assert measured["psnr"] == pytest.approx(-10 * np.log10((difference**2).mean()), rel=1e-4)


@pytest.mark.parametrize("recipe", [replace(PLAIN, train_steps=6), ADVERSARIAL])
def test_a_resumed_training_is_the_undisturbed_one(recipe):
    data, states = pictures(10, 1), {}
    noise = replace(SIZE, noise=True)
    torch.manual_seed(1)
    whole = train_generator(fresh(noise), CENTROIDS, data, recipe, seed=3)
    often = replace(recipe, report_every=2)
    torch.manual_seed(2)  # the global source of randomness plays no part

    def save(step: int, state: dict) -> None:
        states[step] = torch.load(_round_trip(state), weights_only=True)

    train_generator(fresh(noise), CENTROIDS, data, often, seed=3, hooks=Hooks(save=save))
    assert sorted(states) == [2, 4, 6]
    resumed = train_generator(
        fresh(noise, seed=9), CENTROIDS, data, recipe, seed=3, state=states[4]
    )
    assert torch.equal(weights(resumed), weights(whole))


def _round_trip(state: dict) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_the_discriminator_joins_when_it_is_told_to_and_not_before():
    data, heard = pictures(10, 1), {}
    recipe = replace(ADVERSARIAL, adversarial_start=3, log_every=1)
    hooks = Hooks(log=lambda step, scalars: heard.setdefault(step, scalars))
    joined = train_generator(fresh(), CENTROIDS, data, recipe, seed=0, hooks=hooks)
    assert [step for step, scalars in heard.items() if "hinge" in scalars] == [4, 5, 6]
    alone = train_generator(
        fresh(), CENTROIDS, data, replace(recipe, adversarial_weight=0.0), seed=0
    )
    assert not torch.equal(weights(joined), weights(alone))
    plain = GeneratorTrainer(fresh(), torch.tensor(CENTROIDS), PLAIN, seed=0)
    assert plain.discriminator is None
    assert not any("discriminator" in key for key in plain.state_dict())


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 5))
def test_every_image_is_drawn_once_an_epoch(count, batch_size, seed):
    steps = -(-3 * count // batch_size)
    drawn = np.concatenate([batch_indices(count, batch_size, seed, i) for i in range(steps)])
    epochs = drawn[: 3 * count].reshape(3, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()


def test_learning_rate_warms_up_and_falls_only_if_asked_to():
    constant = TrainSettings(train_steps=1000)
    assert learning_rate_factor(0, constant) == pytest.approx(1 / 20)
    assert learning_rate_factor(999, constant) == 1
    cosine = replace(constant, cosine=True)
    falling = [learning_rate_factor(step, cosine) for step in range(19, 1000)]
    assert falling == sorted(falling, reverse=True) and falling[-1] < 1e-4


def test_settings_come_from_the_configuration():
    cfg = load_config(overrides=("generator.lr", "0.5", "generator.train_steps", "7"))
    read = training_settings(cfg)
    assert (read.lr, read.train_steps, read.discriminator_lr) == (0.5, 7, 1e-4)


def test_arrays_that_do_not_fit_are_named():
    good = pictures(4, 1)

    def train(centroids=CENTROIDS, ids=good.cluster_ids, images=good.images, recipe=PLAIN):
        generator = fresh()
        before = weights(generator)
        with pytest.raises(UserError) as error:
            train_generator(generator, centroids, PictureData(ids, images), recipe, seed=0)
        assert torch.equal(weights(generator), before) or recipe is not PLAIN
        return str(error.value)

    assert "grid_feat_dim" in train(centroids=CENTROIDS[:, :-1])
    assert "rows 0 to 4" in train(centroids=CENTROIDS[:5], ids=good.cluster_ids % 5 + 1)
    assert "grid_size 4" in train(ids=good.cluster_ids[:, :-1])
    assert "(images, 16)" in train(ids=good.cluster_ids[:0], images=good.images[:0])
    assert "generator.image_size" in train(images=good.images[:, :, :8, :8])
    assert "(3, 3, 16, 16)" in train(images=good.images[:3])
    diverging = replace(PLAIN, lr=float("inf"), log_every=1)
    assert "lower generator.lr" in train(recipe=diverging)
