"""TiTok's two stages: what is named, what moves when, where the painting network starts, and what is refused."""

from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader

import zoo
from recipes.data.images import ImageBatch
from recipes.modules.adversarial import Adversary
from recipes.modules.titok import TiTokRecipe, load_proxy
from recipes.train import export_tokenizer
from zoo.image.titok import TiTokConfig
from zoo.layers.maskgit_vqgan import MaskGITDecoder

PARITY = Path(__file__).parents[1] / "parity" / "titok" / "maskgit_vqgan_encoder"
TOY = dict(
    image_size=32, patch=4, latent_tokens=6, channels=4, codebook_size=16, encoder_width=16, encoder_depth=1, encoder_heads=2,
    decoder_width=16, decoder_depth=1, decoder_heads=2, proxy_codes=16, proxy_channels=8, pixel_width=32,
    pixel_multipliers=(1, 1, 1), pixel_blocks=1,
)  # fmt: skip
RQVAE = dict(
    codebook_sizes=(16, 16), latent_channels=8, z_channels=8, attention_sides=(), width=8, multipliers=(1, 2, 2), blocks=1,
    norm_groups=4, image_size=32,
)  # fmt: skip


@pytest.fixture
def proxy(tmp_path):
    torch.manual_seed(1)
    return str(export_tokenizer(zoo.create("rvq_nano", info_name="rvq_nano", **RQVAE), tmp_path / "proxy"))


def recipe(proxy, **options):
    torch.manual_seed(0)
    options = {"overrides": TOY, "feature_weight": 0.0, "warmup_steps": 1, "final_rate": 0.0, **options}
    return TiTokRecipe("titok_nano", proxy=proxy, **options)


def fit(module, steps, callback):
    draws = torch.Generator().manual_seed(5)
    pictures = [F.interpolate(torch.rand(4, 3, 4, 4, generator=draws) * 2 - 1, (32, 32), mode="bilinear") for _ in range(steps + 2)]
    batches = [ImageBatch(x, torch.zeros(4), torch.arange(4)) for x in pictures]
    loader = DataLoader(dataset=batches, batch_size=None, num_workers=0)
    lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback],
    ).fit(module, loader)  # fmt: skip


PARTS = ("encoder", "quantizer.codebook", "decoder", "proxy_codebook", "pixel_decoder")


