"""What the command-line entries share: arguments, logging, and errors as one line."""

import itertools
import logging
import os
import shutil
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from textwrap import wrap

from yacs.config import CfgNode

from generations.config import documented_keys, known_keys, load_config
from generations.errors import FAILED, LOST, STOPPED, ProcessLostError, StopRequested, UserError

INDENT = " " * 32  # of what a key does, in --help


def parse(
    description: str,
    argv: Sequence[str] | None = None,
    extra: Callable[[ArgumentParser], None] | None = None,
) -> tuple[Namespace, CfgNode]:
    """Read a command line: options of the entry, `--config FILE` (repeatable), `key value` pairs.

    Args:
        description: the entry's docstring, shown by --help.
        argv: the arguments; None: those of the process.
        extra: adds the entry's own arguments.

    Returns:
        The entry's arguments, and the configuration.

    Raises:
        UserError: see `load_config`.
        SystemExit: --help, or an unknown option.
    """
    parser = ArgumentParser(
        description=description,
        epilog=_keys_in_groups(),
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    if extra is not None:
        extra(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="configuration file (YAML); may be repeated",
    )
    # torch.distributed.launch passes it; the environment says the same
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=SUPPRESS)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key value",
        help="configuration keys and values, such as: seed 7; all keys are listed below",
    )
    pairs, rest = take_overrides(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_intermixed_args(rest)
    return arguments, load_config(arguments.config, [*pairs, *arguments.overrides])


def _keys_in_groups() -> str:
    """All keys for --help, each with its default and what default.yaml says of it."""
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    lines = [
        "configuration keys and their defaults; set them by `key value` or in a file of --config:"
    ]
    for group, keys in documented_keys().items():
        lines += ["", *wrap(f"{group}:", width)]
        for key in keys:
            default = key.default if key.default != "" else "''"
            if isinstance(default, list):
                default = ",".join(map(str, default))
            head = f"  {key.name} {default}".ljust(31)
            lines += wrap(f"{head} {key.description}", width, subsequent_indent=INDENT)
    return "\n".join(lines)


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the `key value` pairs of known keys out of a command line.

    They may stand anywhere, also behind an option that takes several values (`--image FILE ...`).
    A word that directly follows an option is its value, even if it is also the name of a key.

    Returns:
        the pairs, flat, and the rest; what is in the rest and no option is a pair with a mistake.
    """
    keys = known_keys()
    pairs: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        is_value = bool(rest) and rest[-1].startswith("--") and "=" not in rest[-1]
        if word in keys and not is_value:
            pairs += [word, *itertools.islice(words, 1)]
        else:
            rest.append(word)
    return pairs, rest


def run(main: Callable[[], None]) -> None:
    """Run an entry: set up logging, and turn expected errors into one line and an exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # a tokenizer's threads would not survive the forking of data-loading workers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(FAILED)
    except StopRequested as stop:
        sys.stderr.write(f"stopped: {stop}\n")
        sys.exit(STOPPED)
    except ProcessLostError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(LOST)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def one_line(error: UserError) -> str:
    """The message of an error in one line; from a worker process, the last line of it."""
    lines = str(error).strip().splitlines() or [""]
    if "DataLoader worker" in lines[0]:
        return lines[-1].split("UserError: ", 1)[-1]
    return " ".join(lines)


def quiet_unless(is_main: bool) -> None:
    """Let only the main process log more than warnings."""
    if not is_main:
        logging.getLogger().setLevel(logging.WARNING)
