"""The site in headless Chromium, from the disk, without a network: sorting, filtering, comparing, the slider, a narrow screen."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest

from eval.leaderboard.boards import load_results, make_boards, rank
from eval.leaderboard.command import build_site
from eval.leaderboard.generation_boards import load_generations
from eval.leaderboard.words import compared_text

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; it is in the extra `test`")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE = 300_000  # milliseconds: a busy machine starts a browser slowly


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        path = next(filter(None, map(shutil.which, _BROWSERS)), own if os.path.exists(own) else None)
        if path is None:
            pytest.skip("no Chromium on this machine: install one (apt install chromium, or playwright install chromium)")
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"], timeout=_PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(results, figures, measured, generation, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    data = replace(results[0].dataset, name="other", sha256="ee", count=2)
    away = measured("elsewhere", {"full": [20.0, 21.0]}, bits={"full": 1.0}, dataset=data)  # other data: a board of its own
    h264 = next(result for result in load_results() if result.tokenizer == "h264")
    h264 = replace(h264, points=(h264.points[0], h264.points[-1]), items=())
    made = tmp_path_factory.mktemp("made")
    distances = {"near_ar": [50.0, 51.0, 52.0], "far_ar": [80.0, 81.0, 82.0]}
    for name, values in distances.items():
        told = generation(name, {4: [value + 10 for value in values], 8: values}, tokenizer="flextok_nano")
        (made / f"{name}.json").write_text(json.dumps(told))
    build_site([*results, away, h264], out, generations=load_generations(made), reported=figures)
    return out


@pytest.fixture
def open_page(browser, site):
    """`open_page(path)` gives a page; anything on its console, or a request to anywhere else, fails the test at its end."""
    said: list[str] = []
    contexts = []

    def visit(path: str, *, width: int = 1280):
        context = browser.new_context(viewport={"width": width, "height": 800}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_PATIENCE)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
        page.goto((site / path).as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []


def labels(page, board: int = 0) -> list[str]:
    """Name and rate of the rows that are seen, from the top."""
    script = f"""[...document.querySelectorAll('#board-{board} tbody tr')].filter(row => row.checkVisibility())
        .map(row => row.querySelector('.name').textContent + ' ' + row.querySelector('.rate').textContent)"""
    return page.evaluate(script)


def column(page, key: str) -> list[str]:
    return page.evaluate(f"[...document.querySelectorAll('#board-0 tbody .{key}')].map(cell => cell.textContent)")


def test_the_script_says_what_python_says(open_page, results):
    board = make_boards(results)[0]
    ranking = rank(board, board.columns[0])
    page = open_page("index.html")
    assert column(page, "rank") == ["1", "2", "3", "4", "5", "6"]
    assert column(page, "against") == [compared_text(board, ranking, i) for i in ranking.order]
    assert page.locator("#board-0 thead .against").inner_text().startswith("Against the best at no more bits")
    page.get_by_label("With").first.select_option(label="flextok_nano tokens=32")
    chosen = [row.label for row in board.rows].index("flextok_nano tokens=32")
    verdicts = [None if i == chosen else ranking.verdict(i, chosen) for i in ranking.order]
    said = column(page, "against")
    assert [text.split(" ")[0] for text in said] == ["the" if verdict is None else verdict.split(" ")[0] for verdict in verdicts]
    page.get_by_label("With").first.select_option(label="near")
    at = labels(page).index("same full")
    assert re.fullmatch(r"no significant difference from near: [+−]0\.\d+ \[−0\.\d+, 0\.\d+\]", column(page, "against")[at])
    page.get_by_label("Score").first.select_option(value="kid_mbv2")
    assert all("no interval: a score of whole sets" in text for text in column(page, "against") if text != "the row itself")


def test_columns_sort_by_mouse_and_by_keyboard(open_page, results):
    page = open_page("index.html")
    head = page.locator("#board-0 thead th.bits")
    assert page.locator("#board-0 thead th.rank").get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("#board-0 thead th.rank").get_attribute("aria-sort") == "none"
    assert labels(page)[0] == "flextok_nano tokens=1"
    assert labels(page)[-1] == "jpeg quality=90"
    assert [float(text) for text in column(page, "bits")] == [0.1, 0.5, 0.6, 1.0, 1.0, 3.0]
    page.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, "bits")] == [3.0, 1.0, 1.0, 0.6, 0.5, 0.1]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    score = page.locator("#board-0 thead th.chosen")
    assert score.get_attribute("aria-sort") == "descending"  # higher is better, so the best come first
    assert labels(page)[0] == "jpeg quality=90"
    page.locator("#board-0 thead th.name button").click()
    assert [label.split(" ")[0] for label in labels(page)] == ["flextok_nano", "flextok_nano", "jpeg", "jpeg", "near", "same"]
    page.locator("#board-0 thead th.parameters button").click()  # codecs have none, and what is unknown comes last
    assert [label.split(" ")[0] for label in labels(page)] == ["jpeg", "jpeg", "flextok_nano", "flextok_nano", "near", "same"]


def test_filters_hide_rows_and_their_lines(open_page):
    page = open_page("index.html")
    board = page.locator("#board-0")
    count = board.locator("output[name=count]")
    assert count.inner_text() == "6 of 6 rows"
    board.get_by_label("Kind").select_option("classical codec")
    assert sorted(labels(page)) == ["jpeg quality=10", "jpeg quality=90"]
    assert count.inner_text() == "2 of 6 rows"
    assert board.locator(".plot:visible .legend li:visible").all_inner_texts() == ["jpeg", "jpeg"]
    board.get_by_role("button", name="Clear filters").click()
    assert len(labels(page)) == 6
    board.get_by_label("Family").select_option("flextok")
    board.get_by_label("At most bits per pixel").fill("0.2")
    assert labels(page) == ["flextok_nano tokens=1"]
    board.get_by_role("button", name="Clear filters").click()
    board.get_by_label("Licence").select_option("GPL-3.0-or-later")
    board.get_by_label("Causal").select_option("no")
    board.get_by_label("Name").fill("TOKENS=32")
    assert labels(page) == ["flextok_nano tokens=32"]
    board.get_by_role("button", name="Clear filters").click()
    board.get_by_label("At most million parameters").fill("1")
    assert sorted(labels(page)) == ["jpeg quality=10", "jpeg quality=90"]  # unknown sizes are not below it
    assert len(labels(page, board=1)) == 1  # another board has filters of its own


def test_the_score_chooses_columns_and_plots(open_page):
    page = open_page("index.html")
    board = page.locator("#board-0")
    assert board.locator("thead th.score:visible").count() == 1
    titles = board.locator(".plot:visible figcaption")
    assert titles.all_inner_texts() == ["psnr_db, dB, higher is better: by rate", "psnr_db, dB, higher is better: by speed"]
    board.locator("select[name=score]").select_option(value="kid_mbv2")
    assert [text.split(",")[0] for text in titles.all_inner_texts()] == ["kid_mbv2", "kid_mbv2"]
    assert board.locator("thead th.score:visible").inner_text().startswith("kid_mbv2")
    board.get_by_label("show all scores").check()
    assert board.locator("thead th.score:visible").count() == 2


def test_the_slider_shows_one_rate_at_a_time(open_page):
    page = open_page("tokenizers/jpeg.html")
    gallery = page.locator(".gallery").first
    dial = gallery.get_by_role("slider")
    shown = gallery.locator("figure[data-step]:visible figcaption")
    assert dial.get_attribute("aria-valuetext") == "quality=90"
    assert shown.count() == 12
    assert all(text.startswith("quality=90") for text in shown.all_inner_texts())
    dial.focus()
    page.keyboard.press("ArrowLeft")
    assert dial.get_attribute("aria-valuetext") == "quality=10"
    assert gallery.locator("output").inner_text() == "quality=10"
    assert shown.count() == 12
    assert all(text.startswith("quality=10") for text in shown.all_inner_texts())
    loaded = "[...document.querySelectorAll('img')].every(img => img.complete && img.naturalWidth === 64)"
    assert page.evaluate(loaded)


def test_clips_play_and_the_slider_changes_them(open_page):
    page = open_page("tokenizers/h264.html")
    gallery = page.locator(".gallery").first
    shown = gallery.locator("figure[data-step]:visible video")
    assert (gallery.locator("video").count(), shown.count()) == (3 * 3, 3)
    clip = shown.first
    page.wait_for_function("clip => clip.readyState >= 1", arg=clip.element_handle())
    assert clip.evaluate("clip => [clip.videoWidth, clip.videoHeight, clip.error]") == [128, 128, None]
    handle = clip.element_handle()
    handle.evaluate("clip => clip.play()")
    page.wait_for_function("clip => clip.currentTime > 0", arg=handle)
    gallery.get_by_role("slider").focus()
    page.keyboard.press("ArrowLeft")
    assert handle.evaluate("clip => clip.paused")
    assert shown.count() == 3


def test_generators_sort_and_reference_rows_stay_below(open_page):
    page = open_page("index.html")
    rows = """[...document.querySelectorAll('#made-0 tbody tr')]
        .map(row => [row.querySelector('.name').textContent, row.querySelector('.rate').textContent].join(' '))"""
    below = ["reconstructions tokens=8", "other real pictures –", "the real pictures –"]
    ranked = ["near_ar tokens=8", "near_ar tokens=4", "far_ar tokens=8", "far_ar tokens=4"]
    assert page.evaluate(rows) == ranked + below
    assert page.locator("#made-0 thead th.rank").get_attribute("aria-sort") == "ascending"
    page.locator("#made-0 thead th.chosen button").click()
    page.locator("#made-0 thead th.chosen button").click()
    assert page.evaluate(rows) == ranked[::-1] + below
    page.locator("#made-0 thead th.name button").click()
    assert [row.split(" ")[0] for row in page.evaluate(rows)[:4]] == ["far_ar", "far_ar", "near_ar", "near_ar"]
    assert page.locator("#made-0 .plot svg[role=img]").get_attribute("aria-label").endswith("other real pictures: 20")
    page.locator("#made-0 tbody .name a").first.click()
    assert page.locator("h1").inner_text() == "far_ar"
    page.get_by_role("link", name="flextok_nano").first.click()
    assert page.locator("h1").inner_text() == "flextok_nano"
    page.get_by_role("link", name="near_ar").click()
    assert page.locator("h1").inner_text() == "near_ar"


def test_the_filters_of_a_wide_screen_stand_beside_their_title(open_page):
    page = open_page("index.html")
    boxes = page.evaluate("""[...document.querySelectorAll('#board-0 fieldset')[1].querySelectorAll('.fields > *')]
        .map(part => part.getBoundingClientRect()).map(box => [box.left, box.bottom])""")
    title = page.locator("#board-0 legend").nth(1).bounding_box()
    assert all(left > title["x"] + title["width"] - 1 for left, _ in boxes)
    assert len({round(bottom) for _, bottom in boxes}) == 1  # one row at 1280 px


@pytest.mark.parametrize(
    "path",
    ["index.html", "tokenizers/jpeg.html", "tokenizers/flextok_nano.html", "tokenizers/h264.html", "generators/far_ar.html"],
)
def test_a_narrow_screen_needs_no_scrolling_to_the_side(path, open_page):
    page = open_page(path, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if path == "index.html":
        page.get_by_role("button", name="bit/px").first.click()
        assert labels(page)[0] == "flextok_nano tokens=1"
        page.get_by_label("show all scores").first.check()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
