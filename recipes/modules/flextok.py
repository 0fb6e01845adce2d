"""Train FlexTok: nested dropout over FSQ registers, rectified flow on the latents of a frozen autoencoder.

Source: arXiv 2502.13967, section 3. The public release has no training code; the flow loss equals the one its noise module implies
(checked: `rf_loss_per_sample_kall` of tests/parity/flextok). The alignment loss follows the paper's form (negative cosine between
projected patch features and a frozen network's features) with the network as an argument, since DINOv2 is not always at hand.
"""

from typing import Any

import torch
from torch import Tensor

import zoo
from recipes.modules.alignment import Alignment
from recipes.modules.base import TokenizerRecipe, training_attention
from zoo.layers.flow import draw_noise_levels
from zoo.transforms.nested_dropout import draw_keep, powers_of_two

__all__ = ["FlexTokRecipe"]

_REGISTER_NOISE = 0.5  # of the spread of the registers themselves


class FlexTokRecipe(TokenizerRecipe):
    """Train on batches with `latents (b, c, h, w)` (and `images` for the alignment), or on `images` alone.

    Args:
        tokenizer: catalog name.
        vae: folder, catalog name or repository of the frozen autoencoder whose weights the tokenizer carries; None where the
            configuration has no autoencoder or `init` brings it.
        alignment_weight: of the alignment loss; 0 leaves it out.
        alignment_network, alignment_channels: the frozen network, see `recipes.modules.alignment`.
        options: of `TokenizerRecipe`.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        vae: str | None = None,
        alignment_weight: float = 0.0,
        alignment_network: str = "efficientnet_lite0",
        alignment_channels: int = 112,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if vae is not None:
            self.tokenizer.vae.load_state_dict(zoo.load(vae).autoencoder.state_dict())
        if self.tokenizer.vae is not None:
            self.tokenizer.vae.requires_grad_(False)
        self.alignment = None
        self.alignment_weight = alignment_weight
        if alignment_weight:
            width = self.tokenizer.config.decoder_width
            self.alignment = Alignment(width=width, network=alignment_network, channels=alignment_channels)

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give a shorter FlexTok more registers: copies of its own, moved by noise so that they can part.

        Where all 64 registers of a nano started from nothing, those beyond the sixteenth stayed almost unused for 8,000 steps;
        copies of trained ones lowered the loss within 500.
        """
        wanted = self.tokenizer.config.registers
        draws = torch.Generator().manual_seed(self.seed)
        for name in ("encoder.registers", "decoder.register_positions"):
            table = tensors[name]
            copies = table[torch.arange(len(table), wanted) % len(table)]
            noise = torch.randn(copies.shape, generator=draws)
            tensors[name] = torch.cat([table, copies + _REGISTER_NOISE * table.std() * noise])
        return tensors

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tok, config = self.tokenizer, self.tokenizer.config
        latents = self._latents(batch)
        b, draws = len(latents), self.draws()
        keep = draw_keep(b, config.registers, sampling=config.keep_sampling, generator=draws)
        null = torch.rand(b, generator=draws, device=self.device) < config.null_dropout
        t = draw_noise_levels(b, schedule=config.noise_schedule, mode_scale=config.mode_scale, generator=draws)
        noise = torch.randn(latents.shape, generator=draws, device=self.device)
        with training_attention(self.device):
            quantized = tok.quantizer(tok.encoder(latents, config.registers))
            flow, features = self._flow_loss(latents, quantized.x, keep, null, t, noise, tap=self.alignment is not None)
        values = {"flow": flow.mean()}
        loss = values["flow"]
        if self.alignment is not None:
            values["alignment"] = self.alignment(features, batch.images)
            loss = loss + self.alignment_weight * values["alignment"]
        values |= {name: quantized.stats[name].mean() for name in ("used_fraction", "perplexity")}
        self.log_scores("train", {"loss": loss, **values}, batch_size=b)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Flow loss at fixed noise for each number of tokens: it must fall as k rises."""
        tok, config = self.tokenizer, self.tokenizer.config
        latents = self._latents(batch)
        b = len(latents)
        quantized = tok.quantizer(tok.encoder(latents, config.registers))
        values = {}
        for k in (0, *powers_of_two(config.registers)):
            draws = self.draws(stage="val", step=batch_idx)
            t = (torch.arange(b, device=self.device) + 0.5) / b
            noise = torch.randn(latents.shape, generator=draws, device=self.device)
            keep = torch.full((b,), max(k, 1), device=self.device)
            null = torch.full((b,), k == 0, device=self.device)
            values[f"flow_k{k}"] = self._flow_loss(latents, quantized.x, keep, null, t, noise, tap=False)[0].mean()
        values["perplexity"] = quantized.stats["perplexity"].mean()
        self.log_scores("val", values, batch_size=b)

    def _latents(self, batch: Any) -> Tensor:
        if hasattr(batch, "latents"):
            return batch.latents
        with torch.no_grad():
            return self.tokenizer.encode_latents(batch.images)

    def _flow_loss(
        self, latents: Tensor, registers: Tensor, keep: Tensor, null: Tensor, t: Tensor, noise: Tensor, *, tap: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Squared error of the velocity for each item, `(b,)`, and the tapped features."""
        decoder = self.tokenizer.decoder
        level = t.view(-1, 1, 1, 1)
        noised = level * noise + (1 - level) * latents
        positions, bias = decoder.condition(registers, keep, null)
        modulation = decoder.modulate_items(t)
        block = self.tokenizer.config.alignment_block if tap else None
        out = decoder(noised, positions, bias, modulation, tap=block)
        velocity, features = out if tap else (out, None)
        return (velocity.float() - (noise - latents)).square().mean((1, 2, 3)), features
