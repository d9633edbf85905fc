"""The real commands in subprocesses: from raw images to captions, pictures and a report."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SMALL, fails, free_port, run, two_processes
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="session")
def trained(world, tmp_path_factory) -> Path:
    """Six iterations of stage 1; returns save_dir."""
    models = tmp_path_factory.mktemp("Modelle, größer")
    run("main.py", *SMALL(world, models), "exp_id", "a", "test_interval", "4", "test_num", "4")
    return models


def test_training_leaves_checkpoints_curves_and_its_configuration(trained):
    folder = trained / "a"
    assert (folder / "model_0000006.pth").exists() and (folder / "model_0000003.pth").exists()
    assert list(folder.glob("events.out.tfevents.*"))
    assert "hidden_size: 32" in (folder / "config.yaml").read_text()


def test_a_second_call_resumes_and_has_nothing_to_do(world, trained):
    said = run("main.py", *SMALL(world, trained), "exp_id", "a", "test_interval", "0")
    assert "resuming" in said and "iteration 6" in said


def test_captions_pictures_scores_and_report(world, trained):
    common = (*SMALL(world, trained), "exp_id", "a", "test_num", "-1")
    run("inference.py", *common)
    captions = json.loads((trained / "a" / "captions_test_0000006.json").read_text())
    assert len(captions) == 10 and set(captions[0]) == {"image_id", "caption"}
    run("sample_images.py", *common, "test_val2014", "0")
    folder = trained / "a" / "images_test_0000006"
    items = json.loads((folder / "manifest.json").read_text())["items"]
    assert len(items) == 10
    for number, item in enumerate(items, 1):
        assert item["file"].startswith(f"img{number}.")
        with Image.open(folder / item["file"]) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
    run("evaluate.py", *common)
    run("report.py", *common, "--seconds", "5")
    summary = json.loads((trained / "a" / "summary.json").read_text())
    assert summary["images_painted"] == 10 and summary["seconds"] == 5
    assert summary["cider_d"] >= 0 and summary["cider_d_human"] > 1 and summary["bleu4"] >= 0
    assert all(not isinstance(value, (list, dict)) for value in summary.values())
    assert "<html" in (trained / "a" / "report.html").read_text()
    assert (trained / "a" / "contact_sheet.png").exists()


def test_typed_captions_are_painted_whatever_they_hold(world, trained, tmp_path):
    odd = ["a/b \\ ../../etc \U0001f600 <script>", "word " * 500, "../up"]
    (tmp_path / "captions.txt").write_text("\n".join(odd), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ("--captions-file", str(tmp_path / "captions.txt"), "--out", str(out))
    run("sample_images.py", *SMALL(world, trained), "exp_id", "a", *arguments)
    items = json.loads((out / "manifest.json").read_text())["items"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["manifest.json", *(item["file"] for item in items)]
    )
    assert len(items) == 3 and "\U0001f600" in items[0]["caption"]


def test_raw_images_are_captioned(world, trained, tmp_path):
    Image.new("L", (300, 40)).save(tmp_path / "gray.jpg")
    picture = next((world / "images").glob("mini_test_*.png"))
    files = (str(tmp_path / "gray.jpg"), str(picture))
    said = run("inference.py", *SMALL(world, trained), "exp_id", "a", "--image", *files)
    assert "gray.jpg: " in said and f"{picture.name}: " in said


@pytest.mark.parametrize(
    "flags",
    [
        ("use_mix_feature", "0", "use_grid_cluster", "0"),
        ("use_mix_feature", "0", "use_grid_feat", "0"),
        ("xlxmert_zeroshot", "1", "init.mask_feat_std", "0"),
        ("captioning", "causal", "captions_per_image", "3", "decoding.method", "beam"),
    ],
    ids=["dense", "discrete", "zeroshot", "causal"],
)
def test_ablations_train_caption_and_paint(world, tmp_path, flags):
    common = (*SMALL(world, tmp_path), "exp_id", "b", "test_interval", "0", *flags)
    said = run("main.py", *common, "scheduler.max_steps", "2")
    assert ("set init.mask_feat_std 0.5" in said) == ("init.mask_feat_std" in flags)
    run("inference.py", *common, "test_num", "2")
    run("sample_images.py", *common, "test_num", "2")
    assert len(json.loads((tmp_path / "b" / "captions_test_0000002.json").read_text())) == 2


def test_stage_2_starts_from_a_checkpoint_of_stage_1(world, trained, tmp_path):
    common = (*SMALL(world, tmp_path), "exp_id", "s", "test_interval", "0", "text_length", "16")
    start = ("load_model_only", "1", "model_path", str(trained / "a" / "model_0000006.pth"))
    tasks = ("iteration_tasks", "['rl_i2t','rl_t2i','xe_t2i']")
    constant = ("scheduler.method", "ConstantLRSchedule", "solver.lr", "1e-4")
    losses = ("mse_loss", "1", "use_clip_score", "1")
    reward = ("reward.baseline", "leave_one_out", "reward.samples", "2")
    corpus = ("reward.document_frequency", "corpus")
    run("main.py", *common, *start, *tasks, *constant, *losses)
    assert (tmp_path / "s" / "model_0000006.pth").exists()
    more = ("scheduler.max_steps", "7", *reward, *corpus)
    assert "resuming" in run("main.py", *common, *start, *tasks, *constant, *losses, *more)
    assert list((tmp_path / "s").glob("document_frequency_*.npz"))
    logged = EventAccumulator(str(tmp_path / "s")).Reload().Tags()["scalars"]
    wanted = ("reward", "baseline", "advantage", "caption_length", "distinct")
    assert {"rl_t2i/clip_score", *(f"rl_i2t/{name}" for name in wanted)} <= set(logged)


def test_missing_clip_says_where_to_get_it_and_how_to_do_without(world, tmp_path):
    common = (*SMALL(world, tmp_path), "exp_id", "t", "iteration_tasks", "rl_t2i")
    said = fails("main.py", *common, "clip.model", "ViT-B-32", "clip.weights", "openai")
    assert "get ViT-B-32.pt" in said or "https://" in said
    assert "use_clip_score 0" in said
    said = fails("main.py", *common, "clip.weights", str(tmp_path / "gone.safetensors"))
    assert "gone.safetensors" in said and "use_clip_score 0" in said


def test_launch_scripts_run_both_stages_on_two_processes(world, tmp_path):
    """scripts/*.sh with the variables that their first lines name."""

    small = SMALL(world, tmp_path)[2:]  # the scripts name the config
    steps = ("test_interval", "0", "scheduler.max_steps", "3", "scheduler.warmup_steps", "0")

    def script(name: str, stage: str, *positional: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"NUM_GPUS": "2", "MASTER_PORT": str(free_port()), "PATH": path}
        done = subprocess.run(
            [
                "bash",
                str(ROOT / "scripts" / name),
                *positional,
                *small,
                *steps,
            ],
            env={**os.environ, **variables, "CONFIG": f"configs/mini/{stage}.yaml"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    script("train_stage1.sh", "stage1", "one")
    checkpoint = tmp_path / "one" / "model_0000003.pth"
    script("train_stage2.sh", "stage2", "two", str(checkpoint))
    assert (tmp_path / "two" / "model_0000003.pth").exists()
    script("infer.sh", "stage2", "two")
    script("evaluate.sh", "stage2", "two")
    assert list((tmp_path / "two").glob("metrics_captions_test_*.json"))


def test_table_1_is_made_row_by_row_and_not_again(world, tmp_path):
    small = shlex.join(SMALL(world)[2:])
    variables = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FOLDER": str(tmp_path),
        "ROWS": "captions_only",
        "METRICS": "cider_d,bleu",
        "OPTIONS": f"{small} scheduler.max_steps 2 device cpu",
    }
    for _ in range(2):
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "table1.sh"), "mini", "1"],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    written = sorted(tmp_path.glob("*/metrics_*.json"))
    assert [path.parent.name for path in written] == [
        "captions_only_stage1_seed1",
        "captions_only_stage2_seed1",
    ]
    table = (tmp_path / "table1.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines()[2:8]}
    assert (
        rows["w/o unified architecture"][1] == "1"
        and float(rows["w/o unified architecture"][5]) >= 0
    )
    assert rows["ours"][1] == "0"
    assert "saved" not in done.stderr  # the second call only gathers


def benchmark(script: str, *options: str) -> str:
    """What a benchmark prints for the mini model."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--size", "mini", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_memory_benchmark_runs():
    shown = benchmark("stage2_memory.py")
    assert "rl_i2t_memory_mini" in shown and "rl_t2i_memory_mini" in shown


def test_the_benchmark_runs_and_its_figures_agree(tmp_path):
    names = ["cider_d_reward", "rl_i2t_step_causal"]
    out = tmp_path / "figures.json"
    benchmark(
        "run.py", "--rounds", "1", "--threads", "1", "--only", ",".join(names), "--out", str(out)
    )
    rows = json.loads(out.read_text())
    # the reward has no precision, so it is measured once
    assert [row["name"] for row in rows] == [
        *(f"{name}/mini" for name in names),
        "rl_i2t_step_causal/mini/bf16",
    ]
    assert all(row["equal"] and row["ratio"] > 0 for row in rows)
    assert all(0 <= row["difference"] < 3e-2 for row in rows)
    assert [row["precision"] for row in rows] == ["float32", "float32", "bf16"]
    assert rows[2]["difference"] > 10 * rows[1]["difference"]  # it was bf16 indeed


def test_the_benchmark_of_growth_runs(tmp_path):
    out = tmp_path / "rows.json"
    benchmark("growth.py", "--batch", "2", "--only", "processes", "--out", str(out))
    rows = json.loads(out.read_text())
    assert [row["name"] for row in rows] == ["1 process", "2 processes"]
    assert all(row["samples_per_s"] > 0 for row in rows)


def test_the_benchmark_of_options_paints_the_same_pictures_either_way(tmp_path):
    out = tmp_path / "rows.json"
    benchmark("options.py", "--only", "split", "--out", str(out))
    (split,) = json.loads(out.read_text())
    assert split["name"] == "split" and split["difference"] == 0


def test_two_processes_train_one_model(world, tmp_path):
    common = (*SMALL(world, tmp_path), "exp_id", "c", "scheduler.max_steps", "4")
    run("main.py", *common, "test_interval", "4", "test_num", "3", launcher=two_processes())
    assert (tmp_path / "c" / "model_0000004.pth").exists()
    # the original's launcher, which passes --local-rank
    launcher = ("-m", "torch.distributed.launch", "--nproc_per_node=2")
    launcher += (f"--master_port={free_port()}",)
    run("main.py", *common, "test_interval", "0", "scheduler.max_steps", "5", launcher=launcher)


def test_it_runs_from_inside_the_package_folder(world, trained):
    common = (*SMALL(world, trained), "exp_id", "a", "test_num", "1")
    run("inference.py", *common, folder=ROOT / "generations")


def test_mistakes_are_one_line_and_cost_nothing(world, trained, tmp_path):
    common = (*SMALL(world, trained), "exp_id", "a")
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert "did you mean 'iteration_tasks'" in fails("main.py", *common, "iteration_task", "x")
    assert "exp_id is empty" in fails("main.py", *SMALL(world, trained))
    assert "model_path" in fails("inference.py", *SMALL(world, trained), "exp_id", "none")
    copy = tmp_path / "copy"
    shutil.copytree(world, copy)
    (copy / "centroids.npy").write_bytes(b"not a codebook")
    assert "centroids.npy" in fails("main.py", *SMALL(copy, tmp_path), "exp_id", "x")
    after = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert before == after
