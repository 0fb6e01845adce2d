"""SNAC at the released size beside the plain class of the package snac: the same codes and sound, in less time and constant memory.

Times are of the processor and the two take turns, so that other work on the machine counts little and for both alike.
"""

import subprocess
import sys

import pytest
import torch

from eval.codec_speed import in_turn
from zoo.audio.snac import Snac, SnacConfig
from zoo.checkpoint import load_strict

snac = pytest.importorskip("snac", reason="the package with the public class is in the test extra")


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    public = snac.SNAC(
        sampling_rate=24000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024, decoder_rates=[8, 8, 4, 2],
        attn_window_size=None, codebook_size=4096, vq_strides=[4, 2, 1],
    ).eval().requires_grad_(False)  # fmt: skip
    for name, parameter in public.named_parameters():
        if name.endswith("alpha"):
            parameter.uniform_(0.5, 2)
    tok = Snac(SnacConfig()).eval().requires_grad_(False)
    load_strict(tok, Snac.rename_public(public.state_dict(), tok.config), name="snac")
    return public, tok


def sound(seconds):
    return (torch.rand(1, 1, int(24000 * seconds), generator=torch.Generator().manual_seed(1)) - 0.5) * 0.6


def test_the_public_class_with_the_same_weights(pair, monkeypatch):
    public, tok = pair
    x = sound(1.3)
    tokens = tok.encode(x)
    assert [level.tolist() for level in tok.to_levels(tokens)] == [level.tolist() for level in public.encode(x)]
    monkeypatch.setattr(snac.layers.NoiseBlock, "forward", lambda self, y: y)  # the public class draws noise that cannot be given
    y = public.decode(public.encode(x))[..., : x.shape[2]]
    assert float((tok.decode(tokens, noise=False) - y).abs().max()) < 1e-5


@pytest.mark.slow
def test_twice_as_fast_with_the_same_codes(pair):
    public, tok = pair
    x, threads = sound(10), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            (theirs, ours), (codes, tokens) = in_turn([lambda: public.encode(x), lambda: tok.encode(x)], 5)
            assert all(torch.equal(a, b) for a, b in zip(codes, tok.to_levels(tokens), strict=True))
            assert theirs / ours >= 2, f"encode: {theirs:.2f} s against {ours:.2f} s"
            (theirs, ours), _ = in_turn([lambda: public.decode(codes), lambda: tok.decode(tokens)], 5)
            assert theirs / ours >= 2, f"decode: {theirs:.2f} s against {ours:.2f} s"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_never_slower_on_short_sound(pair):
    public, tok = pair
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for seconds in (0.1, 0.3, 1.0):
                x = sound(seconds)
                theirs = in_turn([lambda x=x: public.decode(public.encode(x)), lambda x=x: tok.decode(tok.encode(x))], 9)[0]
                assert theirs[0] / theirs[1] >= 0.98, f"{seconds} s: {theirs[0]:.3f} s against {theirs[1]:.3f} s"
    finally:
        torch.set_num_threads(threads)


_PEAK = """
import resource, sys, torch
from zoo.audio.snac import Snac, SnacConfig
torch.set_num_threads(1)
tok = Snac(SnacConfig()).eval().requires_grad_(False)
x = torch.rand(1, 1, 24000 * int(sys.argv[1])) - 0.5
tok.decode(tok.encode(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_of_a_minute_is_that_of_ten_seconds():
    peaks = [int(subprocess.run([sys.executable, "-c", _PEAK, str(s)], capture_output=True, check=True).stdout) for s in (10, 60)]
    assert peaks[1] <= 1.2 * peaks[0], f"{peaks} KiB for 10 s and 60 s"
