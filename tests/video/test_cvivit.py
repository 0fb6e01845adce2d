"""C-ViViT against tensors of the public implementations (see the READMEs in tests/parity/cvivit), and what is ours: causality."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.tokens import Tokens
from zoo.video.cvivit import CViViT, CViViTConfig, _from_patches, _slopes, _to_patches

PARITY = Path(__file__).parents[1] / "parity" / "cvivit"
CASES = ("lfq_rect", "vq_cosine", "fork_public_weights")
SMALL = dict(
    width=16,
    codebook_size=64,
    codebook_channels=4,
    image_size=(16, 24),
    patch=8,
    spatial_depth=2,
    temporal_depth=2,
    heads=3,
    head=8,
)


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    assert not b.numel() or float((a - b).abs().max()) <= tolerance * scale


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    folder = PARITY / request.param
    return zoo.load(folder, family="cvivit"), load_file(folder / "io.safetensors"), request.param


@pytest.fixture(scope="module", params=["video", "image"])
def part(request):
    return request.param


def frames(io, part):
    x = io[f"{part}/input"] * 2 - 1
    return x if part == "video" else x[:, :, None]


# -- the public numbers --------------------------------------------------------------------------------------------------------


def test_patches(case, part):
    tok, io, _ = case
    z = tok.embed(frames(io, part))
    close(z[:, :1], io[f"{part}/first_frame_tokens"])
    close(z[:, 1:], io[f"{part}/rest_tokens"])


def test_position_bias(case):
    tok, io, _ = case
    close(tok.spatial_bias(*io["video/codes"].shape[2:]), io["spatial_bias"])


def test_encoder_and_codes(case, part):
    tok, io, name = case
    z = tok.encode_vectors(frames(io, part))
    close(z, io[f"{part}/pre_quant"])
    if name == "lfq_rect":
        close(tok.quantizer.project_in(z), io[f"{part}/lfq_projected"])
    tokens = tok.encode(frames(io, part))
    assert torch.equal(tokens.data[..., 0], io[f"{part}/codes"])


def test_decoder(case, part):
    tok, io, _ = case
    codes = io[f"{part}/codes"][..., None]
    close(tok.quantizer.decode(codes), io[f"{part}/quantized"])
    x = frames(io, part)
    y = tok.decode(Tokens(codes, tok.spec, tuple(x.shape[2:])))
    wanted = io[f"{part}/reconstruction"] * 2 - 1
    close(y, wanted if part == "video" else wanted[:, :, None])
    mse = ((y - x) / 2).square().mean()
    close(mse[None], io[f"{part}/mse"])


def test_what_the_public_configurations_mean():
    lfq, vq, fork = (zoo.load(PARITY / name, family="cvivit") for name in CASES)
    assert (lfq.config.quantizer, lfq.config.image_size, lfq.config.temporal_patch) == ("lfq", (32, 48), 2)
    assert (vq.config.quantizer, vq.config.codebook_channels, vq.config.heads) == ("vq", None, 6)
    assert (fork.config.codebook_channels, fork.config.spatial_position_conv, fork.config.quirk_unmasked_time) == (8, True, True)
    for tok in (lfq, vq, fork):
        assert tok.config.quirk_position_layout
        assert (tok.info.causal, tok.info.streaming, tok.info.lookahead_frames) == (False, False, None)
        with pytest.raises(ValueError, match="needs the whole signal"):
            tok.stream()
    with pytest.raises(ValueError, match="has no dim, codebook_size"):
        CViViT.from_public({"image_size": 8, "patch_size": 8}, {})
    config = json.loads((PARITY / "lfq_rect" / "config.json").read_text())
    with pytest.raises(ValueError, match="channels other than 3"):
        CViViT.from_public({**config, "channels": 1}, {})


def test_a_pickle_of_the_release_with_its_training_losses(tmp_path):
    """The public file carries the networks of the losses too."""
    from zoo.checkpoint import load_strict, read_tensors

    tensors = load_file(PARITY / "fork_public_weights" / "weights.safetensors")
    losses = {name: torch.zeros(2) for name in ("discr.a", "i3d.b", "loss_fn_lpips.c")}
    torch.save({**tensors, **losses}, tmp_path / "pytorch_model.bin")
    wanted = zoo.load(PARITY / "fork_public_weights", family="cvivit")
    tok = CViViT(wanted.config, wanted.info)
    read = read_tensors(tmp_path / "pytorch_model.bin", allow_pickle=True)
    load_strict(tok, CViViT.rename_public(read, wanted.config), name="a")
    for name, value in wanted.state_dict().items():
        assert torch.equal(tok.state_dict()[name], value)


@pytest.mark.parametrize("quirk", ["quirk_position_layout", "quirk_unmasked_time"])
@pytest.mark.parametrize("name", ["lfq_rect", "fork_public_weights"])
def test_a_quirk_changes_the_output(name, quirk):
    tok, io = zoo.load(PARITY / name, family="cvivit"), load_file(PARITY / name / "io.safetensors")
    other = CViViT(replace(tok.config, **{quirk: not getattr(tok.config, quirk)})).eval().requires_grad_(False)
    other.load_state_dict(tok.state_dict())
    z = other.encode_vectors(frames(io, "video"))
    assert float((z - io["video/pre_quant"]).abs().max()) > 0.1


def test_normed_patches_do_not_know_how_bright_they_are():
    x = clip(5) / 4
    brighter = x + torch.tensor([0.4]).expand_as(x)
    for normed in (True, False):
        tok = small(quirk_normed_patches=normed)
        change = float((tok.embed(brighter) - tok.embed(x)).abs().max())
        assert (change < 1e-3) if normed else (change > 0.1)


def test_an_untrained_decoder_makes_nearly_grey():
    torch.manual_seed(0)
    tok = CViViT(CViViTConfig(**{**SMALL, "width": 160})).eval()
    with torch.inference_mode():
        y = tok.decode_vectors(torch.randn(1, 3, 2, 3, 160))
    assert 0 < float(y.abs().mean()) < 0.1


def test_codes_out_of_use_come_back():
    torch.manual_seed(0)
    tok = CViViT(CViViTConfig(**{**SMALL, "codebook_channels": 4})).train()
    x = torch.randn(1, 2, 2, 3, SMALL["width"])
    tok.quantize(x)  # k-means places the codes
    assert float(tok.quantize(x).stats["revived_codes"]) == 0
    tok.quantizer.quantizer.cluster_size[:5] = 0
    assert float(tok.quantize(x).stats["revived_codes"]) > 0


# -- causality -----------------------------------------------------------------------------------------------------------------


def small(seed=0, **changes):
    torch.manual_seed(seed)
    tok = CViViT(CViViTConfig(**{**SMALL, **changes})).eval().requires_grad_(False)
    for parameter in tok.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return tok


def clip(t, b=1, seed=0, size=(16, 24)):
    return torch.rand(b, 3, t, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("changes", [{}, {"time_window": 2}, {"spatial_position_conv": True}, {"temporal_patch": 3}])
def test_the_past_does_not_feel_the_future(changes):
    tok = small(**changes)
    step = tok.config.temporal_patch
    x, other = clip(1 + 5 * step), clip(1 + 5 * step, seed=9)
    z = tok.encode_vectors(x)
    y = tok.decode_vectors(z)
    for cut in range(1, 6):
        seen = 1 + (cut - 1) * step
        mixed = torch.cat([x[:, :, :seen], other[:, :, seen:]], 2)
        changed = tok.encode_vectors(mixed)
        close(changed[:, :cut], z[:, :cut], 1e-6)
        assert float((changed[:, cut:] - z[:, cut:]).abs().max()) > 1e-3
        turned = torch.cat([z[:, :cut], z[:, cut:].flip(1) + 1], 1)
        close(tok.decode_vectors(turned)[:, :, :seen], y[:, :, :seen], 1e-6)
    close(tok.encode_vectors(x[:, :, :1]), z[:, :1], 1e-6)


@pytest.mark.parametrize("quirk", ["quirk_position_layout", "quirk_unmasked_time"])
def test_the_quirks_are_not_causal(quirk):
    tok = small(**{quirk: True})
    x, other = clip(11), clip(11, seed=9)
    mixed = torch.cat([x[:, :, :5], other[:, :, 5:]], 2)
    assert float((tok.encode_vectors(mixed)[:, :3] - tok.encode_vectors(x)[:, :3]).abs().max()) > 1e-3
    assert not tok.info.causal


def test_the_earlier_steps_are_used():
    """A window that looks back farther gives other vectors, and one as long as the clip those of no window."""
    x = clip(11)
    plain, one, six = (small(time_window=window).encode_vectors(x) for window in (None, 1, 6))
    assert torch.equal(plain, six)
    assert float((plain - one)[:, 1:].abs().max()) > 1e-3
    close(plain[:, 0], one[:, 0], 1e-6)


@pytest.mark.parametrize("changes", [{}, {"time_window": 3}, {"spatial_position_conv": True, "time_window": 1}])
@pytest.mark.parametrize("frames", [1, 2, 12, 23])
def test_a_stream_equals_the_whole(changes, frames):
    tok = small(**changes)
    x = clip(frames, b=2)
    whole = tok.encode(x)
    z = tok.quantizer.decode(whole.data)
    wanted = tok.decode_vectors(z)[:, :, :frames]
    for size in (1, 2, 5, frames):
        parts = list(tok.stream().encode_all(x.split(size, 2)))
        joined = Tokens.join(parts)
        assert torch.equal(joined.data, whole.data)
        assert joined.extent.tolist() == whole.extent.tolist()
        y = torch.cat(list(tok.stream().decode_all(parts)), 2)
        close(y, wanted, 1e-5)


def kept(pasts):
    tensors = [value for past in pasts.space + pasts.time for value in (past.tail, past.keys, past.values) if value is not None]
    return sum(value.untyped_storage().nbytes() for value in tensors)


def test_what_a_stream_keeps_is_bounded_by_the_window():
    sizes = {}
    for window in (None, 4):
        tok = small(time_window=window)
        for frames in (17, 65):
            stream = tok.stream()
            parts = list(stream.encode_all(clip(frames).split(4, 2)))
            list(stream.decode_all(parts))
            sizes[window, frames] = kept(stream._encoder) + kept(stream._decoder)
    assert sizes[4, 65] == sizes[4, 17]
    assert sizes[None, 65] > 2 * sizes[None, 17]


# -- pieces --------------------------------------------------------------------------------------------------------------------


def test_patches_are_laid_out_as_the_public_code_does():
    x = torch.arange(2 * 3 * 4 * 8 * 6).reshape(2, 3, 4, 8, 6).float()
    z = _to_patches(x, 2, 2)
    assert z.shape == (2, 2, 4, 3, 24)
    assert torch.equal(z[1, 1, 2, 1], x[1, :, 2:4, 4:6, 2:4].reshape(-1))
    assert torch.equal(_from_patches(z, 2, 2), x)


def test_slopes_of_the_heads():
    assert _slopes(8) == [2.0**-i for i in range(1, 9)]
    assert _slopes(6) == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


@pytest.mark.parametrize("quantizer", ["vq", "lfq"])
def test_any_length_and_size_and_a_picture(quantizer):
    tok = small(quantizer=quantizer, codebook_channels=4 if quantizer == "vq" else None)
    for size in ((1, 16, 24), (2, 5, 9), (7, 24, 16), (8, 1, 1)):
        x = clip(size[0], size=size[1:])
        tokens = tok.encode(x)
        assert tokens.positions == (1 + math.ceil((size[0] - 1) / 2), math.ceil(size[1] / 8), math.ceil(size[2] / 8))
        assert tok.decode(tokens).shape == x.shape
    picture = clip(1)
    assert torch.equal(tok.encode(picture).data[:, 0], tok.encode(picture.expand(-1, -1, 5, -1, -1)).data[:, 0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(quantizer="lfq", codebook_channels=None, codebook_size=100), "a power of two"),
        (dict(quantizer="lfq"), "None for lfq"),
        (dict(image_size=(16, 20)), "two multiples of patch=8"),
        (dict(heads=0), "at least 1"),
        (dict(time_window=0), "at least 1, or None"),
        (dict(time_window=3, quirk_unmasked_time=True), "None with quirk_unmasked_time"),
    ],
)
def test_configurations_that_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        CViViTConfig(**{**SMALL, **wrong})


def test_loading_refuses_what_does_not_fit(tmp_path):
    for name in ("config.json",):
        (tmp_path / name).write_text((PARITY / "vq_cosine" / name).read_text())
    tensors = load_file(PARITY / "vq_cosine" / "weights.safetensors")
    del tensors["to_pixels.0.bias"]
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: pixels_later\.bias"):
        zoo.load(tmp_path, family="cvivit")
