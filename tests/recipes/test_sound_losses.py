"""The losses of sound against libraries and numbers worked out by hand: mel bands, SI-SDR, the balancer, both sides of the game."""

import pytest
import torch
import torchaudio
import torchmetrics.functional.audio as metrics
from torch import nn

from eval.scorers.audio.signal import mel_distance
from recipes.modules.balancer import LossBalancer
from recipes.modules.sound_discriminators import (
    BandDiscriminator,
    Judged,
    PeriodDiscriminator,
    SoundDiscriminators,
    SpectrumDiscriminator,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from recipes.modules.sound_losses import MelLoss, si_sdr_db


def sounds(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- mel and waveform --------------------------------------------------------------------------------------------------------------


def test_mel_magnitudes_are_torchaudios():
    x = sounds(2, 4000)
    loss = MelLoss(sample_rate=16_000, windows=[256, 512], bands=[20, 40], normalized=True)
    for found, window, bands in zip(loss.mels(x), (256, 512), (20, 40), strict=True):
        wanted = torchaudio.transforms.MelSpectrogram(
            16_000, n_fft=window, hop_length=window // 4, n_mels=bands, power=1.0, normalized=True, norm="slaney",
            mel_scale="slaney", pad_mode="constant",
        )(x)  # fmt: skip
        torch.testing.assert_close(found.transpose(1, 2), wanted, atol=1e-6, rtol=1e-4)


def test_with_logarithms_only_it_is_the_scorer():
    x, y = sounds(1, 8000), sounds(1, 8000, seed=1)
    assert float(MelLoss(sample_rate=16_000)(x[None], y[None])) == pytest.approx(mel_distance(x[0], y[0], 16_000), rel=1e-4)


def test_the_parts_of_the_mel_loss():
    """Half the amplitude is half of each magnitude, and log10 2 apart."""
    x = sounds(1, 1, 4000)
    scale = dict(sample_rate=16_000, windows=[256], bands=[20])
    mels = MelLoss(**scale).mels(x[0])[0]
    log = torch.tensor(2.0).log10()
    assert float(MelLoss(**scale)(x, x / 2)) == pytest.approx(float(log), rel=1e-4)
    assert float(MelLoss(**scale, squared_log=True)(x, x / 2)) == pytest.approx(float(log**2), rel=1e-4)
    linear = MelLoss(**scale, linear_weight=3.0, log_weight=0.0)(x, x / 2)
    assert float(linear) == pytest.approx(1.5 * float(mels.mean()), rel=1e-4)


def test_the_mel_loss_of_silence_has_a_gradient_without_nan():
    y = torch.zeros(1, 1, 4000, requires_grad=True)
    MelLoss(sample_rate=16_000, windows=[64, 256], bands=[10, 20], linear_weight=1.0)(sounds(1, 1, 4000), y).backward()
    assert bool(y.grad.isfinite().all())


def test_bfloat16_autocast_changes_nothing():
    x, y, loss = sounds(1, 1, 4000), sounds(1, 1, 4000, seed=1), MelLoss(sample_rate=16_000, windows=[256], bands=[20])
    with torch.autocast("cpu", torch.bfloat16):
        assert float(loss(x, y)) == float(loss(x.clone(), y))
        inside = float(loss(x, y))
    assert inside == float(loss(x, y))


@pytest.mark.parametrize(("windows", "bands"), [([], []), ([64], [5, 6]), ([65], [5]), ([2], [1]), ([64], [0])])
def test_scales_that_do_not_fit_are_refused(windows, bands):
    with pytest.raises(ValueError, match="MelLoss: windows="):
        MelLoss(sample_rate=16_000, windows=windows, bands=bands)


def test_si_sdr_is_torchmetrics():
    x = sounds(3, 1, 2000)
    y = 0.5 * x + 0.1 * sounds(3, 1, 2000, seed=1) + 0.05
    wanted = metrics.scale_invariant_signal_distortion_ratio(y, x, zero_mean=True)
    torch.testing.assert_close(si_sdr_db(x, y), wanted, atol=1e-3, rtol=1e-4)


# -- balancer ----------------------------------------------------------------------------------------------------------------------


def test_each_loss_gets_its_share_of_the_gradient():
    balancer = LossBalancer({"a": 1.0, "b": 3.0}, norm=2.0)
    a, b = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)
    a[0, 0, 0], a[1, 0, 0] = 10.0, 20.0  # mean norm of the items 15
    b[:, 0, 1] = 1e-3
    total, norms = balancer({"a": a, "b": b})
    assert {name: float(norm) for name, norm in norms.items()} == pytest.approx({"a": 15.0, "b": 1e-3})
    assert total[:, 0, 0].tolist() == pytest.approx([0.5 * 10 / 15, 0.5 * 20 / 15])
    assert total[:, 0, 1].tolist() == pytest.approx([1.5, 1.5])


def test_running_means_are_corrected_for_their_start():
    balancer = LossBalancer({"a": 1.0}, decay=0.5)
    for size, mean in ((4.0, 4.0), (1.0, (0.5 * 4 + 1) / 1.5), (2.0, (0.5 * 3 + 2) / 1.75)):
        total, _ = balancer({"a": torch.full((1, 1), size)})
        assert float(total) == pytest.approx(size / mean)


def test_a_loss_that_joins_later_counts_from_then():
    balancer = LossBalancer({"a": 1.0, "b": 1.0}, decay=0.9)
    for _ in range(5):
        total, _ = balancer({"a": torch.ones(1, 2)})
        assert float(total.norm()) == pytest.approx(1.0), "alone it is all"
    total, _ = balancer({"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[0.0, 7.0]])})
    assert float(total[0, 1]) == pytest.approx(0.5)
    again = LossBalancer({"a": 1.0, "b": 1.0}, decay=0.9)
    again.load_state_dict(balancer.state_dict())
    gradients = {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}
    assert torch.equal(again(gradients)[0], balancer(gradients)[0])


def test_the_balancer_refuses():
    with pytest.raises(ValueError, match="weights="):
        LossBalancer({"a": 0.0})
    with pytest.raises(ValueError, match="decay=1"):
        LossBalancer({"a": 1.0}, decay=1)
    with pytest.raises(KeyError, match=r"no weight for c\. Known: a"):
        LossBalancer({"a": 1.0})({"c": torch.ones(1, 1)})


# -- discriminators ----------------------------------------------------------------------------------------------------------------


def judged(*scores):
    return [Judged(torch.tensor(score), []) for score in scores]


def test_losses_of_both_sides():
    real, fake = judged([2.0, 0.5], [0.0]), judged([-3.0, 0.0], [0.5])
    assert float(discriminator_loss(real, fake, "hinge")) == pytest.approx(((0 + 0.5) / 2 + (0 + 1) / 2 + 1 + 1.5) / 2)
    assert float(generator_loss(fake, "hinge")) == pytest.approx(((4 + 1) / 2 + 0.5) / 2)
    assert float(discriminator_loss(real, fake, "least_squares")) == pytest.approx((1 + 0.25) / 2 + 9 / 2 + 1 + 0.25)
    assert float(generator_loss(fake, "least_squares")) == pytest.approx((16 + 1) / 2 + 0.25)


def test_feature_distances():
    real = [Judged(torch.zeros(1), [torch.tensor([1.0, 3.0]), torch.tensor([4.0])])]
    fake = [Judged(torch.zeros(1), [torch.tensor([2.0, 5.0]), torch.tensor([5.0])])]
    assert float(feature_loss(real, fake, relative=False)) == pytest.approx(1.5 + 1.0)
    assert float(feature_loss(real, fake, relative=True)) == pytest.approx((1.5 / 2 + 1 / 4) / 2, rel=1e-4)


def test_a_period_network_sees_one_phase_at_a_time():
    """A score depends on samples that are whole periods apart, and on no others."""
    network = PeriodDiscriminator(period=5, widths=(4, 4, 4))
    x = sounds(1, 1, 400).requires_grad_()
    scores = network(x).scores
    assert scores.shape == (1, 1, 9, 5), "400 samples are 80 rows of 5, and two strides of 3 leave 9"
    scores[0, 0, 4, 2].backward()
    seen = x.grad[0, 0].nonzero().flatten()
    assert len(seen) > 10
    assert set((seen % 5).tolist()) == {2}


def test_band_networks_see_their_band_only():
    network, heard = BandDiscriminator(window=64, width=4), []
    assert network.bands == [(0, 3), (3, 8), (8, 16), (16, 24), (24, 33)]
    for stack in network.stacks:
        stack[0].register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    x = sounds(1, 1, 1000)
    network(x)
    x = x[0] - x.mean()
    wanted = torchaudio.transforms.Spectrogram(64, hop_length=16, power=None, normalized=True)(0.8 * x / x.abs().max())[0]
    torch.testing.assert_close(torch.cat(heard, -1)[0, 0].T, wanted.real, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(heard, -1)[0, 1].T, wanted.imag, atol=1e-5, rtol=1e-4)


def test_the_band_network_does_not_hear_the_level():
    network, x = BandDiscriminator(window=64, width=4), sounds(1, 1, 1000)
    torch.testing.assert_close(network(x).scores, network(0.01 * x + 0.2).scores, atol=1e-4, rtol=1e-3)


def test_the_spectrum_network_gets_real_and_imaginary_parts():
    network, heard = SpectrumDiscriminator(window=64, width=4), []
    network.layers[0].register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    x = sounds(1, 1, 640)
    network(x)
    wanted = torchaudio.transforms.Spectrogram(64, hop_length=16, power=None, normalized=True, center=False)(x[0])
    torch.testing.assert_close(heard[0][0, 0].T, wanted[0].real, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heard[0][0, 1].T, wanted[0].imag, atol=1e-5, rtol=1e-4)


def test_published_sizes():
    """HiFi-GAN's five period networks have 41.1 million weights; EnCodec's spectrum network ends with an eighth of its bins."""
    periods = SoundDiscriminators(periods=[2, 3, 5, 7, 11])
    weights = sum(layer.weight.numel() + layer.bias.numel() for layer in periods.modules() if isinstance(layer, nn.Conv2d))
    assert weights == 5 * (32 * 6 + 128 * 161 + 512 * 641 + 1024 * 2561 + 1024 * 5121 + 3 * 1024 + 1)
    scores = SpectrumDiscriminator(window=1024)(sounds(1, 1, 24_000)).scores
    assert scores.shape == (1, 1, (24_000 - 1024) // 256 + 1, 65)


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="no network"):
        SoundDiscriminators()
