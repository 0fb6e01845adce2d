"""Codes at several rates against the formula, level by level. The public class's numbers are in tests/audio/test_snac.py."""

import pytest
import torch

from zoo.quantizers.multi_rate import MultiRateRVQ


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return MultiRateRVQ(dim=6, codebook_size=16, codebook_dim=3, strides=(4, 2, 1)).eval()


def vectors(frames=12):
    return torch.randn(2, frames, 6, generator=torch.Generator().manual_seed(1))


def by_hand(quantizer, x):
    """Codes `(b, n * rate)` and the sum of vectors after each level: nearest direction of the mean of what is left."""
    levels, total = [], torch.zeros_like(x)
    for level, stride in zip(quantizer.levels, (4, 2, 1), strict=True):
        left = (x - total).unflatten(1, (-1, stride)).mean(2)
        few, book = level.project_in(left), level.quantizer.codebook
        codes = torch.cosine_similarity(few[:, :, None], book[None, None], dim=3).argmax(2)
        total = total + level.project_out(book[codes]).repeat_interleave(stride, 1)
        levels.append((codes, total))
    return levels


def test_codes_and_vectors(quantizer):
    x = vectors()
    codes = quantizer.encode(x)
    assert codes.shape == (2, 3, 7)
    for i, (end, (level, total)) in enumerate(zip((1, 3, 7), by_hand(quantizer, x), strict=True)):
        assert torch.equal(codes[..., end - 2**i : end].flatten(1), level)
        assert torch.equal(quantizer.encode(x, levels=i + 1), codes[..., :end])
        torch.testing.assert_close(quantizer.decode(codes[..., :end]), total, rtol=0, atol=1e-5)


def test_training_gives_the_same_codes_and_passes_the_gradient(quantizer):
    x = vectors().requires_grad_()
    result = quantizer.train()(x)
    assert torch.equal(result.codes, quantizer.encode(x))
    (result.x.square().mean() + result.loss).backward()
    assert bool((x.grad.abs().sum((0, 2)) > 0).all()), "every frame has a part"
    assert all(parameter.grad is not None for parameter in quantizer.parameters())


@pytest.mark.parametrize("strides", [(), (4, 3), (2, 4), (1, 0)])
def test_strides_that_are_refused(strides):
    with pytest.raises(ValueError, match=r"MultiRateRVQ: strides=.*a divisor of the first"):
        MultiRateRVQ(dim=6, codebook_size=16, codebook_dim=3, strides=strides)
