"""Reading, converting, loading and writing checkpoints."""

import logging
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForPreTraining, LxmertConfig, LxmertForPreTraining

from generations import convert_checkpoint as entry
from generations.checkpoint import (
    convert_checkpoint,
    from_pretrained,
    load_generator_weights,
    load_optimizer_state,
    load_weights,
    optimizer_state_by_index,
    optimizer_state_by_name,
    read_tensors,
    read_training_checkpoint,
    save_pretrained,
    save_pth,
    save_safetensors,
    write_training_checkpoint,
)
from generations.checkpoint.keys import detect_format, rename_keys
from generations.config import load_config
from generations.errors import UserError
from generations.modeling import build_model
from generations.modeling.transformer import grid_boxes

TINY = (
    *("model.hidden_size", "32", "model.num_heads", "4", "model.intermediate_size", "64"),
    *("model.language_layers", "2", "model.visual_layers", "1", "model.cross_layers", "2"),
    *("model.vocab_size", "1100", "model.dropout", "0", "grid_size", "2", "grid_feat_dim", "12"),
    *("grid_cluster_num", "20", "text_length", "7"),
)
WORDS, DECODER = "embedding_layer.word_embeddings.weight", "classifier.predictions.decoder.weight"


@pytest.fixture(scope="module")
def cfg():
    return load_config(overrides=TINY)


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).eval()


@pytest.fixture
def other(cfg):
    torch.manual_seed(1)
    return build_model(cfg).eval()


def equal(one: nn.Module, two: nn.Module) -> bool:
    states = one.state_dict(), two.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refused(model: nn.Module, path: object, *words: str, **options) -> str:
    """The message of a load that is refused; the model must be as it was."""
    before = state_of(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return message


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_pth_layouts(tmp_path, model, other, legacy, prefix, wrapped):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    payload = {"model": state, "iteration": 3, "amp": {"loss_scaler0": {"loss_scale": 1.0}}}
    path = tmp_path / "w.pth"
    torch.save(payload if wrapped else state, path, _use_new_zipfile_serialization=not legacy)
    report = load_weights(other, path)
    assert equal(model, other)
    assert set(report.taken) == set(model.state_dict())
    assert (report.missing, report.left_over) == ([], [])


def test_either_name_of_a_tied_tensor_is_enough(tmp_path, model, other):
    for dropped in (WORDS, DECODER):
        state = state_of(model)
        del state[dropped]
        save_pth(tmp_path / "w.pth", state)
        with torch.no_grad():
            other.embedding_layer.word_embeddings.weight.zero_()
        assert load_weights(other, tmp_path / "w.pth").missing == []
        assert equal(model, other)


def test_tied_names_that_disagree_are_refused(tmp_path, model):
    state = state_of(model)
    state[DECODER] += 1
    save_pth(tmp_path / "w.pth", state)
    refused(model, tmp_path / "w.pth", "not used", DECODER)


def test_half_precision_is_taken(tmp_path, model, other):
    save_pth(tmp_path / "w.pth", {name: t.half() for name, t in model.state_dict().items()})
    load_weights(other, tmp_path / "w.pth")
    weight = other.pooler.dense.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.pooler.dense.weight.half().float())


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickle_does_not_run(tmp_path, model, legacy):
    mark = tmp_path / "mark"
    payload = {**state_of(model), "evil": Malicious(mark)}
    path = tmp_path / "evil.pth"
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    refused(model, path, str(path), "refused", "system")
    with pytest.raises(UserError, match="refused"):
        read_training_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file does what the test says it does
    assert mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".legacy.pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_truncated_file_is_refused(tmp_path, model, suffix, share):
    path = tmp_path / f"w{suffix}"
    write_any(path, state_of(model))
    size = path.stat().st_size
    os.truncate(path, int(size * share))
    refused(model, path, str(path), "again")


