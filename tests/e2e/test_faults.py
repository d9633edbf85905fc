"""Runs that are killed, starved, lied to and interrupted: nothing is lost, and nothing is wrong.

Every run here that ends, ends with the weights of a run that nothing happened to.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import h5py
import pytest
import torch
from commands import SMALL, begin, fails, free_port, run, two_processes
from faults import children, ended, is_alive, kill, process_of_rank, wait_for

from generations.checkpoint import read_tensors, read_training_checkpoint
from generations.errors import FAILED, LOST, STOPPED
from generations.training.checkpoint import latest_checkpoint

STEPS = 300  # enough that a run is not over before it is hurt
LAST = f"model_{STEPS:07d}.pth"
COMMON = (
    *("scheduler.max_steps", str(STEPS), "scheduler.warmup_steps", "5", "test_interval", "0"),
    *("checkpoint_time", "15", "log_time", "50", "model.dropout", "0.1"),
)


@pytest.fixture(scope="module")
def models(world, tmp_path_factory) -> Path:
    """Undisturbed runs: one/ of one process and two/ of two."""
    folder = tmp_path_factory.mktemp("models")
    run("main.py", *SMALL(world, folder), *COMMON, "exp_id", "one")
    run("main.py", *SMALL(world, folder), *COMMON, "exp_id", "two", launcher=two_processes())
    return folder


def assert_same(run_folder: Path, undisturbed: Path) -> None:
    one, other = (read_tensors(folder / LAST) for folder in (run_folder, undisturbed))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert not list(run_folder.glob(".model_*")), "left-overs"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("model_*.pth"))


def more_than(folder: Path, before: int):
    return lambda: len(checkpoints(folder)) > before


def test_one_process_killed_while_writing_while_reading_and_asked_to_stop(world, models, tmp_path):
    folder, log = tmp_path / "x", tmp_path / "log"
    command = ("main.py", *SMALL(world, tmp_path), *COMMON, "exp_id", "x")

    process = begin(*command, "num_workers", "1", log=log)  # kill -9 during a checkpoint write
    wait_for(more_than(folder, 0), "a checkpoint")
    wait_for(lambda: list(folder.glob(".model_*")), "a checkpoint on its way")
    kill(process.pid)
    process.wait()

    before = len(checkpoints(folder))
    process = begin(*command, "num_workers", "1", log=log)  # of a data-loading process
    wait_for(more_than(folder, before), "another checkpoint")
    kill(children(process.pid)[0])
    assert ended(process, log) == LOST
    assert "lost a data-loading process" in log.read_text()

    before = len(checkpoints(folder))
    process = begin(*command, "num_workers", "1", log=log)
    wait_for(more_than(folder, before), "another checkpoint")
    wait_for(lambda: list(folder.glob(".model_*")), "the next one on its way")
    # during a checkpoint write, and to data-loading processes as well, as launchers do it
    for pid in (*children(process.pid), process.pid):
        os.kill(pid, signal.SIGTERM)
    assert ended(process, log) == STOPPED
    said = log.read_text().splitlines()[-1]
    assert said.startswith("stopped: received SIGTERM; saved at iteration")
    assert f"model_{int(said.split()[6]):07d}.pth" == checkpoints(folder)[-1].name

    run(*command)
    assert_same(folder, models / "one")


def test_two_processes_killed_stopped_and_left_without_launcher(world, models, tmp_path):
    folder, log = tmp_path / "x", tmp_path / "log"
    command = ("main.py", *SMALL(world, tmp_path), *COMMON, "exp_id", "x", "hang_timeout", "8")

    launcher = begin(*command, log=log, launcher=two_processes("--max-restarts=2"))
    wait_for(more_than(folder, 0), "a checkpoint")
    kill(process_of_rank(launcher.pid, 1))  # torchrun starts both again
    wait_for(lambda: log.read_text().count("resuming") == 1, "a restart")

    before = len(checkpoints(folder))
    wait_for(more_than(folder, before), "another checkpoint")
    stuck = process_of_rank(launcher.pid, 1)
    os.kill(stuck, signal.SIGSTOP)  # it hangs
    wait_for(lambda: "hang_timeout 8" in log.read_text(), "the other process's message")
    said = next(line for line in log.read_text().splitlines() if "hang_timeout 8" in line)
    assert said.startswith("error: process 0 has been training in iteration")
    assert "process 1 last reported" in said
    kill(stuck)  # torchrun would do it after 30 seconds

    wait_for(lambda: log.read_text().count("resuming") == 2, "another restart")
    before = len(checkpoints(folder))
    wait_for(more_than(folder, before), "another checkpoint")
    workers = [process_of_rank(launcher.pid, rank) for rank in (0, 1)]
    kill(launcher.pid)
    launcher.wait()
    wait_for(lambda: not any(map(is_alive, workers)), "the end of what it left behind")

    run(*command, launcher=two_processes())
    assert_same(folder, models / "two")


def test_a_machine_goes_and_comes_back(world, tmp_path):
    """Elastic: the other goes on alone, and takes it in again; no sample is lost or comes twice."""
    folder, log = tmp_path / "x", tmp_path / "log"
    many = ("scheduler.max_steps", "100000", "global_batch", "8", "keep_last", "3")
    command = ("main.py", *SMALL(world, tmp_path), *COMMON, *many, "exp_id", "x")
    where = f"--rdzv-endpoint=127.0.0.1:{free_port()}"

    def machine(host: str) -> subprocess.Popen[bytes]:
        pace = f"is_host={host},last_call_timeout=5,keep_alive_interval=3"
        elastic = ("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d")
        launcher = ("-m", "torch.distributed.run", *elastic, where, f"--rdzv-conf={pace}")
        # else torch does not let in who comes later
        return begin(*command, log=log, launcher=launcher, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    first, second = machine("true"), machine("false")
    try:
        for processes in (2, 1, 2):
            wait_for(lambda: world_size(first.pid) == processes, f"{processes} processes")  # noqa: B023
            before = newest(folder)
            wait_for(lambda: newest(folder) > before, "a checkpoint of them")  # noqa: B023
            if processes == 2:
                second.kill()
                second.wait()
            else:
                second = machine("false")
        saved = read_training_checkpoint(latest_checkpoint(folder))
        assert saved.extra["samples"] == 8 * saved.iteration
    finally:
        for launcher in (first, second):
            launcher.kill()
            launcher.wait()


def world_size(launcher: int) -> int:
    """Of the run that a launcher's process is in; 0: it has none."""
    for pid in children(launcher):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            sizes = [name for name in variables if name.startswith(b"WORLD_SIZE=")]
            if sizes:
                return int(sizes[0].partition(b"=")[2])
    return 0


