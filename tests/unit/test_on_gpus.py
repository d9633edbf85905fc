"""What is done on GPUs alone, tried on the CPU: the numbers stay, and sizes repeat."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from generations.batch import Batch
from generations.decoding import (
    Active,
    beam_captions,
    caption_tokens,
    image_tokens,
    sampled_captions,
)
from generations.decoding.active import WORDS
from generations.decoding.captions import decode_scored
from generations.errors import UserError
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.modeling.transformer import Attention, Transform
from generations.objectives import (
    TASKS,
    SequenceSettings,
    TaskContext,
    TaskStep,
    replay,
    unread_parameters,
)
from generations.objectives.losses import label_smoothing_loss, random_mask_positions
from generations.objectives.token import CELLS_AT_ONCE, masked_cells, repeating_size
from generations.runtime import Runtime, generator
from generations.runtime.graphs import Graphs
from generations.runtime.parallel import ddp_for_each
from generations.training import guards
from generations.training.guards import GradientGuard
from generations.training.optim import SolverSettings, build_optimizer, fill_absent_gradients
from generations.training.update import apply_gradients
from generations.vocabulary import EOS

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.1, grid_size=3, feature_size=10, clusters=7)
CPU = torch.device("cpu")


def new_model(std: float = 0.02, ending: float = 0.0) -> UnifiedTransformer:
    torch.manual_seed(0)
    model = UnifiedTransformer(replace(SIZE, init_std=std))
    with torch.no_grad():
        model.classifier.predictions.bias[EOS] = ending
    return model


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
    with pytest.raises(UserError, match=r"iteration 2, xe_i2t.*a, b, c, d\), 2 times in a row"):
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
    """A thousand batches of captions that end at random: a dozen sizes of a step in all."""
    source = generator(2)
    sizes = set()
    for _ in range(1000):
        active = Active(20, CPU, sizes=4)
        ends = torch.randint(6, 16, (20,), generator=source)
        counted = torch.zeros(20, dtype=torch.long)
        for step in range(1, 16):
            sizes.add((step // WORDS, len(active.rows)))
            counted[active.rows] += active.going
            stay = active.end(ends[active.rows] != step, step)
            if stay is not None and not len(stay):
                break
        assert torch.equal(counted, ends)  # each caption counts until it ends, and no longer
    assert len(sizes) <= 12


@pytest.mark.parametrize("causal", [False, True])
def test_captions_do_not_depend_on_when_the_ended_ones_leave(as_on_a_gpu, causal):
    model = new_model().eval()
    model.causal = causal
    ends = torch.tensor([3, 5, 5, 2, 9, 4, 1, 5, 7, 6, 6, 3, 8])
    found = []
    with torch.no_grad():
        vision = model.encode_vision(torch.randn(13, 9, 10, generator=generator(3)))
        for on_gpu in (False, True):
            if on_gpu:
                as_on_a_gpu()
            found.append(
                decode_scored(
                    model, vision, 9, 8,
                    lambda logits, rows, step: logits.argmax(-1).masked_fill(
                        ends[rows] == step, EOS
                    ),
                )
            )  # fmt: skip
    (ids, scores), (other_ids, other_scores) = found
    assert torch.equal(ids, other_ids) and torch.equal((ids > 0).sum(1), ends.clamp(max=8) + 1)
    torch.testing.assert_close(scores, other_scores)


@pytest.mark.parametrize("causal", [False, True])
def test_a_beam_does_not_depend_on_it_either(as_on_a_gpu, causal):
    features = torch.randn(9, 9, 10, generator=generator(3))
    settings = {"text_length": 9, "beam_size": 3, "length_penalty": 0.7, "num_captions": 2}
    models = [new_model(0.3, ending).eval() for ending in (4.0, 4.4, 5.0)]
    found = []
    for on_gpu in (False, True):
        if on_gpu:
            as_on_a_gpu()
        for model in models:
            model.causal = causal
        found.append([beam_captions(model, features, **settings) for model in models])
    for plain, padded in zip(*found, strict=True):
        assert torch.equal(plain.ids, padded.ids)
        torch.testing.assert_close(plain.scores, padded.scores)
    lengths = torch.cat([(plain.ids > 0).sum(-1).flatten() for plain in found[0]])
    assert len(lengths.unique()) > 2  # they end at different steps


def iterations(model: UnifiedTransformer, task: str, source: torch.Generator) -> None:
    """One iteration, of a batch whose captions have other lengths than the last one's."""
    text = torch.randint(104, 1100, (4, 17), generator=source)
    lengths = torch.randint(5, 17, (4, 1), generator=source)
    text = text.masked_fill(torch.arange(17) >= lengths, 0)
    batch = replace(new_batch(), text_ids=text, masked_text_ids=text)
    if task in TASKS:
        context = TaskContext(source, FeatureLevels(), sequence=SequenceSettings(mse_weight=1.0))
        TASKS[task](model, batch, context).loss.backward()
    elif task == "beam":
        beam_captions(model.eval(), batch.features, beam_size=3, num_captions=2)
    else:
        uniforms = torch.rand(4, 2, 16, generator=source)
        sampled_captions(model.eval(), uniforms, batch.features)


