"""A GPU gives the CPU's numbers: float32 within 1e-4, bf16 within 3e-2, relative."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from generations.batch import Batch
from generations.clip import ClipModel
from generations.decoding import (
    beam_captions,
    caption_tokens,
    draw_uniforms,
    image_tokens,
    sampled_captions,
    sampling,
)
from generations.features import ExtractorSettings, build_extractor
from generations.image_generator.generator import GeneratorSize, ImageGenerator
from generations.image_generator.trainer import GeneratorTrainer, TrainSettings
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer, compile_layers
from generations.objectives import TASKS, SequenceSettings, TaskContext, replay, sequence
from generations.rewards import clip_score
from generations.runtime import generator, seed_everything
from generations.runtime.graphs import Graphs, at_once
from generations.training.optim import SolverSettings, build_optimizer
from generations.training.update import apply_gradients
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

pytestmark = pytest.mark.gpu

SIZE = ModelSize(64, 4, 96, 2, 1, 2, 1100, 0.0, grid_size=4, feature_size=40, clusters=50)
LENGTH = 8
TOLERANCE = {"float32": 1e-4, "bf16": 3e-2}
CPU = torch.device("cpu")


def new_model(dropout: float = 0.0, std: float = 0.05) -> UnifiedTransformer:
    seed_everything(3)
    size = ModelSize(**{**vars(SIZE), "dropout": dropout, "init_std": std, "mask_feat_std": 0.5})
    model = UnifiedTransformer(size)
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = -1e4 if dropout == 0 else 0.0
    return model


def new_batch(rows: int = 6) -> Batch:
    source = generator(7)
    text = torch.randint(1037, 1100, (rows, LENGTH + 1), generator=source)
    text[:, 0] = CLS
    for row in range(rows):
        end = 4 + row % (LENGTH - 4)
        text[row, end], text[row, end + 1 :] = SEP, PAD
    positions = torch.randint(1, 5, (rows,), generator=source)
    return Batch(
        [str(row) for row in range(rows)],
        ["a dog."] * rows,
        text,
        text.scatter(1, positions[:, None], MASK),
        positions,
        torch.randint(SIZE.clusters, (rows, 16), generator=source),
        torch.randn(rows, 16, SIZE.feature_size, generator=source),
        torch.randint(1037, 1100, (rows, 5, 10), generator=source),
    )


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def apart(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


@contextmanager
def same_draws(rows: int) -> Iterator[None]:
    """What is drawn, and what is likeliest, are given; so is the noise of soft pictures."""
    source = generator(9)
    words = torch.randint(1037, 1100, (2, LENGTH, rows), generator=source)
    columns = {"drawn": iter(words[0]), "greedy": iter(words[1])}
    noise = torch.rand(rows, 16, SIZE.clusters, generator=source).clamp(0.05, 0.95)

    def drawn(chances: Tensor, *_) -> Tensor:
        return next(columns["drawn"])[: len(chances)].to(chances.device)

    def likeliest(logits: Tensor) -> Tensor:
        return next(columns["greedy"])[: len(logits)].to(logits.device)

    with (
        mock.patch.object(sampling, "draw", drawn),
        mock.patch.object(replay, "likeliest", likeliest),
        mock.patch.object(sequence, "likeliest", likeliest),
        mock.patch.object(Tensor, "exponential_", lambda self: self.copy_(noise)),
    ):
        yield


def step(
    model: UnifiedTransformer, task: str, batch: Batch, precision: str, steps: int, recompute: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the whole gradient as one vector."""
    device = batch.text_ids.device
    settings = SequenceSettings(LENGTH, recompute, mse_weight=1.0, painting_steps=steps)
    context = TaskContext(generator(5), FeatureLevels(), sequence=settings)
    model.zero_grad()
    with same_draws(len(batch)):
        with autocast(device, precision):
            loss = TASKS[task](model, batch, context).loss
        loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("task", "recompute"),
    [("xe_i2t", True), ("xe_t2i", True), ("rl_i2t", True), ("rl_i2t", False), ("rl_t2i", True),
     ("rl_t2i", False)],
)  # fmt: skip
def test_losses_and_gradients_of_all_tasks(device, task, recompute, precision):
    model, batch = new_model(), new_batch()
    # in bf16 all but equal certainties may have another order, after which all differs
    steps = 4 if precision == "float32" else 1
    wanted = step(model, task, batch, "float32", steps, recompute)
    found = step(
        copy.deepcopy(model).to(device), task, batch.to(device), precision, steps, recompute
    )
    assert found[1].isfinite().all() and wanted[1].norm() > 0
    assert apart(found[0], wanted[0]) < TOLERANCE[precision]
    assert apart(found[1], wanted[1]) < TOLERANCE[precision]


def decoders(model: UnifiedTransformer, batch: Batch) -> dict[str, Callable[[], Tensor]]:
    features, text = batch.features, batch.text_ids
    words = draw_uniforms(range(len(batch)), 2, LENGTH - 1)
    cells = draw_uniforms(range(len(batch)), 2, 4, 16)
    return {
        "greedy captions": lambda: caption_tokens(model, features, text_length=LENGTH),
        "beams": lambda: beam_captions(model, features, text_length=LENGTH, beam_size=3).ids,
        "sampled captions": lambda: (
            sampled_captions(model, words, features, text_length=LENGTH, top_k=20, top_p=0.95).ids
        ),
        "pictures": lambda: image_tokens(model, text),
        "sampled pictures": lambda: image_tokens(model, text, temperature=1.0, uniforms=cells),
    }


