"""TiTok and TA-TiTok against tensors of the public implementation (see the READMEs in tests/parity/titok), and its refusals."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import zoo
from zoo.image.titok import Gaussian, TiTok, TiTokConfig
from zoo.layers.maskgit_vqgan import MaskGITEncoder
from zoo.loading import family_class
from zoo.quantizers.vq import VQ
from zoo.tokens import Tokens

CODED = ("one_stage_vq", "two_stage_vq_legacy", "tatitok_vq")
CASES = (*CODED, "one_stage_vae")


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    scale, far = max(1.0, float(b.abs().max())), float((a - b).detach().abs().max())
    assert far <= tolerance * scale, f"largest difference {far} at scale {scale}"


def rows(x):
    """`(b, c, 1, n)` of the public code to `(b, n, c)`."""
    return x[:, :, 0].transpose(1, 2)


@pytest.fixture(scope="module")
def loaded(parity):
    """Give each case's tokenizer and tensors, loaded once."""
    cases = {name: parity("titok", name) for name in CASES}
    return {name: (zoo.load(case.folder, family="titok"), case.io) for name, case in cases.items()}


def signal(io):
    return io["image"] * 2 - 1


def options(io):
    return {"text": io["text_guidance"]} if "text_guidance" in io else {}


# -- the public model's numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_encoder(loaded, name):
    tok, io = loaded[name]
    close(tok.encode_vectors(signal(io)), rows(io["pre_quant"]))


@pytest.mark.parametrize("name", CODED)
def test_codes_and_their_vectors(loaded, name):
    tok, io = loaded[name]
    codes = io["codes"].transpose(1, 2)
    assert torch.equal(tok.encode(signal(io)).data, codes)
    close(tok.quantizer.decode(codes), rows(io["quantized"]))


@pytest.mark.parametrize("name", CODED)
def test_quantizer_loss(loaded, name):
    tok, io = loaded[name]
    quantized = tok.quantizer(rows(io["pre_quant"]))
    close(quantized.x, rows(io["quantized"]))
    close(quantized.loss, io["quantizer_loss"].squeeze())
    close(tok.quantizer.commitment_weight * quantized.stats["commitment"], io["commitment_loss"])
    close(quantized.loss - tok.quantizer.commitment_weight * quantized.stats["commitment"][0], io["codebook_loss"].squeeze())


@pytest.mark.parametrize("name", CODED)
def test_decode(loaded, name):
    tok, io = loaded[name]
    close(tok.decode(tok.encode(signal(io)), **options(io)), io["decoded_from_codes"] * 2 - 1)


def test_gaussian_latents(loaded):
    tok, io = loaded["one_stage_vae"]
    posterior = tok.posterior(signal(io))
    close(posterior.mean, rows(io["mean"]))
    close(posterior.logvar, rows(io["logvar"]))
    close((0.5 * posterior.logvar).exp(), rows(io["std"]))
    close(posterior.kl(), io["kl_per_token"])
    sample = posterior.sample(rows(io["noise"]))
    close(sample, rows(io["sample"]))
    tokens = tok.encode(signal(io))
    close(tokens.data, rows(io["mean"]))
    close(tok.decode(tokens), io["decoded_from_mean"] * 2 - 1)
    close(tok.decode(replace(tokens, data=sample)), io["decoded_from_sample"] * 2 - 1)


def test_two_stages(loaded):
    tok, io = loaded["two_stage_vq_legacy"]
    logits = tok.decoder(rows(io["quantized"]))
    close(logits.permute(0, 3, 1, 2), io["proxy_logits"])
    mixture = tok.mix_proxies(logits)
    close(mixture, io["soft_pixel_quant"])
    close(tok.pixel_decoder(mixture), io["decoded_from_codes"])
    best = logits.argmax(-1)
    assert torch.equal(best, io["proxy_argmax"])
    close(tok.pixel_decoder(F.embedding(best, tok.proxy_codebook).permute(0, 3, 1, 2)), io["decoded_hard_proxy"])


