"""Losses compute only what they read, and equal the full computation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from generations.batch import Batch
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import (
    TASKS,
    TaskContext,
    label_smoothing_loss,
    random_mask_positions,
    xe_i2t_loss,
    xe_t2i_loss,
)
from generations.objectives.tasks import drop_captions
from generations.vocabulary import EMPTY, MASK

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.0, grid_size=3, feature_size=10, clusters=7)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UnifiedTransformer(SIZE)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    text_ids = torch.randint(104, 1100, (4, 7), generator=generator)
    text_ids[1:3, 5:] = 0
    positions = torch.tensor([1, 3, 5, 6])
    masked = text_ids.scatter(1, positions[:, None], MASK)
    cluster_ids = torch.randint(0, 7, (4, 9), generator=generator)
    features = torch.randn(4, 9, 10, generator=generator)
    references = torch.zeros(4, 5, 25, dtype=torch.long)
    names = ["a", "b", "c", "d"]
    return Batch(names, names, text_ids, masked, positions, cluster_ids, features, references)


def explicit(logits, targets, smoothing, classes):
    wanted = torch.full_like(logits, smoothing / (classes - 1))
    wanted.scatter_(1, targets[:, None], 1 - smoothing)
    return -(wanted * F.log_softmax(logits, -1)).sum(1).mean()


@given(
    st.integers(2, 9), st.floats(0, 0.5), st.sampled_from([None, 3, 30522]), st.integers(0, 2**31)
)
def test_label_smoothing_is_its_definition(own, smoothing, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, own, generator=generator, dtype=torch.float64)
    targets = torch.randint(own, (5,), generator=generator)
    expected = explicit(logits, targets, smoothing, classes or own)
    ours = label_smoothing_loss(logits, targets, smoothing, classes=classes)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dense", [True, False])
def test_caption_loss_equals_the_whole_forward(model, batch, dense):
    mask = torch.arange(7) <= batch.mask_positions[:, None]
    visual = {"features": batch.features} if dense else {"cluster_ids": batch.cluster_ids}
    logits, _ = model(batch.masked_text_ids, mask, **visual)
    rows = torch.arange(4)
    logits = logits[rows, 9 + batch.mask_positions]
    targets = batch.text_ids[rows, batch.mask_positions]
    expected = explicit(logits, targets, 0.2, 1100)
    torch.testing.assert_close(xe_i2t_loss(model, batch, classes=None, dense=dense), expected)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_painting_loss_equals_the_whole_forward(model, batch, dense, shared):
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, [0, 4, 7]] = True
    if not shared:
        mask[2, 1] = mask[3, 5] = True
    visual = {"features": batch.features} if dense else {"cluster_ids": batch.cluster_ids}
    _, logits = model(batch.text_ids, batch.text_ids != 0, **visual, visual_mask=mask)
    expected = explicit(logits[:, :9][mask], batch.cluster_ids[mask], 0.2, 7)
    positions = torch.tensor([7, 0, 4]) if shared else mask
    torch.testing.assert_close(xe_t2i_loss(model, batch, positions, dense=dense), expected)


@given(st.integers(1, 80), st.integers(0, 2**31))
def test_random_masks_lie_in_their_range(cells, seed):
    positions = random_mask_positions(cells, torch.Generator().manual_seed(seed))
    assert max(1, int(0.1 * cells)) <= len(positions) <= cells
    assert len(positions.unique()) == len(positions)
    assert positions.min() >= 0 and positions.max() < cells


def test_masks_reach_both_ends_of_their_range():
    generator = torch.Generator().manual_seed(0)
    counts = {len(random_mask_positions(10, generator)) for _ in range(400)}
    assert counts == set(range(1, 11))


@pytest.mark.parametrize("task", ["xe_i2t", "xe_t2i"])
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_mean_over_processes_is_that_of_the_global_batch(model, batch, task, each, processes):
    """Losses and gradients, also where each process predicts another number of positions."""

    def gradient_of(part: Batch, rank: int, processes: int):
        context = TaskContext(
            torch.Generator().manual_seed(3),
            FeatureLevels(),
            mask_per_sample=each,
            caption_dropout=0.5 * each,
            rank=rank,
            world_size=processes,
        )
        model.zero_grad()
        loss = TASKS[task](model, part, context).loss
        loss.backward()
        return loss.item(), model.encoder.layer[0].intermediate.dense.weight.grad.clone()

    loss, gradient = gradient_of(batch, 0, 1)
    size = len(batch) // processes
    parts = []
    for rank in range(processes):
        own = slice(rank * size, (rank + 1) * size)
        cut = {name: value[own] for name, value in vars(batch).items() if value is not None}
        parts.append(gradient_of(Batch(**cut), rank, processes))
    assert loss == pytest.approx(sum(part[0] for part in parts) / processes, rel=1e-6)
    mean = torch.stack([part[1] for part in parts]).mean(0)
    torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-7)


def test_emptied_captions_are_as_many_as_asked_for_and_painted_from_no_words(model, batch):
    """The rest of a batch is as it was, and a share of 0 draws nothing."""

    def context(share):
        return TaskContext(torch.Generator().manual_seed(3), FeatureLevels(), caption_dropout=share)

    texts = batch.text_ids.repeat(250, 1)
    many = replace(batch, image_ids=batch.image_ids * 250, text_ids=texts)
    text_ids = drop_captions(many, context(0.1)).text_ids
    empty = torch.tensor([*EMPTY, 0, 0, 0, 0, 0])
    dropped = (text_ids == empty).all(1)
    assert 70 < dropped.sum() < 130
    assert torch.equal(text_ids[~dropped], texts[~dropped])
    wordless = replace(batch, text_ids=empty.expand(4, -1))
    loss = TASKS["xe_t2i"](model, batch, context(1 - 1e-9)).loss
    assert loss == TASKS["xe_t2i"](model, wordless, context(0)).loss
    undrawn = context(0)
    TASKS["xe_t2i"](model, batch, undrawn)
    positions = random_mask_positions(9, source := torch.Generator().manual_seed(3))
    assert len(positions) and torch.equal(undrawn.generator.get_state(), source.get_state())


@pytest.mark.parametrize("task", ["xe_i2t", "xe_t2i"])
def test_a_task_is_a_function_of_its_generator(model, batch, task):
    def loss(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return TASKS[task](model, batch, TaskContext(generator, FeatureLevels(), **options)).loss

    assert loss(1).item() == loss(1).item()
    if task == "xe_t2i":
        assert loss(1).item() != loss(2).item()
        assert loss(1).item() != loss(1, mask_per_sample=True).item()
