"""The loop, the optimiser's zero-gradient rule, checkpoints and resume, on a toy model."""

import os
import signal
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from generations.batch import Batch
from generations.checkpoint import load_averaged, read_training_checkpoint, seal_path
from generations.config import load_config
from generations.datasets import ImageRecord
from generations.errors import ProcessLostError, StopRequested, UserError
from generations.files import only_writer
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import TaskContext, TaskStep
from generations.pipelines import validation
from generations.runtime import Runtime, Watch, generator, seed_everything
from generations.runtime.base import _meet
from generations.runtime.machine import choose_device
from generations.training.average import AveragedWeights
from generations.training.checkpoint import (
    Checkpoints,
    checkpoint_path,
    latest_checkpoint,
    resume,
    save_checkpoint,
)
from generations.training.guards import GradientGuard, PolicyWatch
from generations.training.loop import LoopSettings, TrainingState, _update, train
from generations.training.monitor import Monitor
from generations.training.optim import (
    SolverSettings,
    build_optimizer,
    build_scheduler,
    fill_absent_gradients,
)
from generations.training.profiling import StepProfiler
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


def make_state(optimizer: str = "adamw", ema: float = 0.0) -> TrainingState:
    seed_everything(1)
    model = UnifiedTransformer(SIZE)
    solver = SolverSettings(optimizer, lr=1e-2, warmup_steps=2, max_steps=8)
    adam = build_optimizer(model, solver)
    state = TrainingState(model, adam, build_scheduler(adam, solver), CPU.scaler(), 0, set())
    state.average = AveragedWeights(model, ema) if ema else None
    return state


def run(
    state: TrainingState,
    folder: Path,
    last: int,
    form: str = "pth",
    batches=make_batch,
    runtime=CPU,
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
        runtime,
        monitor,
        lambda state, now: saved.append(save_checkpoint(folder, state, form)),
        lambda iteration: None,
    )
    monitor.close()
    return saved[-1]


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_transformers"])
def test_a_cut_and_resumed_run_gives_the_same_weights(tmp_path, optimizer, form):
    whole = make_state(optimizer, ema=0.4)
    run(whole, tmp_path / "whole", 8)
    # the second cut lies before mask_feat's first gradient would be forgotten
    for last in (1, 2, 5, 8):
        state = make_state(optimizer, ema=0.4)
        found = latest_checkpoint(tmp_path / "cut")
        if found:
            resume(found, state)
        path = run(state, tmp_path / "cut", last, form)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name
    averages = whole.average.tensors
    assert all(torch.equal(value, state.average.tensors[name]) for name, value in averages.items())
    # inference finds them in the checkpoint, with the weights that have none
    model = UnifiedTransformer(SIZE)
    assert load_averaged(model, path)
    for name, value in model.state_dict(keep_vars=True).items():
        expected = averages.get(name, whole.model.state_dict()[name])
        assert torch.equal(value, expected) or name == "classifier.predictions.decoder.weight"


