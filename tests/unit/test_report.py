"""evaluate.py and report.py on a small made-up run."""

import base64
import io
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from torch.utils.tensorboard import SummaryWriter

from generations import evaluate, report
from generations.errors import UserError
from generations.reporting import curves, gallery, page, pictures

NASTY = "<script>alert('x')</script> & a \"dog\" 😀 / bus."
CAPTIONS = {
    1: ["a red ball left of a box", "the ball is red", "a ball and a box"],
    2: ["two green cubes on a table", "green cubes", "there are two cubes"],
    3: [NASTY, "a dog by a bus", "the dog waits for the bus"],
    4: ["a cat sleeps", "the cat is asleep", "a sleeping cat"],
}


@pytest.fixture
def data(tmp_path) -> list[str]:
    """Images, captions and a run's empty folder; returns the overrides that point there."""
    (tmp_path / "images").mkdir()
    entries = []
    for number, captions in CAPTIONS.items():
        Image.new("RGB", (32, 24), (60 * number, 90, 200)).save(
            tmp_path / f"images/pic{number}.png"
        )
        sentences = [{"tokens": text.rstrip(".").split()} for text in captions]
        split = "train" if number == 4 else "test"
        entries.append(
            {"filename": f"pic{number}.png", "cocoid": number, "split": split}
            | {"sentences": sentences}
        )
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    (tmp_path / "models/run").mkdir(parents=True)
    return [
        *("exp_id", "run", "save_dir", str(tmp_path / "models")),
        *("dataset_coco", str(tmp_path / "dataset.json"), "images_dir", str(tmp_path / "images")),
        *("eval_fid", "0", "eval_clipscore", "0"),
    ]


@pytest.fixture
def run(data, tmp_path) -> Path:
    """The run's folder."""
    return tmp_path / "models/run"


def write_captions(path: Path, captions: dict[int, str]) -> None:
    """A COCO results file."""
    path.write_text(json.dumps([{"image_id": key, "caption": captions[key]} for key in captions]))


def paint(folder: Path, captions: list[tuple[int | None, str]]) -> None:
    """Painted pictures and their manifest."""
    folder.mkdir()
    items = []
    for number, (image_id, caption) in enumerate(captions, 1):
        name = f"img{number}.png"
        Image.new("RGB", (16, 16), (10, 50 * number % 256, 90)).save(folder / name)
        image_name = f"pic{image_id}" if image_id else None
        items.append(
            {"file": name, "caption": caption, "image_id": image_id, "image_name": image_name}
        )
    (folder / "manifest.json").write_text(json.dumps({"iteration": 20, "items": items}))


OWN = {1: "a red ball and a box.", 2: "two green cubes.", 3: "a dog and a bus."}


# --- evaluate.py


def test_scores_the_newest_captions_of_the_run(data, run):
    write_captions(run / "captions_test_0000020.json", OWN)
    write_captions(run / "captions_test_0000003.json", {**OWN, 1: "zebras everywhere"})
    write_captions(run / "captions_val_0000099.json", {4: "a cat"})
    evaluate.main(data)
    scores = json.loads((run / "metrics_captions_test_0000020.json").read_text())
    assert scores["iteration"] == 20 and scores["images"] == 3 and scores["references"] == 9
    assert set(scores["figures"]) == {
        *("cider_d", "cider_d_human", "rouge_l", "bleu1", "bleu2", "bleu3", "bleu4"),
        *("distinct1", "distinct2", "vocabulary", "novel", "bad_endings"),
    }
    assert scores["figures"]["cider_d"] > 0.3 and "per_item" not in scores
    evaluate.main([*data, "--captions", str(run / "captions_test_0000003.json"), "--per-item"])
    worse = json.loads((run / "metrics_captions_test_0000003.json").read_text())
    assert worse["figures"]["cider_d"] < scores["figures"]["cider_d"]
    assert worse["figures"]["cider_d_human"] == scores["figures"]["cider_d_human"]
    assert worse["per_item"][0]["caption"] == "zebras everywhere"
    assert worse["per_item"][0]["bleu1"] < 0.01


def test_scores_a_part_of_the_split_unless_all_is_asked_for(data, run):
    write_captions(run / "captions_test_0000020.json", {1: OWN[1], 2: OWN[2]})
    evaluate.main([*data, "--caption-metrics", "bleu"])
    scores = json.loads((run / "metrics_captions_test_0000020.json").read_text())
    assert scores["images"] == 2 and scores["images_of_split"] == 3
    with pytest.raises(UserError, match=r"1 of 3 test images have no caption.*\b3\b.*test_num 2"):
        evaluate.main([*data, "test_num", "-1"])