def test_decoded_ids(device):
    model, batch = new_model(std=0.3).eval(), new_batch(12)
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = 1.0  # some captions end
    wanted = {name: run() for name, run in decoders(model, batch).items()}
    model.to(device)
    found = {name: run().cpu() for name, run in decoders(model, batch.to(device)).items()}
    for name, ids in wanted.items():
        assert (found[name] != ids).double().mean() <= 0.01, name
        assert len(ids.unique()) > 1, name


def test_the_image_generator_and_a_step_of_its_training(device):
    size = GeneratorSize(
        feature_size=40, grid_size=4, image_size=32, channels=8, bottleneck_channels=16,
        style_channels=8,
    )  # fmt: skip
    torch.manual_seed(0)
    network = ImageGenerator(size).eval()
    features = torch.randn(3, 40, 4, 4)
    with torch.no_grad():
        assert apart(copy.deepcopy(network).to(device)(features.to(device)), network(features)) < (
            1e-4
        )
    codebook, ids = torch.randn(20, 40), torch.randint(20, (3, 16))
    pictures = torch.rand(3, 3, 32, 32) * 2 - 1
    settings = TrainSettings(train_steps=10, discriminator_channels=8)
    logs = []
    for place in (CPU, device):
        own = copy.deepcopy(network).to(place)
        trainer = GeneratorTrainer(own, codebook.to(place), settings, seed=0)
        logs.append(trainer.step(ids.to(place), pictures.to(place)))
    for name, value in logs[0].items():
        assert abs(float(logs[1][name]) - float(value)) < 1e-3 * max(1, abs(float(value))), name


def test_the_reward_of_pictures(device):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 2},
    }  # fmt: skip
    torch.manual_seed(0)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    pixels, captions = torch.rand(3, 3, 48, 48), ["a dog.", "two cats.", "a red car."]
    clip = ClipModel(open_clip.CLIP(**config), tokenizer, {"model_cfg": config})
    found = []
    for place in (CPU, device):
        seen = pixels.to(place).requires_grad_()
        scores = clip.to(place).encode_images(seen) @ clip.encode_text(captions).T
        scores.sum().backward()
        found.append((scores, seen.grad, clip_score(clip, seen, captions)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert apart(ours, theirs) < 1e-4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "backbone", "side", "grid", "dim"),
    [("patches", "", 64, 4, 768), ("torchvision", "resnet18", 64, 2, 512)],
)
def test_extractors(device, name, backbone, side, grid, dim, precision):
    weights = "random" if backbone else ""
    settings = ExtractorSettings(
        name, side, grid, dim, backbone, weights=weights, precision=precision
    )
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    plain = ExtractorSettings(name, side, grid, dim, backbone, weights=weights)
    wanted = torch.from_numpy(build_extractor(plain)(pictures))
    found = torch.from_numpy(build_extractor(settings, device)(pictures))
    assert apart(found, wanted) < TOLERANCE["float32" if precision == "float32" else "bf16"]


def trained(
    device: torch.device,
    steps: int,
    change: Callable[[nn.Module], object] = lambda model: None,
    run=at_once,
) -> Tensor:
    """All weights after steps of stage 1, as one vector."""
    model = new_model().to(device)
    change(model)
    optimizer = build_optimizer(model, SolverSettings(lr=1e-3))
    joined: set[str] = set()
    batch = new_batch().to(device)
    for number in range(steps):
        context = TaskContext(generator(number), FeatureLevels(), run=run)
        TASKS[("xe_i2t", "xe_t2i")[number % 2]](model, batch, context).loss.backward()
        apply_gradients(model, optimizer, joined, 1.0)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_some_steps_of_training_end_where_the_cpu_ends(device):
    start = torch.cat([p.detach().flatten() for p in new_model().parameters()])
    wanted = trained(CPU, 6)
    found = trained(device, 6)
    # Adam's first steps go by the sign of a gradient: where it is all but 0, so is its sign
    assert apart(found.cpu() - start, wanted - start) < 2e-2


def test_compiled_layers_give_the_same_numbers(device):
    if device.type != "cuda":
        pytest.skip("unit/test_speed_options.py is that of a CPU")
    pytest.importorskip("triton")
    torch.compiler.reset()
    wanted = trained(device, 4)
    found = trained(device, 4, lambda model: compile_layers(model, "1", device))
    start = torch.cat([p.detach().flatten() for p in new_model().parameters()]).to(device)
    assert apart(found - start, wanted - start) < 2e-2
    torch.compiler.reset()


def test_recorded_kernels_give_the_same_numbers(device):
    plain = (lambda part, tensors: part) if device.type == "cpu" else None
    graphs = Graphs(plain)
    wanted, found = trained(device, 8), trained(device, 8, run=graphs)
    start = torch.cat([p.detach().flatten() for p in new_model().parameters()]).to(device)
    assert apart(found - start, wanted - start) < 2e-2
    assert 2 <= len(graphs.known) <= 5  # xe_i2t, and xe_t2i by its rounded masks


def test_an_iteration_of_stage_1_reads_nothing_back(device):
    if device.type != "cuda":
        pytest.skip("a GPU's alone")
    model, batch = new_model(dropout=0.1).to(device), new_batch().to(device)
    optimizer = build_optimizer(model, SolverSettings(lr=1e-3))
    joined: set[str] = set()
    for number in range(4):
        if number == 2:  # the first ones make what stays
            torch.cuda.set_sync_debug_mode("error")
        try:
            context = TaskContext(generator(number), FeatureLevels())
            with autocast(device, "bf16"):
                loss = TASKS[("xe_i2t", "xe_t2i")[number % 2]](model, batch, context).loss
            loss.backward()
            apply_gradients(model, optimizer, joined, 1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
