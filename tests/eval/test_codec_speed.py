"""The comparison of a codec with the plain class inside it, on small ones."""

import pytest

import zoo
from eval.codec_speed import compare

SMALL = {
    "encodec": dict(width=4, latent_channels=8, num_codebooks=2, codebook_size=16),
    "mimi": dict(
        width=4, latent_channels=16, heads=2, layers=1, mlp_width=16, num_codebooks=2, codebook_size=16, codebook_channels=8
    ),
    "dac": dict(encoder_channels=4, latent_channels=8, decoder_channels=16, num_codebooks=2, codebook_size=16),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_both_give_the_same(name):
    tok = zoo.create(name, **SMALL[name]).eval().requires_grad_(False)
    c = compare(tok, seconds=0.5, calls=1)
    assert c.same_codes == 1
    assert c.difference < 1e-5
    assert min(c.library_encode, c.zoo_encode, c.library_decode, c.zoo_decode) > 0


def test_others_have_no_plain_class():
    with pytest.raises(ValueError, match=r"eval\.codec_speed: encodec has no plain class"):
        compare(zoo.create("encodec", **SMALL["encodec"], chunk_samples=24_000), seconds=1)