def test_someone_elses_captions_need_no_run(data, tmp_path):
    file = tmp_path / "theirs.json"
    write_captions(file, OWN)
    evaluate.main([*data[2:], "--captions", str(file), "--caption-metrics", "rouge_l"])
    assert list(json.loads((tmp_path / "metrics_captions_theirs.json").read_text())["figures"]) == [
        "rouge_l"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "must be a list"),
        ("[]", "must be a list"),
        ('[{"image_id": "1", "caption": "a"}]', "entry 1"),
        ('[{"image_id": 1, "caption": null}]', "entry 1"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "two captions"),
        (
            '[{"image_id": 1, "caption": "a"}, {"image_id": 4, "caption": "b"}]',
            "1 of 2 captions.*4",
        ),
        ("[", "not valid JSON"),
    ],
)
def test_bad_captions_leave_earlier_figures_alone(data, run, content, message):
    (run / "captions_test_0000020.json").write_text(content)
    (run / "metrics_captions_test_0000020.json").write_text("earlier")
    with pytest.raises(UserError, match=message):
        evaluate.main(data)
    assert (run / "metrics_captions_test_0000020.json").read_text() == "earlier"


def test_a_run_without_captions_says_what_to_do(data):
    with pytest.raises(UserError, match=r"inference\.py"):
        evaluate.main(data)


def test_pictures_that_are_not_there_are_not_passed_over_in_silence(data, run, caplog):
    write_captions(run / "captions_test_0000020.json", OWN)
    with caplog.at_level(logging.INFO):
        evaluate.main([*data, "--caption-metrics", "rouge_l", "eval_fid", "1", "eval_rprec", "1"])
    assert "no painted pictures to score" in caplog.text
    other = (*data, "evaluate_images_dir", str(run / "nowhere"))
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        evaluate.main([*other, "eval_clipscore", "1"])
    with pytest.raises(UserError, match=r"no metric is selected .*nowhere"):
        evaluate.main([*other, "eval_clipscore", "0"])


# --- report.py


