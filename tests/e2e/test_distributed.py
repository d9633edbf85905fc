"""One process, two with DDP and two with FSDP2 train the same; and each goes on from the other."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL, begin, environment, free_port, run, two_processes
from faults import ended
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generations.checkpoint import read_training_checkpoint

STEPS = 50
BATCH = 6  # of which the 40 training images are no multiple: a batch goes over from epoch to epoch
COMMON = (
    # the strictest case: the processes predict different numbers of positions
    *("global_batch", str(BATCH), "visual_mask_per_sample", "1"),
    *("gradient_accumulation_steps", "2", "checkpoint_time", "40"),
    *("scheduler.max_steps", str(STEPS // 2), "test_interval", "0", "log_time", "1", "ema", "0.9"),
)


@pytest.fixture(scope="module")
def models(world, tmp_path_factory) -> Path:
    """Fifty batches, two to an update, dropout off: run folders one, ddp and fsdp."""
    folder = tmp_path_factory.mktemp("models")
    small = (*SMALL(world, folder), *COMMON)
    run("main.py", *small, "exp_id", "one")
    run("main.py", *small, "exp_id", "ddp", launcher=two_processes())
    sharded = ("exp_id", "fsdp", "parallel", "fsdp", "deterministic", "1")
    # a test of sharded weights, too, and of keeping the best
    more = ("test_interval", "40", "test_num", "3", "keep_last", "2", "keep_best", "1")
    run("main.py", *small, *sharded, *more, launcher=two_processes())
    return folder


def losses(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder)).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("loss/")]
    return {event.step: event.value for name in names for event in events.Scalars(name)}


def differ(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest relative difference of losses."""
    assert one.keys() & other.keys() == other.keys() and other
    return max(abs(other[step] / one[step] - 1) for step in other)


def test_one_process_and_two_have_the_same_losses(models):
    one = losses(models / "one")
    assert len(one) == STEPS
    assert differ(one, losses(models / "ddp")) < 1e-5
    assert len(losses(models / "ddp")) == STEPS


def test_sharding_changes_no_losses(models):
    assert differ(losses(models / "ddp"), losses(models / "fsdp")) < 1e-4
    assert len(losses(models / "fsdp")) == STEPS


@pytest.mark.parametrize("other", ["ddp", "fsdp"])
def test_checkpoints_hold_the_same_whole_state(models, other):
    one, two = (
        read_training_checkpoint(models / name / "model_0000050.pth") for name in ("one", other)
    )
    assert one.weights.keys() == two.weights.keys()
    for name, value in one.weights.items():
        assert (value - two.weights[name]).abs().max() < 1e-4, name
    for name, value in one.extra["ema"].items():
        assert (value - two.extra["ema"][name]).abs().max() < 1e-4, name
    assert one.optimizer["state"].keys() == two.optimizer["state"].keys()
    for index, moments in one.optimizer["state"].items():
        assert (moments["exp_avg"] - two.optimizer["state"][index]["exp_avg"]).abs().max() < 1e-3
    assert one.extra["samples"] == two.extra["samples"] == STEPS * BATCH


@pytest.mark.parametrize(("name", "other"), [("fsdp", "one"), ("one", "fsdp")])
def test_a_run_goes_on_with_other_processes(world, models, tmp_path, name, other):
    """From the middle of a run of two sharded processes with one, and the other way round."""
    (tmp_path / "moved").mkdir()
    shutil.copy(models / name / "model_0000040.pth", tmp_path / "moved")
    two = other == "fsdp"
    launcher = two_processes() if two else ()
    method = ("parallel", "fsdp") if two else ()
    small = (*SMALL(world, tmp_path), *COMMON)
    said = run("main.py", *small, *method, "exp_id", "moved", launcher=launcher)
    assert "at iteration 40" in said
    found = losses(tmp_path / "moved")
    assert set(found) == set(range(41, STEPS + 1))
    assert differ(losses(models / "one"), found) < 1e-5
    whole, parts = (
        read_training_checkpoint(folder / "model_0000050.pth").extra["ema"]
        for folder in (models / "one", tmp_path / "moved")
    )
    assert all((value - parts[name]).abs().max() < 1e-4 for name, value in whole.items())


