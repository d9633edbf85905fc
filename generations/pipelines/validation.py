"""The test during training: caption and paint the val split, for the curves."""

import logging
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from generations.datasets import clean_caption, read_split, reference_captions
from generations.errors import StopRequested
from generations.metrics.captions import score_captions
from generations.metrics.diversity import bad_endings
from generations.modeling import UnifiedTransformer
from generations.pipelines import assembly
from generations.pipelines.captioning import CaptioningSettings, write_captions
from generations.pipelines.painting import paint
from generations.runtime import Runtime, gather_lists
from generations.training.monitor import Monitor

logger = logging.getLogger(__name__)

SHOWN = 16  # captions and pictures that go to tensorboard


class Validation:
    """Called with an iteration: scores captions of the val split and shows some of both directions.

    The val split and not the test split, which is for the final figures.

    Args:
        cfg: of the run.
        model: whose state is tested.
        runtime: of this process.
        monitor: takes what is found.
        heard: the signal by which this process was asked to stop, or ''.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: UnifiedTransformer,
        runtime: Runtime,
        monitor: Monitor,
        heard: Callable[[], str] = str,
    ):
        records = read_split(cfg.dataset_coco, "val")
        self._records = records[: cfg.test_num] if cfg.test_num >= 0 else records
        self._cfg = cfg
        self._model = model
        self._runtime = runtime
        self._monitor = monitor
        self._heard = heard
        self._tokenizer = assembly.open_tokenizer(cfg)
        self._generator: nn.Module | None = None
        if runtime.is_main and Path(cfg.pretrained_generator).exists():
            self._generator = assembly.load_image_generator(cfg, runtime)

    def __call__(self, iteration: int) -> float | None:
        """Test the model as it is now; its mode is eval afterwards.

        Returns:
            CIDEr-D, the same on all processes; None if there is nothing to test on.

        Raises:
            StopRequested: a process was asked to stop before all captions were written; raised on
                all of them.
        """
        if not self._records:
            return None
        self._model.eval()
        mine = self._records[self._runtime.rank :: self._runtime.world_size]
        batches = assembly.captioning_batches(self._cfg, mine)
        written = write_captions(
            self._model,
            self._tokenizer,
            takewhile(lambda _: not self._heard(), batches),
            CaptioningSettings(self._cfg.text_length, bool(self._cfg.collapse_repeats)),
            self._runtime,
            total=len(mine),
        )
        signals = [name for name in gather_lists([self._heard()], self._runtime) if name]
        if signals and len(written) < len(self._records):
            raise StopRequested(
                f"received {signals[0]} during the test of iteration {iteration}, which is saved; "
                "give the same command again to repeat the test and continue"
            )
        found: list[float] = []
        if self._runtime.is_main:
            hypotheses = {entry["image_id"]: entry["caption"] for entry in written}
            scores = score_captions(
                hypotheses, reference_captions(self._records), ("cider_d", "bleu")
            )
            scores["bad_endings"] = bad_endings(list(hypotheses.values()))
            self._monitor.scalars(iteration, {f"val/{name}": scores[name] for name in scores})
            logger.info(
                "iteration %d: val CIDEr-D %.3f, BLEU-4 %.3f, bad endings %.1f %%",
                *(iteration, scores["cider_d"], scores["bleu4"], 100 * scores["bad_endings"]),
            )
            self._show(iteration, hypotheses)
            found.append(scores["cider_d"])
        return gather_lists(found, self._runtime)[0]

    def _show(self, iteration: int, hypotheses: dict[int, str]) -> None:
        shown = self._records[:SHOWN]
        rows = [f"- {record.name}: {hypotheses[record.image_id]}" for record in shown]
        self._monitor.text(iteration, "val/captions", "\n".join(rows))
        if self._generator is None:
            return
        captions = [clean_caption(record.captions[0]) for record in shown]
        length = self._cfg.text_length
        ids = [self._tokenizer.encode_for_painting(caption, length) for caption in captions]
        pixels, _ = paint(
            self._model, self._generator, torch.tensor(ids, device=self._runtime.device)
        )
        self._monitor.images(iteration, "val/paintings", np.asarray(pixels))
        self._monitor.text(
            iteration, "val/painted_captions", "\n".join(f"- {caption}" for caption in captions)
        )