def write_any(path: Path, state: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_safetensors(path, state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in path.name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_flipped_bits_in_the_values_are_noticed(tmp_path, model, suffix):
    state = state_of(model)
    path = tmp_path / f"w{suffix}"
    write_any(path, state)
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<3f", *state["pooler.dense.weight"].flatten()[:3].tolist()))
    content[place] ^= 1
    path.write_bytes(content)
    refused(model, path, str(path), "checksum")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_garbled_files_end_in_our_error_or_load(tmp_path, data):
    """Whatever bytes change: either our error, or exactly the tensors that were written."""
    state = {"mask_feat": torch.arange(6.0), "pooler.dense.bias": torch.ones(2, 3)}
    suffix = data.draw(st.sampled_from([".pth", ".legacy.pth", ".safetensors"]))
    path = tmp_path / f"w{suffix}"
    write_any(path, state)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([None, None, len(content) // 2]))])
    try:
        read = read_tensors(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    if "legacy" not in suffix:  # the older layout has no checksum
        for name in read.keys() & state.keys():
            assert torch.equal(read[name], state[name])


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("name", "payload", "word"),
    [
        ("list.pth", [1, 2], "list"),
        ("empty.pth", {}, "no tensors"),
        ("text.pth", {"model": {"mask_feat": "hello"}}, "mask_feat"),
        ("number.pth", {1: torch.ones(1)}, "1"),
        ("sparse.pth", {"mask_feat": torch.eye(2).to_sparse()}, "mask_feat"),
        ("unknown.pth", {"resnet.conv1.weight": torch.ones(1)}, "resnet.conv1.weight"),
    ],
)
def test_foreign_content_is_refused(tmp_path, model, name, payload, word):
    torch.save(payload, tmp_path / name)
    refused(model, tmp_path / name, name, word)


def test_foreign_files_are_refused(tmp_path, model):
    refused(model, tmp_path / "none.pth", "none.pth", "does not exist")
    refused(model, tmp_path / "none.safetensors", "none.safetensors", "does not exist")
    (tmp_path / "w.yaml").write_text("a: 1")
    refused(model, tmp_path / "w.yaml", "w.yaml", "suffix")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    refused(model, tmp_path / "page.pth", "page.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    refused(model, tmp_path / "bomb.pth", "bomb.pth", "zip")
    refused(model, tmp_path, str(tmp_path), "model.safetensors")


def test_failed_write_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "w.pth"
    save_pth(path, {"iteration": 1})
    with pytest.raises(Exception, match="pickle"):
        save_pth(path, {"iteration": lambda: 2})
    assert torch.load(path, weights_only=True) == {"iteration": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]


def test_unwritable_place_is_our_error(tmp_path, model):
    (tmp_path / "file").write_text("")
    for save in (save_pth, save_safetensors):
        suffix = ".pth" if save is save_pth else ".safetensors"
        with pytest.raises(UserError, match="cannot be written"):
            save(tmp_path / "file" / f"w{suffix}", model.state_dict())


# --- names and formats ---------------------------------------------------------------------------


def test_bert_word_head_called_classifier():
    keys = ["bert.encoder.layer.0.output.dense.bias", "classifier.bias"]
    assert rename_keys(keys, "bert")["classifier.bias"] == "classifier.bias"
    keys.append("classifier.decoder.weight")
    assert rename_keys(keys, "bert")["classifier.bias"] == "classifier.predictions.bias"


def test_xlxmert_without_module_prefix_fills_the_image_head(tmp_path, model, other, caplog):
    """Also SPEC 12: un-prefixed `obj_predict_head.*` is renamed."""
    back = {
        "embedding_layer.": "bert.embeddings.",
        "encoder.": "bert.encoder.",
        "pooler.": "bert.pooler.",
        "img_classifier.": "obj_predict_head.",
        "classifier.": "cls.",
    }
    state = state_of(model)
    codebook = state.pop("cluster_codebook.weight")
    for ours, theirs in back.items():
        state = {
            theirs + name.removeprefix(ours) if name.startswith(ours) else name: tensor
            for name, tensor in state.items()
        }
    state["answer_head.logit_fc.0.weight"] = torch.ones(2)
    for prefix in ("", "module."):
        save_pth(tmp_path / "x.pth", {prefix + name: tensor for name, tensor in state.items()})
        torch.nn.init.zeros_(other.img_classifier.out_cluster.weight)
        torch.nn.init.zeros_(other.cluster_codebook.weight)
        with caplog.at_level(logging.INFO):
            report = load_weights(other, tmp_path / "x.pth")
        assert report.form == "xlxmert"
        assert report.missing == ["cluster_codebook.weight"]
        assert report.left_over == [prefix + "answer_head.logit_fc.0.weight"]
        assert report.table() in caplog.text
        assert "answer_head 1" in report.table()
        assert not other.cluster_codebook.weight.any()
        other.cluster_codebook.weight.data.copy_(codebook)
        assert equal(model, other)


LXMERT = LxmertConfig(
    vocab_size=1100, hidden_size=32, num_attention_heads=4, intermediate_size=64, l_layers=2,
    r_layers=1, x_layers=2, visual_feat_dim=12, num_object_labels=5, num_attr_labels=4,
    num_qa_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


def hugging_face(kind, config) -> nn.Module:
    torch.manual_seed(2)
    module = kind(config).eval()
    for parameter in module.parameters():  # no two layers and no bias alike
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def test_lxmert_of_transformers_computes_the_same(tmp_path, model):
    theirs = hugging_face(LxmertForPreTraining, LXMERT)
    theirs.save_pretrained(tmp_path)
    report = load_weights(model, tmp_path)
    assert report.form == "lxmert"
    head = "img_classifier.", "cluster_codebook.", "mask_feat"
    assert all(name.startswith(head) for name in report.missing)
    assert "img_classifier.transform.dense.weight" in report.taken
    assert all("decoder_dict" in name or "answer_head" in name for name in report.left_over)
    ids, features = torch.tensor([[101, 7, 8, 102], [101, 9, 102, 0]]), torch.randn(2, 4, 12)
    boxes, mask = grid_boxes(2).expand(2, 4, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        want = theirs(ids, features, boxes, attention_mask=mask).prediction_logits
        got, _ = model(ids, mask, features=features)
    torch.testing.assert_close(got[:, 4:], want, rtol=1e-4, atol=1e-4)


def test_bert_fills_the_language_layers_alone(tmp_path, model):
    config = BertConfig(
        vocab_size=1100, hidden_size=32, num_attention_heads=4, intermediate_size=64,
        num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = hugging_face(BertForPreTraining, config)
    fresh = state_of(model)
    ids, mask = torch.tensor([[101, 7, 8, 102], [101, 9, 102, 0]]), torch.ones(2, 4)
    with torch.no_grad():
        hidden = theirs.bert(ids, output_hidden_states=True).hidden_states[2]
        words = theirs.cls.predictions(hidden)
    # as the released file: gamma and beta; then without heads and prefix, as a BertModel
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): t
        for name, t in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    report = load_weights(model, tmp_path)
    assert report.form == "bert"
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids, mask), hidden, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.text_logits(hidden), words, rtol=1e-4, atol=1e-4)
    for name in report.missing:
        assert torch.equal(model.state_dict()[name], fresh[name])
    assert "pooler.dense.weight" in report.missing
    assert "encoder.x_layers.0.lang_inter.dense.weight" in report.missing
    assert any("layer.2." in name for name in report.left_over)
    theirs.bert.save_pretrained(tmp_path / "bare")
    refused(model, tmp_path / "bare", "classifier.predictions.bias")  # few layers, so heads count
    assert set(load_weights(model, tmp_path / "bare", minimum=0.8).taken) == {
        name for name in report.taken if not name.startswith("classifier.") or name == DECODER
    }


def test_too_few_matches_are_refused(tmp_path, model):
    state = hugging_face(LxmertForPreTraining, LXMERT).state_dict()
    state = {name: t for name, t in state.items() if "x_layers.1" not in name}
    save_pth(tmp_path / "part.pth", state)
    refused(model, tmp_path / "part.pth", "part.pth", "encoder.x_layers.1", "at least")
    assert load_weights(model, tmp_path / "part.pth", minimum=0.5).missing


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("grid_cluster_num", "21", "cluster_codebook.weight"),
        ("grid_feat_dim", "16", "mask_feat"),
        ("model.vocab_size", "1200", WORDS),
        ("model.intermediate_size", "48", "encoder.layer.0.intermediate.dense.weight"),
    ],
)
def test_another_size_names_the_tensor_and_the_flag(tmp_path, model, key, value, name):
    state = build_model(load_config(overrides=[*TINY, key, value])).state_dict()
    save_pth(tmp_path / "w.pth", state)
    shape = str(tuple(state[name].shape))
    refused(model, tmp_path / "w.pth", "w.pth", name, shape, f"{key} {value}")


@pytest.mark.parametrize("layers", ["1", "3"])
def test_another_depth_names_the_layers(tmp_path, model, layers):
    deep = build_model(load_config(overrides=[*TINY, "model.cross_layers", layers]))
    save_pth(tmp_path / "w.pth", deep.state_dict())
    word = "missing" if layers == "1" else "not used"
    refused(model, tmp_path / "w.pth", word, f"encoder.x_layers.{min(int(layers), 2)}.")


def test_integers_are_no_weights(tmp_path, model):
    save_pth(
        tmp_path / "w.pth", {**state_of(model), "mask_feat": torch.zeros(12, dtype=torch.int64)}
    )
    refused(model, tmp_path / "w.pth", "mask_feat", "int64")


def test_generator_and_transformer_files_are_told_apart(tmp_path, model):
    generator = nn.ModuleDict({"bottleneck_emb": nn.Linear(2, 2)})
    save_pth(tmp_path / "g.pth", generator.state_dict())
    save_pth(tmp_path / "w.pth", model.state_dict())
    refused(model, tmp_path / "g.pth", "g.pth", "pretrained_generator")
    with pytest.raises(UserError, match=r"w\.pth holds a transformer"):
        load_generator_weights(generator, tmp_path / "w.pth")


def test_generator_is_loaded_completely_or_not_at_all(tmp_path):
    generator = nn.ModuleDict({"bottleneck_emb": nn.Linear(2, 2), "to_RGB": nn.Linear(2, 3)})
    state = {name: torch.randn_like(tensor) for name, tensor in generator.state_dict().items()}
    for prefix in ("", "module."):
        save_pth(tmp_path / "g.pth", {prefix + name: tensor for name, tensor in state.items()})
        load_generator_weights(generator, tmp_path / "g.pth")
        assert all(torch.equal(state[name], t) for name, t in generator.state_dict().items())
    del state["to_RGB.bias"]
    save_pth(tmp_path / "g.pth", state)
    with pytest.raises(UserError, match=r"missing \(to_RGB\.bias\)"):
        load_generator_weights(generator, tmp_path / "g.pth")


# --- the hub -------------------------------------------------------------------------------------


def test_hub_id_is_read_from_the_cache(tmp_path, model, other, cfg, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    save_pretrained(model, cfg, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    load_weights(other, "hf:some/model")
    assert equal(model, other)
    for name in ("hf:some/model", "some/model"):
        assert equal(model, from_pretrained(name)[0])


def test_unreachable_hub_says_what_to_do(tmp_path, model, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(model, "hf:some/model", "hf:some/model", "config.json", "model.safetensors", "folder")
    refused(model, "hf:not/a/valid/id", "hf:not/a/valid/id", "check the id")


# --- our own checkpoints -------------------------------------------------------------------------


def test_save_and_from_pretrained(tmp_path, model, cfg):
    save_pretrained(model, cfg, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded, its_cfg = from_pretrained(tmp_path, ["device", "cpu"])
    assert equal(model, loaded)
    assert (its_cfg.model, its_cfg.grid_size, its_cfg.text_length) == (
        cfg.model, cfg.grid_size, cfg.text_length,
    )  # fmt: skip
    assert its_cfg.is_frozen()
    assert (
        loaded.classifier.predictions.decoder.weight
        is loaded.embedding_layer.word_embeddings.weight
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"model_type": "lxmert"}', "pretrained_model"),
        ('{"model_type": "generations", "grid_size": "many"}', "grid_size"),
        ('{"model_type": "generations", "model": {"hidden": 3}}', "model.hidden"),
        ("[]", "config.json"),
        ("{", "config.json"),
    ],
)
def test_foreign_config_is_refused(tmp_path, model, cfg, content, word):
    save_pretrained(model, cfg, tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=word) as caught:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def trained(model: nn.Module, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimiser after two steps over parameters of which some have no gradient."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    torch.manual_seed(3)
    for _ in range(2):
        for name, parameter in model.named_parameters():
            if not name.startswith(("pooler.", "cluster_codebook")):
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def training_payload(model: nn.Module) -> dict:
    optimizer = trained(model, list(model.parameters()))
    extra = {"scaler": {"scale": 2.0}, "joined": ["mask_feat"], "rng": torch.get_rng_state()}
    scheduler = {"last_epoch": 2, "base_lrs": [1e-3]}
    return {
        **{"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        **{"scheduler": scheduler, "iteration": 2, **extra},
    }


@pytest.mark.parametrize("name", ["model_0000002.pth", "model_0000002"])
def test_training_checkpoint_round_trip(tmp_path, model, other, name):
    payload = training_payload(model)
    for _ in range(2):  # the second one takes the place of the first
        write_training_checkpoint(tmp_path / name, payload)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    read = read_training_checkpoint(tmp_path / name)
    assert read.weights.keys() == payload["model"].keys()
    assert (read.iteration, read.scheduler) == (2, payload["scheduler"])
    assert read.extra.keys() == {"scaler", "joined", "rng"}
    assert torch.equal(read.extra["rng"], payload["rng"])
    torch.testing.assert_close(read.optimizer, payload["optimizer"], rtol=0, atol=0)
    load_weights(other, tmp_path / name)
    assert equal(model, other)


def test_state_of_other_weights_is_refused(tmp_path, model, other):
    payload = training_payload(model)
    write_training_checkpoint(tmp_path / "run", payload)
    save_safetensors(tmp_path / "run" / "model.safetensors", other.state_dict())
    with pytest.raises(UserError, match="does not belong to"):
        read_training_checkpoint(tmp_path / "run")


def test_folder_of_other_things_is_not_overwritten(tmp_path, model):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a checkpoint"):
        write_training_checkpoint(tmp_path, training_payload(model))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("entry_name", "value"),
    [
        ("iteration", -1), ("iteration", "2"), ("optimizer", [1]), ("scheduler", 3),
        ("optimizer", {"state": {}}), ("optimizer", {"state": [], "param_groups": []}),
        ("optimizer", {"state": {}, "param_groups": [{"lr": 1.0}]}),
    ],
)  # fmt: skip
def test_malformed_training_state_is_refused(tmp_path, model, entry_name, value):
    path = tmp_path / "w.pth"
    save_pth(path, {"model": model.state_dict(), entry_name: value})
    with pytest.raises(UserError, match=f"w.pth.*{entry_name}"):
        read_training_checkpoint(path)


# --- optimiser states ----------------------------------------------------------------------------


def test_optimizer_state_is_matched_by_name(model):
    """An optimiser with the parameters in another order, and without the frozen one, goes on."""
    source = trained(model, list(model.parameters()))
    names = {parameter: name for name, parameter in model.named_parameters()}
    backwards = [parameter for parameter in reversed(names) if parameter.requires_grad]
    target = torch.optim.AdamW(backwards, lr=1.0, foreach=False)
    load_optimizer_state(target, source.state_dict(), model, "here")
    assert target.param_groups[0]["lr"] == 1e-3
    assert target.param_groups[0]["foreach"] is False
    moments = source.state[model.mask_feat]["exp_avg"].clone()
    target.state[model.mask_feat]["exp_avg"].add_(1)
    assert torch.equal(source.state[model.mask_feat]["exp_avg"], moments)  # a copy was loaded
    for parameter in backwards:
        if parameter is model.mask_feat:
            continue
        assert target.state[parameter].keys() == source.state[parameter].keys()
        for key, value in source.state[parameter].items():
            assert torch.equal(target.state[parameter][key], value), names[parameter]


def test_optimizer_state_by_name_and_back(model):
    state = trained(model, list(model.parameters())).state_dict()
    names = [name for name, _ in model.named_parameters()]
    named = optimizer_state_by_name(state, names)
    assert "pooler.dense.weight" not in named["state"]
    assert named["state"]["mask_feat"]["exp_avg"].shape == (12,)
    torch.testing.assert_close(optimizer_state_by_index(named, names), state, rtol=0, atol=0)


def test_optimizer_state_of_another_model_is_refused(model, cfg):
    state = trained(model, list(model.parameters())).state_dict()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(UserError, match="load_model_only 1"):
        optimizer_state_by_name(state, names[:-1])
    with pytest.raises(UserError, match="mask_feat"):
        optimizer_state_by_index(optimizer_state_by_name(state, names), names[1:])
    wide = build_model(load_config(overrides=[*TINY, "grid_feat_dim", "16"]))
    optimizer = torch.optim.AdamW(wide.parameters())
    with pytest.raises(UserError, match=r"here: .*exp_avg of mask_feat .*\(12,\).*\(16,\)"):
        load_optimizer_state(optimizer, state, wide, "here")
    assert not optimizer.state


# --- converting ----------------------------------------------------------------------------------


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_conversions_and_back_are_bit_equal(tmp_path, model, cfg):
    payload = training_payload(model)
    payload["model"]["mask_feat"][0] = float("nan")  # bits, not values
    write_training_checkpoint(tmp_path / "a.pth", OrderedDict(payload))
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "b", cfg)
    assert from_pretrained(tmp_path / "b")[1].grid_size == 2
    convert_checkpoint(tmp_path / "b", tmp_path / "c.pth")
    convert_checkpoint(tmp_path / "c.pth", tmp_path / "d.safetensors")
    convert_checkpoint(tmp_path / "d.safetensors", tmp_path / "e.pth", cfg)
    first, third = (read_training_checkpoint(tmp_path / name) for name in ("a.pth", "c.pth"))
    assert list(first.weights) == list(third.weights)
    assert bits(first.weights) == bits(third.weights)
    assert bits(read_tensors(tmp_path / "e.pth")) == bits(first.weights)
    assert DECODER not in load_file(tmp_path / "d.safetensors")
    torch.testing.assert_close(third.optimizer, first.optimizer, rtol=0, atol=0)
    assert (third.scheduler, third.iteration) == (first.scheduler, 2)
    assert third.extra.keys() == first.extra.keys()


def test_conversion_refuses_other_models_and_writes_nothing(tmp_path, model, cfg):
    path = tmp_path / "a.pth"
    save_pth(path, model.state_dict())
    wide = load_config(overrides=[*TINY, "grid_feat_dim", "16"])
    with pytest.raises(UserError, match=r"a\.pth.*mask_feat.*\(12,\).*\(16,\)"):
        convert_checkpoint(path, tmp_path / "b", wide)
    with pytest.raises(UserError, match="another target"):
        convert_checkpoint(path, tmp_path / "." / "a.pth")
    save_file({"bert.embeddings.LayerNorm.bias": torch.ones(2)}, tmp_path / "bert.safetensors")
    with pytest.raises(UserError, match="bert format"):
        convert_checkpoint(tmp_path / "bert.safetensors", tmp_path / "c.pth")
    assert {file.name for file in tmp_path.iterdir()} == {"a.pth", "bert.safetensors"}


def test_conversion_entry(tmp_path, model, capsys):
    save_pth(tmp_path / "a.pth", model.state_dict())
    entry.main([str(tmp_path / "a.pth"), str(tmp_path / "b"), *TINY])
    assert equal(model, from_pretrained(tmp_path / "b")[0])
    names = {file.name for file in (tmp_path / "b").iterdir()}
    assert names == {"config.json", "model.safetensors"}  # weights alone have no training state
    with pytest.raises(SystemExit) as caught:
        entry.main([str(tmp_path / "none.pth"), str(tmp_path / "c")])
    assert caught.value.code == 2
    assert "none.pth does not exist" in capsys.readouterr().err


def test_unknown_format_shows_a_few_names():
    with pytest.raises(UserError, match=r"f\.pth .*a, b, c, d, e and 2 more"):
        detect_format(list("abcdefg"), "f.pth")