class Reader(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[tuple[str | None, str | None]] = []
        self.sources: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        data = [text for text in self.scripts if text.startswith("{")]
        self.data = json.loads(data[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "rect":
            self.cells.append((dict(attrs)["x"], dict(attrs)["y"]))
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture
def full_run(data, run) -> Path:
    """A run with everything."""
    write_captions(run / "captions_test_0000020.json", {**OWN, 3: NASTY})
    figures = {"cider_d": 0.81, "cider_d_human": 0.9, "bleu4": 0.25}
    (run / "metrics_captions_test_0000020.json").write_text(json.dumps({"figures": figures}))
    paint(run / "images_test_0000020", [(1, "a red ball"), (3, NASTY), (None, "typed")])
    steps = {"caption": NASTY, "grid_size": 2, "steps": [{"file": "steps/a.png", "again": [1, 3]}]}
    (run / "images_test_0000020/steps").mkdir()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(run / "images_test_0000020/steps/a.png")
    (run / "images_test_0000020/steps.json").write_text(json.dumps({"items": [steps]}))
    (run / "config.yaml").write_text(f"note: '{NASTY}'\n")
    with SummaryWriter(str(run)) as writer:
        for step in range(1, 41):
            writer.add_scalar("loss/xe_i2t", 10 / step, step)
        writer.add_scalar("grad_norm", float("nan"), 1)
    return run


def test_summary_is_flat_and_complete(data, full_run):
    report.main([*data, "--seconds", "125"])
    summary = json.loads((full_run / "summary.json").read_text())
    assert summary == {
        **{"exp_id": "run", "seconds": 125, "iteration": 20},
        **{"cider_d": 0.81, "cider_d_human": 0.9, "bleu4": 0.25},
        **{"captions_written": 3, "images_painted": 3},
    }


def test_stage_1_is_shown_beside_stage_2(data, full_run):
    first = full_run.parent / "first"
    first.mkdir()
    scores = {"figures": {"cider_d": 0.5, "bleu4": 0.125}}
    (first / "metrics_captions_test_0000010.json").write_text(json.dumps(scores))
    report.main([*data, "--stage1", "first"])
    summary = json.loads((full_run / "summary.json").read_text())
    assert (summary["cider_d_stage1"], summary["cider_d_stage2"]) == (0.5, summary["cider_d"])
    html = (full_run / "report.html").read_text(encoding="utf-8")
    assert '<td class="number">0.500</td><td class="number">0.810</td>' in html
    assert "do not agree" not in html
    for folder, meteor in ((first, 0.3), (full_run, 0.2)):
        (path,) = folder.glob("metrics_captions_test_*.json")
        scores = json.loads(path.read_text())
        scores["figures"]["meteor"] = meteor
        path.write_text(json.dumps(scores))
    report.main([*data, "--stage1", "first"])
    html = (full_run / "report.html").read_text(encoding="utf-8")
    assert "CIDEr-D changed by +0.3100 from stage 1 to stage 2 and METEOR by -0.1000" in html
    with pytest.raises(UserError, match="nothing: there are no metrics"):
        report.main([*data, "--stage1", "nothing"])


def test_page_is_self_contained_and_shows_captions_as_text(data, full_run):
    report.main(data)
    text = (full_run / "report.html").read_text(encoding="utf-8")
    html = Reader(text)
    assert html.tags.count("script") == 2 and text.count("</script>") == 2
    assert html.text.count(NASTY) == 2  # the painting's steps, the config
    cards = html.data["galleries"]
    texts = [entry["text"] for name in cards for entry in cards[name]["entries"]]
    assert texts.count(NASTY) == 2 and NASTY in cards["written"]["entries"][2]["references"]
    assert all(source.startswith(("data:", "#")) for source in html.sources)
    pictures = html.data["pictures"]
    assert len(pictures) == 3 + 3  # painted, and each real one once
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size for source in pictures
    ]
    assert sizes.count((16, 16)) == 3 and sizes.count((32, 24)) == 3
    assert "svg" in html.tags and "loss/xe_i2t" in html.text and "grad_norm" not in html.text
    assert html.cells == [("1", "0"), ("1", "1")]  # 1 and 3 of a grid of 2 x 2
    assert "0.810" in html.text


def test_large_runs_keep_their_pictures_beside_the_page(data, full_run):
    folder = full_run / "report_files"
    folder.mkdir()
    (folder / "pictures_00009.js").write_text("old")
    report.main([*data, "--one-file-up-to", "5"])
    html = Reader((full_run / "report.html").read_text(encoding="utf-8"))
    assert html.data["folder"] == "report_files" and "pictures" not in html.data
    assert [path.name for path in folder.iterdir()] == ["pictures_00000.js"]
    found = re.fullmatch(
        r"picturePack\(0,(\[.*\])\);\n", (folder / "pictures_00000.js").read_text()
    )
    assert found and len(json.loads(found[1])) == 6
    report.main(data)
    assert not folder.exists()


def test_scores_of_single_samples_are_on_their_cards(data, full_run):
    items = [{"file": "img1.png", "clip_score": 3.5}, {"file": "img3.png", "clip_score": 71.0}]
    scores = {"figures": {"clip_score": 37.2}, "per_item": items}
    (full_run / "metrics_images_test_0000020.json").write_text(json.dumps(scores))
    (full_run / "metrics_captions_test_0000020.json").write_text(
        json.dumps({"figures": {"cider_d": 1.0}, "per_item": [{"image_id": 2, "cider_d": 0.25}]})
    )
    report.main(data)
    html = Reader((full_run / "report.html").read_text(encoding="utf-8"))
    painted, written = (html.data["galleries"][name] for name in ("painted", "written"))
    assert painted["scores"] == [{"name": "clip_score", "label": "CLIPScore"}]
    assert [entry["scores"] for entry in painted["entries"]] == [[3.5], [None], [71.0]]
    assert [entry["scores"] for entry in written["entries"]] == [[None], [0.25], [None]]
    assert "Worst pictures" in html.text and "Worst captions" not in html.text
    # scores of other pictures than these say nothing of them
    (full_run / "metrics_images_test_0000020.json").rename(
        full_run / "metrics_images_test_0000090.json"
    )
    report.main(data)
    html = Reader((full_run / "report.html").read_text(encoding="utf-8"))
    assert html.data["galleries"]["painted"]["scores"] == []


def test_contact_sheet_shows_both_directions(data, full_run):
    report.main(data)
    with Image.open(full_run / "contact_sheet.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(10, 50, 90), (10, 100, 90)} <= colours  # painted
    assert {(60, 90, 200), (120, 90, 200), (180, 90, 200)} <= colours  # real


def test_galleries_are_cut_to_what_is_asked_for(data, full_run):
    report.main([*data, "--items", "1"])
    html = Reader((full_run / "report.html").read_text(encoding="utf-8"))
    assert html.text.count("The first 1 of 3") == 2
    assert len(html.data["pictures"]) == 2  # painted and real, the latter also captioned


def test_missing_parts_become_notes(data, run, tmp_path):
    (tmp_path / "dataset.json").unlink()
    report.main(data)
    text = Reader((run / "report.html").read_text(encoding="utf-8")).text
    for word in ("inference.py", "sample_images.py", "evaluate.py", "curves", "dataset.json"):
        assert word in text
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images_painted"] == 0 and "cider_d" not in summary


def test_results_of_different_iterations_are_pointed_out(data, full_run):
    write_captions(full_run / "captions_test_0000030.json", OWN)
    report.main(data)
    text = Reader((full_run / "report.html").read_text(encoding="utf-8")).text
    assert "different iterations: figures 20, captions 30, pictures 20" in text


def test_damaged_and_vanished_pictures_do_not_stop_the_report(data, full_run):
    (full_run / "images_test_0000020/img1.png").write_bytes(b"\x89PNG\r\n broken")
    (full_run / "images_test_0000020/img2.png").unlink()
    report.main(data)
    text = Reader((full_run / "report.html").read_text(encoding="utf-8")).text
    assert "1 of 3 painted pictures are gone" in text
    assert Reader((full_run / "report.html").read_text()).data["pictures"].count(None) == 1
    assert json.loads((full_run / "summary.json").read_text())["images_painted"] == 2


def test_broken_manifest_leaves_the_earlier_report(data, full_run):
    (full_run / "report.html").write_text("earlier")
    (full_run / "images_test_0000020/manifest.json").write_text('{"items": [{"file": 3}]}')
    with pytest.raises(UserError, match=r"manifest\.json.*file and caption"):
        report.main(data)
    assert (full_run / "report.html").read_text() == "earlier"


def test_unknown_run_is_named(data):
    with pytest.raises(UserError, match="no run 'other'"):
        report.main([*data, "exp_id", "other"])


# --- pieces


def test_ticks_are_round_and_inside():
    assert curves.ticks(0, 10, 4) == [0, 5, 10]
    assert curves.ticks(0.13, 0.58, 3) == pytest.approx([0.2, 0.4])
    assert curves.ticks(3, 3, 4) == [3]
    assert [curves.label(value) for value in (1_500_000, 20_000, 0.5, 1e-5)] == [
        *("1.5M", "20k", "0.5", "1e-05")
    ]


@pytest.mark.parametrize("values", [[1.0], [2.0] * 9, [0.0, 0.0], [1e-9, 1e9], [3.0, -7.5, 1.0]])
def test_drawing_stays_inside_its_frame(values):
    drawing = curves.draw(curves.Curve("<x>", list(range(len(values))), values))
    points = re.findall(r"points=\"([^\"]*)\"", drawing)[0]
    for point in points.split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= curves.WIDTH and 0 <= y <= curves.HEIGHT
    assert "<x>" not in drawing


def test_long_curves_are_thinned_to_means():
    long = curves.Curve("loss", list(range(1000)), [0.0, 2.0] * 500)
    thinned = curves.thin(long, points=100)
    assert len(thinned.steps) == 100 and set(thinned.values) == {1.0}


def test_text_is_broken_into_lines_that_fit():
    font = ImageFont.load_default(15)
    rows = pictures.wrap("a dog runs over the green grass " * 9, font, 150, 3)
    assert len(rows) == 3 and rows[-1].endswith("…")
    assert all(font.getlength(row) <= 150 for row in rows)
    assert pictures.wrap("x" * 500, font, 150, 2)[0].endswith("…")
    assert pictures.wrap("a dog", font, 150, 3) == ["a dog"]
    assert pictures.wrap("", font, 150, 3) == []


def test_large_pictures_are_embedded_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")
    source = gallery.data_uri(tmp_path / "big.png")
    assert source is not None and source.startswith("data:image/jpeg") and len(source) < 100_000


def test_figures_are_written_in_few_characters():
    values = [55.0, 232.6336, 0.81, 0.0, -9.88e-5, 12_345.0, 7]
    assert [page.number(value) for value in values] == [
        *("55", "232.634", "0.810", "0.000", "-9.9e-05", "12,345", "7")
    ]
    assert page.caption_of("fid_clip-mini")[0] == "FID, clip-mini"


def test_durations_read_well():
    assert [page.duration(value) for value in (7.4, 125, 3725)] == [
        *("7 s", "2 min 5 s", "1 h 2 min")
    ]
