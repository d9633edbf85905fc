"""The commands of the README, as they are written, in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
LINES = [
    re.sub(r"\s+#.*", "", line)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
# run as they are by .ci/run, except tensorboard, which serves until it is stopped; the demo, which
# does so too, has tests of its own
ELSEWHERE = (
    *("bash scripts/quickstart.sh", "bash scripts/test.sh", "pip install", "tensorboard"),
    "python generations/demo.py",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout in which a small mini world is prepared."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("generations", "configs", "scripts", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "models" / "mini", copy / "models" / "mini")
    sizes = "--sizes 400 20 20 --config configs/mini/stage1.yaml"
    shell(copy, f"python generations/prepare.py mini-world {sizes}")
    settings = "--config configs/mini/stage1.yaml generator.train_steps 5 clip.train_steps 5"
    shell(copy, f"python generations/prepare.py all {settings}")
    return copy


def shell(folder: Path, command: str) -> None:
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    # the copy, and not the checkout that is installed
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"


def test_the_readme_has_its_commands():
    assert len(LINES) > 8
    for wanted in ("main.py", "inference.py", "sample_images.py", "evaluate.py", "torchrun"):
        assert any(wanted in line for line in LINES), wanted


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith(ELSEWHERE)])
def test_command(checkout, line):
    shell(checkout, line)
