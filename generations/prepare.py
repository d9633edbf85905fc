"""Prepare a dataset from images and captions: `prepare.py STEP key value ...`

Steps; separate several with commas, such as `features,clusters`:
    mini-world  draw the mini world: pictures, captions and a vocabulary
    captions    check captions_file and images_dir, and write the split file dataset_coco
    vocabulary  write vocab_file: the pieces of BERT's vocabulary that the train captions use
    features    grid features of all images
    clusters    codebook of the features, and the cluster ids of all images
    generator   train the network that turns cluster ids into pixels
    clip        train a small CLIP, if clip.model and clip.weights are empty
    all         all of these; vocabulary only if vocab_file is to be made in data_dir, clip only if
                it is to be trained

The configuration names the files; data_dir/manifest.json records how each was made.
features and generator can run in several processes:
    torchrun --nproc_per_node 8 generations/prepare.py features key value ...
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from generations import cli

STEPS = (
    *("mini-world", "captions", "vocabulary", "features", "clusters", "generator", "clip", "all"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and only then import what the command needs."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    from generations.commands.prepare import run

    run(arguments, cfg)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("steps", type=_steps, metavar="STEP[,STEP...]")
    parser.add_argument(
        "--check",
        action="store_true",
        help=(
            "with the step captions: read captions_file and show its content, without writing "
            "anything"
        ),
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        default=(6000, 500, 500),
        metavar=("TRAIN", "VAL", "TEST"),
        help="number of pictures of the mini world (default: 6000 500 500)",
    )


def _steps(text: str) -> list[str]:
    steps = text.split(",")
    for step in steps:
        if step not in STEPS:
            raise ArgumentTypeError(f"there is no step {step!r}; the steps: {', '.join(STEPS)}")
    return steps


if __name__ == "__main__":
    cli.run(main)
