"""The comparison of a codec with the plain class inside it, on small ones."""

import pytest
import torch

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


def test_a_sound_that_the_library_leaves_short_of_a_hop():
    tok = zoo.create("dac", **SMALL["dac"], strides=(2, 5)).eval().requires_grad_(False)
    assert tok.config.short > 0
    c = compare(tok, seconds=0.5, calls=1)
    assert c.same_codes == 1
    assert c.difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dac_16khz", "dac_44khz_8kbps", "encodec_24khz", "mimi_24khz"])
def test_never_slower_on_short_sound(name):
    torch.manual_seed(0)
    tok, threads = zoo.create(name).eval().requires_grad_(False), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for seconds in (0.1, 0.3, 1.0):
            factor = compare(tok, seconds=seconds, calls=5).factor
            assert factor >= 0.98, f"{name}, {seconds} s: x{factor:.2f}"  # 2 % for the clock
    finally:
        torch.set_num_threads(threads)