def test_proxy_codes(parity):
    case = parity("titok", "maskgit_vqgan_encoder")
    sizes, io, tensors = case.config["pixel_tokenizer"], case.io, load_file(case.weights)
    encoder = MaskGITEncoder(
        channels=sizes["z_channels"],
        width=sizes["hidden_channels"],
        multipliers=tuple(sizes["channel_mult"]),
        blocks=sizes["num_res_blocks"],
    )
    encoder.load_state_dict({key.removeprefix("encoder."): v for key, v in tensors.items() if key.startswith("encoder.")})
    hidden = encoder(io["image"]).detach()
    close(hidden, io["hidden"])
    vq = VQ(dim=case.config["embedding_dim"], codebook_size=case.config["num_embeddings"], learning="gradient")
    vq.set_codebook(tensors["quantize.embedding.weight"])
    vectors = hidden.flatten(2).transpose(1, 2)
    codes = vq.encode(vectors)
    assert torch.equal(codes[..., 0], io["codes"])
    close(vq.decode(codes).transpose(1, 2).unflatten(2, hidden.shape[2:]), io["quantized"])
    close((-vq.distances(vectors) / 0.7).softmax(-1), io["soft_code_temp0.7"])


def test_the_mixed_latents_matter(loaded, parity):
    tok, io = loaded["two_stage_vq_legacy"]
    straight = TiTok(replace(tok.config, quirk_mixed_latents=False)).eval()
    straight.load_state_dict(tok.state_dict())
    different = straight.encode_vectors(signal(io)).detach() - rows(io["pre_quant"])
    assert float(different.abs().max()) > 1e-2


