"""The report page and the demo in a browser."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import drop, errors, needs_browser, open_browser, press, requests, screenshot, wait
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from tiny import export_tiny

from generations import report, runtime
from generations.commands import demo
from generations.config import load_config
from generations.pipelines.demo import Demo

pytestmark = needs_browser
NASTY = "<script>document['title']='run'</script> & ${1 + 1} \"zebra\" <img src=x onerror=alert(1)>"
SEEN = "[...document.querySelectorAll('{}')].filter(i => i.complete && i.naturalWidth > 0).length"
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


def no_overflow(driver: webdriver.Chrome) -> bool:
    return driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


# --- the report page

COUNT = 70


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 70 painted and 30 captioned images; returns its folder."""
    root = tmp_path_factory.mktemp("report")
    folder = root / "models/run"
    painted = folder / "images_test_0000020"
    (painted / "steps").mkdir(parents=True)
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    entries, items, scores, captions = [], [], [], []
    for number in range(1, COUNT + 1):
        noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"images/pic{number}.png")
        Image.fromarray(255 - noise).save(painted / f"img{number}.png")
        caption = NASTY if number == 3 else f"thing number{number} on a table."
        entries.append(
            {"filename": f"pic{number}.png", "cocoid": number, "split": "test"}
            | {"sentences": [{"tokens": caption.split()}, {"tokens": ["another", "one"]}]}
        )
        file = f"img{number}.png"
        items.append({"file": file, "caption": caption, "image_id": number})
        scores.append({"file": file, "clip_score": 100.0 + (number * 37) % COUNT})
        captions.append({"image_id": number, "caption": caption})
    steps = []
    for number in (1, 2):
        Image.new("RGB", (24, 24), (80 * number, 0, 0)).save(painted / f"steps/img1.{number}.png")
        steps.append({"file": f"steps/img1.{number}.png", "again": [0, 2][: 2 - number]})
    traced = [{"caption": NASTY, "grid_size": 2, "steps": steps}]
    for path, content in (
        (root / "dataset.json", {"images": entries}),
        (painted / "manifest.json", {"items": items}),
        (painted / "steps.json", {"items": traced}),
        (folder / "captions_test_0000020.json", captions[:30]),
        (
            folder / "metrics_images_test_0000020.json",
            {"figures": {"clip_score": 135.0}, "per_item": scores},
        ),
    ):
        path.write_text(json.dumps(content))
    (folder / "config.yaml").write_text(f"note: {NASTY}\n")
    return folder


def write_report(run: Path, *options: str) -> str:
    """Make the page; returns its address."""
    root = run.parents[1]
    report.main(
        [
            *("exp_id", "run", "save_dir", str(root / "models")),
            *("dataset_coco", str(root / "dataset.json"), "images_dir", str(root / "images")),
            *options,
        ]
    )
    return (run / "report.html").as_uri()


@pytest.mark.parametrize("size", ["desk", "phone"])
@pytest.mark.parametrize("options", [(), ("--one-file-up-to", "9")], ids=["one file", "packs"])
def test_report_shows_pictures_and_texts(run, tmp_path, size, options):
    address = write_report(run, *options)
    assert (run / "report_files").exists() == bool(options)
    with open_browser(tmp_path, size) as driver:
        driver.get(address)
        per_page = driver.execute_script("return innerWidth < 600 ? 12 : 24")
        for name, pictures in (("painted", 2 * per_page), ("written", per_page)):
            driver.execute_script(f"document.getElementById('{name}').scrollIntoView()")
            gallery = f"[data-gallery={name}]"
            for place in range(per_page):  # pictures come when they are near
                driver.execute_script(
                    f"document.querySelectorAll('{gallery} .card')[{place}].scrollIntoView()"
                )
            wait(driver, f"{SEEN.format(gallery + ' .frame img')} == {pictures}")
        assert driver.execute_script(f"return {SEEN.format('.steps img')}") == 2
        texts = driver.execute_script(
            "return [...document.querySelectorAll('.card p, .card li')].map(p => p.textContent)"
        )
        assert (
            sum(NASTY in text for text in texts) == 4
        )  # painted from, its steps, written, a reference
        assert driver.title == "run" and not driver.find_elements(By.CSS_SELECTOR, "[onerror]")
        assert no_overflow(driver)
        screenshot(driver, tmp_path / "report.png")
        assert errors(driver) == [] and requests(driver) == set()


