"""Console commands, trackers, the hub, and files that other tools read."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml

from generations import __main__ as console
from generations import __version__, push
from generations.errors import UserError
from generations.runtime import Runtime
from generations.training.monitor import Monitor, start_tracker

ROOT = Path(__file__).parents[2]


def test_the_console_starts_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "generations", "train", "seed", "x"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: command line: seed takes a whole number")
    for entry in console.COMMANDS.values():
        assert callable(import_module(f"generations.{entry}").main)


def test_the_console_names_its_commands(capsys):
    console.main([])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in console.COMMANDS)
    with pytest.raises(UserError, match="did you mean 'train'"):
        console.main(["trian"])


# --- trackers


class FakeTracker(SimpleNamespace):
    """What wandb and trackio share: init, log, finish."""

    def __init__(self):
        super().__init__(began={}, logged=[], finished=0)

    def init(self, **arguments):
        self.began = arguments

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_figures_also_go_to_a_tracker(name, tmp_path, monkeypatch):
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, name, fake)
    tracker = start_tracker(name, "my_run", tmp_path, {"seed": 7})
    with_id = {"id": "my_run", "dir": str(tmp_path)} if name == "wandb" else {}
    assert fake.began == {
        "project": "generations", "name": "my_run", "config": {"seed": 7}, "resume": "allow",
        **with_id,
    }  # fmt: skip
    monitor = Monitor(tmp_path, Runtime(torch.device("cpu")), 1, 4, 2, tracker)
    for iteration in (1, 2):
        monitor.record(iteration, 8, {"loss/xe_i2t": torch.tensor(float(iteration))})
    monitor.scalars(2, {"val/cider_d": 0.5})
    monitor.close()
    (step, figures), tested = fake.logged
    assert (step, figures["loss/xe_i2t"]) == (2, 1.5)
    assert set(figures) == {"loss/xe_i2t", "samples_per_second"}
    assert tested == (2, {"val/cider_d": 0.5})
    assert fake.finished == 1


def test_without_a_tracker_none_is_asked_for(tmp_path, monkeypatch):
    assert start_tracker("none", "x", tmp_path, {}) is None
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install wandb"):
        start_tracker("wandb", "x", tmp_path, {})


# --- the hub


class FakeHub:
    """Takes what HfApi is given, or fails as it does."""

    def __init__(self, error: Exception | None = None):
        self.calls: list[tuple] = []
        self.error = error

    def create_repo(self, repository, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append((repository, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, folder_path, commit_message))
        return "https://huggingface.co/me/mini/commit/1"


def test_an_exported_folder_is_pushed(monkeypatch, caplog):
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    folder = ROOT / "models" / "mini"
    with caplog.at_level("INFO"):
        push.main([str(folder), "me/mini", "--message", "first"])
    assert fake.calls == [("me/mini", True, True), ("me/mini", str(folder), "first")]
    assert "commit/1" in caplog.text


def test_what_cannot_be_pushed_is_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"not an exported run \(config.json"):
        push.push(tmp_path, "me/mini")
    with pytest.raises(UserError, match="OWNER/NAME"):
        push.push(ROOT / "models" / "mini", "mini")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(OSError("no\nnetwork")))
    with pytest.raises(UserError, match=r"could not be uploaded .*\(no\).*hf auth login"):
        push.push(ROOT / "models" / "mini", "me/mini")


# --- files that other tools read


def test_files_for_other_tools_say_what_is_so():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["title"] in (ROOT / "README.md").read_text()
    version = (ROOT / ".python-version").read_text().strip()
    assert project["requires-python"] == f">={version}"
    module, _, function = project["scripts"]["generations"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_hooks_and_ci_run_what_the_scripts_run():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    script = (ROOT / "scripts" / "test.sh").read_text().splitlines()
    checks = [line for line in script if line.startswith(("ruff", "pyright"))]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]
    assert [entry.split("&& ")[-1].rstrip("'") for entry in entries] == checks
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["all"]["steps"][-1]["run"] == "bash .ci/run"
    assert (ROOT / ".ci" / "run").is_file()
