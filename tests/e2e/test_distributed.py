"""One process, two with DDP and two with FSDP2 train the same; and each goes on from the other."""

import shutil
from pathlib import Path

import pytest
from commands import SMALL, run, two_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generations.checkpoint import read_training_checkpoint

STEPS = 50
COMMON = (
    *("global_batch", "8", "gradient_accumulation_steps", "2", "checkpoint_time", "40"),
    *("scheduler.max_steps", str(STEPS // 2), "test_interval", "0", "log_time", "1"),
)


@pytest.fixture(scope="module")
def models(world, tmp_path_factory) -> Path:
    """Fifty batches, two to an update, dropout off: run folders one, ddp and fsdp."""
    folder = tmp_path_factory.mktemp("models")
    small = (*SMALL(world, folder), *COMMON)
    run("main.py", *small, "exp_id", "one")
    run("main.py", *small, "exp_id", "ddp", launcher=two_processes(29631))
    sharded = ("exp_id", "fsdp", "parallel", "fsdp", "deterministic", "1")
    # a test of sharded weights, too, and of keeping the best
    more = ("test_interval", "40", "test_num", "3", "keep_last", "2", "keep_best", "1")
    run("main.py", *small, *sharded, *more, launcher=two_processes(29632))
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
    assert one.optimizer["state"].keys() == two.optimizer["state"].keys()
    for index, moments in one.optimizer["state"].items():
        assert (moments["exp_avg"] - two.optimizer["state"][index]["exp_avg"]).abs().max() < 1e-3
    assert one.extra["samples"] == two.extra["samples"] == STEPS * 8


@pytest.mark.parametrize(("name", "other"), [("fsdp", "one"), ("one", "fsdp")])
def test_a_run_goes_on_with_other_processes(world, models, tmp_path, name, other):
    """From the middle of a run of two sharded processes with one, and the other way round."""
    (tmp_path / "moved").mkdir()
    shutil.copy(models / name / "model_0000040.pth", tmp_path / "moved")
    two = other == "fsdp"
    launcher = two_processes(29633) if two else ()
    method = ("parallel", "fsdp") if two else ()
    small = (*SMALL(world, tmp_path), *COMMON)
    said = run("main.py", *small, *method, "exp_id", "moved", launcher=launcher)
    assert "at iteration 40" in said
    found = losses(tmp_path / "moved")
    assert set(found) == set(range(41, STEPS + 1))
    assert differ(losses(models / "one"), found) < 1e-5
