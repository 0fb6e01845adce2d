"""`zoo encode` and `zoo decode` for sound and video: in stretches or whole the same tokens, constant memory, nothing half-written.

The tokenizers are means over hops of time (and over cells of frames), in 8 bits: what they give is known without running them.
"""

import gc
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import zoo
from zoo import registry, samples
from zoo.checkpoint import write_folder
from zoo.cli import main
from zoo.config import Config
from zoo.media.video import ClipReader, read_videos
from zoo.publishing import folder_config
from zoo.registry import Entry
from zoo.streaming import Stream
from zoo.token_files import TokenFile, TokenWriter
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

HOP, CELL, RATE = 40, 8, 8000
FAMILIES = {"audio": "mean_sound_for_tests", "video": "mean_clip_for_tests"}


@dataclass(frozen=True, kw_only=True)
class MeanConfig(Config):
    streaming: bool = True


class MeanStream(Stream):
    """Holds back what does not fill a hop."""

    held = None

    def _encode(self, x, *, last):
        self.held = x if self.held is None else torch.cat([self.held, x], 2)
        step = self.tok.info.downsample[0]
        whole = self.held.shape[2] // step * step
        ready, self.held = self.held[:, :, :whole], self.held[:, :, whole:]
        if last and self.held.shape[2]:
            ready = torch.cat([ready, self.tok._pad(self.held, (step,))], 2)
        return self.tok._encode(ready, tokens=None, depth=None, generator=None) if ready.shape[2] else None

    def _decode(self, tokens, *, last):
        return None if tokens is None else self.tok.expand(tokens.data)


