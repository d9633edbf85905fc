"""Preparation by several processes, killed and begun again."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from generations.checkpoint import read_tensors
from generations.datasets import open_feature_store
from generations.datasets.mini_world import write_vocabulary, write_world

from .commands import ROOT, SMALL, call
from .faults import children, kill

# the entry, with small parts and an extractor that takes its time
SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from generations import cli, prepare
from generations.datasets import feature_writers
from generations.features import build_extractor
from generations.features.extractors.patches import Patches
from generations.image_generator.trainer import GeneratorTrainer

def slowly(function):
    def call(*arguments):
        time.sleep(0.05)
        return function(*arguments)
    return call

feature_writers.PART_SIZE = 2
Patches.__call__ = slowly(Patches.__call__)
GeneratorTrainer.step = slowly(GeneratorTrainer.step)
cli.run(prepare.main)
"""
TWO = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d")
TWO += ("--rdzv_endpoint=localhost:0",)
GENERATOR = ("generator.train_steps", "6", "generator.batch_size", "4")
GENERATOR += ("generator.adversarial_weight", "1", "generator.discriminator_channels", "4")
GENERATOR += ("generator.report_every", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=30, val=5, test=5)
    write_vocabulary(folder / "vocab.txt")
    (folder / "slow.py").write_text(SLOW.format(root=str(ROOT)))
    return folder


def begin(world: Path, out: str, step: str, *more: str, launcher: tuple[str, ...] = ()):
    """Start a step in a process group of its own; its files go to the folder `out`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [
            *(sys.executable, *launcher, str(world / "slow.py"), step, *SMALL(world)),
            *("data_dir", str(world / out), "features.batch_size", "2", *more),
        ],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def do(world: Path, out: str, step: str, *more: str, launcher: tuple[str, ...] = ()) -> str:
    process = begin(world, out, step, *more, launcher=launcher)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said[-3000:]
    return said


def kill_when(process: subprocess.Popen, reached) -> None:
    """kill -9 of all its processes, as soon as it is far enough."""
    while not reached():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    # a launcher's processes are in groups of their own
    for pid in (process.pid, *children(process.pid)):
        kill(pid)
    process.communicate()


def marks(folder: Path) -> int:
    return sum(int(np.fromfile(f, np.uint8).sum()) for f in folder.glob(".*.parts/done-*"))


def test_two_killed_processes_make_the_file_of_one(world):
    do(world, "one", "captions")
    do(world, "one", "features")
    do(world, "two", "captions")
    for enough in (3, 8):
        process = begin(world, "two", "features", launcher=TWO)
        kill_when(process, lambda enough=enough: marks(world / "two") >= enough)
        assert not list((world / "two").glob("*.packed"))
    before = marks(world / "two")
    assert before >= 8
    said = do(world, "two", "features", launcher=TWO)
    assert "features: resuming after" in said
    names = [f"maskrcnn_{side}_grid8.packed" for side in ("train", "valid")]
    for name in names:
        assert (world / "two" / name).read_bytes() == (world / "one" / name).read_bytes()
    assert not list((world / "two").glob(".*"))
    store = open_feature_store([world / "two" / name for name in names], 4, 768)
    assert len(list(store.names())) == 40


def test_killed_generator_training_ends_as_the_undisturbed_one(world):
    do(world, "whole", "captions,features,clusters")
    for out in ("killed", "shared"):
        shutil.copytree(world / "whole", world / out)
    do(world, "whole", "generator", *GENERATOR)
    process = begin(world, "killed", "generator", *GENERATOR)
    kill_when(process, (world / "killed" / "generator_training.pth").exists)
    assert not (world / "killed" / "generator.pth").exists()
    said = do(world, "killed", "generator", *GENERATOR)
    assert "resuming after step" in said
    do(world, "shared", "generator", *GENERATOR, launcher=TWO)
    whole, killed, shared = (
        read_tensors(world / out / "generator.pth") for out in ("whole", "killed", "shared")
    )
    for name, value in whole.items():
        assert (value == killed[name]).all(), name
        assert (value - shared[name]).abs().max() < 0.05, name
    refused = call("prepare.py", "clusters", *SMALL(world), launcher=TWO)
    assert refused.returncode != 0
    assert "error: the step clusters runs in one process" in refused.stderr
