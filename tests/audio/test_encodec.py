"""EnCodec: the public numbers in both layouts, any length, chunks with their loudness, streams, memory."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.audio.encodec import EncodecConfig
from zoo.tokens import Tokens

CASES = Path(__file__).parents[1] / "parity" / "encodec"
DEPTHS = {"bw1p5": 2, "bw3p0": 4, "bw0p15": 1, "bw0p6": 4}
SMALL = dict(width=4, latent_channels=8, num_codebooks=4, codebook_size=64)
CHUNKED = dict(
    SMALL, sample_rate=4800, channels=2, causal=False, norm="time_group", normalize=True, chunk_samples=4800, overlap=0.01
)  # fmt: skip


def loaded(case):
    return zoo.load(CASES / case, family="encodec"), load_file(CASES / case / "io.safetensors")


def small(**more):
    torch.manual_seed(0)
    return zoo.create("encodec", **{**SMALL, **more}).eval().requires_grad_(False)


def sound(length, b=1, channels=1, seed=0):
    return torch.randn(b, channels, length, generator=torch.Generator().manual_seed(seed)).mul(0.2).clamp(-1, 1)


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


# -- the public numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "codes"), [("causal_24k_small", "audio_codes_{}"), ("original_24k_small", "codes_{}_frame0")])
def test_the_causal_model(case, codes):
    tok, io = loaded(case)
    x = io.get("input_values", io.get("audio"))
    latents = tok.encoder_chain().push(x, last=True)
    if "encoder_out" in io:
        close(latents, io["encoder_out"])
        assert int(io["last_frame_pad_length"]) == 0
    for name in ("bw1p5", "bw3p0"):
        wanted = io[codes.format(name)].reshape(2, DEPTHS[name], -1)
        tokens = tok.encode(x, depth=DEPTHS[name])
        assert torch.equal(tokens.data.transpose(1, 2), wanted)
        close(tok.decoder_chain().push(tok.lookup(wanted), last=True), io[f"audio_decoded_{name}"])
        close(tok.decode(tokens), io[f"audio_forward_{name}"])


def test_both_layouts_are_one_model():
    one, other = loaded("causal_24k_small")[0], loaded("original_24k_small")[0]
    assert one.config == other.config
    for (name, a), (same, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(a, b)


def test_the_chunked_model():
    tok, io = loaded("stereo_48k_chunked_small")
    x, padding = io["input_values"], int(io["last_frame_pad_length"])
    for name in ("bw0p15", "bw0p6"):
        tokens = tok.encode(x, depth=DEPTHS[name])
        frames = io[f"audio_codes_{name}"]
        wanted = torch.cat([*frames[:-1], frames[-1][..., : frames.shape[3] - padding]], 2)
        assert torch.equal(tokens.data.transpose(1, 2), wanted)
        close(tokens.side["scale"], io["audio_scales"][:, :, 0].T)
        close(tok.decode(tokens), io[f"audio_forward_{name}"])
        close(tok._decode(tokens, (x.shape[2],)), io[f"audio_decoded_{name}"])


def test_what_from_public_refuses():
    values = dict(zip(zoo.audio.encodec._LIBRARY_KEYS.values(), range(20), strict=False))
    with pytest.raises(ValueError, match=r"encodec: config\.json has no .*num_filters"):
        zoo.audio.encodec.Encodec.from_public({"sampling_rate": 24000}, {})
    with pytest.raises(ValueError, match=r"trim_right_ratio=0\.5"):
        zoo.audio.encodec.Encodec.from_public({**values, "trim_right_ratio": 0.5}, {})
    with pytest.raises(ValueError, match="the norm 'layer'"):
        zoo.audio.encodec.Encodec.from_public({**values, "norm_type": "layer"}, {})


# -- any length --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_every_length_gives_the_library_s_numbers(causal):
    tok = small(causal=causal, strides=(5, 4, 2))
    bandwidth, draws = tok.model.config.target_bandwidths[0], random.Random(0)
    for length in [1, 2, 6, 7, 39, 40, 41, *(draws.randint(1, 9000) for _ in range(6))]:
        x = sound(length, seed=length)
        theirs = tok.model.encode(x, bandwidth=bandwidth)
        tokens = tok.encode(x)
        assert torch.equal(tokens.data.transpose(1, 2), theirs.audio_codes[0])
        y = tok.decode(tokens)
        close(y, tok.model.decode(theirs.audio_codes, [None]).audio_values[..., :length], 1e-5)
        assert y.shape == x.shape


def test_every_length_in_chunks():
    """Also those whose last chunk ends before the one before it, where the library fails."""
    tok = small(**CHUNKED)
    bandwidth = tok.model.config.target_bandwidths[0]
    for length in (1, 319, 4752, 4753, 4799, 4800, 4801, 5100, 9505, 10_000):
        x = sound(length, channels=2, seed=length)
        tokens = tok.encode(x)
        count = math.ceil(length / 4752)
        assert tokens.side["scale"].shape == (1, count)
        y = tok.decode(tokens)
        assert y.shape == x.shape
        ends = [start + 320 * n for start, n in tok.config.chunks(length)]
        if ends[-1] == max(ends):
            theirs = tok.model.encode(x, bandwidth=bandwidth, return_dict=False)
            audio = tok.model.decode(theirs[0], theirs[1], last_frame_pad_length=theirs[2]).audio_values
            close(y, audio[..., :length], 1e-5)


def test_items_of_unequal_length():
    for tok, channels in ((small(strides=(5, 4)), 1), (small(**CHUNKED), 2)):
        items = [sound(length, channels=channels, seed=length)[0] for length in (1, 4800, 10_000, 321, 4800)]
        together = tok.encode(items)
        y = tok.decode(together)
        for i, item in enumerate(items):
            alone = tok.encode(item[None])
            assert torch.equal(together.data[i, : alone.positions[0]], alone.data[0])
            for key, value in alone.side.items():
                assert torch.equal(together.side[key][i, : value.shape[1]], value[0])
            close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone), 1e-5)


def test_silence_and_a_square_wave():
    for tok, channels in ((small(strides=(5, 4)), 1), (small(**CHUNKED), 2)):
        for x in (torch.zeros(1, channels, 6000), sound(6000, channels=channels).sign()):
            y = tok.decode(tok.encode(x))
            assert y.shape == x.shape
            assert bool(y.isfinite().all())


def test_scales_are_checked_and_counted(tmp_path):
    tok = small(**CHUNKED)
    x = sound(10_000, channels=2)
    tokens = tok.encode(x)
    assert float(tokens.bits()) == tokens.positions[0] * 4 * 6 + 32 * 3
    again = Tokens.load(tokens.save(tmp_path / "t.safetensors"))
    assert torch.equal(tok.decode(again), tok.decode(tokens))
    louder = replace(tokens, side={"scale": tokens.side["scale"] * 2})
    close(tok.decode(louder), tok.decode(tokens) * 2, 1e-5)
    for side, words in (
        ({}, "no side tensor 'scale'"),
        ({"scale": tokens.side["scale"][:, :2]}, r"holds 2 numbers an item\. Needed: 3"),
        ({"scale": tokens.side["scale"] * math.nan}, "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            tok.decode(replace(tokens, side=side))


def test_rates():
    tok = small(strides=(5, 4))
    x = sound(5000)
    rate = float(tok.encode(x, depth=3).bits_per_second())
    assert tok.encode(x, bits_per_second=rate).levels == 3
    assert tok.encode(x, bits_per_second=rate * 0.99).levels == 2


# -- pieces and streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("depth", [None, 2])
def test_a_stream_gives_the_whole(causal, depth):
    tok = small(causal=causal, strides=(5, 2))
    draws = random.Random(1)
    for length in (1, 7, 300, 301):
        x = sound(length, b=2, seed=length)
        whole = tok.encode(x, depth=depth)
        sizes = []
        while sum(sizes) < length:
            sizes.append(min(draws.randint(1, 60), length - sum(sizes)))
        stream = tok.stream(depth=depth)
        parts = list(stream.encode_all(x.split(sizes, 2)))
        assert torch.equal(Tokens.join(parts).data, whole.data)
        close(torch.cat(list(stream.decode_all(parts)), 2), tok.decode(whole), 1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("overlap", [0.01, 0.3, 0.0])
def test_a_stream_of_chunks_gives_the_whole(overlap, normalize):
    """Also those whose last chunk is a few samples, or ends before the one before it."""
    tok = small(**{**CHUNKED, "chunk_samples": 500, "strides": (5, 2), "overlap": overlap, "normalize": normalize})
    draws, step = random.Random(1), tok.config.chunk_step
    for length in (1, 499, 500, 501, step + 1, 2 * step + 1, 2 * step + 500, 1777):
        x = sound(length, b=2, channels=2, seed=length)
        whole = tok.encode(x, depth=2)
        for largest in (60, 900):
            sizes = []
            while sum(sizes) < length:
                sizes.append(min(draws.randint(1, largest), length - sum(sizes)))
            stream = tok.stream(depth=2)
            parts = list(stream.encode_all(x.split(sizes, 2)))
            again = Tokens.join(parts)
            assert torch.equal(again.data, whole.data)
            assert again.extent.tolist() == whole.extent.tolist()
            assert again.side.keys() == whole.side.keys()
            assert all(torch.equal(value, whole.side[key]) for key, value in again.side.items())
            close(torch.cat(list(stream.decode_all(parts)), 2), tok.decode(whole), 1e-5)


def test_a_stream_of_chunks_answers_with_each_chunk_and_forgets():
    tok = small(**{**CHUNKED, "chunk_samples": 500, "strides": (5, 2)})
    stream, given, samples = tok.stream(), 0, 0
    for i in range(1, 41):
        tokens = stream.encode(sound(100, channels=2, seed=i))
        given += 0 if tokens is None else tokens.positions[0]
        whole = max(0, (100 * i - 500) // 495 + 1)
        assert given == 50 * whole, "a chunk is given as soon as it is whole"
        assert given >= 10 * i - tok.info.lookahead_frames
        if tokens is not None:
            samples += stream.decode(tokens).shape[2]
        assert samples == 495 * whole
        assert sum(part.untyped_storage().size() for part in stream.gathered) <= 4 * 2 * 600


def test_a_stream_of_chunks_refuses_what_is_cut_inside_a_chunk():
    tok = small(**{**CHUNKED, "chunk_samples": 500, "strides": (5, 2)})
    tokens = tok.encode(sound(1200, channels=2))
    with pytest.raises(ValueError, match=r"stream\.decode: chunk 0 has 20 positions and 3 scales\. Needed: 50 positions"):
        tok.stream().decode(replace(tokens, data=tokens.data[:, :20]), last=True)
    with pytest.raises(ValueError, match=r"stream\.decode: tokens have no side tensor 'scale'"):
        tok.stream().decode(replace(tokens, side={}), last=True)


@pytest.mark.parametrize(("pad_mode", "wait"), [("reflect", 6), ("constant", 0)])
def test_a_causal_stream_answers_at_once(pad_mode, wait):
    """Save for the first positions where the start is mirrored: they wait for what they show."""
    tok = small(strides=(5, 2), pad_mode=pad_mode)
    assert tok.info.lookahead_frames == tok.config.lookahead == wait
    assert tok.info.causal
    stream, n, samples = tok.stream(), 0, 0
    for i in range(30):
        tokens = stream.encode(sound(10, seed=i))
        n += 0 if tokens is None else tokens.positions[0]
        assert n == (i + 1 if i >= wait else 0)
        y = None if tokens is None else stream.decode(tokens)
        samples += 0 if y is None else y.shape[2]
        assert samples == n * 10


def test_after_the_start_nothing_depends_on_what_comes_later():
    tok = small(strides=(5, 2))
    codes = torch.randint(0, 64, (1, 40, 4), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 64
    a, b = (tok.decode(Tokens(data, tok.spec, [[400]])) for data in (codes, other))
    assert int((a != b)[0, 0].nonzero()[0]) == 200
    x, mixed = sound(400), torch.cat([sound(400)[..., :200], sound(200, seed=7)], 2)
    a, b = (tok.encoder_chain().push(part, last=True) for part in (x, mixed))
    assert int((a != b).any(1)[0].nonzero()[0]) == 20


@pytest.mark.parametrize("strides", [(8, 5, 4, 4), (3, 5)])
def test_the_lookahead_is_that_of_the_steps(strides):
    tok = small(causal=False, strides=strides, residual_layers=2)
    hop = math.prod(strides)
    encoder, decoder = tok.encoder_chain().later(), tok.decoder_chain().later()
    assert tok.config.lookahead == math.ceil(max((encoder - hop + 1) / hop, decoder))


# -- sizes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        dict(channels=3), dict(strides=()), dict(codebook_size=48), dict(norm="time_group"), dict(normalize=True),
        dict(overlap=0.7, chunk_samples=4800), dict(chunk_samples=5), dict(pad_mode="circular"),
    ],
)  # fmt: skip
def test_sizes_that_are_refused(wrong):
    with pytest.raises(ValueError, match=f"EncodecConfig: {next(iter(wrong))}="):
        EncodecConfig(**{**SMALL, **wrong})
