"""What the end-to-end tests share."""

from pathlib import Path

import pytest
from commands import SMALL, run


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A prepared mini world of 60 pictures; the folder's name is one that people choose."""
    folder = tmp_path_factory.mktemp("Bilder für Übung 1")
    where = ("data_dir", str(folder))
    run("prepare.py", "mini-world", "--sizes", "40", "10", "10", *SMALL(folder))
    run("prepare.py", "all", *SMALL(folder))
    assert (folder / "manifest.json").exists(), where
    return folder
