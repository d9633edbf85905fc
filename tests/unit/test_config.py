"""Merging, reading and refusing configurations."""

import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from yacs.config import CfgNode

from generations.config import (
    TASKS,
    checkout_root,
    default_config,
    documented_keys,
    known_keys,
    load_config,
)
from generations.errors import UserError


@pytest.mark.parametrize("text", ["['xe_i2t','xe_t2i']", "[xe_i2t,xe_t2i]", "xe_i2t,xe_t2i"])
def test_lists_survive_shells(text):
    cfg = load_config(overrides=("iteration_tasks", text))
    assert cfg.iteration_tasks == ["xe_i2t", "xe_t2i"]


@given(st.lists(st.sampled_from(TASKS), min_size=1, max_size=6))
def test_any_list_is_read_back(tasks):
    for text in (str(tasks), ",".join(tasks), f"[{', '.join(tasks)}]"):
        assert load_config(overrides=("iteration_tasks", text)).iteration_tasks == tasks


def test_files_build_on_their_base_and_overrides_win(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {lr: 1.0e-4}\nseed: 1\n")
    (tmp_path / "delta.yaml").write_text("_BASE_: base.yaml\nseed: 2\nsolver.eps: 1e-8\n")
    (tmp_path / "more.yaml").write_text("text_length: 9\n")
    files = [tmp_path / "delta.yaml", tmp_path / "more.yaml"]
    cfg = load_config(files, ("solver.weight_decay", "0"))
    assert (cfg.solver.lr, cfg.solver.eps, cfg.solver.weight_decay) == (1e-4, 1e-8, 0.0)
    assert (cfg.seed, cfg.text_length) == (2, 9)


def test_the_result_is_frozen_and_its_dump_gives_it_back(tmp_path):
    cfg = load_config(overrides=("exp_id", "x", "data_dir", str(tmp_path)))
    with pytest.raises(AttributeError):
        cfg.seed = 5
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_config([tmp_path / "config.yaml"]) == cfg


def test_paths_typed_are_under_the_cwd_and_others_under_the_root(tmp_path, monkeypatch):
    (tmp_path / "file.yaml").write_text("root_path: /somewhere\ndata_dir: d\n")
    monkeypatch.chdir(tmp_path)
    cfg = load_config([tmp_path / "file.yaml"], ("model_path", "sub/m.pth"))
    assert cfg.dataset_coco == "/somewhere/d/dataset_coco.json"
    assert cfg.model_path == str(tmp_path / "sub" / "m.pth")
    assert load_config(overrides=("pretrained_model", "hf:a/b")).pretrained_model == "hf:a/b"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("iteration_task", "xe_i2t"), "did you mean 'iteration_tasks'"),
        (("lr", "1e-4"), "did you mean 'solver.lr'"),
        (("samples_per_gpu", "many"), "samples_per_gpu must be a whole number"),
        (("samples_per_gpu", "2.5"), "samples_per_gpu must be a whole number"),
        (("solver.lr", "[1]"), "solver.lr must be a number"),
        (("seed",), "has no value"),
        (("use_mix_feature", "1", "use_grid_feat", "0"), "use_grid_feat is 0"),
        (("use_mix_feature", "0"), "exactly one"),
        (("iteration_tasks", "xe_t2t"), "one of xe_i2t"),
        (("iteration_tasks", "rl_t2i", "use_clip_score", "0"), "no loss"),
        (("train_split", "trainval"), "one of train"),
        (("model.num_heads", "7"), "must be a multiple"),
        (("eval_fid", "2"), "0 or 1"),
        (("scheduler.max_steps", "10"), "scheduler.warmup_steps"),
        (("samples_per_gpu", "0"), "at least 1"),
        (("model.vocab_size", "1000"), "largest special id"),
        (("text_length", "512"), "last position"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")) as caught:
        load_config(overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- 1\n", "key: value"),
        ("solver: {lrr: 1}\n", "did you mean 'solver.lr'"),
        ("_BASE_: bad.yaml\n", "includes the file itself"),
        ("_BASE_: none.yaml\n", "does not exist"),
        ("seed: {a: 1}\n", "unknown key 'seed.a'"),
        ("exp_id: [1]\n", "exp_id must be text"),
    ],
)
def test_bad_files_are_named(tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        load_config([path])
    assert ".yaml" in str(caught.value)


def test_the_defaults_are_the_published_setting():
    cfg = default_config()
    assert (cfg.solver.lr, cfg.solver.eps, cfg.scheduler.warmup_steps) == (5e-5, 1e-6, 10000)
    assert (cfg.grid_cluster_num, cfg.grid_feat_dim, cfg.text_length) == (10000, 2048, 17)


def test_every_key_is_documented_once():
    keys = [key for group in documented_keys().values() for key in group]
    assert sorted(key.name for key in keys) == sorted(known_keys())
    assert not [key.name for key in keys if not key.description]
    lr = next(key for key in keys if key.name == "solver.lr")
    assert (lr.default, lr.description) == (5e-5, "learning rate")


# the original's command lines, as its README has them
ORIGINAL = {
    "inference": """use_mix_feature 1 use_grid_cluster 1 use_grid_feat 1 test_num 50 text_length 17
        test_val2014 1 samples_per_gpu 10 resume_from_latest 0  load_model_only 1
        model_path /path/to/models/ours/it_generator.pth """,
    "stage 1": """samples_per_gpu 32 test_interval 10000 checkpoint_time 10000
        scheduler.max_steps 200000 train_split train use_mix_feature 1 use_grid_cluster 1
        use_grid_feat 1 scheduler.method WarmupCosineSchedule solver.lr 5e-5
        scheduler.warmup_steps 10000 load_model_only 0 resume_from_latest 1
        iteration_tasks ['xe_i2t','xe_t2i']  """,
    "sampling": """ test_num -1 samples_per_gpu 10 load_model_only 1 resume_from_latest 1
        eval_fid 0 eval_is 0 eval_clipscore 0 test_val2014 1 """,
    "scores": """ eval_fid 0 eval_is 0 eval_clipscore 0 eval_rprec 1 eval_rprec_hard 1
        test_val2014 1 test_num -1 """,
    "stage 2": """samples_per_gpu 20 test_interval 10000 checkpoint_time 10000
        scheduler.max_steps 500000 train_split train use_mix_feature 1 use_grid_cluster 1
        use_grid_feat 1  scheduler.method ConstantLRSchedule solver.lr 1e-6 num_workers 2
        load_model_only 1 resume_from_latest 1
        model_path ../../models/generate-it/output/it_generator_stage1/model_0200000.pth
        iteration_tasks ['rl_i2t','rl_t2i','xe_t2i'] mse_loss 0 use_clip_score 1 text_length 16 """,
    "captions alone": "iteration_tasks ['rl_i2t'] scheduler.max_steps 200000",
    "pictures alone": "iteration_tasks ['rl_t2i','xe_t2i'] scheduler.max_steps 300000",
    "half": "iteration_tasks ['xe_t2i'] scheduler.max_steps 100000 scheduler.warmup_steps 5000",
    "dense": "use_mix_feature 0 use_grid_cluster 0 use_grid_feat 1",
    "discrete": "use_mix_feature 0 use_grid_cluster 1 use_grid_feat 0",
    "without CLIP": "mse_loss 1 use_clip_score 0",
}


def typed(line: str, folder: Path) -> CfgNode:
    """The configuration of a command line that is typed, unquoted, into bash in a folder."""
    command = f"params=\" {line} \"; printf '%s\\n' exp_id X ${{params}}"
    words = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=True)
    return load_config([], words.stdout.decode().splitlines())


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_originals_lines_are_understood(name, tmp_path):
    cfg = typed(ORIGINAL[name], tmp_path)
    words = ORIGINAL[name].split()
    for key, value in zip(words[::2], words[1::2], strict=True):
        found = cfg
        for part in key.split("."):
            found = found[part]
        if key == "iteration_tasks":
            assert list(found) == value.strip("[]").replace("'", "").split(",")
        elif key != "model_path":
            assert found == type(found)(value), key


def test_the_originals_paths_are_meant_from_where_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(typed(ORIGINAL["stage 2"], tmp_path).model_path)
    wanted = "models/generate-it/output/it_generator_stage1/model_0200000.pth"
    assert path.resolve() == (tmp_path / "../.." / wanted).resolve()


PRESETS = sorted((checkout_root() / "configs/painting").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_painting_presets_set_all_of_the_painting_and_nothing_else(preset):
    mini = checkout_root() / "configs/mini/stage1.yaml"
    plain, cfg = load_config([mini]), load_config([mini, preset])
    painting = {"painting", "num_samples", "rerank"}
    assert all(cfg[key] == plain[key] for key in plain if key not in painting)
    assert (cfg.painting == plain.painting) == (preset.stem == "paper")
    said = yaml.safe_load(preset.read_text())
    assert {"num_samples", "rerank"} <= set(said)
    assert set(said["painting"]) == set(plain.painting) - {"keep_steps"}
    assert load_config([mini, preset], ["painting.steps", "7"]).painting.steps == 7


def test_there_are_three_presets():
    assert [path.stem for path in PRESETS] == ["best", "fast", "paper"]