class Watch(lightning.Callback):
    """Which parts of the tokenizer and whether the discriminator moved in each batch, and the rate."""

    def __init__(self):
        self.moved, self.rates = [], []

    def snapshot(self, module):
        state = module.tokenizer.state_dict()
        parts = {part: torch.cat([v.flatten().clone() for k, v in state.items() if k.startswith(part)]) for part in PARTS}
        return parts | {"discriminator": torch.cat([p.detach().flatten().clone() for p in module.discriminator.parameters()])}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = self.snapshot(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = self.snapshot(module)
        self.moved.append({part for part, value in now.items() if not torch.equal(value, self.before[part])})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_what_moves_in_which_stage(proxy):
    """Naming moves both transformers and the codebook; pixels leave encoder and codebook exactly where they were."""
    watch = Watch()
    module = recipe(proxy, pixel_start=3, adversary=Adversary(start=4, width=8, layers=1), learning_rate=1e-3)
    fit(module, 6, watch)
    named = {"encoder", "quantizer.codebook", "decoder"}
    painted = {"decoder", "proxy_codebook", "pixel_decoder"}
    assert watch.moved == [named] * 3 + [painted] + [painted | {"discriminator"}] * 2
    assert watch.rates[:3] == pytest.approx(watch.rates[3:]), "each stage has a schedule of its own"
    assert watch.rates[2] < watch.rates[1]


def test_painting_learns_from_true_codes_in_the_first_stage(proxy):
    module = recipe(proxy, pixel_start=10, painted=2)
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    loss, values = module.naming_loss(x)
    loss.backward()
    codes = module.proxy_codes(x)
    vectors = module.tokenizer.proxy_codebook[codes[:2]].permute(0, 3, 1, 2)
    wanted = (module.tokenizer.pixel_decoder(vectors) * 2 - 1 - x[:2]).abs().mean()
    assert float(values["painting"]) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert all(p.grad is not None for p in module.tokenizer.pixel_decoder.parameters())


def test_first_cross_entropy_is_near_that_of_chance(proxy):
    module = recipe(proxy, pixel_start=10)
    _, values = module.naming_loss(torch.rand(4, 3, 32, 32) * 2 - 1)
    assert float(values["cross_entropy"]) == pytest.approx(torch.log(torch.tensor(16.0)).item(), abs=0.3)


def test_proxy_codes_of_a_residual_tokenizer_are_its_first_level(proxy):
    module = recipe(proxy, pixel_start=1)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    tok = zoo.load(proxy)
    assert torch.equal(module.proxy_codes(x), tok.encode(x, depth=1).data[..., 0])
    assert torch.equal(module.tokenizer.proxy_codebook, tok.quantizer.layers[0].codebook)


def maskgit_file(folder):
    """The public encoder and codebook of the parity case with a decoder of the same sizes beside them."""
    torch.manual_seed(3)
    decoder = MaskGITDecoder(channels=16, width=32, multipliers=(1, 2), blocks=1)
    tensors = load_file(PARITY / "weights.safetensors") | {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    save_file(tensors, folder / "maskgit.safetensors")
    return folder / "maskgit.safetensors", decoder


def test_the_public_maskgit_file_gives_its_codes_and_starts_the_painting(tmp_path):
    path, decoder = maskgit_file(tmp_path)
    sizes = dict(image_size=16, patch=2, proxy_codes=64, proxy_channels=16, pixel_multipliers=(1, 2))
    module = recipe(str(path), pixel_start=1, overrides={**TOY, **sizes})
    io = load_file(PARITY / "io.safetensors")
    codes = module.proxy_codes(io["image"] * 2 - 1)
    assert torch.equal(codes.flatten(1), io["codes"].long())
    for key, value in decoder.state_dict().items():
        assert torch.equal(module.tokenizer.pixel_decoder.state_dict()[key], value)


def test_one_stage_has_no_proxy():
    """VQ and Gaussian latents both train every parameter of the tokenizer."""
    for kind in ("vq", "vae"):
        module = recipe(None, overrides={**TOY, "two_stage": False, "quantizer": kind}, kl_weight=0.1)
        x = torch.rand(2, 3, 32, 32) * 2 - 1
        out = module.reconstruct(x, module.draws(step=0))
        ((out.images - x).abs().mean() + out.loss).backward()
        assert [name for name, p in module.tokenizer.named_parameters() if p.grad is None] == []
        assert not module.naming(0)


def test_what_does_not_fit_is_refused(proxy, tmp_path):
    with pytest.raises(ValueError, match="proxy=None for titok_nano"):
        recipe(None)
    with pytest.raises(ValueError, match="Needed: None, as it has one stage"):
        recipe(proxy, overrides={**TOY, "two_stage": False})
    with pytest.raises(ValueError, match="tatitok_bl32_vq reads captions"):
        TiTokRecipe("tatitok_bl32_vq", overrides={**TOY, "two_stage": False, "text_positions": 2})
    config = TiTokConfig.from_dict(TOY)
    with pytest.raises(ValueError, match=r"\(16, 8\)\. Needed: \(32, 8\)"):
        load_proxy(proxy, TiTokConfig.from_dict({**TOY, "proxy_codes": 32}))
    with pytest.raises(ValueError, match="one position for 4 pixels, patch=8"):
        load_proxy(proxy, TiTokConfig.from_dict({**TOY, "patch": 8, "pixel_multipliers": (1, 1, 1, 1)}))
    path, _ = maskgit_file(tmp_path)
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("quantize.")}
    save_file(tensors, path)
    sizes = dict(image_size=16, patch=2, proxy_codes=64, proxy_channels=16, pixel_multipliers=(1, 2))
    with pytest.raises(ValueError, match=r"maskgit\.safetensors has no quantize\.embedding\.weight"):
        load_proxy(str(path), TiTokConfig.from_dict({**TOY, **sizes}))
    vae = zoo.create("kl_vae_nano", info_name="kl_vae_nano", block_channels=(8, 8), layers_per_block=1, norm_groups=4)
    folder = export_tokenizer(vae, tmp_path / "vae")
    with pytest.raises(ValueError, match=r"of the family 'autoencoder_kl'. Needed: 'rqvae'"):
        load_proxy(str(folder), config)
