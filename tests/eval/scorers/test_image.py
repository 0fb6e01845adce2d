import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from eval.scorers import RECORDS, make_scorers
from eval.scorers.image import PSNR, psnr_db, ssim
from zoo.layers.features import load_features


def score(name: str, a: Tensor, b: Tensor) -> Tensor:
    scorer = make_scorers([name])[name]
    scorer.update(a, b)
    return scorer.per_item()[1]


def test_psnr_equals_torchmetrics(pair):
    a, b = (part[1:].double() for part in pair)
    expected = peak_signal_noise_ratio(b, a, data_range=255.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(score("psnr_db", *pair)[1:], expected, atol=1e-4, rtol=0)


def test_psnr_of_equal_pictures_is_the_stated_cap(pair):
    assert float(score("psnr_db", *pair)[0]) == 100.0 == RECORDS["psnr_db"].range[1]


def test_psnr_of_a_known_error():
    a = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert float(psnr_db(a, a + 10)) == pytest.approx(20 * math.log10(255 / 10), abs=1e-9)


def test_ssim_equals_torchmetrics(pair):
    a, b = (part.double() for part in pair)
    expected = structural_similarity_index_measure(b, a, data_range=255.0, reduction="none")
    torch.testing.assert_close(score("ssim", *pair), expected, atol=1e-5, rtol=0)


def _ssim_by_windows(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over windows inside one channel, each computed on its own in float64."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_valid_equals_a_loop_over_windows(pair):
    a, b = (part[3:5, :, :16, :14].contiguous() for part in pair)
    expected = [
        np.mean([_ssim_by_windows(x[c].double().numpy(), y[c].double().numpy()) for c in range(3)])
        for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(score("ssim_valid", a, b), torch.tensor(expected), atol=1e-5, rtol=0)
    assert not torch.allclose(ssim(a, b), ssim(a, b, mirror=False), atol=1e-4)


def test_mse_and_mae(pair):
    a, b = (part.double().numpy() for part in pair)
    np.testing.assert_allclose(score("mse", *pair), ((a - b) ** 2).mean((1, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(score("mae", *pair), np.abs(a - b).mean((1, 2, 3)), atol=1e-9)


@pytest.mark.parametrize(("scorer", "network"), [("pdist_mbv2", "mobilenet_v2"), ("pdist_lite0", "efficientnet_lite0")])
def test_feature_distance_equals_the_formula(toys, scorer, network):
    a = torch.stack([torch.from_numpy(toys.waves(i, 128)) for i in range(2)]).permute(0, 3, 1, 2).contiguous()
    b = a.roll(2, dims=3)
    net = load_features(network)
    with torch.no_grad():
        maps_a, maps_b = (net(x.float() / 127.5 - 1)[0] for x in (a, b))
    expected = np.zeros(2)
    for x, y in zip(maps_a, maps_b, strict=True):
        x, y = x.double().numpy(), y.double().numpy()
        x, y = (v / np.sqrt((v**2).sum(1, keepdims=True)).clip(1e-8) for v in (x, y))
        expected += ((x - y) ** 2).sum(1).mean((1, 2))
    np.testing.assert_allclose(score(scorer, a, b), expected, atol=1e-4)
    assert make_scorers([scorer])[scorer].record.protocol["sha256"] == net.sha256
    assert float(score(scorer, a, a).abs().max()) == 0


def test_sums_are_over_items_not_means_of_batches(pair):
    a, b = pair
    scorer = PSNR(RECORDS["psnr_db"])
    scorer.update(a[:5], b[:5])
    scorer.update(a[5:], b[5:])
    assert float(scorer.compute()) == pytest.approx(float(psnr_db(a, b).mean()), abs=1e-9)
    assert scorer.higher_is_better is True


def test_failed_items_are_nan_and_counted(pair):
    a, b = pair
    scorer = PSNR(RECORDS["psnr_db"])
    failed = torch.tensor([False, True, False, False, True, False])
    scorer.update(a, b, index=torch.arange(6), failed=failed)
    result = scorer.result()
    good = psnr_db(a, b)[~failed]
    assert (result.n, result.failed) == (4, 2)
    assert result.mean == pytest.approx(float(good.mean()), abs=1e-9)
    assert result.ci95[0] < result.mean < result.ci95[1]
    assert scorer.per_item()[1].isnan().tolist() == failed.tolist()


def test_all_failed_gives_no_number(pair):
    scorer = PSNR(RECORDS["psnr_db"])
    scorer.update(*pair, index=torch.arange(6), failed=torch.ones(6, dtype=torch.bool))
    result = scorer.result()
    assert (result.mean, result.ci95, result.n, result.failed) == (None, None, 0, 6)


def test_an_item_scored_twice_is_refused(pair):
    scorer = PSNR(RECORDS["psnr_db"])
    scorer.update(*pair, index=torch.tensor([0, 1, 2, 3, 4, 3]))
    with pytest.raises(ValueError, match=r"psnr_db: item 3 was scored twice"):
        scorer.per_item()


def test_reset_forgets(pair):
    scorer = PSNR(RECORDS["psnr_db"])
    scorer.update(*pair)
    scorer.reset()
    scorer.update(pair[0][:2], pair[1][:2])
    assert scorer.result().n == 2


def test_wrong_pictures_are_refused(pair):
    a, b = pair
    scorer = make_scorers(["ssim"])["ssim"]
    with pytest.raises(ValueError, match=r"ssim.update: reference has dtype torch.float32.*to_uint8"):
        scorer.update(a.float(), b)
    with pytest.raises(ValueError, match=r"Needed: the same pictures"):
        scorer.update(a, b[:2])
    with pytest.raises(ValueError, match=r"sides \(10, 32\) are too small. Needed: at least 11 px"):
        scorer.update(a[:, :, :10].contiguous(), b[:, :, :10].contiguous())
    with pytest.raises(ValueError, match=r"index has shape"):
        scorer.update(a, b, index=torch.arange(3))