def test_report_is_filtered_sorted_and_paged(run, tmp_path):
    address = write_report(run)
    with open_browser(tmp_path) as driver:
        driver.get(address)
        gallery = driver.find_element(By.CSS_SELECTOR, "[data-gallery=painted]")
        output = gallery.find_element(By.TAG_NAME, "output")

        def texts() -> list[str]:
            return [
                card.text
                for card in gallery.find_elements(By.CSS_SELECTOR, ".card > p:not(.score)")
            ]

        def said(text: str) -> None:
            wait(
                driver, f"document.querySelector('[data-gallery=painted] output').value == '{text}'"
            )

        assert output.text == "1–24 of 70"
        first, back, following, last = gallery.find_elements(By.TAG_NAME, "button")
        following.click()
        said("25–48 of 70")
        assert texts()[0] == "thing number25 on a table."
        last.click()
        said("49–70 of 70")
        assert len(texts()) == 22 and not following.is_enabled()
        first.click()
        assert not back.is_enabled()
        order = Select(gallery.find_element(By.TAG_NAME, "select"))
        order.select_by_visible_text("CLIPScore, best first")
        scores = [card.text for card in gallery.find_elements(By.CSS_SELECTOR, ".score")]
        assert scores == [f"CLIPScore {169 - place}.0" for place in range(24)]
        field = gallery.find_element(By.TAG_NAME, "input")
        field.send_keys("ZEBRA script")
        said("1–1 of 1")
        assert texts() == [NASTY]
        field.clear()
        field.send_keys("table number1")  # words that begin so: 1, 10 to 19
        said("1–11 of 11")
        field.send_keys("nothing")
        said("none")
        best = driver.find_elements(By.CSS_SELECTOR, "[data-extremes='painted best'] .score")
        worst = driver.find_elements(By.CSS_SELECTOR, "[data-extremes='painted worst'] .score")
        assert [card.text for card in best] == scores[:6]
        assert [card.text for card in worst] == [f"CLIPScore {100 + n}.0" for n in range(6)]
        assert errors(driver) == []


def test_report_without_its_folder_says_so(run, tmp_path):
    write_report(run, "--one-file-up-to", "9")
    (tmp_path / "report.html").write_text((run / "report.html").read_text())
    with open_browser(tmp_path / "profile") as driver:
        driver.get((tmp_path / "report.html").as_uri())
        driver.find_element(By.CSS_SELECTOR, ".frame").location_once_scrolled_into_view  # noqa: B018
        wait(driver, "document.querySelector('.frame').textContent.includes('report_files')")
    write_report(run)


# --- the demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def served(folder) -> Iterator[tuple[str, list[str]]]:
    """The demo's address, and which other machines this process has tried to reach meanwhile."""
    tried: list[str] = []
    real_connect, real_look_up = socket.socket.connect, socket.getaddrinfo

    def connect(self: socket.socket, address):
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            tried.append(str(address))
            raise OSError("no network")
        return real_connect(self, address)

    def look_up(host, *arguments, **options):
        if host not in (*LOOPBACK, None, ""):
            tried.append(str(host))
            raise OSError("no network")
        return real_look_up(host, *arguments, **options)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket, "getaddrinfo", look_up)
        here = runtime.Runtime(torch.device("cpu"))
        page = demo.build_page(Demo(load_config([folder / "config.yaml"]), here))
        yield demo.launch(page, "127.0.0.1", port, block=False), tried
        page.close()


@pytest.mark.parametrize("size", ["desk", "phone"])
def test_demo_paints_and_captions(served, folder, tmp_path, size):
    address, tried = served
    with open_browser(tmp_path, size) as driver:
        driver.get(address)
        wait(driver, "document.querySelector('#typed textarea')")
        driver.find_element(By.CSS_SELECTOR, "#typed textarea").send_keys("two red birds at sea")
        press(driver, "#paint")
        wait(driver, f"{SEEN.format('#painted .samples img')} == 4")
        shown = "#painted .steps > .row"
        wait(driver, f"{SEEN.format(shown + ' img')} == 16")

        def strips() -> list[bool]:
            return [row.is_displayed() for row in driver.find_elements(By.CSS_SELECTOR, shown)]

        assert strips() == [True, False, False, False]
        press(driver, "#painted label", 2)
        assert strips() == [False, False, True, False]
        assert driver.find_element(By.CSS_SELECTOR, "#painted .best").text == "two red birds at sea"
        assert "CLIPScore" in driver.find_element(By.CSS_SELECTOR, "#painted label").text
        assert no_overflow(driver)
        screenshot(driver, tmp_path / "painted.png")
        press(driver, "button[role=tab]:nth-of-type(2)")
        wait(driver, "document.querySelector('#dropped input[type=file]')")
        drop(driver, "#dropped button", folder / "examples/1.png")
        wait(driver, "document.querySelectorAll('#written td').length > 0")
        assert driver.find_element(By.CSS_SELECTOR, "#written .best").text
        wait(driver, f"{SEEN.format('#dropped img')} == 1")
        assert no_overflow(driver)
        screenshot(driver, tmp_path / "written.png")
        assert errors(driver) == []
        assert all(url.split("/")[2] == address.split("/")[2] for url in requests(driver))
    assert tried == []


def test_demo_shows_odd_captions_as_text_and_mistakes_as_messages(served, tmp_path):
    address, _ = served
    with open_browser(tmp_path) as driver:
        driver.get(address)
        wait(driver, "document.querySelector('#typed textarea')")
        press(driver, "#paint")
        wait(driver, "document.body.textContent.includes('the caption is empty')")
        driver.find_element(By.CSS_SELECTOR, "#typed textarea").send_keys(NASTY + "\n")
        press(driver, "#paint")
        wait(driver, "document.querySelector('#painted .best')")
        assert driver.find_element(By.CSS_SELECTOR, "#painted .best").text == NASTY
        assert driver.title == "generations"
        assert not driver.find_elements(By.CSS_SELECTOR, "#painted [onerror], #painted script")
        press(driver, "button[role=tab]:nth-of-type(2)")
        wait(driver, "document.querySelector('#dropped input[type=file]')")
        (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
        field = driver.find_element(By.CSS_SELECTOR, "#dropped input[type=file]")
        field.send_keys(str(tmp_path / "broken.png"))
        wait(driver, "/damaged|error|invalid/i.test(document.body.textContent)")
