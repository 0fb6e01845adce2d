"""`zoo encode` and `zoo decode` with the small form of every family of sound and video: what Python gives, whole or streamed."""

import numpy as np
import pytest
import soundfile
import torch

import zoo
from tests.contract.small import SMALL, built, cases
from zoo import samples
from zoo.checkpoint import write_folder
from zoo.cli import main
from zoo.media.video import read_videos, write_video
from zoo.publishing import folder_config
from zoo.tokens import Tokens


def _one_of_each():
    """A streaming and a whole kind of each family that gives a signal back."""
    chosen = {}
    for name in cases():
        info = zoo.info(name)
        if info.modality != "image" and info.family in SMALL and SMALL[info.family].embedding is None:
            chosen.setdefault((info.family, info.streaming), name)
    return list(chosen.values())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    sound, rate = soundfile.read(samples.speech()[0], frames=12_345)
    soundfile.write(folder / "x.wav", sound, rate)
    clip = read_videos(samples.video()[0], size=32)[:, :, :11]
    write_video(clip, folder / "x.mp4", frame_rate=8)
    return {"audio": folder / "x.wav", "video": folder / "x.mp4"}


@pytest.mark.parametrize("name", _one_of_each())
def test_the_command_line_gives_what_python_gives(name, source, tmp_path):
    tok = built(name)
    folder = write_folder(tmp_path / "tok", config=folder_config(tok), tensors=tok.state_dict())
    path, ending = source[tok.info.modality], source[tok.info.modality].suffix
    tokens, out = tmp_path / "t.safetensors", tmp_path / f"y{ending}"
    assert main(["encode", str(folder), str(path), str(tokens)]) == 0
    found, wanted = Tokens.load(tokens), tok.encode(tok.preprocess(path))
    assert found.extent.tolist() == wanted.extent.tolist()
    if wanted.discrete:
        assert torch.equal(found.data, wanted.data)
    else:
        torch.testing.assert_close(found.data, wanted.data, rtol=0, atol=1e-5 * max(1.0, float(wanted.data.abs().max())))
    assert found.side.keys() == wanted.side.keys()
    assert main(["decode", str(folder), str(tokens), str(out)]) == 0
    y = tok.decode(found).clamp(-1, 1)
    if ending == ".wav":
        sound, rate = soundfile.read(out, dtype="float32", always_2d=True)
        assert rate == tok.info.sample_rate
        assert sound.shape == (y.shape[2], y.shape[1])
        assert np.abs(sound.T - y[0].numpy()).max() < 1e-4
    else:
        assert read_videos(out, size=None).shape == y.shape


def test_a_tokenizer_of_meaning_has_no_sound_to_write(source, tmp_path, capsys):
    names = [name for name in cases() if zoo.info(name).modality == "audio" and SMALL[zoo.info(name).family].embedding is not None]
    assert names, "the k-means tokenizers are in the catalog"
    tok = built(names[0])
    folder = write_folder(tmp_path / "tok", config=folder_config(tok), tensors=tok.state_dict())
    assert main(["encode", str(folder), str(source["audio"]), str(tmp_path / "t.safetensors")]) == 0
    assert main(["decode", str(folder), str(tmp_path / "t.safetensors"), str(tmp_path / "y.wav")]) == 2
    assert "its decoder gives features" in capsys.readouterr().err
    assert not (tmp_path / "y.wav").exists()