def test_averages_follow_their_formula_and_are_lent_to_the_model(tmp_path):
    """Update n keeps min(decay, (1 + n) / (10 + n)) of the average; without one nothing changes."""
    state, plain = make_state(ema=0.25), make_state()
    name = "img_classifier.out_cluster.bias"
    expected = state.model.get_parameter(name).detach().clone()
    for last in (1, 2, 3):
        run(state, tmp_path, last)
        decay = min(0.25, (1 + last) / (10 + last))
        expected = decay * expected + (1 - decay) * state.model.get_parameter(name).detach()
    torch.testing.assert_close(state.average.tensors[name], expected)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(StopRequested), state.average.in_use():
        torch.testing.assert_close(state.model.get_parameter(name).detach(), expected)
        raise StopRequested("a test was cut")
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert "cluster_codebook.weight" not in state.average.tensors
    path = run(plain, tmp_path / "plain", 3)
    assert all(map(torch.equal, plain.model.state_dict().values(), before.values()))
    assert not load_averaged(plain.model, path)
    with pytest.raises(UserError, match="set ema 0"):
        state.average.load({name: expected}, "a file")


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
    with pytest.raises(UserError, match="3 times in a row"):
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model_*") if path.suffix != ".json")


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "torn":
        path.write_bytes(content[: len(content) // 3])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "seal":
        seal_path(path).write_text("{}")


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("how", ["flip", "torn", "empty", "seal"])
def test_the_latest_checkpoint_is_the_newest_that_is_whole(tmp_path, how, sealed, caplog):
    state = make_state()
    for iteration in (9, 10, 11):
        state.iteration = iteration
        path = save_checkpoint(tmp_path, state)
        if not sealed:
            seal_path(path).unlink()
    (tmp_path / "model_best.pth").touch()
    assert latest_checkpoint(tmp_path).name == "model_0000011.pth"
    damage(tmp_path / "model_0000011.pth", how)
    assert latest_checkpoint(tmp_path).name == "model_0000010.pth"
    assert "model_0000011.pth is damaged" in caplog.text
    assert latest_checkpoint(tmp_path / "none") is None
    for path in tmp_path.glob("model_*.pth"):
        damage(path, "empty")
    with pytest.raises(UserError, match="all 3 checkpoints"):
        latest_checkpoint(tmp_path)


def test_a_torn_folder_is_passed_over(tmp_path):
    state = make_state()
    for state.iteration in (1, 2):
        path = save_checkpoint(tmp_path, state, "safetensors")
    (path / "training_state.pth").unlink()
    assert latest_checkpoint(tmp_path).name == "model_0000001"


def test_a_checkpoint_is_a_snapshot(tmp_path):
    """Training goes on while the thread writes."""
    state = make_state()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, CPU)
    checkpoints.save(state)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
    checkpoints.close()
    saved = read_training_checkpoint(tmp_path / "model_0000000.pth").weights
    assert all(torch.equal(saved[name], value) for name, value in before.items())


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_the_newest_and_the_best_stay(tmp_path, form):
    state = make_state()
    (tmp_path / ".model_0000007-abc.tmp.pth").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, CPU, form, keep_last=2, keep_best=1)
    for state.iteration, score in enumerate((0.1, 0.5, 0.3, 0.2, None, 0.4), 1):
        checkpoints.save(state)
        checkpoints.score(state, score)
    checkpoints.close()
    suffix = ".pth" if form == "pth" else ""
    assert names(tmp_path) == [f"model_000000{number}{suffix}" for number in (2, 5, 6)]
    assert len(list(tmp_path.glob("model_*.json"))) == 3
    assert not list(tmp_path.glob(".model_*")) and state.best == (0.5, 2)
    # a damaged one of a higher iteration does not count as newest
    checkpoint_path(tmp_path, 99, form).mkdir()
    state.iteration = 7
    checkpoints.save(state, now=True)
    assert {f"model_0000007{suffix}", f"model_0000006{suffix}"} <= set(names(tmp_path))


def test_what_a_run_knows_comes_back(tmp_path):
    state = make_state()
    state.iteration, state.samples, state.skipped = 4, 128, (3, 1)
    state.best, state.order = (0.75, 2), {"seed": 1, "images": 9}
    back = make_state()
    back.order = {"seed": 1, "images": 9}
    resume(save_checkpoint(tmp_path, state), back)
    assert (back.iteration, back.samples, back.skipped, back.best) == (4, 128, (3, 1), (0.75, 2))


def test_the_score_of_a_checkpoints_own_test_comes_back(tmp_path):
    """A test comes after its checkpoint is written, so its score is beside it."""
    state = make_state()
    state.iteration, state.best, state.tested = 4, (0.25, 2), 2
    checkpoints = Checkpoints(tmp_path, CPU)
    checkpoints.save(state, now=True)
    back = make_state()
    resume(tmp_path / "model_0000004.pth", back)
    assert (back.best, back.tested) == ((0.25, 2), 2)
    checkpoints.score(state, 0.5)
    checkpoints.close()
    resume(tmp_path / "model_0000004.pth", back)
    assert (back.best, back.tested) == ((0.5, 4), 4)


HALF = Runtime(torch.device("cpu"), autocast_dtype=torch.float16)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_transformers"])
def test_resuming_is_exact_with_a_loss_scale_and_skipped_updates(tmp_path, optimizer):
    """float16: the first scales are too large, so updates are skipped and the scale falls."""

    def begin() -> TrainingState:
        state = make_state(optimizer)
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=3)
        return state

    def spoil(number: int) -> Batch:
        batch = make_batch(number)
        return replace(batch, features=batch.features * torch.nan) if number == 7 else batch

    whole = begin()
    run(whole, tmp_path / "whole", 12, batches=spoil, runtime=HALF)
    state = begin()
    for last in (1, 3, 8, 9, 12):
        found = latest_checkpoint(tmp_path / "cut")
        state = begin()
        if found:
            resume(found, state)
        run(state, tmp_path / "cut", last, batches=spoil, runtime=HALF)
    assert state.scaler.state_dict() == whole.scaler.state_dict()
    assert state.scaler.get_scale() != 2.0**19
    assert state.skipped == whole.skipped and 2 <= state.skipped[0] < 9
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name
    for one, other in zip(
        whole.optimizer.state.values(), state.optimizer.state.values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)


