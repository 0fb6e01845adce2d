"""RQ-VAE against tensors of the public implementation (see the READMEs in tests/parity/rqvae)."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import zoo
from zoo.image.rqvae import RQVAE, RQVAEConfig, _fold, _unfold
from zoo.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity" / "rqvae"
CASES = ("rqvae_d4_shared", "rqvae_d3_separate_regroup")


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    folder = PARITY / request.param
    return zoo.load(folder, family="rqvae"), load_file(folder / "io.safetensors")


def grid(tok, z):
    """Folded vectors as the public code lays them out, `(b, h, w, c)`."""
    return _unfold(z, tok.config.fold).permute(0, 2, 3, 1)


def folded(tok, z):
    return _fold(z.permute(0, 3, 1, 2).contiguous(), tok.config.fold)


# -- the public numbers --------------------------------------------------------------------------------------------------------


def test_encoder(case):
    tok, io = case
    z = tok.encode_latents(io["image"])
    close(z, io["z_e_code_shape"])
    close(grid(tok, z), io["z_e"])
    assert torch.equal(folded(tok, io["z_e"]), io["z_e_code_shape"])


def test_codes_and_pictures_by_the_front_door(case):
    tok, io = case
    tokens = tok.encode(io["image"])
    assert torch.equal(tokens.data, io["codes"])
    close(tok.decode(tokens), io["reconstruction"])
    close(tok.decode(tokens), io["reconstruction_from_codes"])
    close(grid(tok, tok.quantizer.decode(tokens.data)), io["z_q"])


def test_every_depth_decodes_and_encodes(case):
    tok, io = case
    names = [name for name in io if re.fullmatch(r"partial_add_\d", name)]
    assert len(names) == tok.info.depth
    tokens = tok.encode(io["image"])
    for name in names:
        depth = int(name[-1]) + 1
        close(tok.decode(tokens.depth(depth)), io[name])
        assert torch.equal(tok.encode(io["image"], depth=depth).data, io["codes"][..., :depth])
        close(tok(io["image"], depth=depth), io[name])
    close(grid(tok, tok.quantizer.decode(io["codes"][..., :2])), io["partial_add_zq_1"])


def test_vectors_of_each_depth(case):
    tok, io = case
    vectors = tok.quantizer.vectors(io["codes"])
    close(vectors, io["code_embeddings_per_depth"])
    close(tok.decode_latents(vectors[..., 1, :]), io["partial_select_1"])


def test_distances_and_soft_codes(case):
    tok, io = case
    distances = tok.quantizer.distances(io["z_e_code_shape"])
    close(distances[0], io["distances_depth0"])
    assert ("soft_codes_temp0.5" in io) == tok.config.shared_codebook
    if "soft_codes_temp0.5" in io:
        soft = torch.stack([torch.softmax(-d[:1] / 0.5, -1) for d in distances], -2)
        close(soft, io["soft_codes_temp0.5"])


def test_losses_and_gradients(case):
    tok, io = case
    z = io["z_e"].clone().requires_grad_()
    result = tok.quantizer(folded(tok, z))
    assert torch.equal(result.codes, io["codes"])
    weight = tok.config.commitment_weight
    close(result.loss / weight, io["commitment_loss"][0])
    close(result.stats["commitment"].mean(), io["commitment_loss"][0])
    (straight,) = torch.autograd.grad((grid(tok, result.x) * io["st_weight"]).sum(), z, retain_graph=True)
    close(straight, io["st_grad_zq"])
    (commitment,) = torch.autograd.grad(result.loss / weight, z)
    assert float((commitment - io["grad_commitment"]).abs().max()) <= 1e-4 * float(io["grad_commitment"].abs().max())
    mse = F.mse_loss(tok.decode_latents(result.x), io["image"])
    close(mse, io["loss_recon_mse"][0])
    close(mse + result.loss, io["loss_total"][0])


def test_one_training_step_of_the_codebooks(case, request):
    folder = PARITY / request.node.callspec.params["case"]
    io = case[1]
    values = json.loads((folder / "config.json").read_text())
    values["arch"]["hparams"]["restart_unused_codes"] = False  # the fixture's step: a restart draws at random
    config = RQVAE.from_public(values, {})
    tok = RQVAE(config)
    tok.load_state_dict(RQVAE.rename_public(load_file(folder / "weights.safetensors"), config))
    result = tok.train().quantizer(io["z_e_code_shape"])
    assert torch.equal(result.codes, io["train_step_codes"])
    close(grid(tok, result.x), io["train_step_z_q"])
    checked = 0
    for j in range(len(tok.quantizer.layers)):
        layer, names = tok.quantizer.layers[j], f"after_train_step.quantizer.codebooks.{j}."
        close(layer.codebook, io[names + "weight"][:-1])
        close(layer.cluster_size, io[names + "cluster_size_ema"])
        close(layer.codebook_sum, io[names + "embed_ema"])
        checked += 3
    assert checked == len([name for name in io if name.startswith("after_train_step.")])


# -- what depth means ----------------------------------------------------------------------------------------------------------


def test_more_depth_is_nearer(case):
    tok, io = case
    target = io["z_e_code_shape"]
    picture = tok.decode_latents(target)
    tokens = tok.encode(io["image"])
    of_vectors, of_pictures = [], []
    for depth in range(1, tok.info.depth + 1):
        of_vectors.append(float((tok.quantizer.decode(tokens.data[..., :depth]) - target).square().mean()))
        of_pictures.append(float((tok.decode(tokens.depth(depth)) - picture).square().mean()))
    assert of_vectors == sorted(of_vectors, reverse=True), of_vectors
    assert of_pictures == sorted(of_pictures, reverse=True), of_pictures
    assert of_vectors[-1] < float(target.square().mean())


def test_rates(case):
    tok, io = case
    tokens = tok.encode(io["image"])
    size = 16 * 16
    for depth in range(1, tok.info.depth + 1):
        bits = tokens.depth(depth).bits_per_pixel()
        expected = sum(torch.log2(torch.tensor(tok.config.codebook_sizes[:depth]).double())) * tokens.counts[0] / size
        assert torch.as_tensor(bits).double().mean() == pytest.approx(float(expected), rel=1e-6)
        assert tok.encode(io["image"], bits_per_pixel=float(expected) * 1.001).levels == depth
    assert tok.info.bits_per_pixel == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match=r"depth=9 is outside 1\.\.\d"):
        tok.encode(io["image"], depth=9)


def test_any_size_comes_back(case):
    tok, io = case
    x = io["image"][:, :, :13, :9]
    tokens = tok.encode(x, depth=1)
    assert tokens.positions == tuple(-(-side // tok.config.downsample) for side in (13, 9))
    assert tok.decode(tokens).shape == x.shape


def test_fold_is_undone():
    z = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    folded_twice = _fold(z, 2)
    assert folded_twice.shape == (2, 2, 3, 12)
    assert torch.equal(folded_twice[0, 1, 2], z[0, :, 2:4, 4:6].permute(1, 2, 0).flatten())
    assert torch.equal(_unfold(folded_twice, 2), z)


# -- the public format ---------------------------------------------------------------------------------------------------------


def test_an_unpacked_release(case, request, tmp_path):
    folder = PARITY / request.node.callspec.params["case"]
    tok, io = case
    state = load_file(folder / "weights.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"arch": values["arch"], "dataset": {"type": "imagenet"}}))
    with pytest.raises(ValueError, match=r"must hold config\.yaml and one \*\.pt file.*none"):
        RQVAE.from_release(tmp_path)
    torch.save({"state_dict": state, "discriminator": {"w": torch.ones(1)}, "epoch": 9}, tmp_path / "model.pt")
    released = RQVAE.from_release(tmp_path, name="mine")
    assert released.config == tok.config
    tokens = released.encode(io["image"])
    assert tokens.spec.tokenizer == "mine"
    assert torch.equal(tokens.data, io["codes"])


def test_our_own_folder(case, tmp_path):
    from zoo.checkpoint import write_folder

    tok, io = case
    write_folder(
        tmp_path / "own",
        config={"family": "rqvae", "name": tok.info.name, "config": tok.config.to_dict()},
        tensors=tok.state_dict(),
    )
    again = zoo.load(tmp_path / "own")
    assert torch.equal(again.encode(io["image"]).data, io["codes"])


def test_a_shared_codebook_that_differs_is_refused(tmp_path):
    shutil.copytree(PARITY / CASES[0], tmp_path / "odd")
    path = tmp_path / "odd" / "weights.safetensors"
    state = load_file(path)
    state["quantizer.codebooks.2.weight"][5, 3] += 1
    save_file(state, path)
    with pytest.raises(ValueError, match=r"codebooks\.2\.weight differs from depth 0"):
        zoo.load(tmp_path / "odd", family="rqvae")


def test_a_foreign_codebook_is_refused(tmp_path):
    shutil.copytree(PARITY / CASES[1], tmp_path / "odd")
    path = tmp_path / "odd" / "weights.safetensors"
    state = load_file(path)
    state["quantizer.codebooks.3.weight"] = torch.zeros(3, 3)
    del state["quantizer.codebooks.1.embed_ema"]
    save_file(state, path)
    message = r"(?s)1 missing: quantizer\.layers\.1\.codebook_sum.*1 unexpected: quantizer\.codebooks\.3"
    with pytest.raises(ValueError, match=message):
        zoo.load(tmp_path / "odd", family="rqvae")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (None, "type", "rq-transformer", r"arch\.type='rq-transformer'.*\"rq-vae\""),
        ("hparams", "bottleneck_type", "vq", r"hparams\.bottleneck_type='vq'.*\"rq\""),
        ("hparams", "code_shape", [8, 8], r"code_shape=\[8, 8\].*three whole numbers"),
        ("hparams", "latent_shape", [4, 4, 32], r"latent_shape=\[4, 4, 32\].*Needed: \[8, 8, 32\]"),
        ("hparams", "code_shape", [3, 8, 4], r"code_shape=\[3, 8, 4\] do not fit"),
        ("hparams", "n_embed", [96, 97, 98, 99], r"codebook_sizes=.*equal sizes with shared_codebook"),
        ("ddconfig", "double_z", True, r"ddconfig\.double_z=True.*false"),
        ("ddconfig", "ch", None, r"width=None"),
        ("hparams", None, None, r"no object 'hparams'"),
    ],
)
def test_what_is_not_covered_is_named(part, key, value, message):
    values = json.loads((PARITY / CASES[0] / "config.json").read_text())
    if key is None:
        del values["arch"][part]
    else:
        (values["arch"] if part is None else values["arch"][part])[key] = value
    with pytest.raises(ValueError, match=message):
        RQVAE.from_public(values, {})


def test_missing_keys_take_the_public_defaults(caplog):
    values = json.loads((PARITY / CASES[1] / "config.json").read_text())
    for key in ("shared_codebook", "decay", "restart_unused_codes", "loss_type", "latent_loss_weight"):
        del values["arch"]["hparams"][key]
    values["arch"]["hparams"]["novelty"] = 1
    config = RQVAE.from_public(values, {})
    assert (config.shared_codebook, config.decay, config.restart_codes, config.commitment_weight) == (False, 0.99, False, 0.25)
    assert "hparams.novelty" in caplog.text
    del values["arch"]["hparams"]["n_embed"], values["arch"]["ddconfig"]["ch"]
    with pytest.raises(ValueError, match="has no n_embed, ch"):
        RQVAE.from_public(values, {})


@pytest.mark.parametrize(
    "values", [{"codebook_sizes": ()}, {"fold": 0}, {"width": 100}, {"dropout": 1.0}, {"image_size": 250}, {"decay": 1.5}]
)
def test_sizes_that_make_no_sense_are_refused(values):
    (key,) = values
    with pytest.raises(ValueError, match=rf"RQVAEConfig: {key}="):
        RQVAEConfig(**values)


def test_tokens_of_two_levels_need_a_known_depth(case):
    tok, io = case
    codes = io["codes"].clone()
    codes[0, 0, 0, 1] = tok.config.codebook_sizes[1]
    with pytest.raises(ValueError, match=r"at depth 1 is outside 0\.\."):
        tok.decode(Tokens(codes, tok.spec, torch.tensor([[16, 16]] * len(codes))))