def newest(folder: Path) -> str:
    return max((path.name for path in checkpoints(folder)), default="")


def test_damaged_checkpoints_are_passed_over(world, models, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(models / "one", folder)
    torn, flipped = checkpoints(folder)[-1], checkpoints(folder)[-2]
    os.truncate(torn, torn.stat().st_size // 2)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    said = run("main.py", *SMALL(world, tmp_path), *COMMON, "exp_id", "x")
    assert f"{torn.name} is damaged" in said and f"{flipped.name} is damaged" in said
    assert f"at iteration {STEPS - 30}" in said
    assert_same(folder, models / "one")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB, in which one checkpoint of 2.5 MB finds room; None: not allowed here."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_and_the_earlier_checkpoint_stays(world, small_disk):
    if small_disk is None:
        pytest.skip("mounting is not allowed here")
    command = (*SMALL(world, small_disk), *COMMON, "exp_id", "x", "keep_last", "1")
    said = fails("main.py", *command, "scheduler.max_steps", "30")
    assert "model_0000030.pth needs" in said and "make room" in said
    assert [path.name for path in checkpoints(small_disk / "x")] == ["model_0000015.pth"]
    assert read_tensors(small_disk / "x" / "model_0000015.pth")


def test_a_write_that_fails_half_way_leaves_nothing(world, tmp_path):
    """Files may not grow beyond 1 MB: a quota, or a disk that others fill meanwhile."""
    limits, log = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "log"
    command = ("main.py", *SMALL(world, tmp_path), "exp_id", "x", "test_interval", "0")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        process = begin(*command, log=log)  # a process of its own, which takes over the limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended(process, log) == FAILED
    said = log.read_text()
    assert "model_0000006.pth cannot be written ([Errno 27] File too large)" in said
    assert not list((tmp_path / "x").glob("*model_*"))


@pytest.fixture
def spoilt(world, tmp_path) -> Path:
    """A copy of the world, whose features are for the tests to spoil: HDF5, which is easy to."""
    copy = tmp_path / "spoilt"
    names = [path for path in world.iterdir() if path.is_file()]
    copy.mkdir()
    for path in names:
        if path.suffix != ".packed":
            shutil.copy(path, copy)
    images = (
        "images_dir",
        str(world / "images"),
        "captions_file",
        str(world / "dataset_mini.json"),
    )
    run("prepare.py", "features", *SMALL(copy), *images, "features.store", "hdf5")
    return copy


def spoil(folder: Path, value: float) -> str:
    """Put a value into the features of one image; its name."""
    with h5py.File(folder / "maskrcnn_train_grid8.h5", "r+") as file:
        name = sorted(file)[3]
        file[name]["features"][0, 0] = value
    return name


def test_damaged_features_are_named(spoilt, tmp_path):
    command = ("main.py", *SMALL(spoilt, tmp_path), "exp_id", "x", "scheduler.max_steps", "40")
    name = spoil(spoilt, float("nan"))
    said = fails(*command, "num_workers", "1")
    assert "maskrcnn_train_grid8.h5" in said and f"{name} contain NaN" in said

    # two, started as SLURM does it: both say it is wrong input, so that nobody starts them again
    log = tmp_path / "log"
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    both = [begin(*command, log=log, **where, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    assert [ended(process, log) for process in both] == [FAILED, FAILED], log.read_text()
    said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 2 and all(name in line for line in said)
    assert sum("another process ended the run" in line for line in said) == 1

    path = spoilt / "maskrcnn_train_grid8.h5"
    os.truncate(path, path.stat().st_size // 2)
    said = fails(*command)
    assert "maskrcnn_train_grid8.h5" in said and "prepare.py features" in said


def test_batches_that_are_not_finite_are_skipped_and_named(spoilt, tmp_path):
    name = spoil(spoilt, 3e38)
    common = (*SMALL(spoilt, tmp_path), "test_interval", "0", "scheduler.max_steps", "20")
    said = run("main.py", *common, "exp_id", "x")
    line = next(line for line in said.splitlines() if "is skipped" in line)
    assert name in line and "the gradient is not finite (images" in line
    weights = read_tensors(tmp_path / "x" / "model_0000020.pth")
    assert all(value.isfinite().all() for value in weights.values())
