"""The network is what takes the time: reading, decoding and writing cost less than a tenth beside it."""

import time

import pytest
import torch

import zoo
from zoo import samples
from zoo.data import Protocol, tokenize

PASSES = 3


@pytest.mark.slow
def test_a_data_set_takes_little_longer_than_the_bare_network(tmp_path):
    """Both are measured in turns and the best of each counts, so that other work on the machine falls on both."""
    source = tmp_path / "in"
    source.mkdir()
    photos = samples.images()
    for number in range(64):
        path = photos[number % len(photos)]
        (source / f"{number:03d}{path.suffix}").write_bytes(path.read_bytes())
    tokenizer = zoo.load("kl_vae_nano")
    x = tokenizer.preprocess(sorted(source.iterdir()), size=128)
    bare, whole = [], []
    for turn in range(PASSES):
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in x.split(8):
                tokenizer.encode(batch)
        bare.append(len(x) / (time.perf_counter() - start))
        done = tokenize(tokenizer, source, tmp_path / f"out{turn}", Protocol(size=128, batch_size=8, shard_items=32))
        assert done.tokenized == done.items == 64
        whole.append(done.fresh / done.seconds)
    share = max(whole) / max(bare)
    assert share >= 0.9, f"{max(whole):.1f} items/s of {max(bare):.1f} of the bare network: {share:.2f}"
