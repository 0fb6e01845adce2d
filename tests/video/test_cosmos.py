"""Cosmos against tensors of the public implementation (see the READMEs in tests/parity/cosmos), its stream and its refusals."""

import json
from itertools import pairwise

import pytest
import torch

import zoo
from tests.video.checks import close, first
from zoo.layers.causal_conv import Memory
from zoo.tokens import Tokens
from zoo.video.cosmos import Cosmos, CosmosConfig, inverse_wavelets, wavelets

CASES = ("cv_4x8x8", "dv_8x8x8")
CLIPS = [(case, clip) for case in CASES for clip in ("image", "video")]


@pytest.fixture(scope="module")
def public(parity):
    cases = {name: parity("cosmos", name) for name in CASES}
    return {name: (case.io, zoo.load(case.folder, family="cosmos")) for name, case in cases.items()}


@pytest.mark.parametrize(("name", "clip"), CLIPS)
def test_the_public_numbers(public, name, clip):
    io, tok = public[name]
    x = io[f"{clip}/input"]
    frames = x.permute(0, 2, 3, 4, 1)
    led = torch.cat([frames[:, :1].expand(-1, 3, -1, -1, -1), frames], 1)
    bands = wavelets(wavelets(led))
    close(first(bands), io[f"{clip}/wavelet"], 1e-6)
    torch.testing.assert_close(inverse_wavelets(inverse_wavelets(bands)), led)
    latents = tok.encode_latents(x)
    close(first(latents), io[f"{clip}/latent"], 1e-5)
    data = tok.encode(x).data
    if tok.info.discrete:
        assert torch.equal(data[..., 0], io[f"{clip}/codes"])
        close(tok.quantizer.bound(latents), io[f"{clip}/bounded"])
        close(first(tok.quantizer.decode(data)), io[f"{clip}/quantized"])
    else:
        close(first(data), io[f"{clip}/latent"], 1e-5)
    close(tok(x), io[f"{clip}/reconstruction"])


@pytest.mark.parametrize("name", CASES)
def test_the_stream_is_the_whole_to_the_bit(public, name):
    io, tok = public[name]
    x = torch.cat([io["video/input"]] * 2, 2)[:, :, :15]
    whole = tok.encode(x)
    y = tok.decode(whole)
    assert y.shape == x.shape
    for sizes in ([15], [1] * 15, [2, 7, 1, 5]):
        parts = list(tok.stream().encode_all(x.split(sizes, 2)))
        joined = Tokens.join(parts)
        assert torch.equal(joined.data, whole.data)
        assert torch.equal(joined.extent, whole.extent)
        assert torch.equal(torch.cat(list(tok.stream().decode_all(parts)), 2), y)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_what_the_networks_give_in_one_piece(public, name):
    """The keys and values of the steps before make the attention in time that of the whole clip."""
    io, tok = public[name]
    z = tok.encode_latents(io["video/input"])
    whole = tok.frames_step(z, Memory())
    close(first(whole), tok.decode_latents(z), 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_a_clip_of_one_frame(public, name):
    io, tok = public[name]
    x = io["video/input"]
    assert torch.equal(tok.encode(x[:, :, :1]).data, tok.encode(x).data[:, :1])
    assert torch.equal(tok(x[:, :, :1]), tok(x)[:, :, :1])


@pytest.mark.parametrize("name", CASES)
def test_a_stream_keeps_two_vectors_a_position_in_each_attention_and_no_more(public, name):
    _, tok = public[name]
    f, width = tok.config.time_factor, tok.config.width * 4
    stream, sizes = tok.stream(), []
    for i in range(8):
        tokens = stream.encode(torch.full((1, 3, f if i else 1, 16, 16), i / 8))
        stream.decode(tokens)
        sizes.append((stream.encoder.memory.size(), stream.decoder.memory.size()))
    growth = {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(sizes[1:])}
    each = 2 * 2 * 2 * width * 4  # keys and values, 2 x 2 places, float32
    assert growth == {(each, each)}


def test_the_catalog_has_the_factors_of_the_release():
    entries = zoo.find(family="cosmos")
    assert len(entries) == 8
    for e in entries:
        assert e.weights.repo.endswith(f"V{'x'.join(map(str, e.downsample))}")
        # 90 and 112 million were counted with the layers that are stored and not used.
        assert 85e6 < e.parameters < 112e6


@pytest.mark.parametrize("factors", [(4, 8), (8, 8), (8, 16), (4, 16)])
def test_every_compression(factors):
    torch.manual_seed(0)
    time, side = factors
    tok = Cosmos(CosmosConfig(width=4, blocks=1, z_channels=4, latent_channels=4, space_factor=side, time_factor=time)).eval()
    for frames in (1, 2, time, time + 1, time + 2):
        x = torch.rand(1, 3, frames, side + 1, side) * 2 - 1
        tokens = tok.encode(x)
        assert tokens.positions == (1 + -(-(frames - 1) // time), 2, 1)
        assert tok.decode(tokens).shape == x.shape


REFUSED = {
    "patch": ({"patch_method": "rearrange"}, "patch_method='rearrange'"),
    "groups": ({"num_groups": 32}, "num_groups=32"),
    "formulation": ({"formulation": "VAE"}, "formulation='VAE'"),
    "attention": ({"attn_resolutions": [256]}, "attn_resolutions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_is_not_known(parity, case):
    values, words = REFUSED[case]
    config = {**json.loads(json.dumps(parity("cosmos", CASES[0]).config)), **values}
    with pytest.raises(ValueError, match=words):
        Cosmos.from_public(config, {})
    with pytest.raises(ValueError, match=r"has no channels, channels_mult"):
        Cosmos.from_public({}, {})


def test_layers_that_are_stored_and_not_used_are_left_out_and_no_others(parity):
    from safetensors.torch import load_file

    case = parity("cosmos", CASES[0])
    tensors = load_file(case.weights)
    config = Cosmos.from_public(case.config, {})
    renamed = Cosmos.rename_public({**tensors, "encoder.patcher3d.wavelets": torch.ones(2), "decoder.extra": torch.ones(1)}, config)
    assert renamed.keys() - Cosmos(config).state_dict().keys() == {"decoder.extra"}
    dropped = len(tensors) + 2 - len(renamed)
    assert dropped == 2 + 6 + 2 + 1, "a convolution in time each way, the encoder's second change, and the constant"