@pytest.mark.parametrize(
    ("task", "causal", "most"),
    # two: cross-attention goes both ways
    [("xe_i2t", False, 2), ("xe_i2t", True, 2), ("xe_t2i", False, 2), ("rl_i2t", False, 24),
     ("rl_i2t", True, 8), ("rl_t2i", False, 2), ("beam", False, 24), ("sample", False, 24)],
)  # fmt: skip
def test_layers_see_few_sizes(as_on_a_gpu, monkeypatch, task, causal, most):
    """Each of them, of what is other in each iteration: masks, lengths, free memory."""
    as_on_a_gpu()
    source = generator(7)
    free = partial(torch.randint, 2**21, 2**22, (), generator=source)
    monkeypatch.setattr(replay, "free_memory", lambda _: int(free()))
    model = new_model(ending=5.3)
    if task == "beam":
        model = new_model(0.3, 3.5)
    model.causal = causal
    seen: dict[torch.nn.Module, set] = {}

    def saw(module: torch.nn.Module, inputs: tuple) -> None:
        shapes = tuple(value.shape for value in inputs if isinstance(value, Tensor))
        seen.setdefault(module, set()).add(shapes)

    for module in model.modules():
        if isinstance(module, (Attention, Transform)):
            module.register_forward_pre_hook(saw)
    for _ in range(12):
        iterations(model, task, source)
    assert max(map(len, seen.values())) <= most


class Conversions(TorchDispatchMode):
    """Counts how often each of some weights is converted to another type."""

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.counts = {weight.data_ptr(): 0 for weight in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::_to_copy" and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_converts_a_weight_once_in_a_decode(causal):
    model = new_model().eval()
    model.causal = causal
    batch = new_batch()
    runs = {
        "greedy": lambda: caption_tokens(model, batch.features, text_length=6),
        "beam": lambda: beam_captions(model, batch.features, text_length=6, beam_size=2),
        "painting": lambda: image_tokens(model, batch.text_ids),
        "drawing": lambda: TASKS["rl_i2t"](
            model,
            batch,
            TaskContext(generator(1), FeatureLevels(), sequence=SequenceSettings(6)),
        ),
    }
    weights = [p for p in model.parameters() if p.ndim == 2]
    for name, run in runs.items():
        with Conversions(weights) as conversions, torch.autocast("cpu", torch.bfloat16):
            run()
        assert max(conversions.counts.values()) == 1, name


def gradients(step, task: str, **settings) -> dict[str, Tensor]:
    model = step.model if isinstance(step, TaskStep) else step.module.model
    model.zero_grad()
    torch.manual_seed(3)
    context = TaskContext(
        generator(1), FeatureLevels(), sequence=SequenceSettings(6, mse_weight=1.0), **settings
    )
    step(task, new_batch(), context).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_zeros_of_absent_gradients_are_written_once_and_change_no_bit():
    class Written(TorchDispatchMode):
        """Counts the numbers that fills write."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **kwargs or {})
            if func._schema.name in ("aten::zero_", "aten::fill_", "aten::new_zeros", "aten::zeros",
                                     "aten::zeros_like", "aten::mul_"):  # fmt: skip
                self.count += result.numel()
            return result

    results, written = [], []
    for plain in (False, True):
        model = new_model()
        optimizer = build_optimizer(model, SolverSettings(lr=1e-2))
        joined: set[str] = set()
        norms = []
        for number in range(4):
            context = TaskContext(generator(number), FeatureLevels())
            torch.manual_seed(number)
            TASKS[("xe_i2t", "xe_t2i")[number % 2]](model, new_batch(), context).loss.backward()
            used = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
            if plain:
                fill_absent_gradients(model, joined)
                for parameter in model.parameters():
                    parameter.grad = None if parameter.grad is None else parameter.grad.clone()
                norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
                optimizer.step()
                optimizer.zero_grad()
            else:
                with Written() as counter:
                    norms.append(apply_gradients(model, optimizer, joined, 1.0)[0])
                written.append(counter.count - used)  # each gradient is scaled once
        state = [value for entry in optimizer.state.values() for value in entry.values()]
        results.append([*norms, *(p.detach() for p in model.parameters()), *state])
    assert all(map(torch.equal, *results))
    assert written[0] > 1000 and max(written[2:]) < 10


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
