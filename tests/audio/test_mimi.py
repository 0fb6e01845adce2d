"""Mimi: the public numbers in both formats, any length, streams past the attention's window."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.audio.mimi import Mimi, MimiConfig
from zoo.layers.pieces import run
from zoo.tokens import Tokens

CASES = Path(__file__).parents[1] / "parity" / "mimi"
SMALL = dict(
    sample_rate=120, width=4, strides=(3, 2), latent_channels=16, num_codebooks=4, codebook_size=64, codebook_channels=8,
    layers=2, heads=2, mlp_width=32, window=7, layer_scale=0.7,
)  # fmt: skip


def loaded(case):
    return zoo.load(CASES / case, family="mimi"), load_file(CASES / case / "io.safetensors")


def small(**more):
    torch.manual_seed(0)
    return zoo.create("mimi", **{**SMALL, **more}).eval().requires_grad_(False)


def sound(length, b=1, seed=0):
    return torch.randn(b, 1, length, generator=torch.Generator().manual_seed(seed)).mul(0.2).clamp(-1, 1)


def cut(length, most, seed=1):
    draws, sizes = random.Random(seed), []
    while sum(sizes) < length:
        sizes.append(min(draws.randint(1, most), length - sum(sizes)))
    return sizes


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


# -- the public numbers ------------------------------------------------------------------------------------------------------------


def test_the_original_release():
    tok, io = loaded("original_small")
    x = io["audio"]
    assert tok.config.padding == "frames"
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), io["codes"])
    padded = torch.nn.functional.pad(x, (0, 19200 - x.shape[2]))
    close(tok.encoder_chain().push(padded, last=True), io["latent_unquantized"])
    close(tok.lookup(io["codes"]), io["latent_quantized"])
    close(run(tok._decoder(), io["codes"], piece=4), io["audio_decoded"])
    close(tok.decode(tokens), io["audio_decoded"][..., : x.shape[2]])
    close(tok.decode(tokens.depth(3)), io["audio_decoded_k3"][..., : x.shape[2]])
    whole = x[..., : 9 * 1920]
    assert torch.equal(tok.encode(whole).data.transpose(1, 2), io["codes_whole_frames"])
    close(tok.decode(tok.encode(whole)), io["audio_decoded_whole_frames"])


def test_the_library_s_format():
    tok, io = loaded("transformers_small")
    x = io["input_values"]
    assert tok.config.padding == "layers"
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), io["audio_codes"])
    close(tok.encoder_chain().push(x, last=True), io["latents"])
    close(run(tok._decoder(), io["audio_codes"], piece=4), io["audio_values"])
    close(tok.decode(tokens), io["audio_values"][..., : x.shape[2]])
    assert torch.equal(tok.encode(x, depth=3).data.transpose(1, 2), io["audio_codes_k3"])
    close(tok.decode(tokens.depth(3)), io["audio_values_k3"][..., : x.shape[2]])
    whole = io["input_values_whole_frames"]
    assert torch.equal(tok.encode(whole).data.transpose(1, 2), io["audio_codes_whole_frames"])
    close(tok.decode(tok.encode(whole)), io["audio_values_whole_frames"])


def test_both_formats_are_one_model_save_for_the_last_frame():
    (one, io), (other, _) = loaded("original_small"), loaded("transformers_small")
    for (name, a), (same, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(a, b), name
    a, b = one.encode(io["audio"]).data, other.encode(io["audio"]).data
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert not torch.equal(a[:, -1], b[:, -1])


@pytest.mark.parametrize("case", ["original_small", "transformers_small"])
@pytest.mark.parametrize("pieces", [[1920], [3840], [1920, 5760, 3840], [700, 1, 2500]])
def test_streams_are_exact_beyond_the_window(case, pieces):
    """20 steps of 25 Hz where the window holds 6: where the original drifts and the library cannot decode."""
    tok, io = loaded(case)
    x = io.get("audio", io.get("input_values"))
    whole = tok.encode(x)
    sizes = []
    while sum(sizes) < x.shape[2]:
        sizes.append(min(pieces[len(sizes) % len(pieces)], x.shape[2] - sum(sizes)))
    stream = tok.stream()
    parts = list(stream.encode_all(x.split(sizes, 2)))
    assert torch.equal(Tokens.join(parts).data, whole.data)
    close(torch.cat(list(stream.decode_all(parts)), 2), tok.decode(whole), 5e-6)


def test_what_from_public_refuses():
    with pytest.raises(ValueError, match=r"mimi: config\.json has no .*num_filters"):
        Mimi.from_public({"sampling_rate": 24000}, {})
    values = dict.fromkeys(zoo.audio.mimi._LIBRARY_KEYS.values(), 1)
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        Mimi.from_public({**values, "hidden_act": "relu"}, {})


# -- any length, pieces, streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 11, 12, 13, 100, 3000])
def test_every_length_gives_the_library_s_numbers(length):
    """Also in pieces, over 500 steps where the window holds 7."""
    tok, x = small(), sound(length, seed=length)
    theirs = tok.model.encode(x).audio_codes
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), theirs)
    y = tok.decode(tokens)
    assert y.shape == x.shape
    close(y, tok.model.decode(theirs).audio_values[..., :length], 1e-5)


@pytest.mark.parametrize("padding", ["layers", "frames"])
@pytest.mark.parametrize("depth", [None, 1, 3])
def test_a_stream_gives_the_whole(padding, depth):
    tok = small(padding=padding)
    for length in (1, 13, 500, 504):
        x = sound(length, b=2, seed=length)
        whole = tok.encode(x, depth=depth)
        stream = tok.stream(depth=depth)
        parts = list(stream.encode_all(x.split(cut(length, 70), 2)))
        assert torch.equal(Tokens.join(parts).data, whole.data)
        close(torch.cat(list(stream.decode_all(parts)), 2), tok.decode(whole), 1e-5)


def test_a_stream_answers_at_once():
    tok = small()
    stream = tok.stream()
    for i in range(20):
        tokens = stream.encode(sound(12, seed=i))
        assert tokens.positions == (1,)
        assert stream.decode(tokens).shape == (1, 1, 12)


def test_nothing_depends_on_what_comes_later():
    tok = small()
    codes = torch.randint(0, 64, (1, 40, 4), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 64
    a, b = (tok.decode(Tokens(data, tok.spec, [[480]])) for data in (codes, other))
    assert int((a != b)[0, 0].nonzero()[0]) == 240
    a, b = (tok.encoder_chain().push(x, last=True) for x in (sound(480), torch.cat([sound(480)[..., :240], sound(240, seed=7)], 2)))
    assert int((a != b).any(1)[0].nonzero()[0]) == 20


def test_only_the_window_is_kept():
    tok = small()
    chain = tok.encoder_chain()
    chain.push(sound(12 * 300))
    attention = [step for step in chain.steps if hasattr(step, "keys")]
    assert len(attention) == 2
    for step in attention:
        assert step.keys.shape[2] == step.values.shape[2] == SMALL["window"] - 1


def test_items_of_unequal_length():
    tok = small()
    items = [sound(length, seed=length)[0] for length in (1, 240, 251, 240)] + [torch.zeros(1, 100), torch.ones(1, 90)]
    together = tok.encode(items)
    y = tok.decode(together)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert torch.equal(together.data[i, : alone.positions[0]], alone.data[0])
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone), 1e-5)


def test_rates():
    tok, x = small(), sound(1200)
    assert tok.encode(x, depth=1).levels == 1
    rate = float(tok.encode(x, depth=3).bits_per_second())
    assert tok.encode(x, bits_per_second=rate).levels == 3
    assert tok.encode(x, bits_per_second=rate * 0.99).levels == 2


@pytest.mark.parametrize(
    "wrong",
    [
        dict(strides=()), dict(codebook_size=48), dict(num_semantic=4), dict(latent_channels=18), dict(padding="both"),
        dict(window=0), dict(sample_rate=100),
    ],
)  # fmt: skip
def test_sizes_that_are_refused(wrong):
    with pytest.raises(ValueError, match=f"MimiConfig: {next(iter(wrong))}="):
        MimiConfig(**{**SMALL, **wrong})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_codebooks_that_are_written_to_are_seen(mode):
    """They are prepared once and kept, as long as they stay as they were."""
    tok = small()
    x = sound(4 * tok.config.hop)
    with mode():
        before = tok.encode(x).data
        assert torch.equal(tok.encode(x).data, before)
        assert tok._books() is tok._books()
    for codebook in tok._codebooks():
        codebook.embed_sum.copy_(codebook.embed_sum.flip(0))
    with mode():
        assert torch.equal(tok.encode(x).data, len(tok._codebooks()[0].embed_sum) - 1 - before)
    other = small()
    other.load_state_dict(tok.state_dict())
    with mode():
        assert torch.equal(other.encode(x).data, tok.encode(x).data)
