"""`zoo demo`: one page that needs nothing else, one sheet, and the same numbers in the terminal."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import samples
from zoo.cli import main
from zoo.media import to_uint8
from zoo.transforms.quality import psnr_db

KINDS = {"ordered": [1, 2, 4, 8, 16], "residual": [1, 2, 3], "fixed": [64], "latents": [64]}


class Page(HTMLParser):
    """What a browser would load, show and follow."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.links, self.alts, self.unlabelled, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        else:
            self.loaded += [attrs[key] for key in ("src", "href", "srcset", "data", "poster") if key in attrs]
        if tag == "img":
            self.alts.append(attrs["alt"])
        if tag not in ("meta", "img", "input", "line", "polyline", "circle", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def demo(toy, tmp_path_factory):
    """Give `demo(kind)`: folder and printed text of a demo, made once a kind."""
    made = {}

    def make(kind, capsys):
        if kind not in made:
            out = tmp_path_factory.mktemp(f"demo_{kind}")
            assert main(["demo", str(toy(kind)), "--out", str(out), "--batch-size", "5"]) == 0
            made[kind] = out, capsys.readouterr().out
        return made[kind]

    return make


def pictures_of(page):
    return [Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))) for src in page.loaded]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_needs_nothing_else(kind, demo, capsys):
    out, _ = demo(kind, capsys)
    text = (out / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(src.startswith("data:image/png;base64,") for src in page.loaded)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp|<link", text)
    assert "$" not in text
    assert all(link.startswith("https://creativecommons.org/") for link in page.links)
    rungs = len(KINDS[kind])
    assert len(page.loaded) == 12 * (1 + rungs)
    assert len(page.alts) == len(set(page.alts)) == 12 * (1 + rungs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pictures_are_what_the_tokenizer_gives(kind, demo, toy, capsys):
    out, _ = demo(kind, capsys)
    shown = pictures_of(Page((out / "index.html").read_text()))
    tok = zoo.load(toy(kind))
    x = tok.preprocess(samples.images())
    tokens = tok.encode(x)
    axis = {"ordered": tokens.keep, "residual": tokens.depth}.get(kind, lambda k: tokens)
    expected = [x] + [tok.decode(axis(k)) for k in KINDS[kind]]
    step = len(expected)
    for j, batch in enumerate(expected):
        for i, picture in enumerate(to_uint8(batch).permute(0, 2, 3, 1)):
            assert np.array_equal(np.asarray(shown[i * step + j]), picture.numpy()), (i, j)


def test_numbers_on_the_page_and_in_the_terminal_agree_with_a_formula(demo, toy, capsys):
    out, said = demo("ordered", capsys)
    text = (out / "index.html").read_text()
    tok = zoo.load(toy("ordered"))
    x = tok.preprocess(samples.images())
    tokens = tok.encode(x)
    for k in KINDS["ordered"]:
        y = to_uint8(tok.decode(tokens.keep(k))).float() / 127.5 - 1
        expected = psnr_db(x, y)
        bits = k * np.log2(31**3)
        row = next(line.split() for line in said.splitlines() if line.split()[:1] == [str(k)])
        assert row[1:3] == [f"{bits / 8:.3g}", f"{bits / 32**2:.3g}"]
        assert float(row[3]) == pytest.approx(float(expected.mean()), abs=0.051)
        assert f">{row[3]}<" in text
        assert f"{expected[1]:.1f} dB" in text
    rows = [line.split() for line in said.splitlines()]
    means = [float(row[3]) for row in rows if row and row[0] in ("1", "2", "4", "8", "16")]
    assert len(means) == 5
    assert means == sorted(means)


def test_the_mean_colour_is_the_floor(demo, toy, capsys):
    _, said = demo("ordered", capsys)
    x = zoo.load(toy("ordered")).preprocess(samples.images())
    flat = to_uint8(x.mean((2, 3), keepdim=True).expand_as(x)).float() / 127.5 - 1
    row = next(line.split() for line in said.splitlines() if line.startswith("mean colour"))
    assert float(row[2]) == pytest.approx(float(psnr_db(x, flat).mean()), abs=0.06)


def test_every_picture_is_credited_and_attribution_is_complete(demo, capsys):
    out, _ = demo("ordered", capsys)
    plain = re.sub(r"<a [^>]*>|</a>", "", (out / "index.html").read_text()).replace("&quot;", '"')
    for path in samples.images():
        record = samples.info(path)
        line = next(line for line in plain.split("<li>") if line.startswith(f"{record.title}:"))
        assert record.package in line
        assert record.source in line
        assert samples.LICENSE_NAMES[record.license] in line
        assert record.author is None or record.author in line
        assert record.changes in line
    assert "https://creativecommons.org/licenses/by/2.0/" in (out / "index.html").read_text()


def test_the_sheet_holds_the_pictures(demo, toy, capsys):
    out, _ = demo("ordered", capsys)
    with Image.open(out / "sheet.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    original = to_uint8(zoo.load(toy("ordered")).preprocess(samples.images()[-1])[0]).permute(1, 2, 0).numpy()
    factor = 128 // 32
    enlarged = original.repeat(factor, 0).repeat(factor, 1)
    column = sheet[:, 28 : 28 + 128]
    rows = range(len(column) - 128)
    assert sum(np.array_equal(column[row : row + 128], enlarged) for row in rows if np.array_equal(column[row], enlarged[0])) == 1


def test_the_script_gets_rates_as_json(demo, capsys):
    out, _ = demo("residual", capsys)
    data = re.search(r'<script type="application/json" id="rungs">(.*?)</script>', (out / "index.html").read_text())[1]
    rungs = json.loads(data)["rungs"]
    assert [rung["label"] for rung in rungs] == ["1 level", "2 levels", "3 levels"]


def test_a_nano_model_says_so(toy, tmp_path, capsys):
    assert main(["demo", "kl_vae_nano", "--pictures", str(samples.images()[0]), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text()
    assert "It is a nano model" in text
    assert "The decoder draws" not in text
    assert "64 × 64 px" in text
    assert "GPL-3.0-or-later" in text


def test_own_pictures_and_options(toy, tmp_path, capsys):
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red_square<b>.png")
    words = ["--pictures", str(tmp_path), "--out", str(tmp_path / "out"), "--option", "mode=negative"]
    assert main(["demo", str(toy("fixed")), *words]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "red square&lt;b&gt;" in text
    assert "<b>.png" not in text
    assert "Decoder options: mode=negative." in text
    shown = pictures_of(Page(text))
    assert np.asarray(shown[1])[0, 0, 0] < 80


def test_without_the_feature_network_the_page_says_so(toy, tmp_path, monkeypatch, capsys):
    import eval.scorers.networks as networks

    def missing(name):
        raise ModuleNotFoundError(f"load_features({name!r}): the package is not installed.")

    monkeypatch.setattr(networks, "load_features", missing)
    assert main(["demo", str(toy("fixed")), "--pictures", str(samples.images()[0]), "--out", str(tmp_path)]) == 0
    assert "feature distance" not in capsys.readouterr().out.partition("load_features")[0]
    assert "the package is not installed" in (tmp_path / "index.html").read_text()


def test_a_failing_demo_leaves_nothing(toy, tmp_path, monkeypatch):
    import zoo.cli.commands.demo.sheet as sheet

    def stop(ladder):
        raise KeyboardInterrupt

    monkeypatch.setattr(sheet, "draw_sheet", stop)
    out = tmp_path / "out"
    assert main(["demo", str(toy("fixed")), "--pictures", str(samples.images()[0]), "--out", str(out)]) == 130
    assert not out.exists() or list(out.iterdir()) == []


def test_too_many_pictures(toy, tmp_path, capsys):
    for i in range(101):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    assert main(["demo", str(toy("fixed")), "--pictures", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "up to 100" in capsys.readouterr().err




def test_the_demo_of_the_readme(tmp_path, capsys):
    words = ["--pictures", *map(str, samples.images()[:2]), "--option", "steps=2", "--out", str(tmp_path)]
    assert main(["demo", *words]) == 0
    text = (tmp_path / "index.html").read_text()
    assert "<h1>flextok_nano</h1>" in text
    assert f"{zoo.info('flextok_nano').parameters:,}" in text
    assert "written as 1 to 64 whole numbers" in text
    assert "The decoder draws what the tokens leave open" in text
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:10]] == ["1", "2", "4", "8", "16", "32", "64"]
