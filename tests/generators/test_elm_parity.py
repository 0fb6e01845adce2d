"""ELM's language models against tensors of the public implementation (see the READMEs in tests/parity/elm)."""

import pytest
import torch

import zoo.generators as generators
from zoo.tokens import Tokens

CAUSAL = ("ar_1x6", "ar_2x5")


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def load(parity, name):
    case = parity("elm", name)
    return generators.load(case.folder, family="elm"), case.io, case.config


def tokens_of(gen, codes):
    return Tokens(codes.unflatten(1, gen.config.positions), gen.spec, gen.config.extent)


@pytest.mark.parametrize("name", CAUSAL)
def test_rotary_table(parity, name):
    gen, io, _ = load(parity, name)
    close(gen.table, io["freqs_cis"], 1e-6)


@pytest.mark.parametrize("name", CAUSAL)
def test_logits(parity, name):
    gen, io, _ = load(parity, name)
    codes, labels = io["indices"], io["labels"]
    logits = gen.logits(codes[:, :-1], labels)
    close(torch.stack(logits, 2), io["logits"])
    null = gen.logits(codes[:, :-1], torch.full_like(labels, gen.null))
    close(torch.stack(null, 2), io["logits_unconditional"])


@pytest.mark.parametrize("name", CAUSAL)
def test_loss(parity, name):
    gen, io, _ = load(parity, name)
    close(gen.loss(tokens_of(gen, io["indices"]), io["labels"])[None], io["loss"])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_samples_with_guidance(parity, name, cache):
    gen, io, config = load(parity, name)
    settings = config["generation"]
    out = gen.sample(
        io["labels"],
        guidance=settings["cfg_scale"],
        schedule=settings["cfg_schedule"],
        top_k=settings["top_k"],
        cache=cache,
    )
    assert torch.equal(out.data.flatten(1, 2), io["greedy_cfg_indices"])


def test_masked_logits_and_loss(parity):
    gen, io, _ = load(parity, "mlm_1x6")
    codes, hidden = io["indices"], io["mask"].bool()
    shown = codes.masked_fill(hidden[..., None], gen.config.vocabulary[0])
    close(gen.logits(shown, io["labels"])[0], io["logits"])
    close(gen.masked_loss(codes, io["labels"], hidden)[None], io["loss"])


def test_the_blind_class_token_is_part_of_the_weights(parity):
    """Turned off, the class token has a position like the others, and the logits are not the public ones."""
    gen, io, _ = load(parity, "ar_2x5")
    seeing = generators.create("elm", **{**gen.config.to_dict(), "quirk_blind_class": False}).eval()
    seeing.load_state_dict(gen.state_dict())
    logits = torch.stack(seeing.logits(io["indices"][:, :-1], io["labels"]), 2)
    assert float((logits.detach() - io["logits"]).abs().max()) > 0.1
