"""Table 1 from runs that are there."""

import json
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from generations import report
from generations.config import load_config
from generations.errors import UserError
from generations.reporting.comparison import SIDE
from generations.reporting.table import ROWS, gather_table, to_html, to_latex, to_markdown


def write(folder: Path, run: str, group: str, **figures: float) -> None:
    path = folder / run / f"metrics_{group}_test_0000009.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": figures}))


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed, cider, clip in ((1, 1.0, 70.0), (2, 1.2, 72.0)):
        write(tmp_path, f"ours_stage2_seed{seed}", "captions", cider_d=cider)
        write(tmp_path, f"ours_stage2_seed{seed}", "images", clip_score=clip, fid_small=0.5)
    write(tmp_path, "captions_only_stage2_seed1", "captions", cider_d=0.9)
    write(tmp_path, "pictures_only_stage2_seed1", "images", clip_score=60.0, fid_small=0.75)
    for seed, cider in ((1, 0.8), (2, 0.9)):
        write(tmp_path, f"ours_stage1_seed{seed}", "captions", cider_d=cider)
    (tmp_path / "dense_stage2_seed1").mkdir()  # not scored yet
    return tmp_path


def test_figures_are_means_over_seeds_on_the_papers_scale(runs):
    table = gather_table(runs)
    titles = [column.title for column in table.columns]
    cells = {title: dict(zip(titles, row, strict=True)) for title, _, row in table.rows}
    ours = cells["ours"]["CIDEr-D"]
    assert (ours.value, ours.std) == (pytest.approx(110), pytest.approx(200**0.5))
    assert ours.delta is None and ours.published == 122.6
    apart = cells["w/o unified architecture"]
    # against ours with the same seed, 1
    assert (apart["CIDEr-D"].value, apart["CIDEr-D"].delta) == (90, pytest.approx(-10))
    assert apart["CLIPScore"].delta == pytest.approx(-10)
    early = cells["w/o sequence-level training"]["CIDEr-D"]
    assert (early.delta, early.delta_std) == (pytest.approx(-25), pytest.approx(50**0.5))
    assert apart["FID (small)"].value == 0.75 and apart["CIDEr-D"].std is None
    assert cells["w/o sequence-level training"]["CLIPScore"].value is None
    assert all(cell.value is None for cell in cells["w/o two-level features: dense"].values())
    assert [seeds for _, seeds, _ in table.rows] == [2, 1, 0, 0, 2, 0]


def test_all_forms_say_the_same(runs):
    report.main(["--table1", str(runs)])
    table = gather_table(runs)
    forms = {"md": to_markdown(table), "html": to_html(table), "tex": to_latex(table)}
    for suffix, text in forms.items():
        assert (runs / f"table1.{suffix}").read_text() == text
        assert "110.0 " in text and "0.7500" in text
    assert "| w/o unified architecture | 1 |  |  |  | -10.0 | +0.2500 | -10.0 |" in forms["md"]
    assert "| w/o sequence-level training | 2 |  |  |  | -25.0 ± 7.1 |" in forms["md"]
    assert "| row | BLEU-4 | METEOR | ROUGE-L | CIDEr-D | FID | CLIPScore |" in forms["md"]
    assert "| ours | 37.3 | 28.2 | 57.9 | 122.6 | 29.9 | 77.2 |  |  |" in forms["md"]
    assert r"110.0 $\pm$ 14.1" in forms["tex"]
    assert "&" in forms["tex"] and r"fid_" not in forms["tex"]


def paint(folder: Path, run: str, images: list[int], colour: tuple[int, int, int]) -> None:
    """Pictures of one colour, and what else a run writes of them."""
    painted = folder / run / "images_test_0000009"
    painted.mkdir(parents=True)
    items = []
    for image in images:
        Image.new("RGB", (16, 16), colour).save(painted / f"img{image}.png")
        items.append(
            {"file": f"img{image}.png", "caption": f"thing {image} & co.", "image_id": image}
        )
    (painted / "manifest.json").write_text(json.dumps({"items": items}))
    captions = [{"image_id": image, "caption": f"by {run}"} for image in images]
    (folder / run / "captions_test_0000009.json").write_text(json.dumps(captions))


