"""Speed of tokenizers of clips beside diffusers' classes: both do the same; the factors themselves are checked by a slow test."""

import pytest
import torch

import zoo
from eval import bench
from eval.bench_video import VideoMeasurement, measure, table

SMALL = {
    "vidtok_fsq_causal_488_32768_v1_1": dict(width=4, blocks=1),
    "vidtok_kl_causal_488_16chn_v1_1": dict(width=4, blocks=1),
    "cosmos_cv4x8x8": dict(width=4, blocks=1, latent_channels=4, z_channels=4),
    "cosmos_dv8x16x16": dict(width=4, blocks=1, z_channels=6),
    "wan21_vae": dict(width=4, blocks=1, latents_mean=(0.5, 0.0), latents_std=(2.0, 1.0)),
    "cogvideox_2b_vae": dict(block_channels=(8, 8, 8, 16), layers_per_block=1, norm_groups=2, latent_channels=4),
    "hunyuan_video_vae": dict(block_channels=(8, 8, 8), layers_per_block=1, norm_groups=4, latent_channels=4),
    "ltx_video_090_vae": dict(
        block_channels=(8,) * 4, blocks=(1,) * 5, decoder_channels=(8,) * 4, decoder_blocks=(1,) * 5, latent_channels=4
    ),
    "mochi_vae": dict(blocks=(1,) * 5, encoder_channels=(32,) * 4, decoder_channels=(32,) * 4),
}


def small(name):
    torch.manual_seed(0)
    return zoo.create(name, **SMALL[name]).eval().requires_grad_(False)


@pytest.mark.parametrize("name", SMALL)
def test_both_do_the_same(name):
    encode, decode = measure(small(name), frames=9, side=32, calls=1)
    assert (encode.what, decode.what) == ("encode", "decode")
    for row in (encode, decode):
        assert row.peer.startswith("Autoencoder")
        assert row.frames >= 9
        assert row.side == 32
        assert min(row.seconds, row.peer_seconds) > 0
        assert row.difference < 1e-3, "codes on an edge and rounding aside, the results are equal"
        assert row.factor == row.peer_seconds / row.seconds


def test_a_tokenizer_that_diffusers_has_no_class_for_is_measured_alone():
    tok = zoo.create("vidtok_fsq_causal_488_4096", width=4, blocks=1, multipliers=(1, 1, 1, 1)).eval()
    rows = measure(tok, frames=5, side=16, calls=1)
    assert [(row.peer, row.factor) for row in rows] == [(None, None)] * 2
    assert rows[0].seconds > 0


def test_pictures_are_refused():
    with pytest.raises(ValueError, match="of modality image"):
        measure(zoo.load("kl_vae_nano"))


def test_the_table_shows_both():
    row = VideoMeasurement(
        what="encode", batch=2, frames=17, side=128, seconds=0.5, peer="AutoencoderKLWan", peer_seconds=1.0, difference=1e-6
    )
    shown = table("wan21_vae", [row])
    assert [next(column.cells) for column in shown.columns] == ["encode", "2", "500.0", "68.0", "1000.0", "2.00", "1.0e-06"]


def test_the_command_takes_clips(capsys):
    values = ["width=4", "blocks=1", "latents_mean=[0.5,0]", "latents_std=[2,1]"]
    assert bench.main(["wan21_vae", "--batch-size", "1", "--side", "16", "--frames", "5", "--set", *values]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "5 frames of 16 px" in text
    assert "AutoencoderKLWan" in text
    with pytest.raises(ValueError, match="--tokens"):
        bench.main(["wan21_vae", "--tokens", "4", "--set", *values])
