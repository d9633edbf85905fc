"""What is done on GPUs alone, tried on the CPU: the numbers stay, and sizes repeat."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributed

from generations.batch import Batch
from generations.decoding import Active, captions
from generations.errors import UserError
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import (
    TASKS,
    SequenceSettings,
    TaskContext,
    TaskStep,
    unread_parameters,
)
from generations.objectives.losses import label_smoothing_loss, random_mask_positions
from generations.objectives.token import CELLS_AT_ONCE, masked_cells, repeating_size
from generations.runtime import Runtime, generator
from generations.runtime.graphs import Graphs
from generations.runtime.parallel import ddp_for_each
from generations.training import guards
from generations.training.guards import GradientGuard
from generations.training.optim import SolverSettings, build_optimizer
from generations.training.update import apply_gradients
from generations.vocabulary import EOS

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.1, grid_size=3, feature_size=10, clusters=7)
CPU = torch.device("cpu")


def new_model() -> UnifiedTransformer:
    torch.manual_seed(0)
    return UnifiedTransformer(SIZE)


def new_batch() -> Batch:
    source = generator(5)
    text_ids = torch.randint(104, 1100, (4, 7), generator=source)
    text_ids[:, -1] = 0  # captions are cropped to L ids
    return Batch(
        [*"abcd"],
        [""] * 4,
        text_ids,
        text_ids,
        torch.ones(4, dtype=torch.long),
        torch.randint(0, 7, (4, 9), generator=source),
        torch.randn(4, 9, 10, generator=source),
        torch.zeros(4, 5, 25, dtype=torch.long),
    )


def updates(wait: bool, spoilt: int) -> tuple[list[Tensor], list[bool]]:
    """Weights and moments after four updates, one of which is not finite, and which were made."""
    model = new_model()
    optimizer = build_optimizer(model, SolverSettings(lr=1e-2))
    joined: set[str] = set()
    made = []
    for number in range(4):
        context = TaskContext(generator(number), FeatureLevels())
        torch.manual_seed(number)
        TASKS[("xe_i2t", "xe_t2i")[number % 2]](model, new_batch(), context).loss.backward()
        if number == spoilt:
            model.encoder.layer[0].attention.output.dense.weight.grad[0, 0] = torch.nan
        made.append(bool(apply_gradients(model, optimizer, joined, 1.0, wait=wait)[1]))
    assert not hasattr(optimizer, "found_inf")
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    return [*(p.detach() for p in model.parameters()), *state], made


@pytest.mark.parametrize("spoilt", [0, 2, 9])
def test_an_update_that_the_kernel_skips_is_one_that_was_never_made(spoilt):
    (ours, made), (theirs, expected) = updates(False, spoilt), updates(True, spoilt)
    assert made == expected == [number != spoilt for number in range(4)]
    # parameters whose first update was skipped have moments of zeros, or none yet
    weights = len(list(new_model().parameters()))
    assert all(map(torch.equal, ours[:weights], theirs[:weights]))
    if spoilt:
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_what_a_gpu_found_is_looked_at_one_update_later(monkeypatch):
    monkeypatch.setattr(guards, "Later", lambda finite: SimpleNamespace(get=lambda: finite.value))
    guard = GradientGuard(2, Runtime(CPU))
    found = [SimpleNamespace(is_cuda=True, value=value) for value in (True, False, False, True)]
    batch = new_batch()
    seen = []
    for iteration, finite in enumerate(found[:3]):
        guard.saw(batch, torch.tensor(torch.nan))
        guard.updated(iteration, "xe_i2t", finite)
        seen.append(guard.skipped)
    assert seen == [0, 0, 1]
    with pytest.raises(UserError, match=r"iteration 2, xe_i2t.*images a, b, c, d\), the 2\. time"):
        guard.updated(3, "xe_i2t", found[3])
    guard.settle()
    assert (guard.skipped, guard.in_a_row) == (2, 0)


def test_rows_that_fill_a_size_change_no_loss():
    torch.manual_seed(0)
    states, codes = torch.randn(36, 12, requires_grad=True), torch.randint(12, (36,))
    for count in (1, 3, 8):
        index = masked_cells(torch.randperm(9)[:count], 4, 9)
        assert len(index) == 4 * count and bool((index.diff() > 0).all())
        losses = []
        for rows, targets in ((index, codes[index]), repeating_size(index, codes[index], 16)):
            loss = label_smoothing_loss(states[rows], targets, 0.2)
            (gradient,) = torch.autograd.grad(loss, states)
            losses.append((loss.detach(), gradient))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-7)


def test_a_thousand_masks_have_few_sizes():
    source, batch = generator(1), 32
    sizes = set()
    for _ in range(1000):
        index = masked_cells(random_mask_positions(64, source), batch, 64)
        rows, targets = repeating_size(index, index, CELLS_AT_ONCE * batch)
        assert len(rows) == len(targets) >= len(index)
        sizes.add(len(rows))
    assert len(sizes) <= 8


def test_captions_that_end_leave_sizes_that_repeat():
    """A thousand batches of captions that end at random: a few dozen sizes of a step in all."""
    source = generator(2)
    sizes = set()
    for _ in range(1000):
        active = Active(20, CPU, sizes=4)
        ends = torch.randint(6, 16, (20,), generator=source)
        counted = torch.zeros(20, dtype=torch.long)
        for step in range(1, 16):
            sizes.add((step, len(active.rows)))
            counted[active.counting(active.rows)] += 1
            stay = active.end(ends[active.rows] != step)
            if stay is not None and not len(stay):
                break
        assert torch.equal(counted, ends)  # each caption counts until it ends, and no longer
    assert len(sizes) <= 48


@pytest.mark.parametrize("causal", [False, True])
def test_captions_do_not_depend_on_when_the_ended_ones_leave(monkeypatch, causal):
    model = new_model().eval()
    model.causal = causal
    ends = torch.tensor([3, 5, 5, 2, 9, 4, 1, 5, 7, 6, 6, 3, 8])
    found = []
    for sizes in (0, 4):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(captions, "Active", partial(Active, sizes=sizes))
            vision = model.encode_vision(torch.randn(13, 9, 10, generator=generator(3)))
            found.append(
                captions.decode_scored(
                    model, vision, 9, 8,
                    lambda logits, rows, step: logits.argmax(-1).masked_fill(
                        ends[rows] == step, EOS
                    ),
                )
            )  # fmt: skip
    (ids, scores), (other_ids, other_scores) = found
    assert torch.equal(ids, other_ids) and torch.equal((ids > 0).sum(1), ends.clamp(max=8) + 1)
    torch.testing.assert_close(scores, other_scores)


def gradients(step, task: str, **settings) -> dict[str, Tensor]:
    model = step.model if isinstance(step, TaskStep) else step.module.model
    model.zero_grad()
    torch.manual_seed(3)
    context = TaskContext(
        generator(1), FeatureLevels(), sequence=SequenceSettings(6, mse_weight=1.0), **settings
    )
    step(task, new_batch(), context).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("task", list(TASKS))
def test_the_parameters_that_a_task_does_not_read_are_known(task, causal):
    model = new_model()
    model.causal = causal
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names - gradients(TaskStep(model), task).keys() == unread_parameters(model, task)


def test_ddp_that_knows_them_has_the_gradients_of_none():
    model = new_model()
    step = TaskStep(model)
    unread = {task: {f"model.{name}" for name in unread_parameters(model, task)} for task in TASKS}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = ddp_for_each(step, unread, {"gradient_as_bucket_view": True})
        assert len(list(wrapped.parameters())) == len(list(model.parameters()))
        for task in (*TASKS, *reversed(TASKS)):
            plain, exchanged = gradients(step, task), gradients(wrapped, task)
            assert plain.keys() == exchanged.keys()
            for name, gradient in plain.items():
                torch.testing.assert_close(exchanged[name], gradient, rtol=1e-5, atol=1e-7)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("task", ["xe_i2t", "xe_t2i"])
def test_layers_that_run_again_keep_less_and_have_the_same_gradients(task):
    step = TaskStep(new_model())
    results = []
    for again in (False, True):
        kept = [0]

        def pack(value: Tensor, kept=kept) -> Tensor:
            kept[0] += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            results.append((gradients(step, task, recompute_layers=again), kept[0]))
    (plain, much), (again, little) = results
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())
    assert little < much and not step.model.recompute_layers


def test_what_is_recorded_runs_again_for_the_same_shapes_alone():
    batch, recorded = new_batch(), []

    def record(part, tensors):
        recorded.append(tuple(value.shape for value in tensors))
        return part

    graphs = Graphs(record)
    step = TaskStep(new_model())
    for task in ("xe_i2t", "xe_t2i", "xe_i2t", "xe_t2i"):
        plain, found = gradients(step, task), gradients(step, task, run=graphs)
        assert plain.keys() == found.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in plain.items())
    assert len(recorded) == len(graphs.known) == 2
    assert batch.features is not None and batch.features.shape in recorded[0]
