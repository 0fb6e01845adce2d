"""Random shapes and settings against vector-quantize-pytorch itself, beyond what the stored fixtures hold."""

import pytest
import torch
from vector_quantize_pytorch import FSQ as LibraryFSQ
from vector_quantize_pytorch import LFQ as LibraryLFQ
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from zoo.quantizers import BSQ, FSQ, LFQ, RVQ, VQ


def give(module: torch.nn.Module, book: torch.Tensor) -> None:
    codebook = module._codebook
    codebook.embed.data.copy_(book[None])
    codebook.embed_avg.data.copy_(book[None])
    codebook.cluster_size.data.fill_(1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rotation", [False, True])
def test_rvq_training_run(seed: int, rotation: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    dim, size, depth = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 40), (3, 70), (1, 6)))
    theirs = ResidualVQ(dim=dim, num_quantizers=depth, codebook_size=size, decay=0.8, rotation_trick=rotation)
    ours = RVQ(
        dim=dim,
        codebook_size=size,
        num_codebooks=depth,
        decay=0.8,
        commitment_weight=1.0,
        estimator="rotation" if rotation else "straight_through",
        gradient_scale="per_depth",
    )
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        book = torch.randn(size, dim, generator=generator)
        mine.set_codebook(book)
        give(other, book)
    for _ in range(3):
        x = torch.randn(3, 50, dim, generator=generator)
        weight = torch.randn(x.shape, generator=generator)
        gradients = []
        for quantizer in (ours.train(), theirs.train()):
            leaf = x.clone().requires_grad_()
            value, codes, loss = (r := quantizer(leaf))[0], r[1], r[2]
            ((value * weight).sum() + loss.mean()).backward()
            gradients.append((codes, value.detach(), leaf.grad))
        assert torch.equal(gradients[0][0], gradients[1][0])
        torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients[0][2], gradients[1][2], rtol=1e-3, atol=1e-3)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.codebook, other._codebook.embed[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cosine", [False, True])
def test_vq_codes(seed: int, cosine: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    theirs = VectorQuantize(dim=6, codebook_size=30, use_cosine_sim=cosine).eval()
    ours = VQ(dim=6, codebook_size=30, distance="cosine" if cosine else "euclidean").eval()
    book = torch.randn(30, 6, generator=generator)
    book = torch.nn.functional.normalize(book, dim=-1) if cosine else book
    ours.set_codebook(book)
    give(theirs, book)
    x = torch.randn(4, 90, 6, generator=generator)
    value, codes, _ = theirs(x)
    assert torch.equal(ours.encode(x)[..., 0], codes)
    torch.testing.assert_close(ours.decode(ours.encode(x)), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [(3,), (5, 4), (9, 16, 3), (2, 2, 2, 5), (8, 8, 8, 5, 5, 5), (31, 30)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq_codes(levels: tuple[int, ...], symmetric: bool) -> None:
    if 2 in levels and not symmetric:
        with pytest.raises(ValueError, match="symmetric"):
            FSQ(levels=levels)
        return
    theirs, ours = LibraryFSQ(levels=list(levels), preserve_symmetry=symmetric), FSQ(levels=levels, symmetric=symmetric)
    x = torch.randn(3, 333, len(levels), generator=torch.Generator().manual_seed(0)) * 1.5
    value, codes = theirs(x)
    # a vector on the very edge of a level may round either way
    same = ours.encode(x)[..., 0] == codes
    assert same.float().mean() > 0.999
    torch.testing.assert_close(ours(x).x[same], value[same], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 4, 9])
@pytest.mark.parametrize("spherical", [False, True])
def test_lfq_loss(bits: int, spherical: bool) -> None:
    theirs = LibraryLFQ(codebook_size=2**bits, dim=bits, spherical=spherical, commitment_loss_weight=0.25).train()
    ours = (BSQ if spherical else LFQ)(bits=bits, log_guard="clamp")
    x = torch.randn(5, 40, bits, generator=torch.Generator().manual_seed(bits))
    value, codes, loss = theirs(x)
    result = ours(x)
    assert torch.equal(result.codes[..., 0], codes)
    torch.testing.assert_close(result.x, value, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.loss, loss, rtol=0, atol=1e-4)
