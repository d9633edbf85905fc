"""A run on one page, or many in a table: what report.py runs."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from generations.config import load_config
from generations.datasets import ImageRecord, read_karpathy
from generations.errors import UserError
from generations.files import atomic_path, write_json, write_text
from generations.pipelines.assembly import run_folder
from generations.reporting.comparison import comparison_sheet, first_seed, samples_of
from generations.reporting.curves import read_curves
from generations.reporting.gallery import lay_out, write_gallery, write_page
from generations.reporting.page import FIGURES, render_page
from generations.reporting.pictures import contact_sheet
from generations.reporting.results import RealImages, gather, read_figures
from generations.reporting.table import gather_table, to_html, to_latex, to_markdown

COMPARED = ("cider_d", "bad_endings", "meteor", "clip_score")  # before and after stage 2

logger = logging.getLogger(__name__)


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Gather, write."""
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it reports each file it ends
    if arguments.table1:
        write_table(Path(arguments.table1))
    else:
        write_report(cfg, arguments)


def write_table(folder: Path) -> None:
    """Write table1.md, .html, .tex and .png into the folder of the runs."""
    table = gather_table(folder)
    seed = first_seed(folder)
    sheet = comparison_sheet(samples_of(folder, seed, _real_images(folder)))
    picture = None
    if sheet is not None:
        with atomic_path(folder / "table1.png") as temporary:
            sheet.save(temporary, format="PNG", optimize=True)
        picture = (folder / "table1.png").read_bytes()
    write_text(folder / "table1.html", to_html(table, picture))
    write_text(folder / "table1.tex", to_latex(table))
    text = to_markdown(table)
    write_text(folder / "table1.md", text)
    written = "table1.md, .html and .tex" if picture is None else "table1.md, .html, .tex and .png"
    logger.info("%s\nwrote %s into %s (pictures: seed %d)", text, written, folder, seed)


def _real_images(folder: Path) -> RealImages:
    """The images that the runs of a table are of, as their configurations say."""
    for path in sorted(folder.glob("*_seed*/config.yaml")):
        try:
            cfg = load_config([path])
        except UserError as error:
            logger.warning("%s", error)
            continue
        records, problem = _records(cfg)
        if problem:
            logger.warning("%s", problem)
        return RealImages(records, Path(cfg.images_dir) if cfg.images_dir else None)
    return RealImages([], None)


def write_report(cfg: CfgNode, arguments: Namespace) -> dict[str, Any]:
    """Write the files; returns the summary."""
    for option in ("items", "sheet_items", "seconds", "one_file_up_to"):
        if (getattr(arguments, option) or 0) < 0:
            raise UserError(f"--{option.replace('_', '-')} must not be negative")
    folder = run_folder(cfg)
    if not folder.is_dir():
        raise UserError(
            f"there is no run {cfg.exp_id!r} in {cfg.save_dir}: check exp_id and save_dir"
        )
    records, problem = _records(cfg)
    images = RealImages(records, Path(cfg.images_dir) if cfg.images_dir else None)
    painted_folder = Path(cfg.img_save_dir) / cfg.exp_id if cfg.img_save_dir else folder
    results = gather(folder, painted_folder, images)
    if problem:
        results.notes.append(problem)
    curves = read_curves(folder)
    if not curves:
        results.notes.append("No training curves: the run's folder holds no event files.")
    summary: dict[str, Any] = {"exp_id": cfg.exp_id}
    if arguments.seconds is not None:
        summary["seconds"] = arguments.seconds
    summary |= results.summary()
    before = _figures_before(cfg, arguments.stage1)
    stages = _stages(before, results.figures)
    summary |= stages
    if disagreement := _disagreement(stages):
        results.notes.append(disagreement)
    saved_config = folder / "config.yaml"
    config = saved_config.read_text("utf-8", "replace") if saved_config.exists() else cfg.dump()
    gallery = lay_out(results, {name: text for name, (text, _) in FIGURES.items()}, arguments.items)
    sheet = contact_sheet(
        _title(summary),
        results.paintings[: arguments.sheet_items],
        results.writings[: arguments.sheet_items],
    )
    with atomic_path(folder / "contact_sheet.png") as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    data = write_gallery(gallery, folder, arguments.one_file_up_to)
    page = render_page(cfg.exp_id, results, summary, curves, config, gallery, data, before)
    packed = gallery.entries > arguments.one_file_up_to
    write_page(folder / "report.html", page, packed)
    write_json(folder / "summary.json", summary)
    for note in results.notes:
        logger.warning("%s", note)
    logger.info("wrote report.html, contact_sheet.png and summary.json into %s", folder)
    return summary


def _records(cfg: CfgNode) -> tuple[list[ImageRecord], str]:
    """The captioned images, or none and the reason."""
    try:
        return read_karpathy(cfg.dataset_coco), ""
    except UserError as error:
        return [], f"Real images and people's captions are left out: {error}"


def _figures_before(cfg: CfgNode, exp_id: str | None) -> dict[str, dict[str, float]]:
    """Figures of the stage-1 run; none if there is no such run."""
    if not exp_id:
        return {}
    figures = read_figures(Path(cfg.save_dir) / Path(exp_id).name)
    if not figures:
        raise UserError(
            f"--stage1 {exp_id}: there are no metrics in {cfg.save_dir}/{exp_id}; run evaluate.py "
            "on that run first"
        )
    return figures


def _stages(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]
) -> dict[str, float]:
    """cider_d_stage1, cider_d_stage2, ... of the test split."""
    figures: dict[str, float] = {}
    for group in sorted(before):
        for name in COMPARED:
            if group.endswith("_test") and name in before[group] and name in after.get(group, {}):
                figures[f"{name}_stage1"] = before[group][name]
                figures[f"{name}_stage2"] = after[group][name]
    return figures


def _disagreement(stages: dict[str, float]) -> str:
    """Say so if stage 2 raised CIDEr-D, its reward, and lowered METEOR, or the reverse."""
    changes = [
        stages.get(f"{name}_stage2", 0.0) - stages.get(f"{name}_stage1", 0.0)
        for name in ("cider_d", "meteor")
    ]
    if changes[0] * changes[1] >= 0:
        return ""
    return (
        f"CIDEr-D changed by {changes[0]:+.4f} from stage 1 to stage 2 and METEOR by "
        f"{changes[1]:+.4f}: they do not agree, so look at the captions and their bad endings"
    )


def _title(summary: dict[str, Any]) -> str:
    parts = [summary["exp_id"]]
    if summary["iteration"]:
        parts.append(f"iteration {summary['iteration']:,}")
    if "cider_d" in summary:
        parts.append(f"CIDEr-D {summary['cider_d']:.3f}")
    if "cider_d_human" in summary:
        parts.append(f"(people {summary['cider_d_human']:.3f})")
    return "   ".join(parts)
