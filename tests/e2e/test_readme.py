"""The commands and the Python of the README and of its two next pages, as they are written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

PAGES = "\n".join(
    (ROOT / page).read_text() for page in ("README.md", "docs/training.md", "docs/python.md")
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES, re.S)


LINES = [
    re.sub(r"\s+#.*", "", line)
    for block in blocks("bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
# run as they are by .ci/run, except tensorboard, which serves until it is stopped; the demo, which
# does so too, has tests of its own
ELSEWHERE = (
    *("bash scripts/quickstart.sh", "bash scripts/test.sh", "pip install", "tensorboard"),
    "python generations/demo.py",
)
# commands of COCO's size and those with the reader's own files run as they are written, each with
# these flags at its end
SHORT = (
    "scheduler.max_steps 2 scheduler.warmup_steps 1 checkpoint_time 2 test_interval 0 log_time 1 "
    "test_num 4 samples_per_gpu 4 num_workers 0 generator.train_steps 3"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout in which a small mini world is prepared."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("generations", "configs", "scripts", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "models" / "mini", copy / "models" / "mini")
    sizes = "--sizes 150 20 20 --config configs/mini/stage1.yaml"
    shell(copy, f"python generations/prepare.py mini-world {sizes}")
    settings = "--config configs/mini/stage1.yaml generator.train_steps 5 clip.train_steps 5"
    shell(copy, f"python generations/prepare.py all {settings}")
    return copy


def shell(folder: Path, command: str) -> str:
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    # the copy, and not the checkout that is installed
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_pages_have_their_commands():
    assert len(LINES) > 8
    for wanted in ("main.py", "inference.py", "sample_images.py", "evaluate.py", "torchrun"):
        assert any(wanted in line for line in LINES), wanted


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith(ELSEWHERE)])
def test_command(checkout, line):
    shell(checkout, line)


def smaller(script: str, config: str, *more: str) -> str:
    """A script of a page whose every `python` has a small configuration at its end."""
    flags = " ".join(("--config", config, SHORT, *more))
    return f'set -e\npython() {{ command python "$@" {flags}; }}\n{script}'


def test_the_commands_of_the_paper(checkout):
    stage1, sampling, evaluation, stage2 = (
        block.replace("gpu_id=0,1,2,3,4,5,6,7; NUM_GPUS=8", "gpu_id=; NUM_GPUS=2")
        for block in blocks("sh")
        if "${exp_id}" in block
    )
    folder = checkout / "models" / "it_generator_stage1"
    shell(checkout, smaller(stage1, "configs/mini/stage1.yaml"))
    checkpoint = folder / "model_0000002.pth"
    shutil.copyfile(checkpoint, folder / "model_0200000.pth")
    sampling = sampling.replace("/path/to/models/ours/it_generator.pth", str(checkpoint))
    named = f"exp_id=it_generator_stage1\n{sampling}\n{evaluation}"
    clips = ("eval_fid 0", "eval_rprec 0", "eval_rprec_hard 0")  # of 4 pictures there are none
    shell(checkout, smaller(named, "configs/mini/stage1.yaml", *clips))
    assert (folder / "captions_test_0000002.json").exists()
    assert (folder / "images_test_0000002" / "manifest.json").exists()
    assert list(folder.glob("metrics_images_test_*.json"))
    shell(checkout, smaller(stage2, "configs/mini/stage2.yaml"))
    assert (checkout / "models/it_generator_stage2/model_0000002.pth").exists()


def test_the_commands_for_own_images(checkout):
    (script,) = (block for block in blocks("sh") if "data/mine" in block)
    script = script.replace("/path/to/images", "data/mini/images")
    script = script.replace("/path/to/captions.json", "data/mini/dataset_mini.json")
    shell(checkout, smaller(script, "configs/mini/photos.yaml"))
    assert list((checkout / "models/mine").glob("captions_test_*.json"))
    assert list((checkout / "models/mine").glob("images_test_*/manifest.json"))


@pytest.mark.parametrize("place", range(len(blocks("python"))))
def test_python(checkout, place):
    path = checkout / f"example_{place}.py"
    path.write_text(blocks("python")[place])
    said = shell(checkout, f"python {path.name}")
    assert said.strip(), "it shows nothing"
    if "birds.png" in path.read_text():
        assert (checkout / "birds.png").stat().st_size > 500
