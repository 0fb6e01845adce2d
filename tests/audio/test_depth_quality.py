"""More levels, less error: on real speech that the codebooks were not fitted to, through the public rate arguments.

Public weights are not at hand, so the encoders keep their random weights and the codebooks are fitted to the latents of other
speakers by k-means, level after level, as training starts them. What is left of the latents is then a true measure: a level out of
order, a residual that is not passed on or a partial decode that misses a level lets the error rise.
"""

from itertools import pairwise

import pytest
import torch

import zoo
from zoo import samples
from zoo.quantizers import RVQ

LEVELS = 6
CASES = {
    "encodec_24khz": dict(width=8, latent_channels=16, num_codebooks=LEVELS, codebook_size=32),
    "encodec_32khz": dict(width=8, latent_channels=16, num_codebooks=LEVELS, codebook_size=32),
    "speech_tokenizer_hubert_avg": dict(width=8, channels=16, num_codebooks=LEVELS, codebook_size=32),
    "audio_rvq_nano": dict(widths=(16, 24, 32), latent_channels=16, num_codebooks=LEVELS, codebook_size=32),
}


def latents_of(tok, x):
    """What the quantizer gets, `(b, n, c)`."""
    return tok.encode_vectors(x) if hasattr(tok, "encode_vectors") else tok.encoder_chain().push(x, last=True).transpose(1, 2)


def vectors_of(tok, tokens):
    """What the decoder gets, `(b, n, c)`."""
    return tok.lookup(tokens.data.transpose(1, 2)).transpose(1, 2) if hasattr(tok, "lookup") else tok.quantizer.decode(tokens.data)


def fit(tok, latents):
    """Replace the codebooks by those that k-means finds in latents `(b, n, c)`."""
    fitted = RVQ(dim=latents.shape[2], codebook_size=32, num_codebooks=LEVELS, kmeans_iterations=20).train()
    fitted(latents)
    levels = tok.quantizer.layers if hasattr(tok, "quantizer") else [layer.codebook for layer in tok.model.quantizer.layers]
    for ours, theirs in zip(fitted.layers, levels, strict=True):
        getattr(theirs, "embed", getattr(theirs, "codebook", None)).copy_(ours.codebook)


@pytest.fixture(scope="module", params=CASES)
def codec(request):
    """A codec with fitted codebooks, and two seconds of each of three speakers that it has not heard."""
    torch.manual_seed(0)
    tok = zoo.create(request.param, **CASES[request.param]).eval().requires_grad_(False)
    length = 2 * tok.info.sample_rate
    speech = torch.stack([tok.preprocess(path)[0, :, :length] for path in samples.speech()])
    fit(tok, latents_of(tok, speech[::2]))
    return tok, speech[1::2]


def errors(tok, x, parts):
    """Share of the energy of the latents that is left, `(settings, items)`."""
    latents = latents_of(tok, x)
    left = [(vectors_of(tok, tokens) - latents).square().sum((1, 2)) for tokens in parts]
    return torch.stack(left) / (latents - latents.mean((0, 1))).square().sum((1, 2))


def test_every_level_brings_the_latents_nearer(codec):
    tok, x = codec
    left = errors(tok, x, [tok.encode(x, depth=d) for d in range(1, LEVELS + 1)])
    assert bool((left[1:] < left[:-1]).all()), left
    assert bool((left[-1] < 0.7 * left[0]).all()), left


def test_more_bits_per_second_are_never_worse(codec):
    tok, x = codec
    most = float(tok.encode(x).bits_per_second()[0])
    rates = [most * share for share in (0.2, 0.35, 0.5, 0.7, 0.9, 1.0)]
    parts = [tok.encode(x, bits_per_second=rate) for rate in rates]
    assert all(float(part.bits_per_second()[0]) <= rate for part, rate in zip(parts, rates, strict=True))
    assert len({part.levels for part in parts}) > 3
    left = errors(tok, x, parts)
    assert all(bool((b <= a).all()) for a, b in pairwise(left)), left


def test_the_measure_sees_a_level_that_is_out_of_order(codec):
    tok, x = codec
    tokens = tok.encode(x)
    mixed = tokens.data.flip(-1)
    turned, right = errors(tok, x, [type(tokens)(mixed, tokens.spec, tokens.extent, None, tokens.side), tokens])
    assert bool((turned > right).all())
