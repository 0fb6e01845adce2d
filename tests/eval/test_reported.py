"""Published figures: each belongs to an entry, has a source that the entry knows, and stands in its card."""

import collections

import pytest

import zoo
from eval.cards import card
from eval.reported import Reported, reported_of, reported_table
from zoo.generators.registry import find as find_generators


def test_every_figure_belongs_to_a_public_entry():
    entries = {entry.name: entry for entry in (*zoo.find(), *find_generators())}
    for figure in reported_table():
        assert not figure.name.endswith("_nano")
        origin = (entries[figure.name].source or "").partition("@")[0]
        assert (origin and origin in figure.source) or "arXiv" in figure.source, figure


def test_no_figure_stands_twice():
    keys = collections.Counter((f.name, f.rate, f.score, f.data) for f in reported_table())
    assert [key for key, count in keys.items() if count > 1] == []


def test_a_card_sets_them_apart():
    text = card(zoo.info("titok_l32_in1k"))
    section = text.partition("## Published by others")[2].partition("\n## ")[0]
    assert "| rfid |  | 2.21 |" in section
    assert "never ranked" in section
    assert "Published by others" not in card(zoo.info("kl_vae_nano"))


def test_a_figure_without_source_is_refused():
    with pytest.raises(ValueError, match="source given"):
        Reported(name="a", rate="", score="rfid", value=1.0, data="ImageNet", source="")
    with pytest.raises(ValueError, match="finite"):
        Reported(name="a", rate="", score="rfid", value=float("nan"), data="ImageNet", source="a paper")


def test_vidtok_is_there_in_full():
    assert {f.score: f.value for f in reported_of("vidtok_kl_causal_488_16chn")} == {
        "psnr_db": 35.04,
        "ssim": 0.942,
        "lpips": 0.047,
        "fvd": 78.9,
    }
