"""`tile=` on the tokenizers: who takes it, sizes, tolerance on pictures, and the memory it needs."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from eval.bench_quantizers import _extra_memory
from tests.contract.small import built, cases
from zoo.layers.tiling import Tiling
from zoo.samples import images
from zoo.transforms.quality import psnr_db

ROOT = Path(__file__).parents[2]
IMAGES = [name for name in cases() if zoo.info(name).modality == "image"]
GRIDS = [name for name in IMAGES if zoo.info(name).layout == "2d"]
WHOLE = [name for name in IMAGES if name not in GRIDS]


def pictures(b, h, w, seed=0):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", GRIDS)
def test_any_size_in_tiles(name):
    tok = built(name)
    f = tok.info.downsample[1]
    tiling, x = Tiling(4 * f, 2 * f), pictures(2, 10 * f + 3, 5 * f + 1)
    tokens = tok.encode(x, tile=tiling)
    assert tokens.positions == (11, 6)
    assert tok.decode(tokens, tile=tiling).shape == x.shape
    single = tok.encode(x[1:], tile=tiling)
    assert torch.equal(single.data, tokens.data[1:])
    unequal = tok.encode([x[0], x[1, :, : 3 * f]], tile=tiling)
    assert torch.equal(unequal[0].data[:, :11, :6], tokens.data[:1])
    small = tok.encode(x[:, :, : 4 * f, : 4 * f], tile=tiling)
    assert torch.equal(small.data, tok.encode(x[:, :, : 4 * f, : 4 * f]).data), "what fits is not cut"
    assert torch.equal(tok.decode(small, tile=tiling), tok.decode(small))


@pytest.mark.parametrize("name", WHOLE)
def test_tokens_of_the_whole_are_not_cut(name):
    tok = built(name)
    assert not tok.tileable
    x = torch.zeros(1, 3, *tok.info.native_size)
    with pytest.raises(ValueError, match=rf"{tok.info.name}\.encode: tile=256, but this tokenizer takes whole signals only"):
        tok.encode(x, tile=256)


@pytest.fixture(scope="module")
def nano():
    return zoo.load("kl_vae_nano")


def test_wrong_tiles_are_refused(nano):
    x = pictures(1, 64, 64)
    with pytest.raises(ValueError, match=r"kl_vae_nano\.encode: tile=16\. Tiling: side=16 holds 2 positions of 8 pixels"):
        nano.encode(x, tile=16)
    with pytest.raises(ValueError, match=r"kl_vae_nano\.decode: tile='big'\. Tiling: side='big'"):
        nano.decode(nano.encode(x), tile="big")


def test_a_sample_in_tiles_is_seeded(nano):
    x = pictures(1, 100, 70)
    a, b, c = (nano.encode(x, sample=True, seed=seed, tile=64).data for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_tolerance_on_pictures(nano):
    """Group norms and attention see one tile: close to the whole picture, and as good.

    Measured on the 12 samples at 256 px with tiles of 128 px, when this was written: 41.2 dB between the two reconstructions, and
    0.004 dB less PSNR to the originals; with weights of an earlier training 38.3 and 0.07. Here are the four that differ
    most: 38.2 and 0.08. In a wide flat sky a tile can be seen as a faint tint, which the blending softens.
    `python -m pytest tests/image/test_tiling.py -k tolerance -s` shows today's.
    """
    hard = [path for path in images() if path.stem in ("city_night", "lake", "rocket", "temple")]
    assert len(hard) == 4
    x = nano.preprocess(hard, size=256)
    with torch.inference_mode():
        whole, tiled = nano(x), nano.decode(nano.encode(x, tile=128), tile=128)
    apart = psnr_db(whole.clamp(-1, 1), tiled).mean()
    loss = psnr_db(x, whole).mean() - psnr_db(x, tiled).mean()
    print(f"whole and tiled: {apart:.2f} dB; loss to the originals: {loss:.3f} dB")
    assert apart > 35
    assert loss < 0.15


MEASURE = """
import torch, zoo
from eval.bench_quantizers import _extra_memory
from zoo.tokens import Tokens

torch.set_num_threads(1)
tok = zoo.load("kl_vae_nano")
tok(torch.zeros(1, 3, 64, 64))


def peak(call):
    with torch.inference_mode():
        print(min(_extra_memory(call) for _ in range(2)))


for side in (512, 1024):
    x = torch.zeros(1, 3, side, side)
    tokens = Tokens(torch.zeros(1, side // 8, side // 8, 16), tok.spec, (side, side))
    for tile in (256, None):
        peak(lambda: tok.encode(x, tile=tile))
        peak(lambda: tok.decode(tokens, tile=tile))
"""


@pytest.mark.slow
def test_memory_is_that_of_a_tile():
    """Peak above the level before the call, of what is in use: the allocator gives blocks of a MiB back at once.

    Measured when this was written, MiB, tiles of 256 px: encoding 62 at 512 px and 60 at 1024 px (whole: 133 and 469), decoding 80
    and 92, of which the pictures themselves take 3 and 12 (whole: 206 and 736).
    """
    if math.isnan(_extra_memory(lambda: torch.ones(1))):
        pytest.skip("this system has no /proc/self/clear_refs, so peak memory cannot be measured")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    encode, decode, encode_whole, decode_whole, encode_4, decode_4, encode_4_whole, decode_4_whole = map(float, done.stdout.split())
    print(done.stdout)
    assert encode_4 < 1.2 * encode
    assert decode_4 < 1.2 * decode
    assert encode_4_whole > 3 * encode_whole > 3 * encode, "the whole picture takes memory by its area"
    assert decode_4_whole > 2 * decode_whole > 2 * decode
