"""DAC: the public numbers in both layouts, any length, streams, lookahead and memory."""

import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import zoo
from zoo.audio.dac import DACConfig
from zoo.tokens import Tokens

CASES = Path(__file__).parents[1] / "parity" / "dac"
ORIGINAL = ("descript_24k_chunked", "descript_44k_small", "descript_44k_16kbps_small")
LIBRARY = ("transformers_44k_small", "transformers_44k_16kbps_small")
SMALL = dict(encoder_channels=4, latent_channels=16, decoder_channels=16, num_codebooks=4, codebook_size=32)


def loaded(case):
    return zoo.load(CASES / case, family="dac"), load_file(CASES / case / "io.safetensors")


def small(seed=0, **more):
    torch.manual_seed(seed)
    return zoo.create("dac", **{**SMALL, **more}).eval().requires_grad_(False)


def sound(length, b=1, seed=0):
    return torch.randn(b, 1, length, generator=torch.Generator().manual_seed(seed)).mul(0.2).clamp(-1, 1)


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


# -- the public numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORIGINAL)
def test_the_original_release(case):
    tok, io = loaded(case)
    x, length = io["audio"], io["audio"].shape[2]
    padded = tok._pad(x, tok._legal_size((length,)))
    latents = tok.encoder_chain().push(padded, last=True)
    close(latents, io["encoder_out"])
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), io["codes"])
    close(tok.lookup(io["codes"]), io["zq_from_codes"])
    close(tok.lookup(io["codes"]), io["zq"])
    close(tok.decoder_chain().push(io["zq"], last=True), io["audio_decoded"])
    y = tok.decode(tokens)
    close(y, io["audio_decoded"][..., :length])
    close(y, io["audio_forward"][..., :length])
    _, _, projected, commitment, codebook = tok.model.quantizer(latents)
    close(projected, io["latents"])
    close(commitment.reshape(-1)[:1], io["commitment_loss"].reshape(-1)[:1])
    close(codebook.reshape(-1)[:1], io["codebook_loss"].reshape(-1)[:1])
    for name in io:
        if name.startswith("audio_decoded_n"):
            depth = int(name.removeprefix("audio_decoded_n"))
            close(tok.lookup(io["codes"][:, :depth]), io[f"zq_n{depth}"])
            close(tok.decode(tokens.depth(depth)), io[name][..., :length])
            assert torch.equal(tok.encode(x, depth=depth).data, tokens.data[..., :depth])


@pytest.mark.parametrize("case", LIBRARY)
def test_the_library_s_layout(case):
    tok, io = loaded(case)
    x, length = io["audio"], io["audio"].shape[2]
    assert torch.equal(tok._pad(x, tok._legal_size((length,))), io["input_values"])
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), io["audio_codes"])
    close(tok.lookup(io["audio_codes"]), io["quantized_representation"])
    for name in ("audio_values", "audio_values_from_codes", "audio_values_forward"):
        close(tok.decode(tokens)[:, 0], io[name][..., :length])
    whole = tok.model.encode(io["input_values"])
    close(whole.projected_latents, io["projected_latents"])
    close(whole.loss, io["loss"])
    for name in io:
        if name.startswith("audio_codes_n"):
            depth = int(name.removeprefix("audio_codes_n"))
            assert torch.equal(tok.encode(x, depth=depth).data.transpose(1, 2), io[name])
            close(tok.decode(tokens.depth(depth))[:, 0], io[f"audio_values_n{depth}"][..., :length])


def test_both_layouts_are_one_model():
    for a, b in zip(ORIGINAL[1:], LIBRARY, strict=True):
        one, other = loaded(a)[0], loaded(b)[0]
        assert one.config == other.config
        for (name, x), (same, y) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
            assert name == same
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_the_release_s_own_chunks_are_not_what_streams_give():
    """Its windows lie off the grid of the frames, so the codes are others; ours are those of the whole signal."""
    tok, io = loaded("descript_24k_chunked")
    joined = Tokens.join(list(tok.stream().encode_all(io["audio"].split(3746, 2))))
    assert torch.equal(joined.data.transpose(1, 2), io["codes"])
    theirs = io["codes_chunked"][..., : io["codes"].shape[2]]
    assert float((theirs == io["codes"]).float().mean()) < 0.2
    assert io["audio_chunked"].shape == io["audio"].shape


def test_what_from_public_refuses():
    with pytest.raises(ValueError, match=r"dac: config\.json has no n_codebooks"):
        zoo.audio.dac.DAC.from_public({"encoder_dim": 4}, {})
    whole = dict(zip(zoo.audio.dac._ORIGINAL_KEYS.values(), (9, 1024, 8, 44100, 64, [2, 4], 1536), strict=True))
    with pytest.raises(ValueError, match="Needed: the same, reversed"):
        zoo.audio.dac.DAC.from_public({**whole, "decoder_rates": [2, 4]}, {})