class Mean(Tokenizer):
    """Two levels: the mean in 16 steps, and what is left of it in 16 finer ones."""

    Config = MeanConfig

    def __init__(self, config, info=None):
        super().__init__(config, info)
        self.scale = nn.Parameter(torch.tensor(255.0))

    @classmethod
    def layout_of(cls, config):
        shared = dict(discrete=True, codebook_size=16, vocabulary=(16, 16), depth=2, residual=True, causal=True)
        shared |= dict(streaming=config.streaming, license_weights="CC0-1.0")
        if cls.modality == "audio":
            rates = dict(sample_rate=RATE, frame_rate=RATE / HOP, bits_per_second=8 * RATE / HOP, audio_channels=1)
            return dict(modality="audio", layout="1d", downsample=(HOP, 1, 1), size_multiple=HOP, **rates, **shared)
        return dict(modality="video", layout="3d", downsample=(2, CELL, CELL), size_multiple=CELL, native_size=(32, 48), **shared)

    def _encode(self, x, *, tokens, depth, generator):
        for axis, step in enumerate(self.info.downsample[: x.ndim - 2], start=2):
            x = x.unflatten(axis, (-1, step)).mean(axis + 1)
        codes = ((x.mean(1) + 1) / 2 * self.scale).round().long().clamp(0, 255)
        return torch.stack([codes // 16, codes % 16], -1)[..., : depth or 2]

    def expand(self, data):
        value = data[..., 0] * 16 + (data[..., 1] if data.shape[-1] > 1 else 8)
        y = (value / self.scale * 2 - 1)[:, None].expand(-1, self.in_channels, *(-1,) * (data.ndim - 2))
        for axis, step in enumerate(self.info.downsample[: y.ndim - 2], start=2):
            y = y.repeat_interleave(step, axis)
        return y

    def _decode(self, tokens, size, *, loudness: float = 1.0):
        return self.expand(tokens.data) * loudness

    def _stream(self):
        return MeanStream(self)


class MeanSound(Mean):
    family, modality = FAMILIES["audio"], "audio"


class MeanClip(Mean):
    family, modality = FAMILIES["video"], "video"


def make_known():
    for cls in (MeanSound, MeanClip):
        module = ModuleType(f"zoo.{cls.modality}.{cls.family}")
        sys.modules[module.__name__] = module
        zoo.register(Entry(name=f"{cls.family}_entry", family=cls.family, summary="For tests.", **cls.layout_of(MeanConfig())))


@pytest.fixture(scope="module", autouse=True)
def _families():
    make_known()
    yield
    for modality, family in FAMILIES.items():
        del registry._EXTRA[f"{family}_entry"], sys.modules[f"zoo.{modality}.{family}"]


@pytest.fixture(scope="module")
def mean(tmp_path_factory):
    """Give `mean(modality, streaming)`: a folder."""
    root = tmp_path_factory.mktemp("means")

    def make(modality, streaming=True):
        folder = root / f"{modality}_{'stream' if streaming else 'whole'}"
        if not folder.exists():
            tok = zoo.create(FAMILIES[modality], info_name=folder.name, streaming=streaming)
            write_folder(folder, config=folder_config(tok), tensors=tok.state_dict())
        return folder

    return make


def run(*words):
    return main([str(word) for word in words])


INPUTS = {"audio": samples.speech()[0], "video": samples.video()[0]}
ENDINGS = {"audio": ".wav", "video": ".mp4"}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("modality", FAMILIES)
def test_a_file_into_tokens_and_back(mean, tmp_path, capsys, modality, streaming):
    folder, source = mean(modality, streaming), INPUTS[modality]
    assert run("encode", folder, source, tmp_path / "deep" / "t.safetensors") == 0
    tok = zoo.load(folder)
    x = tok.preprocess(source)
    wanted = tok.encode(x)
    tokens = Tokens.load(tmp_path / "deep" / "t.safetensors")
    assert torch.equal(tokens.data, wanted.data)
    assert tokens.extent.tolist() == wanted.extent.tolist()
    unit, rate = ("second", wanted.bits_per_second()) if modality == "audio" else ("pixel", wanted.bits_per_pixel())
    said = capsys.readouterr().out
    assert f"{int(wanted.counts[0]):,} tokens of depth 2 each, {float(rate):.4g} bits per {unit}" in said

    out = tmp_path / f"y{ENDINGS[modality]}"
    assert run("decode", folder, tmp_path / "deep" / "t.safetensors", out) == 0
    y = tok.decode(wanted)
    if modality == "audio":
        found, rate = soundfile.read(out, dtype="float32")
        assert rate == RATE
        assert np.abs(found - y[0, 0].numpy()).max() <= 1 / 32768
    else:
        found = read_videos(out, size=None)
        assert found.shape == y.shape
        assert float((found - y).abs().mean()) < 0.03
        with ClipReader(out) as reader:
            assert reader.frame_rate == 25.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", out.name]


def test_the_frame_rate_goes_along(mean, tmp_path):
    tok = zoo.load(mean("video"))
    tok.postprocess(torch.zeros(1, 3, 6, 32, 48), path=tmp_path / "x.mp4", frame_rate=10.0)
    assert run("encode", mean("video"), tmp_path / "x.mp4", tmp_path / "t.safetensors") == 0
    assert TokenFile(tmp_path / "t.safetensors").frame_rate == 10.0
    for words, wanted in (((), 10.0), (("--frame-rate", 50), 50.0)):
        assert run("decode", mean("video"), tmp_path / "t.safetensors", tmp_path / "y.mp4", *words) == 0
        with ClipReader(tmp_path / "y.mp4") as reader:
            assert reader.frame_rate == wanted


@pytest.mark.parametrize("streaming", [True, False])
def test_rates(mean, tmp_path, capsys, streaming):
    out, folder = tmp_path / "t.safetensors", mean("audio", streaming)
    for words, levels in ((("--depth", 1), 1), (("--bits-per-second", 1599), 1), (("--bits-per-second", 1700), 2)):
        assert run("encode", folder, INPUTS["audio"], out, *words) == 0
        assert Tokens.load(out).levels == levels
    assert run("encode", folder, INPUTS["audio"], out, "--bits-per-second", 10) == 2
    assert "bits_per_second=10 is too little" in capsys.readouterr().err
    assert run("decode", folder, out, tmp_path / "y.wav", "--depth", 1) == 0
    tok = zoo.load(folder)
    y = tok.decode(tok.encode(tok.preprocess(INPUTS["audio"]), depth=1))
    assert np.abs(soundfile.read(tmp_path / "y.wav", dtype="float32")[0] - y[0, 0].numpy()).max() <= 1 / 32768


def test_folders_and_several_items(mean, tmp_path):
    paths = samples.speech()[:3]
    assert run("encode", mean("audio"), *paths, tmp_path / "all.safetensors") == 0
    together = Tokens.load(tmp_path / "all.safetensors")
    assert len(together) == 3
    assert run("encode", mean("audio"), samples.folder() / "speech", tmp_path / "each") == 0
    assert len(list((tmp_path / "each").iterdir())) == 6
    for i, path in enumerate(paths):
        alone = Tokens.load(tmp_path / "each" / f"{path.stem}.safetensors")
        assert torch.equal(together[i].data, alone.data)
    assert run("decode", mean("audio"), tmp_path / "all.safetensors", tmp_path / "sounds") == 0
    assert run("decode", mean("audio"), tmp_path / "each", tmp_path / "sounds") == 0
    for i, path in enumerate(paths):
        one, other = (tmp_path / "sounds" / name for name in (f"all_{i:04d}.wav", f"{path.stem}.wav"))
        assert one.read_bytes() == other.read_bytes()


def test_options_of_the_decoder_work_also_where_the_stream_has_none(mean, tmp_path):
    out = tmp_path / "t.safetensors"
    run("encode", mean("audio"), INPUTS["audio"], out)
    assert run("decode", mean("audio"), out, tmp_path / "y.wav", "--option", "loudness=0.5") == 0
    tok = zoo.load(mean("audio"))
    y = tok.decode(Tokens.load(out), loudness=0.5)
    assert np.abs(soundfile.read(tmp_path / "y.wav", dtype="float32")[0] - y[0, 0].numpy()).max() <= 1 / 32768


def test_a_picture_is_a_clip_of_one_frame(mean, tmp_path):
    assert run("encode", mean("video"), samples.images()[0], tmp_path / "t.safetensors") == 0
    assert Tokens.load(tmp_path / "t.safetensors").extent.tolist() == [[1, 32, 48]]
    assert run("decode", mean("video"), tmp_path / "t.safetensors", tmp_path / "y.mp4") == 0


def test_what_is_refused_leaves_nothing_behind(mean, tmp_path, capsys):
    sound, clip = mean("audio"), mean("video")
    (tmp_path / "cut.wav").write_bytes(b"RIFF" + (10**6).to_bytes(4, "little") + b"WAVE" + bytes(100))
    (tmp_path / "cut.mp4").write_bytes(samples.video()[0].read_bytes()[:60_000])
    cases = [
        (("encode", sound, tmp_path / "cut.wav", tmp_path / "t.safetensors"), "cut.wav"),
        (("encode", clip, tmp_path / "cut.mp4", tmp_path / "t.safetensors"), "cut.mp4"),
        (("encode", sound, INPUTS["video"], tmp_path / "t.safetensors"), "is a video, but audio_stream is for sounds"),
        (("encode", clip, INPUTS["audio"], tmp_path / "t.safetensors"), "is a sound, but video_stream is for videos"),
        (("encode", sound, INPUTS["audio"], tmp_path / "t.safetensors", "--size", 8), "--size for sound"),
        (("encode", sound, INPUTS["audio"], tmp_path / "t.safetensors", "--tokens", 3), "fixed layout"),
        (("encode", sound, INPUTS["audio"], tmp_path / "t.safetensors", "--depth", 3), "d=3 is outside 1..2"),
    ]
    for words, said in cases:
        assert run(*words) == 2, words
        assert said in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.mp4", "cut.wav"]
    run("encode", sound, INPUTS["audio"], tmp_path / "t.safetensors")
    run("encode", clip, INPUTS["video"], tmp_path / "v.safetensors")
    capsys.readouterr()
    cases = [
        ((sound, tmp_path / "t.safetensors", tmp_path / "y.mp4"), "cannot be written as a sound. Allowed: .wav"),
        ((clip, tmp_path / "v.safetensors", tmp_path / "y.wav"), "cannot be written as a clip"),
        ((clip, tmp_path / "t.safetensors", tmp_path / "y.wav"), "these are tokens of 'audio_stream'"),
        ((sound, tmp_path / "t.safetensors", tmp_path / "v.safetensors", tmp_path / "y"), "tokens of audio and video in one call"),
        ((sound, tmp_path / "t.safetensors", tmp_path / "t.safetensors", tmp_path / "y.wav"), "there are 2 to write"),
        ((clip, tmp_path / "v.safetensors", tmp_path / "y.mp4", "--frame-rate", -1), "frame_rate=-1"),
    ]
    for words, said in cases:
        assert run("decode", *words) == 2, words
        assert said in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.mp4", "cut.wav", "t.safetensors", "v.safetensors"]


def test_preprocess_and_postprocess_say_what_they_cannot_do(mean, tmp_path):
    sound, clip = zoo.load(mean("audio")), zoo.load(mean("video"))
    picture = zoo.create("kl_vae_nano")
    with pytest.raises(ValueError, match=r"audio_stream\.preprocess: sound has no size"):
        sound.preprocess(INPUTS["audio"], size=4)
    for tok in (clip, picture):
        with pytest.raises(ValueError, match=r"preprocess: sample_rate=8000"):
            tok.preprocess(INPUTS["video"], sample_rate=8000)
    with pytest.raises(ValueError, match=r"postprocess: frame_rate=5"):
        sound.postprocess(torch.zeros(1, 1, 8), frame_rate=5)
    with pytest.raises(ValueError, match=r"2 items for the one file"):
        clip.postprocess(torch.zeros(2, 3, 1, 8, 8), path=tmp_path / "x.mp4")
    with pytest.raises(ValueError, match=r"x\.tokens ends in \.tokens"):
        picture.postprocess(torch.zeros(1, 3, 8, 8), path=tmp_path / "x.tokens")
    (array,) = sound.postprocess(torch.full((1, 1, 8), 0.25), path=tmp_path / "x.wav")
    assert array.shape == (1, 8)
    assert soundfile.read(tmp_path / "x.wav")[0].tolist() == [0.25] * 8
    picture.postprocess(torch.zeros(1, 3, 8, 8), path=tmp_path / "x.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "x.wav"]


# -- the token file ----------------------------------------------------------------------------------------------------------------


def test_stretches_of_a_token_file(mean, tmp_path):
    tok = zoo.load(mean("audio"))
    whole = tok.encode(tok.preprocess(INPUTS["audio"]))
    count, path = whole.positions[0], tmp_path / "t.safetensors"
    with TokenWriter(path) as writer:
        for part in tok.stream().encode_all(tok.preprocess(INPUTS["audio"]).split(999, 2)):
            writer.write(part)
    assert (writer.count, writer.bits) == (count, float(whole.bits()[0]))
    assert path.stat().st_size < 2 * count + 1000, "one byte for each code"
    file = TokenFile(path)
    assert (file.items, file.positions, file.in_stretches) == (1, count, True)
    parts = list(file.stretches(tok._span, positions=7))
    assert len(parts) == math.ceil(count / 7)
    joined = Tokens.join(parts)
    assert torch.equal(joined.data, whole.data)
    assert joined.extent.tolist() == whole.extent.tolist()


def test_a_token_file_with_side_tensors_and_latents(tmp_path):
    from zoo.tokens import TokenSpec

    spec = TokenSpec(tokenizer="a", modality="audio", channels=3)
    parts = [Tokens(torch.randn(1, n, 3).bfloat16(), spec, [[n]], None, {"scale": torch.rand(1, 2).double()}) for n in (4, 5)]
    with TokenWriter(tmp_path / "t.safetensors") as writer:
        for part in parts:
            writer.write(part)
    loaded, wanted = Tokens.load(tmp_path / "t.safetensors"), Tokens.join(parts)
    assert torch.equal(loaded.data, wanted.data)
    assert torch.equal(loaded.side["scale"], wanted.side["scale"])
    assert not TokenFile(tmp_path / "t.safetensors").in_stretches


def test_a_token_writer_leaves_nothing_half_written(tmp_path):
    from zoo.tokens import TokenSpec

    spec = TokenSpec(tokenizer="a", modality="audio", vocabulary=(8,))
    one = Tokens(torch.zeros(1, 4, 1).long(), spec, [[4]])
    path = tmp_path / "t.safetensors"
    with pytest.raises(ValueError, match="nothing was written"), TokenWriter(path):
        pass
    wrong = {
        "Needed: one item": Tokens(torch.zeros(2, 4, 1).long(), spec, [[4]] * 2),
        "code 9": Tokens(torch.full((1, 4, 1), 9), spec, [[4]]),
        "same tokenizer": Tokens(torch.zeros(1, 4, 1).long(), TokenSpec(tokenizer="b", modality="audio", vocabulary=(8,)), [[4]]),
    }
    for words, part in wrong.items():
        with pytest.raises(ValueError, match=words), TokenWriter(path) as writer:  # noqa: PT012
            writer.write(one)
            writer.write(part)
    assert not list(tmp_path.iterdir())


def test_what_a_token_file_is_not(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "x.safetensors").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    for name, words in (("x", "not a readable safetensors"), ("y", "holds no tokens")):
        with pytest.raises(ValueError, match=words):
            TokenFile(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        TokenFile(tmp_path / "z.safetensors")


MEASURE = """
import importlib.util, resource, sys, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("signals", sys.argv[1])
module = importlib.util.module_from_spec(spec); sys.modules["signals"] = module; spec.loader.exec_module(module)
module.make_known()
folder, source, tokens, out = sys.argv[2:]
assert module.run("encode", folder, source, tokens) == 0
assert module.run("decode", folder, tokens, out) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_what_is_held_does_not_grow_with_the_length(mean, tmp_path, monkeypatch):
    """At the last chunk of a minute as many numbers are alive as at the last of a quarter: nothing waits to be written."""
    held = []

    def counted(method):
        def step(self, given, *, last):
            if last:
                held.append(sum(thing.numel() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)))
            return method(self, given, last=last)

        return step

    for name in ("_encode", "_decode"):
        monkeypatch.setattr(MeanStream, name, counted(getattr(MeanStream, name)))
    for seconds in (15, 60):
        soundfile.write(tmp_path / "x.wav", np.zeros(seconds * RATE), RATE)
        assert run("encode", mean("audio"), tmp_path / "x.wav", tmp_path / "t.safetensors") == 0
        assert run("decode", mean("audio"), tmp_path / "t.safetensors", tmp_path / "y.wav") == 0
        assert soundfile.info(tmp_path / "y.wav").frames == seconds * RATE
    for quarter, minute in zip(held[:2], held[2:], strict=True):
        assert abs(minute - quarter) < RATE  # a second, of 45 more


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(mean, tmp_path):
    """An hour of sound takes 115 MB as samples at this rate, a minute 2 MB."""

    def peak(minutes):
        source = tmp_path / "x.wav"
        with soundfile.SoundFile(source, "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(np.zeros(60 * RATE))
        words = [Path(__file__), mean("audio"), source, tmp_path / "t.safetensors", tmp_path / "y.wav"]
        code = [sys.executable, "-c", MEASURE, *map(str, words)]
        done = subprocess.run(code, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        return int(done.stdout.splitlines()[-1])

    minute = peak(1)
    assert peak(60) < 1.1 * minute
    assert soundfile.info(tmp_path / "y.wav").frames == 3600 * RATE
