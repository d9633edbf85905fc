"""scripts/slurm.sh with stand-ins for SLURM's commands."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
shift # --kill-on-bad-exit
SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=4 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$@" >> "$LOG"; fi
"""
PYTHON = """#!/usr/bin/env bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*" >> "$LOG"
[ -z "${SAVES:-}" ] || touch "$SAVES"
if [ -n "${SIGNAL:-}" ]; then kill -USR1 "$PPID"; sleep 0.5; fi
exit "$CODE"
"""


@pytest.fixture
def slurm(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(code: int, **more: str) -> tuple[int, list[str]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        variables = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NODELIST": "all",
            "SLURM_JOB_ID": "7",
            "LOG": str(log),
            "CODE": str(code),
            **more,
        }
        script = str(ROOT / "scripts" / "slurm.sh")
        command = ["bash", script, "run", "seed", "5", "save_dir", str(tmp_path / "my models")]
        done = subprocess.run(command, env=variables, capture_output=True, timeout=60, check=False)
        return done.returncode, log.read_text().splitlines() if log.exists() else []

    return run


def test_tasks_know_their_place(slurm):
    status, said = slurm(0)
    assert status == 0
    arguments = "generations/main.py --config configs/coco/stage1.yaml exp_id run seed 5 save_dir "
    assert said[0].startswith(f"3 1 4 first 20007 {arguments}") and len(said) == 1


@pytest.mark.parametrize("code", [75, 76, 137])
def test_what_can_go_on_goes_back_into_the_queue(slurm, code):
    status, said = slurm(code)
    assert status == 0 and said[1:] == ["requeue 7"]
    status, said = slurm(code, SLURM_RESTART_COUNT="100")
    assert status == code and len(said) == 1


def test_starts_that_save_nothing_come_to_an_end(slurm, tmp_path):
    """Out of memory, or of shared memory, each time at the same place."""
    folder = tmp_path / "my models" / "run"
    ends = [slurm(137)[0] for _ in range(4)]
    assert ends == [0, 0, 0, 137]
    folder.mkdir(exist_ok=True)
    for number in range(5):
        saves = str(folder / f"model_000000{number}.pth")
        assert [slurm(76, SAVES=saves)[0], slurm(76)[0]] == [0, 0]


@pytest.mark.parametrize("code", [1, 2])
def test_what_would_fail_again_does_not(slurm, code):
    status, said = slurm(code)
    assert status == code and len(said) == 1


def test_a_signal_to_the_script_does_not_end_it(slurm):
    status, said = slurm(75, SIGNAL="1")
    assert status == 0 and said[1:] == ["requeue 7"]


def test_outside_of_the_checkout_it_says_so(slurm, tmp_path):
    assert slurm(0, SLURM_SUBMIT_DIR=str(tmp_path)) == (2, [])
