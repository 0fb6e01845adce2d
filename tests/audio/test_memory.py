"""Peak memory of long signals, in processes of their own: it is that of a piece, whatever the length.

Measured above what was there before the call. Whole signals are counted without themselves, which come in and go out at full
length. At the official sizes the allocator is as the system has it, and each length has a process of its own, since a second call
would find what the first one left. Small networks hold little more than an allocator keeps for later: there it gives blocks back at
once, so that the figures are what is held.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a call"),
]

CODE = """
import sys, torch, zoo
from pathlib import Path
torch.set_num_threads(1)

def resident(field):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

def sound(tok, length):
    return torch.rand(1, tok.in_channels, length) - 0.5

def through_streams(tok, seconds):
    there, back = tok.stream(), tok.stream()
    parts = there.encode_all(sound(tok, tok.info.sample_rate) for _ in range(seconds))
    assert sum(y.shape[2] for y in back.decode_all(parts)) == seconds * tok.info.sample_rate

def peak(tok, how, seconds):
    x = sound(tok, seconds * tok.info.sample_rate) if how == "whole" else None
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if x is None:
        through_streams(tok, seconds)
    else:
        assert tok.decode(tok.encode(x)).shape == x.shape
    out = 0 if x is None else x.numel() * 4 // 1024  # the signal that comes out is as long
    return (resident("VmHWM") - before - out) / 1024

with torch.inference_mode():
    for name, how, lengths, values in eval(sys.argv[1]):
        torch.manual_seed(0)
        tok = zoo.create(name, **values).eval().requires_grad_(False)
        tok.decode(tok.encode(sound(tok, tok.info.sample_rate // 10)))
        print(*(peak(tok, how, seconds) for seconds in lengths), flush=True)
"""
SMALL = {
    "encodec_24khz": dict(width=8, latent_channels=32, num_codebooks=2, codebook_size=64),
    "encodec_48khz": dict(sample_rate=12_000, chunk_samples=12_000, width=8, latent_channels=32, num_codebooks=2, codebook_size=64),
    "mimi_24khz": dict(
        width=8, latent_channels=64, num_codebooks=2, codebook_size=64, codebook_channels=16, layers=2, mlp_width=128
    ),
    "dac_16khz": dict(encoder_channels=8, latent_channels=32, decoder_channels=64, num_codebooks=2, codebook_size=64),
    "snac_24khz": dict(encoder_width=8, decoder_width=128, codebook_size=64),
}
OFFICIAL = ("encodec_24khz", "mimi_24khz", "snac_24khz", "dac_44khz_8kbps")
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_ARENA_MAX": "1"}


def peaks(cases, allocator):
    """MB above what was there before, for each case `(name, "whole" or "stream", seconds, values)` and each of its lengths."""
    where = dict(cwd=Path(__file__).parents[2], env={**os.environ, **allocator})
    done = subprocess.run([sys.executable, "-c", CODE, repr(cases)], capture_output=True, text=True, check=True, **where)
    return [[float(value) for value in line.split()] for line in done.stdout.splitlines()]


def does_not_grow(name, how, lengths, values, *, least):
    ((short, long),) = peaks([(name, how, lengths, values)], GIVEN_BACK)
    assert short > least, "there is something to measure"
    assert long <= 1.2 * short, f"{name}: {short:.1f} MB for {lengths[0]} s, {long:.1f} MB for {lengths[1]} s"


@pytest.mark.parametrize("name", SMALL)
def test_a_stream_does_not_grow_with_length(name):
    does_not_grow(name, "stream", (20, 200), SMALL[name], least=1)


@pytest.mark.parametrize("name", ["encodec_24khz", "mimi_24khz"])
def test_an_hour_takes_no_more_than_a_minute(name):
    does_not_grow(name, "stream", (60, 3600), SMALL[name], least=1)


# Without the chunks of a second, which are joined at the end and then there twice.
@pytest.mark.parametrize("name", [name for name in SMALL if name != "encodec_48khz"])
def test_a_whole_signal_needs_no_more_memory_than_a_short_one(name):
    does_not_grow(name, "whole", (10, 60), SMALL[name], least=1)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_minute_takes_no_more_than_ten_seconds_at_the_official_size(name):
    ((short,),), ((long,),) = (peaks([(name, "whole", (seconds,), {})], {}) for seconds in (10, 60))
    assert short > 20, "there is something to measure"
    assert long <= 1.2 * short, f"{name}: {short:.1f} MB for 10 s, {long:.1f} MB for 60 s"
