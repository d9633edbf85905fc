"""Named evaluation protocols, which fix every choice that the metrics of pictures depend on.

Papers differ in them, and a figure means little without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from generations.config import default_config
from generations.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """What a name stands for.

    Attributes:
        text: in words, for the record beside the figures.
        pictures: how many there must be.
        keys: of the configuration, nested ones with dots, and their values.
    """

    text: str
    pictures: int
    keys: Mapping[str, Any]


_CLIP = {"clip.model": "ViT-B-32", "clip.prompt": "A photo depicts "}
_COCO = {"test_val2014": 1, "test_num": -1, "seed": 123, "eval_skip_bad": 0} | _CLIP
PROTOCOLS = {
    "coco30k": Protocol(
        "the first caption of 30,000 images of val2014 (Karpathy's test, val, restval, in this "
        "order), one picture each; real images cropped to the middle square and resized to 256; "
        "TensorFlow's Inception; CLIP ViT-B/32; R-precision among 100 captions drawn by seed 123",
        30_000,
        _COCO
        | {"eval_protocol": "tf", "eval_resize": "crop", "eval_image_size": 256, "num_samples": 1}
        | {"eval_fid": 1, "eval_clipscore": 1, "eval_rprec": 1},
    ),
    "original": Protocol(
        "as coco30k, but as the original has it: real images squashed to 256 (the aspect ratio is "
        "not kept), torchvision's Inception",
        30_000,
        _COCO
        | {"eval_protocol": "torchvision", "eval_resize": "squash", "eval_image_size": 256}
        | {"eval_fid": 1, "eval_clipscore": 1, "eval_rprec": 1, "num_samples": 1},
    ),
}


def apply_protocol(cfg: CfgNode, name: str | None) -> CfgNode:
    """The configuration with a protocol's choices.

    Args:
        cfg: as loaded.
        name: of `PROTOCOLS`; None: leave all as it is.

    Raises:
        UserError: the configuration says something else, which is not the default either.
    """
    if name is None:
        return cfg
    changed, usual = cfg.clone(), default_config()
    changed.defrost()
    for key, value in PROTOCOLS[name].keys.items():
        *parents, last = key.split(".")
        node, default = changed, usual
        for parent in parents:
            node, default = node[parent], default[parent]
        if node[last] not in (value, default[last]):
            raise UserError(
                f"--protocol {name} sets {key} to {value!r}, but the configuration sets it to "
                f"{node[last]!r}: leave out one of them"
            )
        node[last] = value
    changed.freeze()
    return changed


def check_count(name: str | None, pictures: int) -> None:
    """Raise a UserError unless there are as many pictures as the protocol asks for."""
    if name is not None and pictures != PROTOCOLS[name].pictures:
        raise UserError(
            f"--protocol {name} needs {PROTOCOLS[name].pictures:,} pictures, but there are "
            f"{pictures:,}: paint them with sample_images.py --protocol {name}, or evaluate "
            "without --protocol"
        )


def described(name: str | None, cfg: CfgNode) -> dict[str, Any]:
    """What goes beside the figures."""
    keys = ("eval_resize", "eval_image_size", "eval_protocol", "seed", "test_val2014", "test_num")
    choices = {key: cfg[key] for key in keys}
    return {"choices": choices} | (
        {} if name is None else {"protocol_name": name, "protocol_text": PROTOCOLS[name].text}
    )
