"""Peak memory of long signals, in processes of their own: 60 seconds take no more than 1.2 times what 10 take."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, torch, zoo
from pathlib import Path
torch.set_num_threads(1)
name, seconds, values = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
torch.manual_seed(0)
tok = zoo.create(name, **values).eval().requires_grad_(False)
x = torch.rand(1, tok.in_channels, seconds * tok.info.sample_rate) - 0.5

def resident(field):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

with torch.inference_mode():
    tok.decode(tok.encode(x[..., : tok.info.sample_rate // 10]))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    tok.decode(tok.encode(x))
    samples = x.numel() * 4 // 1024  # the signal that comes out is as long
    print((resident("VmHWM") - before - samples) / 1024)
"""
CASES = {
    "encodec": dict(width=24, latent_channels=64, num_codebooks=2, codebook_size=64),
    "mimi": dict(width=8, latent_channels=64, num_codebooks=2, codebook_size=64, codebook_channels=16, layers=2, mlp_width=128),
    "dac": dict(
        sample_rate=16_000, strides=(2, 4, 5, 8), encoder_channels=8, latent_channels=32, decoder_channels=64, num_codebooks=2,
        codebook_size=64,
    ),
}  # fmt: skip


def peak(name, seconds):
    """MB above what was there before, without the signal itself."""
    call = [sys.executable, "-c", CODE, name, str(seconds), repr(CASES[name])]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a call")
@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow_with_length(name):
    short, long = peak(name, 10), peak(name, 60)
    assert short > 5, "there is something to measure"
    assert long <= 1.2 * short
