"""`zoo list` and `zoo show`."""

import json

import pytest

import zoo
from zoo.cli import main
from zoo.cli.commands.list import MARKERS
from zoo.cli.text import columns, count, rate, tokens_by_vocabulary, where_weights
from zoo.registry import Entry, Weights


def run(capsys, *words):
    code = main([*words])
    return code, capsys.readouterr().out


def test_the_table_fits_100_columns_and_names_every_entry(capsys):
    code, out = run(capsys, "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    for entry in zoo.find():
        line = next(line for line in out.splitlines() if line.startswith(f" {entry.name} "))
        assert entry.layout in line
        assert where_weights(entry) in line
        assert f"{entry.modality}, {entry.family}" in out


def test_a_long_name_is_never_cut():
    text = columns(("a", "b"), [("n" * 90, "x" * 40)], width=100, flexible=(1,))
    assert "n" * 90 in text
    assert text.splitlines()[1].endswith("x" * 7 + "…")


def test_patterns_and_filters(capsys):
    assert run(capsys, "list", "--names", "flextok_d*")[1].split() == zoo.list_models("flextok_d*")
    assert run(capsys, "list", "--names", "vae")[1].split() == zoo.list_models("*vae*")
    wanted = [e.name for e in zoo.find(license_weights="LicenseRef-apple-amlr", max_bits_per_pixel=0.1)]
    words = ("--license-weights", "LicenseRef-apple-amlr", "--where", "max_bits_per_pixel=0.1")
    assert run(capsys, "list", "--names", *words)[1].split() == wanted
    wanted = [e.name for e in zoo.find() if e.ordered and e.tokens in (32, 64)]
    assert "flextok_nano" in wanted
    assert run(capsys, "list", "--names", "--where", "ordered=true", "--where", "tokens__in=32,64")[1].split() == wanted
    assert "kl_vae_nano" in run(capsys, "list", "--names", "--embedded")[1].split()


def test_nothing_found_is_code_1(capsys):
    assert main(["list", "no_such_name"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert f"all {len(zoo.find())}" in streams.err


def test_json_is_the_entries(capsys):
    _, out = run(capsys, "list", "--json", "flextok_nano")
    (found,) = json.loads(out)
    expected = {**zoo.info("flextok_nano").to_dict(), "embedded": zoo.info("flextok_nano").embedded}
    assert found == json.loads(json.dumps(expected))


def test_a_family_that_is_not_there(capsys):
    assert main(["list", "--family", "flextk"]) == 2
    assert "Did you mean flextok?" in capsys.readouterr().err


def test_markdown_into_a_file(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    assert main(["list", "--markdown", "--into", str(page)]) == 0
    text = page.read_text()
    table = run(capsys, "list", "--markdown")[1]
    assert text == f"before\n{MARKERS[0]}\n{table}{MARKERS[1]}\nafter\n"
    assert table.count("\n") == 2 + len(zoo.find())
    assert main(["list", "--markdown", "--into", str(page)]) == 0
    assert page.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]


def test_markdown_needs_its_markers(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    assert main(["list", "--markdown", "--into", str(page)]) == 2
    assert "has no lines" in capsys.readouterr().err
    assert page.read_text() == "nothing here\n"


@pytest.mark.parametrize("name", zoo.list_models())
def test_show(name, capsys):
    code, out = run(capsys, "show", name)
    entry = zoo.info(name)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert out.startswith(f"{name}\n")
    assert (entry.license_weights or "unknown") in out
    for key, value in entry.config.items():
        assert key in out
        assert str(value)[:60] in out
    assert ("Notice" in out) == bool(entry.notice)


def test_show_says_how_to_use_it(capsys):
    out = run(capsys, "show", "flextok_d12_d12_in1k")[1]
    assert "tok = zoo.load('flextok_d12_d12_in1k')" in out
    assert "tokens = tok.encode(tok.preprocess('picture.jpg'), tokens=64)" in out


def test_show_json(capsys):
    assert json.loads(run(capsys, "show", "kl_vae_nano", "--json")[1])["name"] == "kl_vae_nano"


def entry(**facts):
    base = {"name": "x", "family": "f", "modality": "image", "summary": "", "layout": "2d", "discrete": True}
    return Entry(**{**base, **facts})


def test_tokens_by_vocabulary():
    assert tokens_by_vocabulary(entry(tokens=256, ordered=True, codebook_size=64000)) == "1-256 x 64,000"
    assert tokens_by_vocabulary(entry(tokens=256, codebook_size=1024)) == "256 x 1,024"
    assert tokens_by_vocabulary(entry(tokens=64, depth=4, residual=True, codebook_size=2048)) == "64 x 1-4 x 2,048"
    assert tokens_by_vocabulary(entry(tokens=64, depth=16, codebook_size=64)) == "64 x 16 x 64"
    assert tokens_by_vocabulary(entry(tokens=64, discrete=False, channels=16)) == "64 x 16 ch"
    audio = {"modality": "audio", "layout": "1d"}
    rvq = entry(**audio, frame_rate=12.5, depth=8, residual=True, codebook_size=2048)
    assert tokens_by_vocabulary(rvq) == "12.5/s x 1-8 x 2,048"
    video = {"modality": "video", "layout": "3d", "downsample": (4, 8, 8)}
    assert tokens_by_vocabulary(entry(**video, codebook_size=262144)) == "1/4x8x8 x 262,144"


def test_rates_and_sizes_in_words():
    assert rate(entry(bits_per_pixel=0.0623666)) == "0.0624 bpp"
    assert rate(entry(modality="audio", layout="1d", bits_per_second=1500.0)) == "1.5 kbps"
    assert rate(entry()) == "-"
    assert [count(n) for n in (None, 87, 1870000, 2540882853)] == ["-", "87", "1.87M", "2.54B"]
    assert where_weights(entry(weights=Weights(repo="a/b"))) == "Hub"
    assert where_weights(entry(weights=Weights(file="x.safetensors"))) == "embedded"
    assert where_weights(entry(recipe="r")) == "recipe"
    assert where_weights(entry()) == "-"
