"""Projected, Grouped, Residual: equal to doing it by hand."""

import pytest
import torch

from zoo.quantizers import FSQ, RVQ, VQ, Grouped, Projected, Residual


def test_projected_is_linear_quantize_linear() -> None:
    torch.manual_seed(0)
    projected = Projected(FSQ(levels=(5, 5)), dim=7)
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    inner = projected.quantizer(projected.project_in(x))
    result = projected(x)
    assert torch.equal(result.codes, inner.codes)
    torch.testing.assert_close(result.x, projected.project_out(inner.x))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a projection in bfloat16 would change codes
        assert torch.equal(projected(x).x, result.x)


def test_grouped_cuts_channels_and_averages_losses() -> None:
    parts = [RVQ(dim=2, codebook_size=8, num_codebooks=2), RVQ(dim=3, codebook_size=4, num_codebooks=3)]
    grouped = Grouped(parts).eval()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    first, second = parts[0](x[:, :2]), parts[1](x[:, 2:])
    result = grouped(x)
    assert grouped.codebook_sizes == (8, 8, 4, 4, 4)
    assert torch.equal(result.codes, torch.cat([first.codes, second.codes], -1))
    assert torch.equal(result.x, torch.cat([first.x, second.x], -1))
    torch.testing.assert_close(result.loss, (first.loss + second.loss) / 2)
    assert result.stats["used_fraction"].shape == (5,)
    with pytest.raises(ValueError, match="the codebooks differ"):
        _ = grouped.codebook_size


def test_residual_equals_rvq() -> None:
    rvq = RVQ(dim=4, codebook_size=16, num_codebooks=3, gradient_scale="per_depth").eval()
    parts = [VQ(dim=4, codebook_size=16) for _ in range(3)]
    for part, layer in zip(parts, rvq.layers, strict=True):
        part.set_codebook(layer.codebook)
    residual = Residual(parts).eval()
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    one, other = rvq(x), residual(x)
    assert torch.equal(one.codes, other.codes)
    torch.testing.assert_close(one.x, other.x)
    torch.testing.assert_close(one.loss, other.loss)
    gradients = [torch.autograd.grad(result.x.sum() + result.loss, x)[0] for result in (one, other)]
    torch.testing.assert_close(*gradients)
    for depth in (1, 2, 3):
        assert torch.equal(residual.encode(x, depth=depth), one.codes[:, :depth])
        assert torch.equal(residual(x, depth=depth).codes, one.codes[:, :depth])
        torch.testing.assert_close(residual.decode(one.codes[:, :depth]), rvq.decode(one.codes[:, :depth]))


def test_refuses_parts() -> None:
    with pytest.raises(ValueError, match="one or more quantizers of one class"):
        Grouped([])
    with pytest.raises(ValueError, match="one or more quantizers of one class"):
        Grouped([FSQ(levels=(5,)), VQ(dim=1, codebook_size=4)])
    with pytest.raises(ValueError, match="equal widths, one code each"):
        Residual([VQ(dim=1, codebook_size=4), VQ(dim=2, codebook_size=4)])
    with pytest.raises(ValueError, match="dim=0"):
        Projected(FSQ(levels=(5,)), dim=0)
    with pytest.raises(ValueError, match=r"depth=3\. Allowed: an int in 1\.\.2|depth=3"):
        Residual([VQ(dim=1, codebook_size=4) for _ in range(2)]).encode(torch.zeros(1, 1), depth=3)
