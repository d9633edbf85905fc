"""Imports run one way (CONTRIBUTING.md, "Structure")."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "generations"
EVERYWHERE = {"batch", "errors", "files", "libraries", "progress", "vocabulary", ""}
LEVELS = {
    1: {"modeling", "checkpoint", "image_generator", "datasets", "features", "metrics", "runtime"},
    2: {"decoding", "rewards", "objectives"},
    3: {"training"},
    4: {"cli", "pipelines", "reporting", "main", "inference", "sample_images", "evaluate"},
}
LEVELS[1] |= {"config", "clip", "efficientnet"}
LEVELS[4] |= {"prepare", "report", "convert_checkpoint", "convert_features", "demo", "export"}
LEVELS[4] |= {"commands", "push", "__main__"}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}
# what a room of level 1 or 2 may see of its own level, and why
BESIDE = {
    ("objectives", "decoding"),  # tasks train on decoded sequences
    ("objectives", "rewards"),
    ("rewards", "metrics"),  # one CIDEr-D and one CLIP score for both
    ("features", "checkpoint"),  # extractors read files of weights as safely as models do
    ("features", "clip"),  # one loader of CLIPs
    ("efficientnet", "checkpoint"),
    *(("features", "efficientnet"), ("clip", "efficientnet")),  # one network for both
    ("checkpoint", "modeling"),  # save_pretrained and from_pretrained build the model
    ("checkpoint", "config"),
}
READS_CONFIG = {
    "config",
    "checkpoint",
    "features",
    "modeling",
    "image_generator",
}  # builders take a CfgNode


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("generations", "torch", "yacs")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return [
        path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent != PACKAGE
    ]


def test_every_room_has_a_level():
    rooms = {room_of(path) for path in files()}
    assert rooms <= LEVEL.keys() | EVERYWHERE, rooms - LEVEL.keys() - EVERYWHERE


def test_nothing_imports_what_lies_above_or_beside():
    wrong = []
    for path in files():
        room = room_of(path)
        for name in imports(path):
            if not name.startswith("generations"):
                continue
            other = [*name.split("."), ""][1]
            allowed = other in EVERYWHERE or other == room or (room, other) in BESIDE
            if room in EVERYWHERE:
                ok = other in EVERYWHERE
            elif other in EVERYWHERE or other not in LEVEL or LEVEL[room] == 4:
                ok = True
            else:
                ok = allowed or LEVEL[other] < LEVEL[room]
            if not ok:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, wrong


def test_imports_stand_at_the_top():
    """But for `main` of an entry, which reads the command line before anything large is imported.

    A large library that a file may do without is a `generations.libraries.library`.
    """
    for path in files():
        tree = ast.parse(path.read_text())
        entry = path.parent == PACKAGE and LEVEL.get(room_of(path)) == 4
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if entry and function.name == "main":
                    continue
                inner = [
                    n for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))
                ]
                assert not inner, f"{path}:{inner[0].lineno}: import inside {function.name}"


def test_only_the_runtime_sees_torch_distributed_and_only_few_the_configuration():
    for path in files():
        names = imports(path)
        if room_of(path) != "runtime":
            assert not any("torch.distributed" in name for name in names), path
        if LEVEL.get(room_of(path), 1) < 4 and room_of(path) not in READS_CONFIG:
            assert not any(name.startswith("yacs") for name in names), path
