"""What the log says of speed: operations by the shapes are those that are counted."""

import logging

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from generations.batch import Batch
from generations.modeling import FeatureLevels, ModelSize, UnifiedTransformer, choose_library
from generations.modeling.work import stage1_operations
from generations.objectives import TASKS, TaskContext
from generations.runtime import Runtime, generator
from generations.runtime.cards import card_name, peak_tflops
from generations.training.monitor import Monitor
from generations.training.speed import Speed

SIZE = ModelSize(64, 2, 80, 2, 2, 3, 1300, 0.1, grid_size=4, feature_size=48, clusters=90)
LENGTH, ROWS = 7, 40


def new_batch(captions: int) -> Batch:
    source = generator(1)
    text_ids = torch.randint(104, 1300, (ROWS, LENGTH + 1), generator=source)
    further = torch.randint(104, 1300, (ROWS, captions - 1, LENGTH + 1), generator=source)
    text_ids[:, -1] = further[..., -1] = 0  # captions are cropped to L ids
    return Batch(
        ["x"] * ROWS,
        [""] * ROWS,
        text_ids,
        text_ids,
        torch.ones(ROWS, dtype=torch.long),
        torch.randint(0, 90, (ROWS, 16), generator=source),
        torch.randn(ROWS, 16, 48, generator=source),
        torch.zeros(ROWS, 5, 25, dtype=torch.long),
        further if captions > 1 else None,
    )


@pytest.mark.parametrize(
    ("task", "causal", "captions"),
    [("xe_i2t", False, 1), ("xe_t2i", False, 1), ("xe_i2t", True, 1), ("xe_i2t", True, 3)],
)
def test_operations_by_the_shapes_are_those_of_an_iteration(task, causal, captions):
    model = UnifiedTransformer(SIZE, causal=causal)
    choose_library(model, "torch")
    batch = new_batch(captions)
    counter = FlopCounterMode(display=False)
    context = TaskContext(generator(1), FeatureLevels(), mask_per_sample=True)
    with sdpa_kernel(SDPBackend.MATH), counter:
        TASKS[task](model, batch, context).loss.backward()
    counted = counter.get_total_flops() / ROWS
    # boxes are embedded once a batch; forty masks are not quite of the mean size
    expected = stage1_operations(SIZE, LENGTH, causal, captions)[task]
    assert expected == pytest.approx(counted, rel=0.03)


def test_the_full_size_takes_what_docs_performance_says():
    found = stage1_operations(ModelSize(), 17)
    assert found["xe_i2t"] / 6 / 1e9 == pytest.approx(6.8, abs=0.15)
    assert found["xe_t2i"] / 6 / 1e9 == pytest.approx(8.0, abs=0.15)


def test_shares_are_of_cards_whose_peak_is_known(tmp_path, caplog):
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert peak_tflops("NVIDIA H100 PCIe") == 756.0
    assert peak_tflops("NVIDIA A100-SXM4-40GB") == 312.0
    assert peak_tflops("NVIDIA L4") == 121.0
    assert peak_tflops("NVIDIA L40S") == 362.0
    assert peak_tflops("NVIDIA T400") is None and peak_tflops("cpu") is None
    assert card_name(torch.device("cpu")) == "cpu"
    speed = Speed({"xe_i2t": 2e12}, 2, 100.0)
    speed.record("xe_i2t", 30)
    assert speed.figures(1.0) == {"tflops": 30.0, "share_of_peak": 0.3}
    speed.record("xe_i2t", 30)
    speed.record("rl_i2t", 30)
    assert speed.figures(1.0) == {}
    for peak, words in ((None, "TFLOP/s, "), (1e-9, "% of the card's peak), ")):
        monitor = Monitor(
            tmp_path, Runtime(torch.device("cpu")), 1, 2, 1, speed=Speed({"a": 1e9}, 1, peak)
        )
        with caplog.at_level(logging.INFO):
            monitor.record(1, 4, {"loss/a": torch.ones(())})
        monitor.close()
        assert words in caplog.messages[-1]
