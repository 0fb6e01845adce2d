"""Peak memory of long clips, in processes of their own: 257 frames take no more than 1.1 times what 33 take.

Frames are made when they are asked for, and dropped when they come out, as between a file and a file. The allocator is told to
give back what is freed, so that its gaps are not counted. Of the families with a stream, Cosmos, Mochi and C-ViViT are not here:
their attention over time keeps keys and values of every step. LTX is held from 129 frames on: its decoder gives the first frame
when it has seen all that it looks ahead to (115 frames here), and a shorter clip never fills it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, torch, zoo
from pathlib import Path
torch.set_num_threads(1)
name, frames, values = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
torch.manual_seed(0)
tok = zoo.create(name, **values).eval().requires_grad_(False)

def clip(frames):
    draws = torch.Generator().manual_seed(0)
    yield torch.rand(1, 3, 1, 96, 96, generator=draws) - 0.5
    for _ in range((frames - 1) // 8):
        yield torch.rand(1, 3, 8, 96, 96, generator=draws) - 0.5

def run(frames):
    there, back = tok.stream(), tok.stream()
    return sum(y.shape[2] for y in back.decode_all(there.encode_all(clip(frames))))

def resident(field):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

with torch.inference_mode():
    torch.nn.functional.conv3d(torch.rand(1, 3, 3, 8, 8), torch.rand(4, 3, 3, 3, 3))  # what the library needs for itself
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    assert run(frames) == frames
    print((resident("VmHWM") - before) / 1024)
"""
CASES = {
    "vidtok_fsq_causal_488_4096": dict(width=32, multipliers=(1, 1, 1, 2), blocks=1),
    "vidtok_kl_causal_488_16chn_v1_1": dict(width=32, multipliers=(1, 1, 1, 2), blocks=1),
    "wan21_vae": dict(width=24, blocks=1, multipliers=(1, 2, 2, 2)),
    "cogvideox_2b_vae": dict(block_channels=(32, 32, 32, 64), layers_per_block=1, norm_groups=4),
    "hunyuan_video_vae": dict(block_channels=(32, 32, 48, 48), layers_per_block=1, norm_groups=4),
    "ltx_video_090_vae": dict(block_channels=(64,) * 4, blocks=(2,) * 5, decoder_channels=(64,) * 4, decoder_blocks=(2,) * 5),
}

FIRST = {"ltx_video_090_vae": 129}  # frames of the shorter clip; 33 for all others


FREED_IS_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # of glibc


def peak(name, frames):
    """MB above the model."""
    environment = os.environ | FREED_IS_GIVEN_BACK
    call = [sys.executable, "-c", CODE, name, str(frames), repr(CASES[name])]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=environment)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a call")
@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow_with_length(name):
    frames = FIRST.get(name, 33)
    short, long = peak(name, frames), peak(name, 257)
    print(f"{name}: {short:.0f} MB for {frames} frames, {long:.0f} MB for 257")
    assert short > 20, "there is something to measure"
    assert long <= 1.1 * short
