"""The speed promised for sampling, at a size that takes seconds; both sides run in turn."""

import pytest

from eval.bench_generators import run


@pytest.mark.slow
def test_the_cache_pays_and_generate_is_not_faster():
    speed = run(count=128, codebook_size=512, width=128, blocks=4, heads=4, batch=2, runs=2)
    assert abs(speed.parameters - speed.their_parameters) <= 11 * 128
    assert speed.gain >= 3
    assert speed.against_transformers >= 1
