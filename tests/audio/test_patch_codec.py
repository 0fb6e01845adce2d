"""Our small codec: nothing looks ahead, both quantizers, sizes, and what a configuration may be. The contract tests the rest."""

import pytest
import torch

import zoo
from zoo.audio.patch_codec import PatchCodec, PatchCodecConfig

SMALL = dict(strides=(4, 5), widths=(6, 8), latent_channels=4, num_codebooks=3, codebook_size=16)
SCALAR = dict(SMALL, num_codebooks=1, codebook_size=60, levels=(5, 4, 3))


def codec(**options):
    torch.manual_seed(0)
    return PatchCodec(PatchCodecConfig(**options)).eval()


def noise(samples, seed=0):
    return 0.1 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [SMALL, SCALAR, dict(SMALL, lstm_layers=0), dict(SMALL, lstm_layers=2)])
def test_nothing_looks_ahead(options):
    """Latents depend on the samples up to the end of their hop, and samples on the latents up to their own."""
    tok = codec(**options)
    x = noise(400).requires_grad_()
    tok.encode_vectors(x)[0, 7].sum().backward()
    seen = x.grad[0, 0].nonzero()
    assert int(seen.max()) == 8 * 20 - 1
    vectors = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tok.decode_vectors(vectors)[0, 0, 7 * 20].backward()
    assert int(vectors.grad[0].abs().sum(1).nonzero().max()) == 7


@pytest.mark.parametrize("options", [SMALL, SCALAR])
def test_a_late_change_leaves_what_came_before(options):
    tok = codec(**options)
    x, y = noise(400), noise(400)
    y[..., 300:] = noise(100, seed=3)
    a, b = tok.encode(x), tok.encode(y)
    assert torch.equal(a.data[:, :15], b.data[:, :15])
    assert not torch.equal(a.data[:, 15:], b.data[:, 15:])
    torch.testing.assert_close(tok.decode(a)[..., :300], tok.decode(b)[..., :300], atol=1e-6, rtol=0)


def test_scalar_codes_are_the_numbers_of_their_digits():
    tok = codec(**SCALAR)
    codes = tok.encode(noise(4000)).data
    digits = tok.quantizer.quantizer.codes_to_digits(codes)
    assert bool((digits.amax((0, 1)) < torch.tensor([5, 4, 3])).all())
    assert torch.equal(codes[..., 0], digits[..., 0] + 5 * digits[..., 1] + 20 * digits[..., 2])


def test_signals_keep_their_size_at_the_start():
    """Speech of the usual level gives latents of about 1, and latents of 1 give sound of about that level."""
    torch.manual_seed(0)
    tok = zoo.create("audio_rvq_nano", info_name="audio_rvq_nano")
    with torch.no_grad():
        assert 0.3 < float(tok.encode_vectors(noise(16_000)).std()) < 3
        assert 0.02 < float(tok.decode_vectors(torch.randn(1, 100, 32)).std()) < 0.3


def test_the_nano_codecs_stay_small():
    """Half-precision weights of at most 8 MB, and at most 4 kbit/s."""
    for name in ("audio_rvq_nano", "audio_fsq_nano"):
        info = zoo.info(name)
        assert 2 * info.parameters <= 8_000_000
        assert info.bits_per_second <= 4000
        assert info.causal
        assert info.streaming


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (6,)}, "widths"),
        ({"strides": (1, 5)}, "strides"),
        ({"dilations": (0,)}, "dilations"),
        ({"lstm_layers": -1}, "lstm_layers"),
        ({"levels": (5, 4, 2)}, "levels"),
        ({"levels": (5, 4, 3), "codebook_size": 60}, "num_codebooks=3.*1 with levels"),
        ({"levels": (5, 4, 3), "num_codebooks": 1}, "codebook_size=16.*60 with these levels"),
    ],
)
def test_configurations_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PatchCodecConfig(**{**SMALL, **options})
