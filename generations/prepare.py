"""Raw images and captions -> features, codebook, image generator: `prepare.py STEP key value ...`

Steps:
    mini-world  draw the embedded data set: pictures, captions and a vocabulary
    captions    check captions_file and images_dir, and write the split file dataset_coco
    features    grid features of all images
    clusters    codebook of the features, and the cluster ids of all images
    generator   train the network that turns cluster ids back into pixels
    clip        train a small CLIP, where clip.model and clip.weights are empty
    all         captions, features, clusters, generator and, where it is to be trained, clip

The file names are those of the configuration; data_dir/manifest.json says what was made how.
features and generator may run in several processes:
    torchrun --nproc_per_node 8 generations/prepare.py features key value ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from yacs.config import CfgNode

from generations import cli, runtime
from generations.datasets.mini_world import write_vocabulary, write_world
from generations.errors import UserError
from generations.files import remove_abandoned
from generations.pipelines.captions import check_captions, check_sources, prepare_captions
from generations.pipelines.clip import is_small_clip
from generations.pipelines.preparation import (
    prepare_clip,
    prepare_clusters,
    prepare_features,
    prepare_generator,
)

logger = logging.getLogger(__name__)

STEPS = {
    "captions": prepare_captions,
    "features": prepare_features,
    "clusters": prepare_clusters,
    "generator": prepare_generator,
    "clip": prepare_clip,
}
SHARED = ("features", "generator")  # steps that several processes may do together


def main(argv: Sequence[str] | None = None) -> None:
    """Do one step, or all."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    precision = runtime.Precision(half=False, tf32=bool(cfg.tf32))
    with runtime.start(cfg.device, bool(cfg.distributed), precision) as here:
        cli.quiet_unless(here.is_main)
        if here.world_size > 1 and arguments.step not in SHARED:
            raise UserError(
                f"the step {arguments.step} runs in one process: start it with python, not "
                f"torchrun; {' and '.join(SHARED)} may run in several"
            )
        if here.is_main and not arguments.check:
            remove_abandoned(cfg.data_dir)
        if arguments.check and arguments.step != "captions":
            raise UserError("--check belongs to the step captions: prepare.py captions --check ...")
        if arguments.check:
            check_captions(cfg)
        elif arguments.step == "mini-world":
            draw_mini_world(cfg, arguments.sizes)
        elif arguments.step == "all":
            check_sources(cfg)
            for name, step in STEPS.items():
                if name != "clip" or is_small_clip(cfg):
                    step(cfg, here)
        else:
            STEPS[arguments.step](cfg, here)


def _options(parser: ArgumentParser) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("step", choices=("mini-world", *STEPS, "all"))
    parser.add_argument(
        "--check",
        action="store_true",
        help="with the step captions: read captions_file, say what it holds, and write nothing",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        default=(6000, 500, 500),
        metavar=("TRAIN", "VAL", "TEST"),
        help="pictures of the mini world (default: 6000 500 500)",
    )


def draw_mini_world(cfg: CfgNode, sizes: Sequence[int]) -> None:
    """Draw the mini world beside captions_file, or into data_dir if that is empty."""
    folder = Path(cfg.captions_file).parent if cfg.captions_file else Path(cfg.data_dir)
    train, val, test = sizes
    captions = write_world(folder, train=train, val=val, test=test)
    vocabulary = folder / "vocab.txt"
    words = write_vocabulary(vocabulary)
    logger.info(
        "drew %d pictures; to use them: images_dir %s captions_file %s vocab_file %s "
        "model.vocab_size %d",
        *(sum(sizes), folder / "images", captions, vocabulary, words),
    )


if __name__ == "__main__":
    cli.run(main)
