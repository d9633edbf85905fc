"""All commands under one name: `generations COMMAND ...`, or `python -m generations COMMAND ...`"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from generations import cli
from generations.errors import UserError

# command -> the entry, which `python generations/ENTRY.py` starts as well
COMMANDS = {
    "prepare": "prepare",
    "train": "main",
    "caption": "inference",
    "paint": "sample_images",
    "evaluate": "evaluate",
    "report": "report",
    "demo": "demo",
    "export": "export",
    "push": "push",
    "convert-checkpoint": "convert_checkpoint",
    "convert-features": "convert_features",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; its own --help says what it takes."""
    words = sys.argv[1:] if argv is None else list(argv)
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        sys.stdout.write(_overview())
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"unknown command {name!r}{hint} The commands are {', '.join(COMMANDS)}")
    entry = import_module(f"generations.{COMMANDS[name]}")
    sys.argv = [f"generations {name}", *words[1:]]  # what --help and data-loading workers see
    entry.main()


def _overview() -> str:
    lines = ["usage: generations COMMAND [--config FILE] [key value ...]", ""]
    for name, entry in COMMANDS.items():
        said = (import_module(f"generations.{entry}").__doc__ or "").split("\n")[0]
        lines.append(f"  {name:<20}{said.split(':')[0].rstrip('.')}")
    return "\n".join([*lines, "", "generations COMMAND --help shows its options and all keys.", ""])


def run() -> None:
    """The console command."""
    cli.run(main)


if __name__ == "__main__":
    run()
