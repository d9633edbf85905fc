"""Upload an export to the Hugging Face hub: `python generations/push.py FOLDER OWNER/NAME`

FOLDER is a folder that export.py wrote. OWNER/NAME is created if it does not exist, and is private
unless you give --public. Log in first: `hf auth login`. To start a run from it, set
`pretrained_model hf:OWNER/NAME`.
"""

import logging
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from generations import cli
from generations.errors import UserError
from generations.libraries import library

hub = library("huggingface_hub")
NEEDED = ("config.json", "config.yaml", "model.safetensors", "README.md")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and upload."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that export.py wrote")
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="repository on the Hugging Face hub"
    )
    parser.add_argument(
        "--public", action="store_true", help="make a new repository public (default: private)"
    )
    parser.add_argument("--message", default="generations export", help="message of the commit")
    options = parser.parse_args(argv)
    address = push(options.folder, options.repository, options.public, options.message)
    logger.info("pushed %s to %s", options.folder, address)


def push(folder: Path, repository: str, public: bool = False, message: str = "") -> str:
    """Upload an exported folder; returns the address of its commit.

    Raises:
        UserError: the folder is no export, or the hub does not take it.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not an exported run ({', '.join(missing)} missing): make one with python "
            "generations/export.py exp_id X --out FOLDER"
        )
    if repository.count("/") != 1:
        raise UserError(f"the repository must have the form OWNER/NAME, not {repository!r}")
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message=message
        )
    except (OSError, ValueError) as error:  # HfHubHTTPError and missing tokens are of these
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise UserError(
            f"{folder} could not be uploaded ({reason}): check the network, OWNER/NAME and your "
            "login (hf auth login)"
        ) from None
    return str(done)


if __name__ == "__main__":
    cli.run(main)
