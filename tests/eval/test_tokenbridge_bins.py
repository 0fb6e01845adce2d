"""What bins cost: measured as by hand, told as measured; the published page is that of the published result and weights."""

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import zoo
from eval import tokenbridge_bins as module
from eval.results import item_scores, load_result
from eval.runner import tensors_sha256
from eval.tokenbridge_bins import drawing, gaps, main, measure, page
from recipes.data.corpora import open_images
from recipes.data.corpus import Selection, content_hash
from zoo.image.tokenbridge import TokenBridge
from zoo.transforms.quality import psnr_db

PUBLISHED = Path(module.__file__).parent / "results" / "kl_vae_nano_tokenbridge"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vae():
    return zoo.load("kl_vae_nano")


@pytest.fixture(scope="module")
def halves():
    samples = open_images("samples")
    return Selection(samples, range(5)), Selection(samples, range(5, 12))


@pytest.fixture(scope="module")
def result(vae, halves):
    return measure(vae, *halves, bins=(4, 16, 64), scorers=("psnr_db",), batch_size=2, dataset_name="five")


def test_the_numbers_are_those_of_the_tokenizer_itself(vae, halves, result):
    x, others = (torch.cat([vae.preprocess(part.read(i)) for i in range(len(part))]) for part in halves)
    with torch.inference_mode():
        whole = _eight_bits(vae(x))
        measured_on = vae.encode(others).data
        for bins in (4, 16, 64):
            own = TokenBridge.on(vae, bins=bins, latents=measured_on)
            tokens = own.encode(x)
            wanted = psnr_db(_eight_bits(x), _eight_bits(own.decode(tokens)))
            found = item_scores(result.items, "psnr_db", rate={"bins": bins})
            assert list(found.values()) == pytest.approx(wanted.tolist(), abs=2e-3)
            (gap,) = [gap for gap in gaps(result) if gap.bins == bins]
            assert gap.psnr.mean == pytest.approx(float((psnr_db(_eight_bits(x), whole) - wanted).mean()), abs=4e-3)
            assert gap.point.bits_per_pixel == pytest.approx(float(tokens.bits_per_pixel()[0]))
            assert gap.point.scores["codebook_use"].mean == pytest.approx(_use(tokens.data, bins))
    assert result.points[-1].rate == {}
    assert result.points[-1].bits_per_pixel == 16 * 32 / 64
    assert result.weights_sha256 == tensors_sha256(vae)
    assert content_hash(halves[1]) in result.protocol.decode["calibration"]
    assert sorted(result.points[-2].codes["frequency_order"]) == list(range(16))


def _eight_bits(x):
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _use(codes, bins):
    """Mean share over the channels of the values that occur."""
    channels = codes.flatten(0, -2).t()
    return sum(len(channel.unique()) / bins for channel in channels) / len(channels)


def test_more_bins_cost_less(result):
    lost = [gap.psnr.mean for gap in gaps(result)]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.5
    assert lost[-1] < 0.1


def test_the_page_says_what_was_measured(result):
    text = page(result)
    rows = [row.split("|")[1:-1] for row in text.splitlines() if re.match(r"\| \d+ \|", row)]
    assert [int(row[0]) for row in rows] == [4, 16, 64]
    assert [float(row[1]) for row in rows] == [32, 64, 96]
    assert [row[2].strip() for row in rows] == ["2,048", "4,096", "6,144"]
    for row, gap in zip(rows, gaps(result), strict=True):
        assert row[5].strip().startswith(f"{gap.psnr.mean:.4f} (")
    assert result.dataset.sha256 in text
    assert result.weights_sha256 in text


def _shifted(result, lost):
    """The same result with other scores: so much is lost at each number of bins, in turn a little more and a little less."""
    whole = item_scores(result.items, "psnr_db", rate="full")
    items = []
    for row in result.items:
        less = lost.get(row.rate, 0.0) * (1 + 0.01 * (-1) ** row.item)
        items.append(replace(row, scores={**row.scores, "psnr_db": whole[row.key] - less}))
    return replace(result, items=tuple(items))


def test_the_claim_is_judged_by_the_interval(result):
    good = page(_shifted(result, {"bins=4": 1.0, "bins=16": 0.09, "bins=64": 0.01}))
    assert "on par from 64 bins holds here: 0.01" in good
    assert "The fewest bins of this table that are: 16." in good
    bad = page(_shifted(result, {"bins=4": 1.0, "bins=16": 0.5, "bins=64": 0.0997}))
    assert "on par from 64 bins does not hold here: 0.0999" in bad
    assert "fewest" not in bad


def test_the_drawing_has_a_point_for_each_number_of_bins(result):
    lost = {"bins=4": 1.0, "bins=16": 0.1, "bins=64": 0.01}
    root = ElementTree.fromstring(drawing(_shifted(result, lost)))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == 3
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2), "bins on a logarithmic scale"
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.5), "and so the gap"
    assert y0 < y1 < y2


def test_what_is_refused(vae, halves):
    for values, words in (
        ({"bins": (8, 4)}, r"bins=\[8, 4\]\. Needed: rising"),
        ({"scorers": ("ssim",)}, r"psnr_db among them"),
    ):
        with pytest.raises(ValueError, match=words):
            measure(vae, *halves, **values)
    with pytest.raises(ValueError, match="calibration holds the pictures that are scored"):
        measure(vae, halves[0], halves[0])
    with pytest.raises(TypeError, match="Needed: a tokenizer of pictures that gives a grid of latents"):
        measure(zoo.load("flextok_nano"), *halves)
    with pytest.raises(ValueError, match="has no bins"):
        gaps(replace(load_result(next(PUBLISHED.glob("*.json"))), items=()))


def test_page_and_drawing_can_be_made_again(result, tmp_path, capsys):
    result.save(tmp_path / "five.image-64-v1.json")
    assert main(["kl_vae_nano", "--redraw", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("# What bins cost: TokenBridge on kl_vae_nano")
    assert (tmp_path / "bins.md").read_text() == page(result)
    assert (tmp_path / "bins.svg").read_text() == drawing(result)
    with pytest.raises(ValueError, match="holds 0 results"):
        main(["kl_vae_nano", "--redraw", "--out", str(tmp_path / "none")])


def test_the_published_page_is_that_of_the_published_result(vae):
    (path,) = PUBLISHED.glob("*.json")
    published = load_result(path)
    again = "python -m eval.tokenbridge_bins kl_vae_nano --data DATA"
    assert (PUBLISHED / "bins.md").read_text() == page(published), f"the page is stale: {again} --redraw"
    assert (PUBLISHED / "bins.svg").read_text() == drawing(published)
    assert published.weights_sha256 == tensors_sha256(vae), f"the weights are others than those measured: {again}"
    assert [gap.bins for gap in gaps(published)] == [4, 8, 16, 32, 64, 128, 256]
    assert all(math.isfinite(gap.psnr.mean) for gap in gaps(published))
