"""--tile: big pictures are cut, small ones are not, and a mosaic comes out the same either way."""

import pytest
from PIL import Image

from tests.cli.test_coding import run
from zoo import tokenizer as module
from zoo.tokens import Tokens


@pytest.fixture
def cut(monkeypatch):
    """Sides of the tilings in which pictures were really cut."""
    sides = []
    for name in ("encode_tiles", "decode_tiles"):
        plain = getattr(module, name)

        def spy(call, data, tiling, *, downsample, plain=plain):
            sides.append(tiling.side)
            return plain(call, data, tiling, downsample=downsample)

        monkeypatch.setattr(module, name, spy)
    return sides


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "wide.png"
    Image.linear_gradient("L").convert("RGB").resize((1100, 40)).save(path)
    return path


def test_a_picture_in_tiles_and_back(toy, tmp_path, cut):
    picture = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    for name, words in (("whole", []), ("tiles", ["--tile", "64"])):
        tokens = tmp_path / f"{name}.safetensors"
        assert run("encode", toy("fixed"), picture, tokens, "--no-crop", "--size", "150", *words) == 0
        assert run("decode", toy("fixed"), tokens, tmp_path / f"{name}.png", *words) == 0
    assert cut == [64, 64]
    a, b = (Tokens.load(tmp_path / f"{name}.safetensors") for name in ("whole", "tiles"))
    assert a.data.equal(b.data)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "tiles.png").read_bytes()


def test_the_default_cuts_what_is_above_1024(toy, tmp_path, cut, wide):
    tokens = tmp_path / "t.safetensors"
    assert run("encode", toy("fixed"), wide, tokens, "--no-crop", "--size", "40") == 0
    assert run("decode", toy("fixed"), tokens, tmp_path / "out.png") == 0
    assert cut == [1024, 1024]
    cut.clear()
    assert run("encode", toy("fixed"), wide, tokens, "--no-crop", "--size", "40", "--tile", "0") == 0
    assert run("encode", toy("fixed"), wide, tokens, "--no-crop", "--size", "32") == 0
    assert cut == []


def test_what_is_not_tiled(toy, tmp_path, wide, capsys):
    tokens = tmp_path / "t.safetensors"
    assert run("encode", toy("ordered"), wide, tokens) == 0, "the default asks for nothing"
    assert run("encode", toy("ordered"), wide, tokens, "--tile", "64") == 2
    assert "--tile 64: " in capsys.readouterr().err
    assert run("encode", toy("fixed"), wide, tokens, "--tile", "8", "--no-crop") == 2
    assert "side=8 holds 2 positions of 4 pixels" in capsys.readouterr().err