def test_two_machines_go_on_as_one(world, models, tmp_path):
    """Two launchers with a process each, as on two machines."""
    (tmp_path / "moved").mkdir()
    shutil.copy(models / "one" / "model_0000040.pth", tmp_path / "moved")
    where = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1")
    port = f"--master-port={free_port()}"
    command = ("main.py", *SMALL(world, tmp_path), *COMMON, "exp_id", "moved")
    log = tmp_path / "log"
    launchers = [
        begin(
            *command,
            log=log,
            launcher=("-m", "torch.distributed.run", *where, port, f"--node-rank={node}"),
        )
        for node in (1, 0)
    ]
    assert [ended(launcher, log) for launcher in launchers] == [0, 0], log.read_text()[-3000:]
    assert differ(losses(models / "one"), losses(tmp_path / "moved")) < 1e-5


def on_two_processes(code: str, folder: Path) -> None:
    """Run a script, which is to end well."""
    script = folder / "script.py"
    script.write_text(code)
    command = [sys.executable, *two_processes(), str(script)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


SHARDS = """
import torch
from torch.distributed.tensor import DTensor
from generations import runtime
from generations.runtime import clip_gradients, data_parallel, without_sync
from generations.training.optim import SolverSettings, build_optimizer
from dataclasses import dataclass

@dataclass
class Output:
    loss: torch.Tensor

class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 32)

    def forward(self, inputs):
        return Output(self.layer(inputs).square().mean())

with runtime.start("cpu", timeout=60) as here, runtime.Watch(here, 60) as watch:
    batches = torch.randn(4, 3, 64, generator=torch.Generator().manual_seed(5)) * 9
    norms = {}
    for method in ("none", "ddp", "fsdp"):
        torch.manual_seed(1)
        model = Step()
        single = method == "none"
        step = model if single else data_parallel(model, here, method)
        optimizer = build_optimizer(model, SolverSettings(lr=0.1))
        # the two batches of each process are one update
        mine = range(4) if single else (here.rank, here.rank + 2)
        for number in mine:
            last = number == list(mine)[-1]
            with without_sync(step, not last):
                (step(batches[number]).loss / len(mine)).backward()
        norms[method] = float(clip_gradients(model.parameters(), 0.5))
        after = clip_gradients(model.parameters(), 0.0)
        assert abs(float(after) - 0.5) < 1e-4, (method, after)
        optimizer.step()
        if method == "fsdp":
            for parameter in model.parameters():
                assert isinstance(parameter, DTensor)
                assert 2 * parameter.to_local().numel() == parameter.numel()
                moments = optimizer.state[parameter]["exp_avg"]
                assert 2 * moments.to_local().numel() == parameter.numel()
                assert 2 * parameter.grad.to_local().numel() == parameter.numel()
    assert norms["none"] > 1
    for norm in norms.values():
        assert abs(norm / norms["none"] - 1) < 1e-5, norms
    for method in ("ddp", "fsdp"):
        step = data_parallel(Step(), here, method)
        with torch.profiler.profile() as profile:
            with without_sync(step, True):
                step(batches[0]).loss.backward()
        names = [event.key for event in profile.key_averages()]
        exchanged = [name for name in names if "reduce" in name]
        assert not exchanged, (method, exchanged)
        with torch.profiler.profile() as profile:
            with without_sync(step, False):
                step(batches[0]).loss.backward()
        assert any("reduce" in event.key for event in profile.key_averages()), method
        del step
    watch.stop_requested()
"""


def test_sharding_halves_what_a_process_holds_and_gradients_are_exchanged_once(tmp_path):
    """Weights, gradients and moments; the norm that clips is that of the whole gradient."""
    on_two_processes(SHARDS, tmp_path)


REPLAY = """
import torch
from torch.distributed.tensor import DTensor
from generations import runtime
from generations.batch import Batch
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import SequenceSettings, TaskContext, TaskStep
from generations.runtime import data_parallel

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.2, grid_size=3, feature_size=10, clusters=7)
torch.manual_seed(2)
ids = torch.randint(1037, 1077, (4, 7))
references = torch.randint(1037, 1077, (4, 5, 5))
cells = torch.zeros(4, 9, dtype=torch.long)
names = list("abcd")
batch = Batch(names, names, ids, ids, cells[:, 0] + 1, cells, torch.randn(4, 9, 10), references)
context = TaskContext(torch.Generator(), FeatureLevels(), sequence=SequenceSettings(6))

with runtime.start("cpu", timeout=60) as here, runtime.Watch(here, 60) as watch:
    found = {}
    for method in ("none", "ddp", "fsdp"):
        torch.manual_seed(1)
        model = UnifiedTransformer(SIZE)
        with torch.no_grad():
            model.classifier.predictions.bias.fill_(-30)
            model.classifier.predictions.bias[1037:1077] = 0
        step = TaskStep(model)
        if method != "none":
            step = data_parallel(step, here, method)
        for seed in (5, 6):  # gradients are added up; both processes draw alike
            torch.manual_seed(seed)
            step("rl_i2t", batch, context).loss.backward()
        gradients = {}
        for name, parameter in model.named_parameters():
            value = parameter.grad
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if value is not None:
                gradients[name] = value.clone()
        found[method] = gradients
    assert sum(value.abs().sum() > 0 for value in found["none"].values()) > 50
    for method in ("ddp", "fsdp"):
        for name, value in found["none"].items():
            torch.testing.assert_close(found[method][name], value, rtol=1e-4, atol=1e-7)
    watch.stop_requested()
"""


CAUSAL = """
import torch
from torch.distributed.tensor import DTensor
from generations import runtime
from generations.batch import Batch
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer
from generations.objectives import SequenceSettings, TaskContext, TaskStep
from generations.runtime import data_parallel

SIZE = ModelSize(16, 2, 24, 2, 1, 2, 1100, 0.2, grid_size=3, feature_size=10, clusters=7)
torch.manual_seed(2)
ids = torch.randint(1037, 1077, (4, 3, 7))
for row, lengths in enumerate([[6, 6, 6], [2, 5, 0], [3, 0, 0], [1, 2, 2]]):
    for caption, length in enumerate(lengths):
        ids[row, caption, length:] = 0
references = torch.randint(1037, 1077, (4, 5, 5))
cells = torch.zeros(4, 9, dtype=torch.long)
features = torch.randn(4, 9, 10)

def batch(rows):
    part = [x[rows] for x in (ids[:, 0], ids[:, 0], cells[:, 0] + 1, cells, features, references)]
    return Batch(*[list("abcd")[rows]] * 2, *part, ids[rows, 1:])

with runtime.start("cpu", timeout=60) as here, runtime.Watch(here, 60) as watch:
    for task, dropout in (("xe_i2t", 0.0), ("rl_i2t", 0.2)):
        found = {}
        for method in ("none", "ddp", "fsdp"):
            alone = method == "none"
            torch.manual_seed(1)
            model = UnifiedTransformer(SIZE, causal=True)
            for module in model.modules():
                if isinstance(getattr(module, "dropout", None), float):
                    module.dropout = dropout
                if isinstance(module, torch.nn.Dropout):
                    module.p = dropout
            with torch.no_grad():
                model.classifier.predictions.bias.fill_(-30)
                model.classifier.predictions.bias[1037:1077] = 0
            step = TaskStep(model) if alone else data_parallel(TaskStep(model), here, method)
            mean = (lambda x: x) if alone else (lambda x: runtime.mean_over_ranks(x, here))
            context = TaskContext(torch.Generator(), FeatureLevels(),
                                  sequence=SequenceSettings(6), mean_over_processes=mean)
            # words are drawn alike for the same images; else each process has images of its own
            own = slice(2 * here.rank, 2 * here.rank + 2)
            rows = slice(0, 4) if alone or task == "rl_i2t" else own
            torch.manual_seed(5)
            step(task, batch(rows), context).loss.backward()
            found[method] = {
                name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone()
                for name, p in model.named_parameters() if p.grad is not None
            }
        assert sum(value.abs().sum() > 0 for value in found["none"].values()) > 50
        for method in ("ddp", "fsdp"):
            for name, value in found["none"].items():
                torch.testing.assert_close(found[method][name], value, rtol=1e-4, atol=1e-6)
    watch.stop_requested()
"""


def test_causal_captions_have_the_same_gradients_on_several_processes(tmp_path):
    """Also where the processes predict different numbers of words."""
    on_two_processes(CAUSAL, tmp_path)


def test_replayed_captions_have_the_same_gradients_on_several_processes(tmp_path):
    on_two_processes(REPLAY, tmp_path)
