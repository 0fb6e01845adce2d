"""MaskGIT over C-ViViT's codes against tensors of the public implementation (tests/parity/cvivit/maskgit_text/README.md)."""

import pytest
import torch

import zoo
import zoo.generators as generators
from zoo.generators.text import TextCondition
from zoo.tokens import Tokens

GRID = (2, 4, 4)


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture
def case(parity):
    return parity("cvivit", "maskgit_text")


@pytest.fixture
def gen(case):
    return generators.load(case.folder, family="cvivit")


@pytest.fixture
def tok(parity):
    return zoo.load(parity("cvivit", "vq_cosine").folder, family="cvivit")


def test_bias_and_logits(gen, case):
    io, ids, text = case.io, case.io["ids"].flatten(1), TextCondition(case.io["text_embeds"])
    assert torch.equal(gen.context(text)[1], io["text_mask"])
    close(gen.network.bias(GRID), io["rel_pos_bias"], 1e-6)
    context = gen.context(text)
    close(gen.network(ids, GRID, *context), io["embeds"])
    conditional, null = gen.logits(ids, GRID, text), gen.logits(ids, GRID, gen.no_text(len(text)))
    close(conditional, io["logits"])
    close(null, io["logits_null"])
    close(null + 3 * (conditional - null), io["logits_cfg3"], 3e-4)
    close(gen.logits(ids, GRID, text, io["video_mask"]), io["logits_video_mask"])


def run(gen, case, scene, held, grid, text):
    """Give the ids that the network saw in each round, and what was drawn."""
    io, seen = case.io, []
    hook = gen.network.register_forward_pre_hook(lambda module, args: seen.append(args[0][:1].clone()))
    noise = io[f"{scene}/uniform_noise"]
    drawn = gen.fill(held, grid, text, 3.0, steps=4, temperature=0.9, noise=lambda step: noise[step])
    hook.remove()
    return torch.stack(seen), drawn


def test_two_scenes_step_by_step(gen, case, tok):
    """The first scene from nothing; the second from the last five frames, encoded again and held fixed."""
    io, text = case.io, TextCondition(case.io["text_embeds"])
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    seen, drawn = run(gen, case, "scene1", nothing, GRID, TextCondition(text.embeddings[:1]))
    assert torch.equal(seen, io["scene1/step_inputs"])

    def decode(ids, grid):
        frames = 1 + 4 * (grid[0] - 1)
        return (tok.decode(Tokens(ids.unflatten(1, grid)[..., None], tok.spec, (frames, 32, 32))) + 1) / 2

    close(decode(drawn, GRID), io["scene1/video"], 1e-3)
    held = tok.quantizer.encode(tok.encode_vectors(io["scene2/prime_frames"] * 2 - 1)).flatten(1).long()
    seen, drawn = run(gen, case, "scene2", held, (3, 4, 4), TextCondition(text.embeddings[:1]))
    assert torch.equal(seen, io["scene2/step_inputs"])
    close(decode(torch.cat([held, drawn], 1), (3, 4, 4))[:, :, 5:], io["scene2/video"], 1e-3)