# -- the contract ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_smaller_pictures_come_back_in_their_size(loaded, name):
    tok, io = loaded[name]
    side = tok.config.image_size
    items = [signal(io)[0], signal(io)[1, :, : side - 3, : side // 2 + 1]]
    tokens = tok.encode(items)
    text = io.get("text_guidance")
    y = tok.decode(tokens, **options(io))
    assert y.shape == (2, 3, side, side)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert alone.spec.discrete is tokens.discrete
        close(alone.data[0].float(), tokens.data[i].float())
        single = tok.decode(alone, **({} if text is None else {"text": text[i]}))
        close(single[0], y[i][:, : item.shape[1], : item.shape[2]])


@pytest.mark.parametrize("extra", [1, 40])
def test_larger_pictures_are_refused(loaded, extra):
    tok, _ = loaded["one_stage_vq"]
    with pytest.raises(ValueError, match=r"one_stage_vq\.encode: x has sides \(.*Allowed: up to 32; resize with preprocess"):
        tok.encode(torch.zeros(1, 3, 8, 32 + extra))


@pytest.mark.parametrize("name", CASES)
def test_a_bare_prefix_is_refused(loaded, name):
    tok, io = loaded[name]
    tokens = tok.encode(signal(io))
    with pytest.raises(ValueError, match=rf"7 positions\. Allowed: {tok.config.latent_tokens} for an item"):
        tok.decode(replace(tokens, data=tokens.data[:, :7]), **options(io))
    with pytest.raises(ValueError, match="fixed layout"):
        tok.encode(signal(io), tokens=3)


@pytest.mark.parametrize("name", CASES)
def test_half_precision(parity, name):
    case = parity("titok", name)
    tok = zoo.load(case.folder, family="titok", dtype=torch.bfloat16)
    tokens = tok.encode(signal(case.io))
    y = tok.decode(tokens, **options(case.io))
    assert y.dtype == torch.bfloat16
    assert tokens.data.dtype == (torch.int64 if tokens.discrete else torch.bfloat16)
    wanted = case.io["decoded_from_codes" if tokens.discrete else "decoded_from_mean"] * 2 - 1
    assert float((y.float() - wanted).abs().mean() / wanted.abs().mean()) < 0.2


def test_sampling_takes_a_seed(loaded):
    tok, io = loaded["one_stage_vae"]
    x = signal(io)
    first, again, other = (tok.encode(x, sample=True, seed=seed).data for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    posterior = tok.posterior(x[:1])
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    close(first[:1], posterior.mean + (posterior.logvar / 2).exp() * noise)
    with pytest.raises(ValueError, match="nothing to sample"):
        loaded["one_stage_vq"][0].encode(signal(loaded["one_stage_vq"][1]), sample=True)


def test_kl_is_that_of_torch():
    mean, logvar = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    ours = Gaussian(mean, logvar).kl()
    spread = torch.distributions.Normal(mean, (logvar / 2).exp())
    close(ours, torch.distributions.kl_divergence(spread, torch.distributions.Normal(0.0, 1.0)).sum(-1))


def test_a_codebook_has_no_distribution(loaded):
    tok, io = loaded["one_stage_vq"]
    with pytest.raises(ValueError, match=r"posterior: this tokenizer has codes"):
        tok.posterior(signal(io))


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter(loaded, name):
    trained, io = loaded[name]
    torch.manual_seed(0)
    tok = TiTok(trained.config)
    x = signal(io)
    if tok.quantizer is None:
        values, loss = tok.posterior(x).sample(rows(io["noise"])), 0.0
    else:
        values, _, loss, _ = tok.quantizer(tok.encode_vectors(x))
    (tok.decode_vectors(values, io.get("text_guidance")).square().mean() + loss).backward()
    assert not [key for key, p in tok.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


# -- captions ----------------------------------------------------------------------------------------------------------------------


def test_captions_change_the_picture(loaded):
    tok, io = loaded["tatitok_vq"]
    tokens = tok.encode(signal(io))
    one = tok.decode(tokens, text=io["text_guidance"][1])
    close(one, tok.decode(tokens, text=[io["text_guidance"][1]] * 2))
    both = tok.decode(tokens, text=io["text_guidance"])
    close(one[1], both[1])
    assert float((one[0] - both[0]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"text is missing.*Give its features \(7, 24\)"),
        ("a dog", r"text holds a str\. Needed: floating-point features \(7, 24\)"),
        (torch.zeros(7, 23), r"text holds \(7, 23\) torch\.float32"),
        (torch.zeros(7, 24, dtype=torch.int64), r"text holds \(7, 24\) torch\.int64"),
        (torch.full((7, 24), float("nan")), r"text holds NaN"),
        (torch.zeros(3, 7, 24), r"text holds 3 values for 2 items"),
    ],
)
def test_wrong_captions_are_refused(loaded, text, message):
    tok, io = loaded["tatitok_vq"]
    with pytest.raises(ValueError, match=rf"tatitok_vq\.decode: {message}"):
        tok.decode(tok.encode(signal(io)), text=text)


def test_a_decoder_without_text_refuses_captions(loaded):
    tok, io = loaded["one_stage_vq"]
    with pytest.raises(ValueError, match="this decoder reads no caption"):
        tok.decode(tok.encode(signal(io)), text=torch.zeros(77, 768))


# -- configurations and files --------------------------------------------------------------------------------------------------


def public(**changes):
    values = dict(
        vit_enc_model_size="base",
        vit_dec_model_size="large",
        vit_enc_patch_size=16,
        vit_dec_patch_size=16,
        codebook_size=4096,
        token_size=12,
        use_l2_norm=True,
        num_latent_tokens=64,
    )
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    return {"model": {"vq_model": values}, "dataset": {"preprocessing": {"crop_size": 256}}}


def test_absent_keys_mean_two_stages():
    config = TiTok.from_public(public(), {})
    assert config == replace(TiTokConfig(), latent_tokens=64, encoder_width=768, encoder_depth=12, encoder_heads=12)
    assert config.two_stage
    assert config.quirk_mixed_latents


def test_tensors_tell_that_a_decoder_reads_text():
    plain = public(finetune_decoder=False, is_legacy=False)
    assert TiTok.from_public(plain, {"latent_tokens": (64, 768)}).text_positions == 0
    read = TiTok.from_public(plain, {"decoder.text_guidance_proj.weight": (1024, 768)})
    assert (read.text_positions, read.text_features) == (77, 768)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "titok: model in config.json is a NoneType"),
        ({"model": {"vq_model": [1]}}, r"model\.vq_model in config.json is a list"),
        (public(token_size=None), r"model\.vq_model\.token_size is missing"),
        (public(vit_enc_model_size="giant"), r"encoder of size 'giant'.*small, base, large"),
        (public(vit_dec_patch_size=8), "vit_enc_patch_size=16 and vit_dec_patch_size=8"),
        (public(is_legacy=False), "finetune_decoder=True with is_legacy=False"),
        (public(finetune_decoder=False), "finetune_decoder=False with is_legacy=True"),
        (public(quantize_mode="fsq"), "quantizer='fsq'. Allowed: vq, vae"),
        (public(quantize_mode="vae"), "quantizer='vae'. Allowed: vq where two_stage is true"),
        (public(num_latent_tokens="many"), "latent_tokens='many'. Needed: int"),
    ],
)
def test_wrong_public_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TiTok.from_public(config, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels=0"),
        ({"image_size": 250}, "image_size=250. Allowed: a multiple of patch"),
        ({"encoder_width": 100}, "encoder_width=100. Allowed: a multiple of encoder_heads"),
        ({"pixel_multipliers": (1, 2)}, r"pixel_multipliers=\(1, 2\). Allowed: 1 \+ log2"),
        ({"pixel_multipliers": ()}, r"pixel_multipliers=\(\). Allowed: at least one"),
        ({"pixel_width": 40}, "pixel_width=40. Allowed: a multiple of 32"),
        ({"text_positions": 77}, "text_positions=77. Allowed: 0 where two_stage is true"),
        ({"commitment_weight": -1.0}, "commitment_weight=-1.0"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TiTokConfig.from_dict({**TiTokConfig().to_dict(), **changes})


def test_unknown_keys_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        TiTok.from_public(public(rotary=True), {})
    assert "not known and not used: rotary" in caplog.text


def test_counters_of_dead_codes_are_left_out(loaded):
    tok, _ = loaded["one_stage_vq"]
    tensors = {"quantize.embedding.weight": torch.ones(3, 2), "quantize.embed_prob": torch.ones(3)}
    assert "quantize.embed_prob" not in TiTok.rename_public(tensors, tok.config)


def test_a_file_with_a_missing_tensor_never_half_loads(parity, tmp_path):
    from safetensors.torch import save_file

    case = parity("titok", "one_stage_vq")
    tensors = load_file(case.weights)
    del tensors["encoder.transformer.1.ln_2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    with pytest.raises(ValueError, match=r"missing.*encoder\.blocks\.1\.norm2\.bias"):
        zoo.load(tmp_path, family="titok")


def test_a_code_outside_the_vocabulary_is_refused(loaded):
    tok, _ = loaded["one_stage_vq"]
    tokens = Tokens(torch.full((1, 16, 1), 256), tok.spec, torch.tensor([[32, 32]]))
    with pytest.raises(ValueError, match=r"code 256 at depth 0 is outside 0\.\.255"):
        tok.decode(tokens)


# -- the catalog -------------------------------------------------------------------------------------------------------------------

MILLIONS = {
    "titok_l32_in1k": 641,
    "titok_b64_in1k": 204.8,
    "titok_s128_in1k": 83.6,
    "titok_bl64_vq8k_in1k": 390,
    "titok_bl128_vq8k_in1k": 390,
    "titok_sl256_vq8k_in1k": 330,
    "titok_ll32_vae_c16_in1k": 607,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_are_those_of_the_release(name):
    assert zoo.info(name).parameters / 1e6 == pytest.approx(MILLIONS[name], rel=3e-3)


def test_every_public_checkpoint_is_listed():
    entries = [e for e in zoo.find(family="titok") if e.name != "titok_nano"]
    assert len(entries) == 15
    assert len({e.weights.repo for e in entries}) == 15
    for e in entries:
        config = family_class("titok").Config.from_dict(e.config)
        assert (config.text_positions > 0) is e.name.startswith("tatitok")
        assert str(config.latent_tokens) in e.name.split("_")[1]
