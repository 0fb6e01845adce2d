"""Speed beside the classes of diffusers, 17 frames of 128 px: the fixtures' configurations, and small ones of the other families.

Run: pytest -m slow -s tests/video/test_video_speed.py

Processor time of one thread, medians of seven calls that take turns, both in one run on the same weights.
"""

import pytest
import torch

import zoo
from eval.bench_video import measure

pytestmark = pytest.mark.slow

FIXTURES = (
    *("vidtok/fsq_causal_488_v1_1", "cosmos/cv_4x8x8", "cosmos/dv_8x8x8"),
    *("wan_vae/wan21", "wan_vae/wan22", "cogvideox_vae/small"),
)
SMALL = {
    "hunyuan_video_vae": dict(block_channels=(8, 8, 16, 16), layers_per_block=1, norm_groups=4, latent_channels=4),
    "ltx_video_090_vae": dict(
        block_channels=(8,) * 4, blocks=(1,) * 5, decoder_channels=(8,) * 4, decoder_blocks=(1,) * 5, latent_channels=4
    ),
    "mochi_vae": dict(blocks=(1,) * 5, encoder_channels=(32,) * 4, decoder_channels=(32,) * 4),
}


@pytest.fixture
def tok(request, parity):
    torch.manual_seed(0)
    if request.param in SMALL:
        return zoo.create(request.param, **SMALL[request.param]).eval().requires_grad_(False)
    family, case = request.param.split("/")
    return zoo.load(parity(family, case).folder, family=family)


@pytest.mark.parametrize("tok", [*FIXTURES, *SMALL], indirect=True)
def test_not_slower_than_diffusers(tok):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = measure(tok, calls=7)
    torch.set_num_threads(threads)
    for row in rows:
        print(f"{tok.info.name} {row.what}: {row.seconds:.3f} s, diffusers {row.peer_seconds:.3f} s, x{row.factor:.2f}")
        assert row.difference < 1e-3
    assert min(row.factor for row in rows) >= 1
