"""The defaults of default.yaml, and what its comments say of each key."""

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

FILE = Path(__file__).with_name("default.yaml")
LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>.*?)(?:  # (?P<comment>.*))?")


@dataclass(frozen=True)
class Key:
    """A key of the configuration, nested ones with dots, and its description in one line."""

    name: str
    default: Any
    description: str


def default_config() -> CfgNode:
    """Fresh defaults: the full-size model on COCO (SPEC 4). Flags are 0/1."""
    return CfgNode(deepcopy(_values()))


def documented_keys() -> dict[str, list[Key]]:
    """All keys as default.yaml has them: group -> keys."""
    groups: dict[str, list[Key]] = {}
    keys: list[Key] = []
    node, prefix, notes = _values(), "", []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            keys = groups.setdefault(line[3:], [])
        elif line.lstrip().startswith("# "):
            notes.append(line.lstrip()[2:])
        elif found := LINE.fullmatch(line):
            if not found["indent"]:
                node, prefix = _values(), ""
            if not found["value"]:  # a group of keys: solver.lr
                node, prefix = node[found["key"]], f"{found['key']}."
            else:
                said = " ".join([*notes, found["comment"] or ""]).strip()
                keys.append(Key(prefix + found["key"], node[found["key"]], said))
            notes = []
        else:
            notes = []
    return groups


@cache
def _values() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
