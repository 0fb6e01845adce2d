"""SNAC against tensors of the public class (tests/parity/snac), and what the zoo adds: exact cuts, streams, depths, given noise."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import zoo
from zoo.audio import snac
from zoo.audio.snac import Snac, SnacConfig
from zoo.layers import row_products
from zoo.layers.pieces import Step, run
from zoo.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity" / "snac"
CASES = ("speech_24k_small", "music_44k_small")
SMALL = dict(encoder_width=4, decoder_width=64, codebook_size=64)


def close(a, b, tolerance=2e-5):
    assert a.shape == b.shape
    difference = float((a - b).detach().abs().max())
    assert difference <= tolerance, f"largest difference {difference}"


@pytest.fixture(scope="module", params=CASES)
def case(request):
    folder = PARITY / request.param
    return zoo.load(folder, family="snac"), load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.fixture(params=("in pieces", "whole"))
def way(request, case, monkeypatch):
    """Once with as many cuts as there can be, and once as training runs it, whole and with gradients."""
    tok = case[0]
    monkeypatch.setattr(snac, "_PIECE", tok.config.level_strides[0] if request.param == "in pieces" else 1 << 30)
    tok.requires_grad_(request.param == "whole")
    yield request.param
    tok.requires_grad_(False)


def levels_of(io):
    return [io[f"codes_{i}"] for i in range(sum(key.startswith("codes_") for key in io))]


def noise_of(io):
    return tuple(io[f"noise_{i}"] for i in range(4))


def padded(tok, io):
    return tok._pad(io["audio"], tok._legal_size(io["audio"].shape[2:]))


def test_encoder(case, way):
    tok, io, _ = case
    close(tok.encode_vectors(padded(tok, io)).transpose(1, 2), io["z"])


def test_codes(case, way):
    tok, io, _ = case
    tokens = tok.encode(io["audio"])
    found = tok.to_levels(tokens)
    assert [level.tolist() for level in found] == [level.tolist() for level in levels_of(io)]
    partial = [*(io[f"zq_partial_{i}"] for i in range(1, len(found))), io["zq"]]
    for end, vectors in zip(tok.spec.segment_ends, partial, strict=True):
        part = tok.encode(io["audio"], depth=end)
        assert torch.equal(part.data, tokens.data[..., :end])
        close(tok.quantizer.decode(part.data).transpose(1, 2), vectors)


def test_quantizer_steps(case):
    tok, io, config = case
    residual, levels = io["z"].transpose(1, 2), levels_of(io)
    for i, (level, stride) in enumerate(zip(tok.quantizer.levels, config["vq_strides"], strict=True)):
        pooled = residual.unflatten(1, (-1, stride)).mean(2)
        close(level.project_in(pooled).transpose(1, 2), io[f"ze_{i}"])
        assert torch.equal(level.encode(pooled)[..., 0], levels[i])
        residual = residual - level.decode(levels[i][..., None]).repeat_interleave(stride, 1)
    trained = tok.quantizer(io["z"].transpose(1, 2))
    assert torch.equal(trained.codes, tok.encode(io["audio"]).data)
    close(trained.x.transpose(1, 2), io["zq"])


def test_decoder(case, way):
    tok, io, _ = case
    tokens = tok.from_levels(levels_of(io))
    close(tok.quantizer.decode(tokens.data).transpose(1, 2), io["zq"])
    close(tok.decode(tokens, noise=noise_of(io)), io["audio_decoded"])
    close(tok.decode(tokens, noise=False), io["audio_decoded_zero_noise"])
    close(tok.decode(tok.encode(io["audio"]), noise=noise_of(io)), io["audio_forward"])


def test_an_older_spelling_of_weight_norm_loads(case):
    tok = case[0]
    tensors = load_file(PARITY / (CASES[0] if tok.config.sample_rate == 24000 else CASES[1]) / "weights.safetensors")
    older = {
        key.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for key, value in tensors.items()
    }
    again = Snac.rename_public(older, tok.config)
    assert again.keys() == tok.state_dict().keys()
    assert all(torch.equal(value, again[key]) for key, value in tok.state_dict().items())


def test_the_constant_in_public_files_is_the_one_we_compute(case):
    """Rotary frequencies are in the file; they are left out because they follow from the size of a head."""
    tok, _, config = case
    if config["attn_window_size"] is None:
        assert tok.encoder.attention is None
        return
    stored = load_file(PARITY / CASES[1] / "weights.safetensors")["encoder.block.5.rel_pos.inv_freq"]
    close(10000.0 ** -(torch.arange(0, 64, 2) / 64), stored, 1e-7)


# -- what the zoo adds -------------------------------------------------------------------------------------------------------------


def small(**changes):
    torch.manual_seed(0)
    tok = Snac(SnacConfig(**{**SMALL, **changes})).eval().requires_grad_(False)
    for name, parameter in tok.named_parameters():
        if name.endswith("alpha"):
            parameter.uniform_(0.5, 2)
    return tok


WINDOWED = dict(
    encoder_width=16, encoder_strides=(2, 3), decoder_width=64, decoder_strides=(3, 2), attention_window=8, level_strides=(4, 2, 1)
)
FORMS = {"speech": {}, "windows": WINDOWED, "dense": dict(depthwise=False, encoder_strides=(2, 5), decoder_strides=(5, 2))}


@pytest.fixture(scope="module", params=FORMS)
def tok(request):
    return small(**FORMS[request.param])


def sound(samples, b=1, seed=0):
    return torch.rand(b, 1, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pieces_of_any_size_give_the_same_numbers(tok, monkeypatch):
    x = sound(11 * tok.info.downsample[0] + 5, b=2)
    padded = tok._pad(x, tok._legal_size(x.shape[2:]))
    z = tok.encode_vectors(padded)
    tokens = tok.encode(x)
    vectors, noise = tok.quantizer.decode(tokens.data), tok._noise(tokens, [3, 4], True)
    y = tok.decode_vectors(vectors, noise)
    for frames in (1, 9, 1000):
        close(run(tok.encoder.chain(), padded, piece=frames * tok.config.hop - 1).transpose(1, 2), z)
        close(run(tok.decoder.chain(noise), vectors.transpose(1, 2), piece=frames), y)
        monkeypatch.setattr(snac, "_PIECE", frames * tok.config.level_strides[0])
        assert torch.equal(tok.encode(x).data, tok.quantizer.encode(z))
        close(tok.decode(tokens, seed=[3, 4]), y[..., : x.shape[2]])


def test_a_position_depends_on_what_the_lookahead_says(tok):
    """By differentiation: nothing later has an influence, and something in the last position that it names has one."""
    step, far, frames = tok.info.downsample[0], tok.info.lookahead_frames, tok.config.level_strides[0]
    group = tok.config.frame_multiple // frames
    count = 2 * group * (far + 2)
    heard, read = [], []
    for at in range(count // 2, count // 2 + group):
        x = sound(count * step).requires_grad_()
        tok.encode_vectors(x)[:, at * frames : (at + 1) * frames].sum().backward()
        heard.append(int(x.grad[0, 0].nonzero().max()) // step - at)
        z = torch.randn(1, count * frames, tok.config.latent_width, generator=torch.Generator().manual_seed(1)).requires_grad_()
        tok.decode_vectors(z)[..., at * step : (at + 1) * step].sum().backward()
        read.append(int(z.grad[0].abs().sum(1).nonzero().max()) // frames - at)
    assert max(heard + read) == far


@pytest.mark.parametrize("largest", [0.3, 1.0, 40.0])
def test_streams_equal_the_whole(tok, largest):
    step, far = tok.info.downsample[0], tok.info.lookahead_frames
    x = sound((3 * far + 9) * step + 7, b=2)
    whole = tok.encode(x)
    size = max(1, int(largest * step))
    parts = list(tok.stream().encode_all(x.split(size, 2)))
    assert torch.equal(Tokens.join(parts).data, whole.data)
    assert Tokens.join(parts).extent.tolist() == whole.extent.tolist()
    close(torch.cat(list(tok.stream(seed=[5, 6]).decode_all(parts)), 2), tok.decode(whole, seed=[5, 6]))


def test_a_stream_keeps_to_its_lookahead_and_forgets(tok, monkeypatch):
    monkeypatch.setattr(row_products, "_REPAYS", 0)  # or the layers would begin to keep their products somewhere on the way
    step, far = tok.info.downsample[0], tok.info.lookahead_frames
    stream, given, kept = tok.stream(), 0, []
    group = tok.config.frame_multiple // tok.config.level_strides[0]
    for n in range(1, 4 * far + 20):
        part = stream.encode(sound(step, seed=n))
        given += 0 if part is None else part.positions[0]
        assert given >= n - far - group + 1, "a position was held back longer than the entry says"
        kept.append(held(stream.encoder))
    assert max(kept[len(kept) // 2 :]) <= max(kept[: len(kept) // 2])


def held(step):
    """Bytes of all that a chain keeps."""
    if isinstance(step, Tensor):
        return step.untyped_storage().nbytes()
    values = vars(step).values() if isinstance(step, Step) else step if isinstance(step, list) else ()
    return sum(held(value) for value in values if isinstance(value, Tensor | Step | list))


def test_a_stream_that_ends_within_a_window_is_refused():
    tok = small(**FORMS["windows"])
    tokens = tok.encode(sound(100))
    part = Tokens(tokens.data[:, :1], tok.spec, torch.tensor([[tok.info.downsample[0]]]))
    with pytest.raises(ValueError, match=r"stream\.decode: 1 positions in all\. Needed: a multiple of 2"):
        tok.stream().decode(part, last=True)


def test_depth_of_a_stream(tok):
    x = sound(4 * tok.info.downsample[0])
    parts = list(tok.stream(depth=tok.spec.depths[1]).encode_all([x]))
    assert torch.equal(parts[0].data, tok.encode(x, depth=tok.spec.depths[1]).data)


def test_noise_is_a_function_of_seed_and_place(tok):
    x = sound(9 * tok.info.downsample[0], b=2)
    tokens = tok.encode(x)
    a = tok.decode(tokens, seed=1)
    assert torch.equal(a, tok.decode(tokens, seed=1))
    assert not torch.equal(a, tok.decode(tokens, seed=2))
    assert not torch.equal(a, tok.decode(tokens, noise=False))
    two = tok.decode(tokens, seed=[2, 1])
    close(two[1], a[1], 1e-6)
    assert not torch.equal(two[0], a[0])


def test_unequal_items_equal_one_by_one(tok):
    step = tok.info.downsample[0]
    items = [sound(n, seed=n)[0] for n in (1, step - 1, 5 * step + 3)]
    together = tok.encode(items)
    y = tok.decode(together, seed=[1, 2, 3])
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert torch.equal(together[i].data, alone.data)
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone, seed=i + 1), 1e-6)


def test_levels_are_the_public_form(tok):
    x = sound(6 * tok.info.downsample[0] + 1, b=2)
    tokens = tok.encode(x)
    levels = tok.to_levels(tokens)
    assert [level.shape[1] for level in levels] == [tokens.positions[0] * rate for rate in tok.config.rates]
    back = tok.from_levels(levels, samples=x.shape[2])
    assert torch.equal(back.data, tokens.data)
    assert back.extent.tolist() == tokens.extent.tolist()
    assert torch.equal(tok.from_levels(levels[:2]).data, tokens.depth(tok.spec.depths[1]).data)


def test_bits_per_second_takes_the_level_below(tok):
    x = sound(int(tok.info.sample_rate * 0.2))
    whole = tok.encode(x)
    rates = [float(whole.depth(d).bits_per_second()) for d in tok.spec.depths]
    for d, (low, high) in zip(tok.spec.depths, pairwise(rates), strict=False):
        assert tok.encode(x, bits_per_second=(low + high) / 2).levels == d


REFUSED = {
    "levels": (lambda t, k: t.from_levels([]), r"from_levels: 0 levels\. Allowed: 1\.\."),
    "lengths": (lambda t, k: t.from_levels([k.data[..., 0], k.data[..., 0]]), r"from_levels: levels have the shapes"),
    "samples": (lambda t, k: t.from_levels(t.to_levels(k), samples=1), "positions"),
    "inside a level": (lambda t, k: t.encode(sound(99), depth=2), r"depth=2 cuts inside a level\. Allowed: 1, 3"),
    "noise of another shape": (lambda t, k: t.decode(k, noise=(torch.zeros(1, 1, 3),)), "noise has the shapes"),
    "noise of another kind": (lambda t, k: t.decode(k, noise=0.5), "noise is a float"),
    "seed": (lambda t, k: t.decode(k, seed=0.5), "seed=0.5"),
    "depth of a stream": (lambda t, k: t.stream(depth=2), "cuts inside a level"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tok, case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        call(tok, tok.encode(sound(9 * tok.info.downsample[0])))
    assert str(caught.value).startswith("snac.")


def test_a_decoder_without_noise_takes_no_seed():
    tok = small(noise=False)
    tokens = tok.encode(sound(100))
    assert not tok.info.stochastic_decode
    with pytest.raises(ValueError, match="draws no noise"):
        tok.decode(tokens, seed=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "unknown keys colour"),
        ({"latent_dim": 7}, "latent_dim=7"),
        ({"vq_strides": [4, 3]}, r"level_strides=\(4, 3\)"),
        ({"decoder_rates": [8, 8]}, "decoder_strides"),
    ],
)
def test_a_foreign_configuration_is_refused(change, words):
    config = json.loads((PARITY / CASES[0] / "config.json").read_text())
    with pytest.raises(ValueError, match=words):
        Snac.from_public({**config, **change}, {})
