"""`zoo encode` and `zoo decode`: through files and back, at every kind of rate."""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import samples
from zoo.cli import main
from zoo.tokens import Tokens

PICTURES = samples.images()[:3]


def run(*words):
    return main([str(word) for word in words])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_folder_into_one_file_and_back(toy, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in PICTURES:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("no picture")
    out = tmp_path / "deep" / "t.safetensors"
    assert run("encode", toy("ordered"), folder, out, "--tokens", 8, "--batch-size", 2) == 0
    assert "3 pictures" in capsys.readouterr().out
    tokens = Tokens.load(out)
    tok = zoo.load(toy("ordered"))
    expected = tok.encode(tok.preprocess(sorted(folder.glob("*.jpg"))), tokens=8)
    assert torch.equal(tokens.data, expected.data)

    assert run("decode", toy("ordered"), out, tmp_path / "pictures") == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["t_0000.png", "t_0001.png", "t_0002.png"]
    for i, picture in enumerate(tok.postprocess(tok.decode(expected))):
        assert np.array_equal(pixels(tmp_path / "pictures" / names[i]), np.asarray(picture))


def test_one_file_each_and_back(toy, tmp_path):
    assert run("encode", toy("residual"), *PICTURES, tmp_path / "tokens", "--batch-size", 2) == 0
    assert sorted(p.name for p in (tmp_path / "tokens").iterdir()) == sorted(p.stem + ".safetensors" for p in PICTURES)
    assert run("decode", toy("residual"), tmp_path / "tokens", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.stem + ".png" for p in PICTURES)
    tok = zoo.load(toy("residual"))
    y = tok.decode(tok.encode(tok.preprocess(PICTURES[0])))
    assert np.array_equal(pixels(tmp_path / "out" / f"{PICTURES[0].stem}.png"), np.asarray(tok.postprocess(y)[0]))


def test_one_picture_into_a_png(toy, tmp_path):
    assert run("encode", toy("latents"), PICTURES[0], tmp_path / "t.safetensors") == 0
    assert run("decode", toy("latents"), tmp_path / "t.safetensors", tmp_path / "a.png") == 0
    assert pixels(tmp_path / "a.png").shape == (32, 32, 3)


def test_rates(toy, tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    assert run("encode", toy("residual"), PICTURES[0], out, "--depth", 2) == 0
    assert Tokens.load(out).levels == 2
    assert run("encode", toy("residual"), PICTURES[0], out, "--bits-per-pixel", 1.2) == 0
    assert Tokens.load(out).levels == 2
    assert run("encode", toy("ordered"), *PICTURES, out, "--quality", 15) == 0
    tok = zoo.load(toy("ordered"))
    expected = tok.encode(tok.preprocess(list(PICTURES)), quality=15.0)
    assert torch.equal(Tokens.load(out).counts, expected.counts)
    assert len(set(expected.counts.tolist())) > 1


def test_items_of_unequal_rate_are_saved_at_their_own_length(toy, tmp_path):
    assert run("encode", toy("ordered"), *PICTURES, tmp_path, "--quality", 15) == 0
    tok = zoo.load(toy("ordered"))
    expected = tok.encode(tok.preprocess(list(PICTURES)), quality=15.0)
    for i, path in enumerate(PICTURES):
        item = Tokens.load(tmp_path / f"{path.stem}.safetensors")
        assert item.lengths is None
        assert torch.equal(item.data[0], expected.data[i, : expected.counts[i]])


def test_less_at_decoding(toy, tmp_path):
    out = tmp_path / "t.safetensors"
    run("encode", toy("ordered"), PICTURES[0], out)
    assert run("decode", toy("ordered"), out, tmp_path / "few.png", "--tokens", 2) == 0
    tok = zoo.load(toy("ordered"))
    y = tok.decode(tok.encode(tok.preprocess(PICTURES[0]), tokens=2))
    assert np.array_equal(pixels(tmp_path / "few.png"), np.asarray(tok.postprocess(y)[0]))
    run("encode", toy("residual"), PICTURES[0], out)
    assert run("decode", toy("residual"), out, tmp_path / "coarse.png", "--depth", 1) == 0


def test_size_and_aspect(toy, tmp_path):
    wide = tmp_path / "wide.png"
    Image.open(PICTURES[0]).resize((200, 100)).save(wide)
    assert run("encode", toy("fixed"), wide, tmp_path / "a.safetensors", "--size", "24x40") == 0
    assert Tokens.load(tmp_path / "a.safetensors").extent.tolist() == [[24, 40]]
    assert run("encode", toy("fixed"), wide, tmp_path / "b.safetensors", "--no-crop") == 0
    assert Tokens.load(tmp_path / "b.safetensors").extent.tolist() == [[32, 64]]
    assert run("decode", toy("fixed"), tmp_path / "b.safetensors", tmp_path / "b.png") == 0
    assert pixels(tmp_path / "b.png").shape == (32, 64, 3)


def test_pictures_of_unequal_size(toy, tmp_path):
    wide = tmp_path / "wide.png"
    Image.open(PICTURES[0]).resize((200, 100)).save(wide)
    assert run("encode", toy("fixed"), wide, PICTURES[1], tmp_path / "out", "--no-crop") == 0
    assert run("decode", toy("fixed"), tmp_path / "out", tmp_path / "png") == 0
    assert pixels(tmp_path / "png" / "wide.png").shape == (32, 64, 3)
    assert pixels(tmp_path / "png" / f"{PICTURES[1].stem}.png").shape == (32, 32, 3)


def test_options_of_the_decoder(toy, tmp_path):
    out = tmp_path / "t.safetensors"
    run("encode", toy("ordered"), PICTURES[0], out)
    words = ("--option", "brightness=0.25", "--option", "mode=negative")
    assert run("decode", toy("ordered"), out, tmp_path / "a.png", *words) == 0
    tok = zoo.load(toy("ordered"))
    y = tok.decode(tok.encode(tok.preprocess(PICTURES[0])), brightness=0.25, mode="negative")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(tok.postprocess(y)[0]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--option", "colour=1"), "toy_ordered.decode: no option 'colour'. Allowed: brightness, mode."),
        (("--steps", "5"), "toy_ordered.decode: no option 'steps'"),
        (("--option", "brightness=much"), "brightness='much'. Needed: float"),
        (("--option", "mode=loud"), "mode='loud'. Needed: plain, negative"),
        (("--option", "mode"), "has no '='"),
        (("--tokens", "99"), "k=99 is outside"),
        (("--depth", "1"), "not levels of refinement"),
        (("--device", "abacus"), "none that torch knows"),
        (("--batch-size", "0"), "--batch-size 0"),
    ],
)
def test_decode_refuses(toy, tmp_path, capsys, words, said):
    out = tmp_path / "t.safetensors"
    run("encode", toy("ordered"), PICTURES[0], out)
    capsys.readouterr()
    assert run("decode", toy("ordered"), out, tmp_path / "a.png", *words) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_decode_refuses_foreign_tokens_and_files(toy, tmp_path, capsys):
    out = tmp_path / "t.safetensors"
    run("encode", toy("ordered"), *PICTURES, out)
    assert run("decode", toy("fixed"), out, tmp_path / "x") == 2
    assert "these are tokens of 'toy_ordered'" in capsys.readouterr().err
    assert run("decode", toy("ordered"), out, tmp_path / "one.png") == 2
    assert "there are 3 to write" in capsys.readouterr().err
    (tmp_path / "no.safetensors").write_bytes(b"no tokens")
    assert run("decode", toy("ordered"), tmp_path / "no.safetensors", tmp_path / "x") == 2
    assert "not a readable safetensors file" in capsys.readouterr().err


def test_encode_refuses(toy, tmp_path, capsys):
    sound = samples.speech()[0]
    assert run("encode", toy("ordered"), sound, tmp_path / "t.safetensors") == 2
    said = capsys.readouterr().err
    assert f"{sound} is a sound, but toy_ordered is for pictures." in said
    assert ("not yet in the zoo" in said) == (not zoo.find(modality="audio"))
    (tmp_path / "broken.jpg").write_bytes(b"not a jpeg")
    assert run("encode", toy("ordered"), tmp_path / "broken.jpg", tmp_path / "t.safetensors") == 2
    assert "not a readable picture" in capsys.readouterr().err
    assert run("encode", toy("fixed"), PICTURES[0], tmp_path / "t.safetensors", "--tokens", 3) == 2
    assert "fixed layout" in capsys.readouterr().err
    assert run("encode", toy("fixed"), PICTURES[0], tmp_path / "t.safetensors", "--size", "big") == 2
    assert "--size big" in capsys.readouterr().err
    assert run("encode", toy("fixed"), PICTURES[0], tmp_path / "broken.jpg") == 2
    assert "is a file, but not a .safetensors" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["broken.jpg"]


def test_two_inputs_of_one_name_are_refused_before_any_work(toy, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.jpg").write_bytes(PICTURES[0].read_bytes())
    assert run("encode", toy("ordered"), tmp_path / "a", tmp_path / "b", tmp_path / "out") == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_encode_leaves_whole_files_only(toy, tmp_path, monkeypatch):
    out = tmp_path / "out"
    save, calls = Tokens.save, []

    def stop_in_the_second(self, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        return save(self, path)

    monkeypatch.setattr(Tokens, "save", stop_in_the_second)
    assert run("encode", toy("ordered"), *PICTURES, out, "--batch-size", 1) == 130
    assert [p.name for p in out.iterdir()] == [f"{PICTURES[0].stem}.safetensors"]
    monkeypatch.setattr(Tokens, "save", save)
    Tokens.load(next(out.iterdir()))


def test_an_old_file_stays_when_the_new_one_fails(toy, tmp_path, monkeypatch):
    out = tmp_path / "t.safetensors"
    run("encode", toy("ordered"), PICTURES[0], out)
    before = out.read_bytes()

    def stop(self, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokens, "save", stop)
    assert run("encode", toy("ordered"), PICTURES[1], out) == 130
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
