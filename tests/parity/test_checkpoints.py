"""Checkpoints of the original and of X-LXMERT: names, full-size strict loads, training state."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from goldens import FOLDER, TINY, arrays, fill, formula, keys

from generations.batch import Batch
from generations.checkpoint import (
    load_generator_weights,
    load_optimizer_state,
    load_weights,
    optimizer_state_by_name,
    read_training_checkpoint,
)
from generations.checkpoint.keys import detect_format, rename_keys
from generations.config import load_config
from generations.errors import UserError
from generations.image_generator import build_generator
from generations.modeling import build_model
from generations.objectives import xe_i2t_loss, xe_t2i_loss
from generations.vocabulary import MASK

RENAMES = json.loads((FOLDER / "j_rename_xlxmert_keys.json").read_text())
TIED = "classifier.predictions.decoder.weight"
ORIGINAL = FOLDER / "tiny_model_0000002.pth"


@pytest.fixture(scope="module")
def saved():
    return read_training_checkpoint(ORIGINAL)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENAMES)
def test_renames_as_the_original(name):
    pairs = dict(RENAMES[name])
    form = detect_format(pairs)
    assert form == ("bert" if name == "labert_bert_pth" else "xlxmert")
    # SPEC 12: the original leaves un-prefixed obj_predict_head.* alone
    fixed = {
        old: old.replace("obj_predict_head", "img_classifier")
        if new.startswith("obj_predict_head.")
        else new
        for old, new in pairs.items()
    }
    assert rename_keys(pairs, form) == fixed


def test_xlxmert_names_fill_all_but_the_codebook():
    ours = set(rename_keys(dict(RENAMES["module_prefixed_gamma_beta"]), "xlxmert").values())
    assert keys("released").keys() - ours == {"cluster_codebook.weight"}


def test_xlxmert_start_at_tiny_size(tmp_path):
    """A file with X-LXMERT's names fills the model; its answer head is left over."""
    model = build_model(load_config(overrides=TINY))
    want = {name: formula(name, tuple(t.shape)) for name, t in model.state_dict().items()}
    want[TIED] = want["embedding_layer.word_embeddings.weight"]
    pairs = dict(RENAMES["module_prefixed_weight_bias"])
    state = {old: want[new] for old, new in pairs.items() if new in want}
    state |= {old: torch.ones(1) for old in pairs if "answer_head" in old}
    torch.save(state, tmp_path / "Epoch20_LXRT.pth")
    report = load_weights(model, tmp_path / "Epoch20_LXRT.pth")
    assert report.missing == ["cluster_codebook.weight"]
    assert all("answer_head" in name for name in report.left_over)
    assert len(report.left_over) == 2
    for name, value in model.state_dict().items():
        assert name in report.missing or torch.equal(value, want[name]), name


# --- full size -----------------------------------------------------------------------------------

FULL_SIZE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from goldens import formula, keys
from generations.checkpoint import load_weights
from generations.config import load_config
from generations.errors import UserError
from generations.modeling import build_model

path, tied = Path(sys.argv[2]), "classifier.predictions.decoder.weight"
state = {k: formula(k, tuple(shape)) for k, (shape, _) in keys("released").items() if k != tied}
state[tied] = state["embedding_layer.word_embeddings.weight"]
torch.save({"model": state, "iteration": 200000, "amp": {}}, path)
del state
model = build_model(load_config())
report = load_weights(model, path)
assert report.missing == report.left_over == []
assert set(report.taken) == set(keys("released")), "names"
for name in ("mask_feat", "encoder.x_layers.4.visn_output.LayerNorm.weight", tied):
    owner = "embedding_layer.word_embeddings.weight" if name == tied else name
    assert torch.equal(model.state_dict()[name], formula(owner, tuple(keys("released")[name][0])))
try:
    load_weights(build_model(load_config(overrides=["grid_cluster_num", "9999"])), path)
except UserError as error:
    assert "cluster_codebook.weight is (10000, 2048)" in str(error), error
    assert "grid_cluster_num 10000" in str(error), error
else:
    raise AssertionError("a codebook of another size was loaded")
finally:
    path.unlink()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB
"""


@pytest.mark.slow
def test_full_size_strict_load_in_little_memory(tmp_path):
    """Slow (some 20 s): 240 million weights in a process of its own, to measure its peak."""
    command = [sys.executable, "-c", FULL_SIZE, str(FOLDER.parent), str(tmp_path / "full.pth")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) * 1024 < 6e9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_image_generator_strict_load(tmp_path, prefix):
    state = {
        name.removeprefix("module."): formula(name.removeprefix("module."), tuple(shape))
        for name, (shape, _) in keys("g60").items()
    }
    path = tmp_path / "G_60.pth"
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    generator = build_generator(load_config())
    load_generator_weights(generator, path)
    loaded = generator.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    state.popitem()
    torch.save(state, path)
    with pytest.raises(UserError, match=r"G_60\.pth.*1 missing"):
        load_generator_weights(generator, path)


# --- a checkpoint that the original wrote --------------------------------------------------------


def test_original_checkpoint_loads(saved):
    model = build_model(load_config(overrides=TINY))
    report = load_weights(model, ORIGINAL)
    assert (report.missing, report.left_over) == ([], [])
    raw = torch.load(ORIGINAL, weights_only=True)
    assert all(torch.equal(raw["model"][name], t) for name, t in model.state_dict().items())
    assert (saved.iteration, saved.extra) == (2, {})
    assert saved.scheduler is not None
    assert saved.scheduler["last_epoch"] == 2


def test_order_of_parameters_is_the_originals(saved):
    """Every parameter, the frozen codebook too, in the order of the model: matched by shape."""
    model = build_model(load_config(overrides=TINY))
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name in keys("tiny") if name != TIED]
    assert names == list(arrays("g_trajectory")["torch_param_names"])
    named = optimizer_state_by_name(saved.optimizer, names)
    without = {name for name in names if name not in named["state"]}
    assert without == {
        *("pooler.dense.weight", "pooler.dense.bias", "cluster_codebook.weight"),
        *("classifier.seq_relationship.weight", "classifier.seq_relationship.bias"),
    }
    for name, moments in named["state"].items():
        assert moments["exp_avg"].shape == model.get_parameter(name).shape


def test_original_checkpoint_of_another_codebook_is_refused():
    model = build_model(load_config(overrides=[*TINY, "grid_cluster_num", "60"]))
    with pytest.raises(UserError) as caught:
        load_weights(model, ORIGINAL)
    message = str(caught.value)
    assert "cluster_codebook.weight is (50, 24), the model needs (60, 24)" in message
    assert "grid_cluster_num 50" in message


def stage_1_loss(model, data, step):
    rows = {name: torch.from_numpy(data[name][step]) for name in data if data[name].ndim > 2}
    masked = rows["masked_token_ids"]
    batch = Batch(
        image_ids=[""] * len(masked),
        captions=[""] * len(masked),
        text_ids=rows["input_token_ids"],
        masked_text_ids=masked,
        mask_positions=(masked == MASK).int().argmax(1),
        cluster_ids=rows["cluster_index"],
        features=rows["grid_features"],
        references=masked[:, None],
    )
    if data["task_of_step"][step] == "xe_i2t":
        return xe_i2t_loss(model, batch)
    return xe_t2i_loss(model, batch, torch.from_numpy(data["selected_mask"][step].nonzero()[0]))


@pytest.mark.parametrize("backwards", [False, True])
def test_training_goes_on_from_the_originals_iteration(saved, backwards):
    """Steps 3 to 8 after its checkpoint give its losses and its final weights.

    Also with the optimiser's parameters in another order: moments are matched by name.
    """
    data = arrays("g_trajectory")
    model = build_model(load_config(overrides=TINY))
    load_weights(model, ORIGINAL)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters[::-1] if backwards else parameters)
    load_optimizer_state(optimizer, saved.optimizer, model, str(ORIGINAL))
    assert optimizer.param_groups[0]["eps"] == 1e-6
    never = ("pooler.", "classifier.seq_relationship.", "cluster_codebook.")
    for step in range(saved.iteration, 8):
        optimizer.zero_grad()
        loss = stage_1_loss(model, data, step)
        loss.backward()
        np.testing.assert_allclose(loss.item(), data["torch_loss"][step], rtol=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.grad is None and not name.startswith(never):
                parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = float(data["torch_lr"][step])
        optimizer.step()
    finals = {
        name.removeprefix("torch_final__"): value
        for name, value in data.items()
        if name.startswith("torch_final__")
    }
    assert len(finals) == 6
    for name, value in finals.items():
        got = model.state_dict()[name].numpy()
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_fresh_moments_would_be_noticed(saved):
    """The check above can fail: without the optimiser state the losses differ."""
    data = arrays("g_trajectory")
    model = build_model(load_config(overrides=TINY))
    load_weights(model, ORIGINAL)
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-6, lr=float(data["torch_lr"][2]))
    stage_1_loss(model, data, 2).backward()
    optimizer.step()
    loss = stage_1_loss(model, data, 3).item()
    assert abs(loss - data["torch_loss"][3]) > 1e-4 * loss


def test_formula_weights_are_not_the_checkpoints(saved):
    """The two steps that the original took moved what they should, and nothing else."""
    model = build_model(load_config(overrides=TINY))
    fill(model)
    same = {
        name
        for name, tensor in model.state_dict().items()
        if torch.equal(tensor, saved.weights[name])
    }
    assert {"pooler.dense.weight", "cluster_codebook.weight"} <= same
    assert "embedding_layer.position_embeddings.weight" not in same
