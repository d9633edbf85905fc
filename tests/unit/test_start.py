"""Commands answer at once: what they need is imported when it is needed (no timings here)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from generations import cli
from generations.config import known_keys
from generations.evaluate import _options
from generations.metrics.captions import METRICS

ROOT = Path(__file__).parents[2]
ENTRIES = ("main", "inference", "sample_images", "prepare", "evaluate", "report", "demo", "export")
ENTRIES += ("convert_checkpoint", "convert_features", "push")
# each takes a tenth of a second or more
SLOW = {"transformers", "open_clip", "timm", "faiss", "torchvision", "matplotlib", "scipy", "sympy"}
SLOW |= {"gradio", "torch_fidelity", "pycocoevalcap", "huggingface_hub", "torch._dynamo"}
SLOW |= {"torch._inductor", "torch.distributed.fsdp", "torch.utils.tensorboard"}


def imported(code: str) -> set[str]:
    """The modules that a fresh Python has after running a piece of code."""
    code += "\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_comes_before_torch():
    code = f"""
import contextlib
from importlib import import_module
for name in {ENTRIES}:
    with contextlib.suppress(SystemExit):
        import_module("generations." + name).main(["--help"])
"""
    modules = imported(code)
    assert {f"generations.{name}" for name in ENTRIES} <= modules
    assert not {"torch", "numpy", "PIL", *SLOW} & modules


def test_a_caption_imports_only_what_it_uses():
    code = """
from generations.inference import main
main("--config models/mini/config.yaml --image models/mini/examples/2.png device cpu".split())
"""
    modules = imported(code)
    assert "torch" in modules
    assert not SLOW & modules


def test_help_shows_all_keys_with_what_they_do(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse("", ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "\noptimisation:\n" in text
    assert "  solver.lr 5e-05" in text
    assert "learning rate" in text
    first = {
        line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2:3] != " "
    }
    assert known_keys() <= first


def test_evaluates_help_names_the_metrics_there_are(capsys):
    with pytest.raises(SystemExit):
        cli.parse("", ["--help"], _options)
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in METRICS)
