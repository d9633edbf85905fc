"""Raw images and captions -> a dataset: what prepare.py runs."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from generations import cli, runtime
from generations.datasets.mini_world import write_vocabulary, write_world
from generations.errors import UserError
from generations.files import remove_abandoned
from generations.pipelines.captions import check_captions, check_sources, prepare_captions
from generations.pipelines.clip import is_small_clip
from generations.pipelines.preparation import (
    makes_vocabulary,
    prepare_clip,
    prepare_clusters,
    prepare_features,
    prepare_generator,
    prepare_vocabulary,
)

logger = logging.getLogger(__name__)

STEPS = {
    "captions": prepare_captions,
    "vocabulary": prepare_vocabulary,
    "features": prepare_features,
    "clusters": prepare_clusters,
    "generator": prepare_generator,
    "clip": prepare_clip,
}
OPTIONAL = {"vocabulary": makes_vocabulary, "clip": is_small_clip}  # in `all`: if this holds
SHARED = ("features", "generator")  # steps that several processes may do together


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Do the steps that were asked for, in their order."""
    steps: list[str] = arguments.steps
    precision = runtime.Precision(half=False, tf32=bool(cfg.tf32))
    with runtime.start(cfg.device, bool(cfg.distributed), precision) as here:
        cli.quiet_unless(here.is_main)
        alone = [step for step in steps if step not in SHARED]
        if here.world_size > 1 and alone:
            raise UserError(
                f"the step {alone[0]} runs in one process only: start it with python, not torchrun "
                f"(only {' and '.join(SHARED)} can use several processes)"
            )
        if arguments.check and steps != ["captions"]:
            raise UserError(
                "--check works only with the step captions: prepare.py captions --check ..."
            )
        if arguments.check:
            check_captions(cfg)
            return
        if here.is_main:
            remove_abandoned(cfg.data_dir)
        for step in steps:
            if step == "mini-world":
                draw_mini_world(cfg, arguments.sizes)
            elif step == "all":
                check_sources(cfg)
                for name, prepare in STEPS.items():
                    if name not in OPTIONAL or OPTIONAL[name](cfg):
                        prepare(cfg, here)
            else:
                STEPS[step](cfg, here)


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
