"""Entries of sound carry the axes of the survey of audio codecs, and can be found by them."""

import pytest

import zoo

AXES = ("encoder", "quantizer", "training", "streamable", "domain")
WRAPPED = [entry.name for family in ("dac", "encodec", "mimi") for entry in zoo.find(family=family)]


@pytest.mark.parametrize("name", zoo.list_models(modality="audio"))
def test_every_axis_is_stated_once(name):
    entry = zoo.info(name)
    axes = dict(tag.split(":") for tag in entry.tags if ":" in tag)
    assert tuple(tag.partition(":")[0] for tag in entry.tags if ":" in tag) == AXES
    assert set(axes["encoder"].split("+")) <= {"cnn", "lstm", "transformer"}
    assert axes["streamable"] in {"causal", "lookahead", "chunks", "none"}
    assert (axes["streamable"] == "causal") == bool(entry.causal)
    assert axes["domain"] in {"speech", "music", "general"}


def test_entries_are_found_by_their_axes_and_rates():
    def names(**filters):
        return {entry.name for entry in zoo.find(modality="audio", **filters)} & set(WRAPPED)

    assert names(tags="streamable:causal") == {"encodec_24khz", "mimi_24khz", "mimi_24khz_moshi"} == names(causal=True)
    assert names(tags="domain:music") == {"encodec_32khz", "encodec_48khz"}
    assert names(tags="streamable:chunks") == {"encodec_48khz"}
    assert names(streaming=False) == set()
    assert names(audio_channels=2) == {"encodec_48khz"}
    assert names(max_bits_per_second=3000) == {"encodec_32khz"}
    assert names(min_frame_rate=100) == {"encodec_48khz"}