def test_the_first_captions_and_images_are_shown_as_each_row_has_them(runs):
    (runs / "images").mkdir()
    entries = []
    for image in range(1, 9):
        colour = (10, 10, 20 * image)
        Image.new("RGB", (16, 16), colour).save(runs / f"images/pic{image}.png")
        entries.append(
            {"filename": f"pic{image}.png", "cocoid": image, "split": "test"}
            | {"sentences": [{"tokens": ["a", "thing"]}]}
        )
    (runs / "dataset.json").write_text(json.dumps({"images": entries}))
    paint(runs, "ours_stage2_seed1", [*range(1, 9)], (250, 0, 0))
    paint(runs, "dense_stage2_seed1", [*range(8, 0, -1)], (0, 250, 0))
    paint(runs, "no_clip_stage2_seed2", [*range(1, 9)], (0, 0, 250))  # of another seed
    report.main(["--table1", str(runs)])  # without the real images
    (runs / "dense_stage2_seed1/config.yaml").write_text(
        f"dataset_coco: {runs / 'dataset.json'}\nimages_dir: {runs / 'images'}\n"
    )
    before = pixels_of(runs / "table1.png")
    report.main(["--table1", str(runs)])
    after = pixels_of(runs / "table1.png")
    assert before[250, 0, 0] == after[250, 0, 0] == after[0, 250, 0] == 6 * SIDE**2
    assert not after[0, 0, 250]
    real = [after[10, 10, 20 * image] for image in range(1, 9)]
    assert real == [2 * SIDE**2] * 4 + [SIDE**2] * 2 + [0] * 2  # six painted, four captioned
    assert not before[10, 10, 20]
    assert "data:image/png;base64," in (runs / "table1.html").read_text()
    html = (runs / "table1.html").read_text()
    assert b64encode((runs / "table1.png").read_bytes()).decode() in html


def pixels_of(path: Path) -> Counter[Any]:
    """How many pixels there are of each colour."""
    with Image.open(path) as picture:
        found = picture.convert("RGB").getcolors(1 << 24) or []
    return Counter({colour: count for count, colour in found})


def test_figures_of_different_networks_are_not_mixed(runs):
    write(runs, "ours_stage1_seed1", "images", fid_tf=20.0)
    with pytest.raises(UserError, match="fid_small and fid_tf"):
        gather_table(runs)


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(UserError, match=r"table1\.sh"):
        gather_table(tmp_path)


@pytest.mark.parametrize("size", ["mini", "coco"])
def test_each_row_has_its_settings(size):
    def settings(name: str, stage: int):
        return load_config([f"configs/table1/{size}/{name}_stage{stage}.yaml"])

    names = {run for row in ROWS for run in (row.captions, row.pictures)}
    assert {f"{name}.yaml" for name in names} <= {
        path.name for path in Path(f"configs/table1/{size}").iterdir()
    }
    ours, second = settings("ours", 1), settings("ours", 2)
    for stage in (1, 2):
        dense, discrete = settings("dense", stage), settings("discrete", stage)
        flags = [
            (c.use_mix_feature, c.use_grid_feat, c.use_grid_cluster) for c in (dense, discrete)
        ]
        assert flags == [(0, 1, 0), (0, 0, 1)]
    assert list(settings("captions_only", 1).iteration_tasks) == ["xe_i2t"]
    assert list(settings("pictures_only", 2).iteration_tasks) == ["rl_t2i", "xe_t2i"]
    apart = [settings(name, 1) for name in ("captions_only", "pictures_only")]
    assert all(2 * cfg.scheduler.max_steps == ours.scheduler.max_steps for cfg in apart)
    apart = [settings(name, 2) for name in ("captions_only", "pictures_only")]
    assert sum(cfg.scheduler.max_steps for cfg in apart) == second.scheduler.max_steps
    no_clip = settings("no_clip", 2)
    assert (no_clip.mse_loss, no_clip.use_clip_score) == (1, 0)