def test_another_seed_or_other_data_are_told(tmp_path, caplog):
    state = make_state()
    state.order = {"seed": 1, "images": 9}
    path = save_checkpoint(tmp_path, state)
    state.order = {"seed": 2, "images": 9}
    resume(path, state)
    assert "seed 1 -> 2" in caplog.text


def test_a_full_disk_is_told_before_anything_is_touched(tmp_path, monkeypatch, caplog):
    state = make_state()
    checkpoints = Checkpoints(tmp_path, CPU, keep_last=1)
    checkpoints.save(state, now=True)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1000))
    state.iteration = 1
    checkpoints.save(state)  # told, and training goes on
    assert "the disk has only 0 MB left" in caplog.text
    with pytest.raises(UserError, match="make room"):
        checkpoints.save(state, now=True)
    assert latest_checkpoint(tmp_path).name == "model_0000000.pth"
    assert names(tmp_path) == ["model_0000000.pth"]


def test_a_failed_write_keeps_the_earlier_ones(tmp_path, monkeypatch):
    state = make_state()
    checkpoints = Checkpoints(tmp_path, CPU, keep_last=1)
    checkpoints.save(state, now=True)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    state.iteration = 1
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.save(state, now=True)
    assert names(tmp_path) == ["model_0000000.pth"] and not list(tmp_path.glob(".model*"))


def test_a_checkpoint_waits_for_the_end_of_an_accumulation(tmp_path):
    """Cut anywhere, also between two batches of one update, the weights come out the same."""
    whole = make_state()
    run(whole, tmp_path / "whole", 9, accumulation=3)
    state = make_state()
    loop = LoopSettings(["xe_i2t", "xe_t2i"], 9, 3, checkpoint_every=2, test_every=4)
    saved, tested = train_some(state, tmp_path / "cut", loop, stop_at=4)
    assert saved == [3, 6] and tested == [] and state.iteration == 6
    state = make_state()
    resume(checkpoint_path(tmp_path / "cut", 6), state)
    # the test that was due with the last checkpoint comes first, as in the uncut run
    assert train_some(state, tmp_path / "cut", loop) == ([9], [6, 9])
    resume(save_checkpoint(tmp_path / "done", state), state)
    assert train_some(state, tmp_path / "cut", loop) == ([], [])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name


def train_some(
    state: TrainingState, folder: Path, loop: LoopSettings, stop_at: int = 0
) -> tuple[list[int], list[int]]:
    """Train, with SIGUSR1 in an iteration; the iterations that were saved, and tested."""
    saved: list[int] = []
    tested: list[int] = []

    def batch(number: int) -> Batch:
        if number + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return make_batch(number)

    def save(state: TrainingState, now: bool) -> None:
        save_checkpoint(folder, state)
        saved.append(state.iteration)

    context = TaskContext(generator(0), FeatureLevels())
    with Watch(CPU) as watch, pytest.raises(StopRequested) if stop_at else nullcontext():
        train(
            TaskStep(state.model),
            state,
            (batch(number) for number in count(state.iteration)),
            lambda source: replace(context, generator=source),
            loop,
            CPU,
            Monitor(folder, CPU, 1, 9, 2),
            save,
            tested.append,
            watch,
        )
    return saved, tested


def test_a_signal_during_a_test_saves_what_is_tested(tmp_path):
    """Also where no checkpoint is due; the test is made when the run goes on."""
    state, saved = make_state(), []
    loop = LoopSettings(["xe_i2t"], 9, checkpoint_every=100, test_every=2)

    def test(iteration: int) -> None:
        raise StopRequested(f"in the test of {iteration}")

    def save(state: TrainingState, now: bool) -> None:
        assert now
        saved.append(save_checkpoint(tmp_path, state))

    with pytest.raises(StopRequested, match="in the test of 2"):
        train(
            TaskStep(state.model), state, map(make_batch, count()),
            lambda source: TaskContext(source, FeatureLevels()), loop, CPU,
            Monitor(tmp_path, CPU, 1, 9, 2), save, test,
        )  # fmt: skip
    resume(saved[0], state := make_state())
    assert (state.iteration, state.tested) == (2, 0)
    assert train_some(state, tmp_path, loop)[1] == [2, 4, 6, 8, 9]


