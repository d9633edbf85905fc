"""Logits, losses, gradient norms and the optimisation trajectory of the original."""

import goldens
import numpy as np
import pytest
import torch
from torch import nn

from generations.batch import Batch
from generations.config import load_config
from generations.modeling import build_model
from generations.objectives import xe_i2t_loss, xe_t2i_loss
from generations.training.optim import (
    SolverSettings,
    build_optimizer,
    build_scheduler,
    fill_absent_gradients,
)
from generations.vocabulary import MASK

CELLS = 16


def tensors(arrays: dict[str, np.ndarray], prefix: str = "", row: int | None = None) -> dict:
    return {
        name.removeprefix(prefix): torch.from_numpy(
            np.asarray(value if row is None else value[row])
        )
        for name, value in arrays.items()
        if name.startswith(prefix) and value.dtype.kind in "fi" and (row is None or value.ndim > 1)
    }


def as_batch(arrays: dict[str, torch.Tensor]) -> Batch:
    masked = arrays["masked_token_ids"]
    return Batch(
        image_ids=[""] * len(masked),
        captions=[""] * len(masked),
        text_ids=arrays["input_token_ids"],
        masked_text_ids=masked,
        mask_positions=(masked == MASK).long().argmax(1),
        cluster_ids=arrays["cluster_index"],
        features=arrays["grid_features"],
        references=torch.zeros(len(masked), 5, 25, dtype=torch.long),
    )


@pytest.mark.parametrize("size", ["tiny", "released"])
def test_parameter_names_and_shapes_are_the_contract(size):
    cfg = load_config(overrides=goldens.TINY if size == "tiny" else ())
    with torch.device("meta"):
        model = build_model(cfg)
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in goldens.keys(size).items()}


@pytest.mark.parametrize("case", ["c1", "c2", "zs"])
def test_logits(case):
    arrays = tensors(goldens.arrays("a_forward"))
    inputs = "c1" if case == "c1" else "c2"
    text_mask = arrays[f"{inputs}_attention_mask"][:, CELLS:]
    if case == "zs":
        # the zero-shot setting sees ids > 0 whatever it is told
        text_mask = torch.ones_like(text_mask)
    model = goldens.tiny("xlxmert_zeroshot", str(int(case == "zs"))).eval()
    with torch.no_grad():
        text, image = model(
            arrays[f"{inputs}_token_ids"],
            text_mask,
            features=arrays.get(f"{inputs}_grid_features"),
            cluster_ids=arrays.get(f"{inputs}_cluster_index"),
            visual_mask=arrays.get(f"{inputs}_visual_mask"),
        )
    torch.testing.assert_close(text, arrays[f"{case}_text_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(image, arrays[f"{case}_image_logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["xe_i2t", "xe_t2i"])
def test_losses_and_gradient_norms(task):
    arrays = goldens.arrays("b_losses")
    batch = as_batch(tensors(arrays, f"{task}_"))
    model = goldens.tiny()
    if task == "xe_i2t":
        loss = xe_i2t_loss(model, batch)
    else:
        loss = xe_t2i_loss(model, batch, torch.from_numpy(arrays["xe_t2i_selected_idx"]))
    assert loss.item() == pytest.approx(float(arrays[f"{task}_loss"]), rel=1e-5)
    loss.backward()
    fill_absent_gradients(model, set())
    parameters = dict(model.named_parameters())
    names = [str(name) for name in arrays[f"{task}_grad_norm_names"]]
    assert set(names) == set(parameters)
    for name, expected in zip(names, arrays[f"{task}_grad_norms"], strict=True):
        gradient = parameters[name].grad
        if np.isnan(expected):
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert gradient.norm().item() == pytest.approx(expected, rel=1e-4, abs=1e-8), name


@pytest.mark.parametrize(
    ("prefix", "optimizer"), [("hf_", "adamw_transformers"), ("torch_", "adamw")]
)
def test_eight_steps_of_mixed_tasks(prefix, optimizer):
    arrays = goldens.arrays("g_trajectory")
    model = goldens.tiny()
    settings = SolverSettings(optimizer, lr=5e-4, warmup_steps=2, max_steps=8)
    adam = build_optimizer(model, settings)
    scheduler = build_scheduler(adam, settings)
    joined: set[str] = set()
    for step in range(8):
        batch = as_batch(tensors(arrays, row=step))
        if arrays["task_of_step"][step] == "xe_i2t":
            loss = xe_i2t_loss(model, batch)
        else:
            mask = torch.from_numpy(arrays["selected_mask"][step])
            loss = xe_t2i_loss(model, batch, mask.nonzero()[:, 0])
        adam.zero_grad()
        loss.backward()
        fill_absent_gradients(model, joined)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        assert loss.item() == pytest.approx(arrays[f"{prefix}loss"][step], rel=1e-5)
        assert norm.item() == pytest.approx(arrays[f"{prefix}grad_norm"][step], rel=1e-4)
        assert scheduler.get_last_lr()[0] == pytest.approx(arrays[f"{prefix}lr"][step], rel=1e-6)
        adam.step()
        scheduler.step()
    parameters = dict(model.named_parameters())
    names, norms = arrays[f"{prefix}param_names"], arrays[f"{prefix}param_norms"]
    for name, expected in zip(names, norms, strict=True):
        assert parameters[str(name)].norm().item() == pytest.approx(expected, rel=1e-4), name
    finals = [name for name in arrays if name.startswith(f"{prefix}final__")]
    assert finals
    for name in finals:
        ours = parameters[name.split("__")[1]].detach()
        torch.testing.assert_close(ours, torch.from_numpy(arrays[name]), rtol=1e-4, atol=1e-6)