# -- any length --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(2, 4, 8, 8), (2, 4, 5, 8), (3, 5)])
def test_every_length_comes_back(strides):
    tok = small(strides=strides)
    hop = math.prod(strides)
    short = hop * 3 - tok.decoder_chain().push(torch.zeros(1, 16, 3), last=True).shape[2]
    assert tok.config.short == short
    draws = random.Random(0)
    lengths = [1, 2, hop - 1, hop, hop + 1, 2 * hop - short, 2 * hop - short + 1, *(draws.randint(1, 4 * hop) for _ in range(6))]
    for length in lengths:
        x = sound(length)
        tokens = tok.encode(x)
        assert tokens.positions == (-(-length // hop),)
        y = tok.decode(tokens)
        assert y.shape == x.shape
        plain = tok.model.decode(audio_codes=tokens.data.transpose(1, 2)).audio_values[:, None]
        if length <= plain.shape[2]:
            close(y, plain[..., :length], 1e-5)
        else:
            assert length > tokens.positions[0] * hop - short


def test_items_of_unequal_length_and_silence():
    tok = small(strides=(2, 4, 5, 8))
    items = [sound(length, seed=length)[0] for length in (1, 700, 321, 700)] + [torch.zeros(1, 500), torch.ones(1, 400)]
    together = tok.encode(items)
    y = tok.decode(together)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert torch.equal(together.data[i, : alone.positions[0]], alone.data[0])
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone), 1e-5)


def test_rates():
    tok = small(strides=(2, 4, 8, 8))
    x = sound(5000)
    assert tok.encode(x, depth=2).levels == 2
    rate = float(tok.encode(x, depth=3).bits_per_second())
    assert tok.encode(x, bits_per_second=rate).levels == 3
    assert tok.encode(x, bits_per_second=rate * 0.99).levels == 2
    with pytest.raises(ValueError, match=r"is outside 1\.\.4"):
        tok.encode(x, depth=5)


# -- pieces and streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(2, 4, 8, 8), (2, 4, 5, 8)])
def test_whole_signals_in_pieces_are_the_library_s_numbers(strides):
    tok = small(strides=strides)
    hop = math.prod(strides)
    x = sound(100 * hop - 9, b=2)
    padded = F.pad(x, (0, 9))
    theirs = tok.model.encode(padded)
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), theirs.audio_codes)
    close(tok.decode(tokens), tok.model.decode(audio_codes=theirs.audio_codes).audio_values[:, None, : x.shape[2]], 1e-5)


@pytest.mark.parametrize("strides", [(2, 4), (3, 5)])
@pytest.mark.parametrize("depth", [None, 2])
def test_a_stream_gives_the_whole(strides, depth):
    tok = small(strides=strides)
    draws = random.Random(1)
    for length in (1, 7, 300, 301, 315):
        x = sound(length, b=2, seed=length)
        whole = tok.encode(x, depth=depth)
        sizes = []
        while sum(sizes) < length:
            sizes.append(min(draws.randint(1, 60), length - sum(sizes)))
        stream = tok.stream(depth=depth)
        parts = list(stream.encode_all(x.split(sizes, 2)))
        joined = Tokens.join(parts)
        assert torch.equal(joined.data, whole.data)
        assert joined.extent.tolist() == whole.extent.tolist()
        close(torch.cat(list(stream.decode_all(parts)), 2), tok.decode(whole), 1e-5)


@pytest.mark.parametrize("strides", [(2, 4, 8, 8), (2, 4, 5, 8), (3, 5)])
def test_the_lookahead_is_that_of_the_steps(strides):
    tok = small(strides=strides)
    hop = math.prod(strides)
    encoder, decoder = tok.encoder_chain().later(), tok.decoder_chain().later()
    assert tok.config.lookahead == math.ceil(max((encoder - hop + 1) / hop, decoder))
    stream, given = tok.stream(), 0
    for i in range(60):
        tokens = stream.encode(sound(hop, seed=i))
        given += 0 if tokens is None else tokens.positions[0]
        assert given >= i + 1 - tok.info.lookahead_frames


def test_nothing_beyond_the_lookahead_matters_and_something_before_it_does():
    tok = small(strides=(2, 4))
    hop, ahead = 8, tok.config.lookahead
    codes = torch.randint(0, 32, (1, 60, 4), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[:, 40:] = (other[:, 40:] + 1) % 32
    a, b = (tok.decode(Tokens(data, tok.spec, [[480]])) for data in (codes, other))
    first = int((a != b)[0, 0].nonzero()[0])
    assert (40 - ahead) * hop <= first < 40 * hop


# -- sizes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [dict(strides=()), dict(strides=(1, 4)), dict(decoder_channels=20), dict(codebook_size=48), dict(num_codebooks=0)]
)
def test_sizes_that_are_refused(wrong):
    with pytest.raises(ValueError, match=f"DACConfig: {next(iter(wrong))}="):
        DACConfig(**{**SMALL, **wrong})