def test_a_validation_ends_when_it_is_asked_to(monkeypatch):
    """All processes leave it together, and nothing is scored."""
    records = [ImageRecord(str(number), "", number, "val", ()) for number in range(6)]
    monkeypatch.setattr(validation, "read_split", lambda *_: records)
    monkeypatch.setattr(validation.assembly, "open_tokenizer", lambda cfg: None)
    batches = [([number], {}) for number in range(6)]
    monkeypatch.setattr(validation.assembly, "captioning_batches", lambda *_: iter(batches))
    written: list[int] = []

    def write(model, tokenizer, batches, *more, **options):
        for (number,), _ in batches:
            written.append(number)
        return [{"image_id": number, "caption": "a"} for number in written]

    monkeypatch.setattr(validation, "write_captions", write)
    cfg = load_config(overrides=["pretrained_generator", "absent"])
    heard = lambda: "SIGTERM" if len(written) == 2 else ""  # noqa: E731
    test = validation.Validation(cfg, torch.nn.Linear(1, 1), CPU, None, heard)
    with pytest.raises(StopRequested, match="received SIGTERM during the test of iteration 4"):
        test(4)
    assert written == [0, 1]


def test_a_norm_beyond_all_numbers_changes_no_weights():
    """Each gradient is finite and the norm is not: the update is skipped also with a loss scale."""
    state = make_state()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = [value.clone() for value in state.model.state_dict().values()]
    for parameter in state.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    state.scaler.scale(torch.ones(()))  # which prepares it
    norm, updated = _update(state, 1.0)
    assert norm.isinf() and not updated
    assert all(map(torch.equal, state.model.state_dict().values(), before))


def test_processes_meet_in_a_store_that_others_have_used():
    """torchrun keeps the store when machines come and go, and counts restarts on each by itself."""
    store = HashStore()
    for number in range(3):
        store.set(f"generations/asks/{number}", "somebody who is gone")
    names = []
    patience = timedelta(seconds=60)
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda rank: _meet(store, rank, 3, patience), (1, 2, 0)))
        assert len(set(found)) == 1
        names.append(found[0])
    assert names[0] != names[1]
    with pytest.raises(ProcessLostError, match=r"got no answer from processes \[1\]"):
        _meet(store, 0, 2, timedelta(seconds=0.1))


def test_suspects_are_the_batches_whose_loss_is_not_finite():
    guard = GradientGuard(1, CPU, skipped=4)
    guard.saw(make_batch(0), torch.tensor(1.0))
    guard.saw(replace(make_batch(1), image_ids=["bad", "worse"]), torch.tensor(torch.nan))
    with pytest.raises(UserError, match=r"images bad, worse\)") as caught:
        guard.updated(7, "xe_t2i", torch.tensor(False))
    assert "iteration 7" in str(caught.value) and guard.skipped == 5


def test_a_folder_has_one_writer(tmp_path):
    try_it = (
        "import sys, pathlib; from generations.files import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1]), 0): pass"
    )
    command = [sys.executable, "-c", try_it, str(tmp_path / "run")]
    with only_writer(tmp_path / "run"):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"is in use: process {os.getpid()} on" in refused.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_a_profile_of_some_iterations_is_written_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = StepProfiler(tmp_path, 2, torch.device("cpu"))
    with caplog.at_level("INFO"):
        for _ in range(8):
            torch.ones(4, 4) @ torch.ones(4, 4)
            profiler()
    (trace,) = (tmp_path / "profile").iterdir()
    assert "aten::mm" in trace.read_text()
    assert "profile of 2 iterations" in caplog.text
    assert "aten::mm" in caplog.text


def test_no_profile_unless_asked_for(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 0, torch.device("cpu"))
    for _ in range(8):
        profiler()
    profiler.close()
    assert not list(tmp_path.iterdir())


def test_processes_of_one_machine_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("generations.runtime.machine._fails", lambda device: "")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [choose_device("cuda", rank) for rank in (0, 1)] == [
        torch.device("cuda", n) for n in (0, 1)
    ]
    with pytest.raises(UserError, match="cuda:0: several processes"):
        choose_device("cuda:0", 1)
    assert choose_device("cuda:2", None) == torch.device("cuda", 2)
    with pytest.raises(UserError, match="has 4 usable GPUs"):
        choose_device("cuda", 4)
