"""TokenBridge's generator against tensors of the public implementation (see tests/parity/tokenbridge/ar_dim_head/README.md)."""

import pytest
import torch

import zoo.generators as generators
from zoo.generators.tokenbridge import PUBLISHED_ORDER
from zoo.tokens import Tokens


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def case(parity):
    found = parity("tokenbridge", "ar_dim_head")
    return generators.load(found.folder, family="tokenbridge"), found.io, found.config


def hidden_and_known(io):
    hidden = io["mask"].bool()
    return hidden, (~hidden).nonzero()[:, 1].view(len(hidden), -1)


def test_order_and_values(case):
    gen, io, _ = case
    assert io["channel_order"].tolist() == list(PUBLISHED_ORDER)
    assert gen.code_order.argsort().tolist() == io["inv_channel_order"].tolist()
    close(gen.values.decode(io["indices"]), io["quantized"], 1e-6)
    assert torch.equal(gen.values.encode(io["patches"]), io["indices"])
    assert torch.equal(io["indices"][..., gen.code_order], io["gt_tokens_ordered"])


def test_encoder_and_decoder(case):
    gen, io, _ = case
    _, known = hidden_and_known(io)
    close(gen.embed_class(io["labels"]), io["class_embedding"])
    encoded = gen.encode_known(io["indices"], known, io["labels"])
    close(encoded, io["encoder_out"])
    close(gen.decode_all(encoded, known), io["decoder_out"])


def test_dimension_head_and_loss(case):
    gen, io, _ = case
    hidden, _ = hidden_and_known(io)
    scores = gen.head(io["decoder_out"][hidden], io["gt_tokens_ordered"][hidden])
    close(torch.stack(scores, 1), io["channel_logits"])
    close(gen.masked_loss(io["indices"], io["labels"], hidden)[None], io["loss"])


def test_dimension_head_sampling(case):
    """The first slot differs between training and sampling, as the public weights need it."""
    gen, io, _ = case
    z = io["decoder_out"][io["mask"].bool()]
    codes, scores = gen.head.draw(z, torch.zeros(len(z), 16), temperature=0, top_k=None, top_p=None)
    assert torch.equal(codes, io["greedy_channel_tokens_ordered"])
    close(torch.stack(scores, 1), io["greedy_channel_logits"])
    plain = generators.create("tokenbridge", **{**gen.config.to_dict(), "quirk_first_slot": False}).eval()
    plain.load_state_dict(gen.state_dict())
    _, without = plain.head.draw(z, torch.zeros(len(z), 16), temperature=0, top_k=None, top_p=None)
    assert float((without[0].detach() - io["greedy_channel_logits"][:, 0]).abs().max()) > 0.1
    teacher = plain.head(z, plain.head.draw(z, torch.zeros(len(z), 16), temperature=0, top_k=None, top_p=None)[0])
    close(torch.stack(teacher, 1), torch.stack(without, 1))


@pytest.mark.parametrize("name", ["gen_cfg_latents", "gen_nocfg_latents"])
def test_generation(case, name):
    gen, io, config = case
    settings = config["generation"]
    guidance = settings["cfg"] if name == "gen_cfg_latents" else 1.0
    u = torch.zeros(2, 16, 16)
    options = dict(steps=settings["num_iter"], guidance=guidance, schedule=settings["cfg_schedule"], temperature=0)
    codes = gen.fill(io["labels"], io["gen_orders"], u, **options)
    expected = io[name].flatten(2).transpose(1, 2)
    assert torch.equal(codes, gen.values.encode(expected))
    close(gen.values.decode(codes), expected, 1e-5)


def test_the_front_door(case):
    gen, io, _ = case
    tokens = Tokens(io["indices"].view(2, 4, 4, 16), gen.spec, (64, 64))
    assert bool(gen.loss(tokens, io["labels"]).isfinite())
    assert gen.sample(3, n=2, steps=3).data.shape == (2, 4, 4, 16)
