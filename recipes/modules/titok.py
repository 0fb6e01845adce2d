"""Train TiTok: in two stages through the codes of another tokenizer, or in one.

Source: arXiv 2406.07550, section 3, and bytedance/1d-tokenizer@942a96f.

    stage 1   the decoder learns to name the code that a frozen tokenizer gives each patch (the proxy codes), by cross-entropy
    stage 2   encoder and codebook stay as they are; the decoder and the network that paints proxy codes learn pixels and features,
              with a discriminator

Both stages are one run, whose generator steps from `pixel_start` on are the second stage; each has its own schedule. The proxy is
the MaskGIT-VQGAN file of the release, whose decoder then starts the painting, or a residual tokenizer of the zoo, whose first level
is taken: then the painting network learns from its true codes during stage 1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from recipes.modules.adversarial import AdversarialRecipe, Reconstruction
from recipes.modules.base import training_attention, warmup_cosine
from zoo.checkpoint import load_strict, read_tensors
from zoo.image.titok import TiTokConfig
from zoo.layers.maskgit_vqgan import MaskGITEncoder
from zoo.quantizers.rvq import RVQ
from zoo.quantizers.vq import VQ
from zoo.transforms.quality import psnr_db

__all__ = ["Proxy", "TiTokRecipe", "load_proxy"]


class Proxy(NamedTuple):
    """A frozen tokenizer that names the patches.

    Attributes:
        network: what runs; for moving it to a device.
        encode: pictures `(b, 3, h, w)` in [-1, 1] to codes `(b, h', w')`.
        codebook: `(proxy_codes, proxy_channels)`.
        decoder: weights of the network that paints the codes; None where it has another architecture.
    """

    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    codebook: Tensor
    decoder: dict[str, Tensor] | None


def load_proxy(source: str, config: TiTokConfig) -> Proxy:
    """Read the tokenizer whose codes are proxies.

    Args:
        source: the file of the MaskGIT-VQGAN (`*.safetensors`, or the release's `*.bin`), or a name or folder of an RQ-VAE.
        config: of the TiTok, whose sizes must fit.

    Raises:
        ValueError: a tokenizer without residual levels, or of other sizes than the TiTok's proxy codes, or another grid.
    """
    if Path(source).suffix in (".safetensors", ".bin", ".pt", ".pth"):
        return _maskgit(Path(source), config)
    tok = zoo.load(source)
    if not isinstance(getattr(tok, "quantizer", None), RVQ):
        raise ValueError(f"load_proxy: {source} is of the family {tok.family!r}. Needed: 'rqvae', or the file of a MaskGIT-VQGAN.")
    factor = tok.config.downsample
    if factor != config.patch:
        raise ValueError(f"load_proxy: {source} has one position for {factor} pixels, patch={config.patch}. Needed: the same.")
    codebook = tok.quantizer.layer(0).codebook
    _check_codebook(source, codebook, config)
    return Proxy(tok, lambda x: tok.quantizer.encode(tok.encode_latents(x), depth=1)[..., 0], codebook, None)


def _maskgit(path: Path, config: TiTokConfig) -> Proxy:
    tensors = read_tensors(path, allow_pickle=path.suffix != ".safetensors")
    parts = {
        part: {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
        for part in ("encoder", "decoder", "quantize")
    }
    encoder = MaskGITEncoder(
        channels=config.proxy_channels,
        width=config.pixel_width,
        multipliers=config.pixel_multipliers,
        blocks=config.pixel_blocks,
    )
    load_strict(encoder, parts["encoder"], name=f"load_proxy: the encoder of {path.name}")
    if "embedding.weight" not in parts["quantize"]:
        raise ValueError(f"load_proxy: {path} has no quantize.embedding.weight. Is it the file of a MaskGIT-VQGAN?")
    codebook = parts["quantize"]["embedding.weight"]
    _check_codebook(path.name, codebook, config)
    vq = VQ(dim=config.proxy_channels, codebook_size=config.proxy_codes, kmeans_iterations=0)
    vq.set_codebook(codebook)
    network = nn.ModuleList([encoder, vq]).eval().requires_grad_(False)
    return Proxy(network, lambda x: vq.encode(encoder(x * 0.5 + 0.5).permute(0, 2, 3, 1))[..., 0], codebook, parts["decoder"])


def _check_codebook(source: str, codebook: Tensor, config: TiTokConfig) -> None:
    needed = (config.proxy_codes, config.proxy_channels)
    if tuple(codebook.shape) != needed:
        raise ValueError(f"load_proxy: the codebook of {source} is {tuple(codebook.shape)}. Needed: {needed}, the proxy's sizes.")


class TiTokRecipe(AdversarialRecipe):
    """Train a TiTok on batches with `images (b, 3, h, w)` in [-1, 1] of its native size.

    Args:
        tokenizer: catalog name; one without captions.
        proxy: of a tokenizer with two stages, see `load_proxy`; None otherwise.
        pixel_start: generator step at which the second stage begins. `adversary.start` counts from the beginning of the run.
        painted: pictures of a batch that the painting network learns from in stage 1; 0 where the proxy brings a decoder.
        quantizer_weight: of the quantizer's loss.
        kl_weight: of the divergence, summed over channels, averaged over tokens, for Gaussian latents.
        revive_below: codes whose running count falls below are put at vectors of the batch; 0 never, as in the release, whose own
            way of that (`clustering_vq`) is not rebuilt.
        options: of `AdversarialRecipe`, and of `TokenizerRecipe` below it.

    Raises:
        ValueError: a proxy that is missing, not wanted or does not fit; a tokenizer with captions.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        proxy: str | None = None,
        pixel_start: int = 0,
        painted: int = 0,
        quantizer_weight: float = 1.0,
        kl_weight: float = 1e-6,
        revive_below: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        config: TiTokConfig = self.tokenizer.config
        if config.text_positions:
            raise ValueError(f"TiTokRecipe: {tokenizer} reads captions, which the pictures here do not have. Use one without.")
        if config.two_stage != (proxy is not None):
            needed = "the tokenizer whose codes the decoder shall name" if config.two_stage else "None, as it has one stage"
            raise ValueError(f"TiTokRecipe: proxy={proxy!r} for {tokenizer}. Needed: {needed}.")
        self.pixel_start = pixel_start if config.two_stage else 0
        self.painted = painted
        self.quantizer_weight, self.kl_weight = quantizer_weight, kl_weight
        if revive_below and self.tokenizer.quantizer is not None:
            self.tokenizer.quantizer.revive_below = revive_below
        self._proxies: list[Proxy] = []  # in a list it is no part of the module: frozen, not saved, not averaged
        if proxy is not None:
            self._proxies = [load_proxy(proxy, config)]
            self.tokenizer.proxy_codebook.data.copy_(self._proxies[0].codebook)
            if self._proxies[0].decoder is not None:
                load_strict(self.tokenizer.pixel_decoder, self._proxies[0].decoder, name=f"TiTokRecipe: the decoder of {proxy}")

    def naming(self, step: int) -> bool:
        """Whether a generator step belongs to the first stage."""
        return step < self.pixel_start

    def last_layer(self) -> Tensor:
        tok = self.tokenizer
        return tok.decoder.smooth.weight if tok.pixel_decoder is None else tok.pixel_decoder.conv_out.weight

    def rate_factor(self, step: int) -> float:
        """Warm-up and cosine of the stage that the step belongs to."""
        total = int(self.trainer.estimated_stepping_batches)
        start, end = (0, min(total, self.pixel_start)) if self.naming(step) else (self.pixel_start, total)
        return warmup_cosine(step - start, warmup=self.warmup_steps, total=end - start, floor=self.final_rate)

    def playing(self, step: int) -> bool:
        return not self.naming(step) and super().playing(step)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        with training_attention(self.device):
            if not self.naming(step):
                super().training_step(batch, batch_idx)
                return
            if self.discriminator is not None:
                self.discriminator.requires_grad_(False)
            loss, values = self.naming_loss(batch.images)
            self.move_generator(loss, step)
            self.log_scores("train", {"loss": loss.detach(), **values}, batch_size=len(batch.images))

    # -- the first stage ---------------------------------------------------------------------------------------------------------

    def proxy_codes(self, x: Tensor) -> Tensor:
        """Codes `(b, h', w')` that the frozen tokenizer gives the patches of pictures."""
        proxy = self._proxies[0]
        proxy.network.to(self.device)
        with torch.no_grad():
            return proxy.encode(x)

    def naming_loss(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the proxy codes, the quantizer's loss, and the painting of true codes where it is to be learnt."""
        tok, codes = self.tokenizer, self.proxy_codes(x)
        quantized = tok.quantizer(tok.encode_vectors(x))
        logits = tok.decoder(quantized.x).float()
        entropy = F.cross_entropy(logits.flatten(0, 2), codes.flatten())
        loss = entropy + self.quantizer_weight * quantized.loss
        values = {"cross_entropy": entropy, "accuracy": (logits.argmax(-1) == codes).float().mean(), "quantizer": quantized.loss}
        if self.painted:
            vectors = tok.proxy_codebook.detach()[codes[: self.painted]].permute(0, 3, 1, 2)
            values["painting"] = (tok.pixel_decoder(vectors) * 2 - 1 - x[: self.painted]).abs().mean()
            loss = loss + values["painting"]
        values |= {name: quantized.stats[name].mean() for name in ("used_fraction", "perplexity")}
        return loss, {name: value.detach() for name, value in values.items()}

    # -- pixels ------------------------------------------------------------------------------------------------------------------

    def reconstruct(self, x: Tensor, draws: torch.Generator) -> Reconstruction:
        tok = self.tokenizer
        zero = x.new_zeros(())
        if tok.pixel_decoder is not None:
            with torch.no_grad():
                vectors = tok.quantizer.decode(tok.quantizer.encode(tok.encode_vectors(x)))
            return Reconstruction(tok.decode_vectors(vectors), zero, {})
        if tok.quantizer is None:
            posterior = tok.posterior(x)
            noise = torch.randn(posterior.mean.shape, generator=draws, device=x.device)
            divergence = posterior.kl().mean()
            images = tok.decode_vectors(posterior.sample(noise))
            return Reconstruction(images, self.kl_weight * divergence, {"divergence": divergence.detach()})
        quantized = tok.quantizer(tok.encode_vectors(x))
        values = {"quantizer": quantized.loss.detach()} | {n: quantized.stats[n].mean() for n in ("used_fraction", "perplexity")}
        return Reconstruction(tok.decode_vectors(quantized.x), self.quantizer_weight * quantized.loss, values)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """PSNR of the mode, which codes are used, and in the first stage how many proxy codes are named right."""
        x, tok, values = batch.images, self.tokenizer, {}
        vectors = tok.encode_vectors(x)
        if tok.quantizer is None:
            vectors = vectors.chunk(2, -1)[0]
        else:
            codes = tok.quantizer.encode(vectors)
            self.count_codes(codes)
            vectors = tok.quantizer.decode(codes)
        if self._proxies:
            values["accuracy"] = (tok.decoder(vectors).argmax(-1) == self.proxy_codes(x)).float().mean()
        values["psnr_db"] = psnr_db(x, tok.decode_vectors(vectors)).mean()
        self.log_scores("val", values, batch_size=len(x))
