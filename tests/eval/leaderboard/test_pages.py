"""The pages without a browser: what they hold, where it is from, and that they need nothing else."""

import base64
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from eval.baselines.video import VIDEO_CODECS
from eval.leaderboard.boards import facts_of, load_results
from eval.leaderboard.command import build_site
from eval.leaderboard.gallery import Unavailable, make_gallery
from eval.reconstruction import evaluate
from eval.sounds import open_sounds
from recipes.data.clip_corpus import open_clips
from recipes.data.corpora import open_images
from zoo import samples
from zoo.cli import main
from zoo.media import to_uint8


class Page(HTMLParser):
    """What a page holds: tables with their cells, addresses, ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [(tag, values[key]) for key in ("src", "href", "srcset", "poster", "action") if key in values]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        self.cell = tag in ("td", "th") or (self.cell and tag in ("a", "small", "wbr", "br"))
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.texts.append(data)
        if self.cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def site(results, figures, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    hostile = replace(results[0], tokenizer="<img src=x onerror=alert(1)>", environment={"torch": "2"})
    other = replace(results[1], dataset=replace(results[1].dataset, sha256="ee", name="other"))
    build_site([*results, other, hostile], out, reported=figures)
    return out


def test_each_board_is_a_table_of_its_own_and_reported_figures_are_apart(site):
    page = Page((site / "index.html").read_text())
    boards, other, data = page.tables
    assert [row[1] for row in boards[1:]].count("same") == 1
    assert [row[1] for row in other[1:]] == ["same"]
    assert len(boards) == 1 + 7
    assert data[0] == ["Tokenizer", "Rate", "psnr_db", "rfid", "Source"]
    assert [row[:4] for row in data[1:]] == [["paper_model", "–", "99", "–"], ["paper_model", "tokens=8", "–", "2"]]
    assert ("a", "https://example.org/paper") in page.addresses
    assert all("paper_model" not in cell for table in (boards, other) for row in table for cell in row)
    assert [row[0] for row in boards[1:]] == ["1", "2", *[row[0] for row in boards[3:-1]], "7"]
    assert all(len(row) == len(boards[0]) for row in boards)


def test_the_site_needs_nothing_else_and_names_cannot_break_it(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        page = Page(text)
        outside = [(tag, address) for tag, address in page.addresses if "//" in address and not address.startswith("data:")]
        assert all(tag == "a" for tag, _ in outside)
        assert "<img src=x" not in text
        assert "@import" not in text
        assert not re.search(r"url\((?!['\"]?data:)", text)
        assert len(page.ids) == len(set(page.ids))


def test_the_command_writes_the_site(results, tmp_path, capsys):
    for result in results[:2]:
        result.save(tmp_path / "results" / result.tokenizer / "pack.json")
    assert main(["leaderboard", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "site")]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[0] == str(tmp_path / "site" / "index.html")
    assert sorted(printed) == sorted(str(path) for path in (tmp_path / "site").rglob("*") if path.is_file())


def test_mistakes_are_told(tmp_path, capsys):
    assert main(["leaderboard", "--results", str(tmp_path / "none"), "--out", str(tmp_path / "site")]) == 2
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["leaderboard", "--results", str(tmp_path / "empty"), "--out", str(tmp_path / "site")]) == 2
    assert "holds no .json files" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


# -- reconstructions -------------------------------------------------------------------------------------------------


def picture(address: str) -> np.ndarray:
    kind, content = address.split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


@pytest.fixture(scope="module")
def flexible():
    """flextok_nano measured at two rates on the first two samples: its decoder draws noise, a different one for each picture."""
    tokenizer = zoo.load("flextok_nano")
    return evaluate(tokenizer, open_images("samples"), rates=[1, 4], limit=2, scorers=["psnr_db"], progress=False)


def test_what_is_shown_is_what_was_scored(flexible):
    gallery = make_gallery(flexible, open_images("samples"), [1, 0], entry=zoo.info("flextok_nano"))
    assert (gallery.modality, list(gallery.steps), gallery.lossless) == ("image", ["tokens=1", "tokens=4"], True)
    scored = {(row.item, row.rate): row.scores["psnr_db"] for row in flexible.items}
    for number, shown in zip([1, 0], gallery.items, strict=True):
        assert shown.key == open_images("samples").key(number)
        original = picture(shown.original.picture).astype(float)
        for step, media in zip(gallery.steps, shown.again, strict=True):
            error = ((picture(media.picture) - original) ** 2).mean()
            assert 10 * np.log10(255**2 / error) == pytest.approx(scored[number, step], abs=1e-4)
            assert media.said.endswith(f"PSNR {scored[number, step]:.1f} dB")
    bits = flexible.points[1].bits_per_pixel
    assert f"{bits:.4g} bit/px" in gallery.items[0].again[1].said


def test_the_slider_has_every_length(flexible):
    entry = zoo.info("flextok_nano")
    gallery = make_gallery(flexible, open_images("samples"), [1], entry=entry, between=True)
    assert list(gallery.steps) == [f"tokens={k}" for k in range(1, entry.tokens + 1)]
    (shown,) = gallery.items
    measured = make_gallery(flexible, open_images("samples"), [1], entry=entry).items[0].again
    assert [shown.again[k - 1].picture for k in (1, 4)] == [media.picture for media in measured], "measured rates without loss"
    pictures = [picture(media.picture).astype(float) for media in shown.again]
    assert all((a != b).any() for a, b in itertools.pairwise(pictures))
    original = picture(shown.original.picture).astype(float)
    for k, made in enumerate(pictures, start=1):
        psnr = 10 * np.log10(255**2 / ((made - original) ** 2).mean())
        assert shown.again[k - 1].said.endswith("dB")
        assert float(shown.again[k - 1].said.split()[-2]) == pytest.approx(psnr, abs=0.3), (
            k
        )  # what is stored is nearly what is told
    sizes = [len(media.picture) for media in shown.again]
    assert sum(sizes) < 4_000 * len(sizes)


def test_a_tokenizer_with_one_rate_is_decoded_as_it_decodes():
    tokenizer = zoo.load("kl_vae_nano")
    result = evaluate(tokenizer, open_images("samples"), limit=1, scorers=["psnr_db"], progress=False)
    (shown,) = make_gallery(result, open_images("samples"), [2], entry=zoo.info("kl_vae_nano")).items
    with torch.inference_mode():
        made = to_uint8(tokenizer.decode(tokenizer.encode(tokenizer.preprocess(samples.folder() / "images" / shown.key))))[0]
    difference = np.abs(picture(shown.again[0].picture).astype(int) - made.permute(1, 2, 0).numpy())
    assert difference.max() <= 1  # rounding, batch of another size


def test_other_weights_or_no_weights_are_told(flexible, measured):
    other = replace(flexible, weights_sha256="00")
    with pytest.raises(Unavailable, match="not those that were measured"):
        make_gallery(other, open_images("samples"), [0], entry=zoo.info("flextok_nano"))
    far = next(entry for entry in zoo.find(modality="image") if entry.weights is not None and not entry.embedded)
    with pytest.raises(Unavailable, match="do not ship with the package"):
        make_gallery(flexible, open_images("samples"), [0], entry=far)
    unknown = measured("nobody_knows", {"full": [20.0]}, bits={"full": 1.0})
    with pytest.raises(Unavailable, match="neither in the catalog nor a codec"):
        make_gallery(unknown, open_images("samples"), [0], entry=facts_of(unknown, None).entry)


def test_a_codec_is_shown_at_its_real_rate(results):
    jpeg = results[3]
    (shown,) = make_gallery(jpeg, open_images("samples"), [4], entry=None).items
    original = Image.fromarray(picture(shown.original.picture))
    buffer = io.BytesIO()
    original.save(buffer, "JPEG", quality=90, optimize=True, subsampling="4:2:0")
    again = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    assert np.array_equal(picture(shown.again[1].picture), again)
    assert f"quality=90, {8 * len(buffer.getvalue()) / 64**2:.4g} bit/px" in shown.again[1].said


def test_recordings_are_cut_and_can_be_played(stored_opus):
    soundfile = pytest.importorskip("soundfile", reason="recordings are read with soundfile")
    pytest.importorskip("av", reason="Opus is coded with PyAV")
    gallery = make_gallery(stored_opus, open_sounds("samples", split="speech"), [1], entry=None)
    (shown,) = gallery.items
    waves = []
    for media in (shown.original, *shown.again):
        kind, content = media.sound.split(",", 1)
        assert kind == "data:audio/flac;base64"
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert (wave.shape, rate) == ((4 * 16000,), 16000)
        waves.append(wave)
    errors = [((wave - waves[0]) ** 2).mean() for wave in waves[1:]]
    assert 0 < errors[-1] < errors[0] < (waves[0] ** 2).mean()


def test_clips_can_be_played_and_are_what_the_codec_made():
    av = pytest.importorskip("av", reason="clips are read and stored with PyAV")
    h264 = next(result for result in load_results() if result.tokenizer == "h264")
    h264 = replace(h264, points=(h264.points[0], h264.points[-1]), items=())
    corpus = open_clips("samples")
    gallery = make_gallery(h264, corpus, [1], entry=None)
    (shown,) = gallery.items
    assert (shown.key, gallery.lossless) == (corpus.key(1), False)
    original = corpus.read(1, size=(128, 128))
    frames = original.frames.permute(0, 2, 3, 1).contiguous().numpy().astype(float)
    errors = []
    for media in (shown.original, *shown.again):
        kind, content = media.clip.split(",", 1)
        assert kind == "data:video/webm;base64"
        with av.open(io.BytesIO(base64.b64decode(content))) as file:
            assert float(file.streams.video[0].average_rate) == pytest.approx(original.frame_rate)
            played = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        assert played.shape == frames.shape
        errors.append(((played - frames) ** 2).mean())
    assert errors[0] < errors[2] < errors[1]
    codec = VIDEO_CODECS["h264"]
    coded, bits = codec.code(frames.astype(np.uint8), original.frame_rate, h264.points[0].rate["crf"])
    psnr = np.mean(10 * np.log10(255**2 / ((coded - frames) ** 2).mean((1, 2, 3))))
    assert shown.again[0].said == f"crf={h264.points[0].rate['crf']}, {bits / frames[..., 0].size:.4g} bit/px, PSNR {psnr:.1f} dB"


@pytest.fixture(scope="module")
def stored_opus():
    return next(result for result in load_results() if result.tokenizer == "opus")


# -- the page of a tokenizer -----------------------------------------------------------------------------------------


def test_the_page_shows_every_rate_the_worst_and_the_protocol(flexible, tmp_path):
    build_site([flexible], tmp_path, packs={"images": "samples"}, between=False)
    text = (tmp_path / "tokenizers" / "flextok_nano.html").read_text()
    page = Page(text)
    assert text.count('data-step="0"') == text.count('data-step="1"') == 12 + 2  # the sample pack, and the worst of two items
    scores, worst = page.tables[0], page.tables[1]
    assert [row[0] for row in scores[1:]] == ["tokens=1", "tokens=4"]
    by_score = sorted((row for row in flexible.items if row.rate == "tokens=4"), key=lambda row: row.scores["psnr_db"])
    assert [row[0] for row in worst[1:]] == [row.key for row in by_score]
    assert scores[0][2:3] == worst[0][2:3] == ["psnr_dbdB, higher is better"]
    assert flexible.protocol.fingerprint in text
    assert flexible.dataset.sha256 in text
    assert "GPL-3.0-or-later" in text
    for path in samples.images():
        record = samples.info(path)
        if record.attribution_required:
            assert any(record.author in part and record.license_url in part for part in page.texts)
    index = (tmp_path / "index.html").read_text()
    assert 'href="tokenizers/flextok_nano.html"' in index
    assert ("a", "../index.html#board-0") in page.addresses
    assert 'id="board-0"' in index


def test_several_data_sets_stand_side_by_side_on_a_page(results, measured, tmp_path):
    jpeg = results[3]
    harder = measured(
        "jpeg",
        {"quality=10": [20.0, 21.0], "quality=90": [30.0, 32.0]},
        bits={"quality=10": 0.6, "quality=90": 3.0},
        weights_sha256=None,
        dataset=replace(jpeg.dataset, sha256="ee", count=2, total=2),
    )
    build_site([jpeg, harder], tmp_path)
    text = (tmp_path / "tokenizers" / "jpeg.html").read_text()
    table = Page(text).tables[0]
    titles = ["pack, val: image-64-v1 (data dd)", "pack, val: image-64-v1 (data ee)"]
    assert [row[:3] for row in table[1:]] == [[titles[0], "40", "quality=90"], [titles[1], "2", "quality=90"]]
    assert table[0][3].startswith("psnr_db")
    assert table[2][3].startswith("31")
    assert text.count('class="gallery') == 1, "the sample pack is shown once"
    assert f"is shown above, under {titles[0]}" in text
    assert 'href="#result-1"' in text
    assert 'id="result-1"' in text
    index = Page((tmp_path / "index.html").read_text())
    assert [len(index.tables), *(len(board) for board in index.tables)] == [2, 3, 3]
    build_site([jpeg], tmp_path / "one", reconstruct=False)
    assert "On all data sets" not in (tmp_path / "one" / "tokenizers" / "jpeg.html").read_text()


def test_without_the_data_the_worst_are_listed(results, tmp_path):
    build_site(results[:1], tmp_path, reconstruct=False)
    page = Page((tmp_path / "tokenizers" / "near.html").read_text())
    worst = sorted(results[0].items, key=lambda row: row.scores["psnr_db"])[:5]
    assert [row[0] for row in page.tables[1][1:]] == [row.key for row in worst]
    assert any("--data pack=PLACE" in part for part in page.texts)


def test_wrong_data_are_refused(flexible, results, tmp_path):
    other = replace(flexible, dataset=replace(flexible.dataset, sha256="00"))
    with pytest.raises(ValueError, match="is not what flextok_nano was measured on: it has 2 items"):
        build_site([other], tmp_path / "a", packs={"images": "samples"}, reconstruct=False)
    with pytest.raises(ValueError, match=r"no result is of data 'typo'\. Data sets there: pack"):
        build_site(results, tmp_path / "b", packs={"typo": "samples"}, reconstruct=False)
    assert not list(tmp_path.rglob("*.html"))
    assert main(["leaderboard", "--data", "samples", "--out", str(tmp_path)]) == 2


def test_two_names_never_share_a_file(measured, tmp_path):
    names = ["a/b", "a b", "A-B"]
    build_site([measured(name, {"full": [20.0, 21.0]}, bits={"full": 1.0}) for name in names], tmp_path, reconstruct=False)
    titles = {re.search("<title>(.*)</title>", path.read_text())[1] for path in (tmp_path / "tokenizers").iterdir()}
    assert titles == set(names)
    assert len({path.name.lower() for path in (tmp_path / "tokenizers").iterdir()}) == 3
