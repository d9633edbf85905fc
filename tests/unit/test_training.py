"""The loop, the optimiser's zero-gradient rule, checkpoints and resume, on a toy model."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from generations.batch import Batch
from generations.errors import UserError
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import TaskContext, TaskStep
from generations.runtime import Runtime, generator, seed_everything
from generations.training.checkpoint import latest_checkpoint, resume, save_checkpoint
from generations.training.guards import PolicyWatch
from generations.training.loop import LoopSettings, TrainingState, train
from generations.training.monitor import Monitor
from generations.training.optim import (
    SolverSettings,
    build_optimizer,
    build_scheduler,
    fill_absent_gradients,
)
from generations.vocabulary import MASK

SIZE = ModelSize(16, 2, 24, 1, 1, 2, 1100, 0.1, grid_size=3, feature_size=10, clusters=7)
CPU = Runtime(torch.device("cpu"))


def make_batch(number: int) -> Batch:
    source = generator(5, number)
    text_ids = torch.randint(104, 1100, (4, 7), generator=source)
    positions = torch.randint(1, 7, (4,), generator=source)
    masked = text_ids.scatter(1, positions[:, None], MASK)
    cluster_ids = torch.randint(0, 7, (4, 9), generator=source)
    features = torch.randn(4, 9, 10, generator=source)
    references = torch.zeros(4, 5, 25, dtype=torch.long)
    return Batch(
        [*"abcd"], [""] * 4, text_ids, masked, positions, cluster_ids, features, references
    )


def make_state(optimizer: str = "adamw") -> TrainingState:
    seed_everything(1)
    model = UnifiedTransformer(SIZE)
    solver = SolverSettings(optimizer, lr=1e-2, warmup_steps=2, max_steps=8)
    adam = build_optimizer(model, solver)
    return TrainingState(model, adam, build_scheduler(adam, solver), CPU.scaler(), 0, set())


def run(
    state: TrainingState,
    folder: Path,
    last: int,
    form: str = "pth",
    batches=make_batch,
    **settings,
) -> Path:
    loop = LoopSettings(["xe_i2t", "xe_t2i"], last, checkpoint_every=100, test_every=0, **settings)
    monitor = Monitor(folder, CPU, state.iteration + 1, last, 2)
    saved: list[Path] = []
    train(
        TaskStep(state.model),
        state,
        (batches(number) for number in count(state.iteration)),
        lambda source: TaskContext(source, FeatureLevels()),
        loop,
        CPU,
        monitor,
        lambda state: saved.append(save_checkpoint(folder, state, form)),
        lambda iteration: None,
    )
    monitor.close()
    return saved[-1]


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_transformers"])
def test_a_cut_and_resumed_run_gives_the_same_weights(tmp_path, optimizer, form):
    whole = make_state(optimizer)
    run(whole, tmp_path / "whole", 8)
    # the second cut lies before mask_feat's first gradient would be forgotten
    for last in (1, 2, 5, 8):
        state = make_state(optimizer)
        found = latest_checkpoint(tmp_path / "cut")
        if found:
            resume(found, state)
        run(state, tmp_path / "cut", last, form)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name


def test_accumulated_batches_step_together(tmp_path):
    state = make_state()
    before = state.model.img_classifier.linear_feat.weight.detach().clone()
    run(state, tmp_path, 1, accumulation=2)
    assert torch.equal(state.model.img_classifier.linear_feat.weight, before)
    assert state.scheduler.last_epoch == 0
    run(state, tmp_path, 4, accumulation=2)
    assert state.scheduler.last_epoch == 2


def test_what_a_task_does_not_use_still_decays():
    state = make_state()
    names = dict(state.model.named_parameters())
    loss = TaskStep(state.model)(
        "xe_i2t", make_batch(0), TaskContext(generator(0), FeatureLevels())
    ).loss
    loss.backward()
    joined: set[str] = set()
    fill_absent_gradients(state.model, joined)
    assert not names["img_classifier.out_cluster.weight"].grad.any()
    for name in ("pooler.dense.weight", "classifier.seq_relationship.bias", "mask_feat"):
        assert names[name].grad is None
    assert names["cluster_codebook.weight"].grad is None
    fill_absent_gradients(state.model, joined | {"mask_feat"})
    assert not names["mask_feat"].grad.any()


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path, caplog):
    """Feature values of one batch are NaN: the weights stay as they were and training goes on."""

    def spoil(number: int) -> Batch:
        batch = make_batch(number)
        return replace(batch, features=batch.features * torch.nan) if number == 1 else batch

    clean, state = make_state(), make_state()
    run(clean, tmp_path / "clean", 1)
    before = [value.clone() for value in clean.model.state_dict().values()]
    run(state, tmp_path / "spoilt", 2, batches=spoil)  # iteration 2 is xe_i2t, which reads features
    assert all(map(torch.equal, state.model.state_dict().values(), before))
    assert "iteration 2, xe_i2t: the gradient is not finite (images a, b, c, d)" in caplog.text
    run(state, tmp_path / "spoilt", 4)
    assert all(value.isfinite().all() for value in state.model.state_dict().values())


def test_a_run_of_such_updates_ends_with_its_state_saved(tmp_path):
    state = make_state()
    with torch.no_grad():
        state.model.classifier.predictions.bias.fill_(torch.inf)
        state.model.img_classifier.out_cluster.bias.fill_(torch.inf)
    with pytest.raises(UserError, match=r"the 3\. time in a row"):
        run(state, tmp_path, 8, max_skipped=3)
    assert latest_checkpoint(tmp_path) is not None and state.iteration == 3


def test_a_policy_in_trouble_is_told_once():
    watch = PolicyWatch()
    assert watch({"rl_i2t/collapsed": 0.1, "rl_i2t/reward": 2.0}) == []
    (collapsed,) = watch({"rl_i2t/collapsed": 1.0})
    assert "collapsed" in collapsed
    (reward,) = watch({"rl_i2t/collapsed": 1.0, "rl_t2i/clip_score": float("nan")})
    assert "rl_t2i/clip_score" in reward
    assert watch({"rl_i2t/collapsed": 1.0, "rl_t2i/clip_score": float("nan")}) == []


def test_weights_alone_cannot_be_resumed(tmp_path):
    state = make_state()
    torch.save(state.model.state_dict(), tmp_path / "model_0000003.pth")
    with pytest.raises(UserError, match="load_model_only 1"):
        resume(tmp_path / "model_0000003.pth", make_state())


def test_the_latest_checkpoint_is_the_one_of_the_highest_iteration(tmp_path):
    for name in ("model_0000009.pth", "model_0000010.pth", "model_best.pth", "other_0000011.pth"):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path).name == "model_0000010.pth"
    assert latest_checkpoint(tmp_path / "none") is None
