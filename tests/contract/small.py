"""How each family is built small for the contract, and the three things that only the family knows.

A family of the catalog that is not in `SMALL` fails the contract. To add one, write a `Small`: overrides that leave its kind of
quantizer and its layout as they are and make everything else tiny, a loss as in training, and one call of its decoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.layers.flow import draw_noise_levels
from zoo.layers.position_noise import PositionNoise
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.transforms.nested_dropout import draw_keep

__all__ = ["SMALL", "Small", "built", "cases"]


@dataclass(frozen=True, kw_only=True)
class Small:
    """A family in the contract.

    Attributes:
        config: overrides of an entry's configuration; gets that configuration complete.
        loss: `loss(tokenizer, x, draws)`, a number that training would make small, from all trained parameters.
        step: `step(tokenizer, data)`, one call of the decoder network on `Tokens.data`, without checks of values.
        options: what `decode` needs for one item, by its number; each becomes a list with one value for each item.
        frozen: beginnings of the names of parameters that training leaves alone, with the reason as value.
        embedding: for a tokenizer of meaning, the features of the embedding `(b, features)` that `decode` gives, whatever the size
            of the items; None where it gives a signal of their size.
        each_position: the embedding is one of each position, `(b, n, features)`.
    """

    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    loss: Callable[[Any, Tensor, torch.Generator], Tensor]
    step: Callable[[Any, Tensor], Tensor]
    options: Callable[[Any, int], dict[str, Any]] = lambda tok, number: {}
    frozen: Mapping[str, str] = field(default_factory=dict)
    embedding: int | None = None
    each_position: bool = False


# -- the families ------------------------------------------------------------------------------------------------------------------


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().mean()


def _kl_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    posterior = tok.autoencoder.posterior(x)
    noise = torch.randn(posterior.mean.shape, generator=draws)
    y = tok.autoencoder.vae.decode(posterior.mean + posterior.std * noise).sample
    return _distance(x, y) + 1e-4 * posterior.kl().mean()


def _flextok_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    config, b = tok.config, len(x)
    latents = tok.encode_latents(x)
    quantized = tok.quantizer(tok.encoder(latents, config.registers))
    keep = draw_keep(b, config.registers, sampling="uniform", generator=draws)
    keep[0] = config.registers - 1  # the mask token takes part whatever was drawn
    null = torch.arange(b) == b - 1
    t = draw_noise_levels(b, schedule="mode", mode_scale=0.25, generator=draws)
    noise = torch.randn(latents.shape, generator=draws)
    level = t.view(-1, 1, 1, 1)
    registers, bias = tok.decoder.condition(quantized.x, keep, null)
    velocity = tok.decoder(level * noise + (1 - level) * latents, registers, bias, tok.decoder.modulate_items(t))
    return (velocity - (noise - latents)).square().mean()


def _flextok_step(tok: Any, data: Tensor) -> Tensor:
    side = tok.info.native_size[0] // tok.config.downsample * tok.config.patch
    x = torch.ones(data.shape[0], tok.config.latent_channels, side, side)
    return tok.velocity(x, torch.full((data.shape[0],), 0.5), data[:, :-1])


def _grid_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    """Vectors with channels first around a quantizer with channels last."""
    latents = tok.encode_latents(x) if hasattr(tok, "encode_latents") else tok.encoder(x)
    quantized = tok.quantizer(latents.permute(0, 2, 3, 1))
    vectors = quantized.x.permute(0, 3, 1, 2)
    y = tok.decode_latents(vectors) if hasattr(tok, "decode_latents") else tok.decoder(vectors)
    return _distance(x, y) + quantized.loss


def _grid_step(tok: Any, data: Tensor) -> Tensor:
    vectors = tok.quantizer.decode(data).permute(0, 3, 1, 2)
    return tok.decode_latents(vectors) if hasattr(tok, "decode_latents") else tok.decoder(vectors)


def _last_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    """Vectors with channels last."""
    quantized = tok.quantizer(tok.encode_latents(x))
    return _distance(x, tok.decode_latents(quantized.x)) + quantized.loss


def _elm_decode(tok: Any, vectors: Tensor) -> Tensor:
    return tok.decoder(tok.input_norm(vectors.permute(0, 3, 1, 2)))


def _elm_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    quantized = tok.quantizer(tok.encoder(x).permute(0, 2, 3, 1), generator=draws)
    return _distance(x, _elm_decode(tok, quantized.x)) + quantized.loss


def _bridge_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    """The autoencoder before its quantizer, which has nothing to train."""
    mean, logvar = tok.posterior(x)
    latents = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=draws)
    return _distance(x, tok.decode_latents((latents * tok.config.scaling_factor).permute(0, 2, 3, 1)))


def _titok_text(tok: Any, number: int) -> dict[str, Any]:
    shape = (tok.config.text_positions, tok.config.text_features)
    return {"text": torch.randn(shape, generator=torch.Generator().manual_seed(number))} if tok.config.text_positions else {}


def _titok_vectors(tok: Any, vectors: Tensor) -> Tensor:
    text = _titok_text(tok, 0).get("text")
    return tok.decode_vectors(vectors, text if text is None else text.expand(vectors.shape[0], -1, -1))


def _titok_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    if tok.quantizer is None:
        posterior = tok.posterior(x)
        return _distance(x, _titok_vectors(tok, posterior.sample(torch.randn(posterior.mean.shape, generator=draws))))
    quantized = tok.quantizer(tok.encode_vectors(x))
    return _distance(x, _titok_vectors(tok, quantized.x)) + quantized.loss


def _titok_step(tok: Any, data: Tensor) -> Tensor:
    return _titok_vectors(tok, data if tok.quantizer is None else tok.quantizer.decode(data))


def _seed_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    return tok.codebook_losses(x, torch.randn(len(x), tok.config.features, generator=draws)).total


def _dac_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    tok.model.quantizer.eval()  # no dropout of levels
    vectors, _, _, commitment, codebook = tok.model.quantizer(tok.encoder_chain().push(x, last=True))
    y = tok.decoder_chain().push(vectors, last=True)
    return _distance(x[..., : y.shape[2]], y) + (commitment + codebook).mean()


def _encodec_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    return _distance(x, tok.decoder_chain().push(tok.encoder_chain().push(x, last=True), last=True))


def _mimi_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    """The codebooks learn from running averages, so the loss goes around them."""
    latents, parts = tok.encoder_chain().push(x, last=True), tok.model.quantizer
    both = (parts.semantic_residual_vector_quantizer, parts.acoustic_residual_vector_quantizer)
    return _distance(x, tok.decoder_chain().push(sum(part.output_proj(part.input_proj(latents)) for part in both), last=True))


def _xcodec_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    """The codebooks learn from running averages, so the loss goes around them; the second decoder rebuilds the features."""
    vectors, model, features = tok.encode_vectors(x), tok.model, tok.semantic_features(x).detach()
    if tok.config.codebook_channels is not None:
        vectors = sum(layer.project_out(layer.project_in(vectors)) for layer in model.quantizer.quantizers)
    rebuilt = model.decoder_semantic(model.fc1(vectors).transpose(1, 2)).transpose(1, 2)
    return _distance(x, tok.decoder_chain().push(vectors.transpose(1, 2), last=True)) + _distance(features, rebuilt)


def _xcodec2_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    vectors = tok.model.quantizer(tok.encode_vectors(x))[0]
    return _distance(x, tok.decode_vectors(vectors)[..., : x.shape[2]])


def _snac_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    quantized = tok.quantizer(tok.encode_vectors(x))
    noise = PositionNoise([int(torch.randint(1 << 30, (), generator=draws))], device=x.device, dtype=x.dtype)
    return _distance(x, tok.decode_vectors(quantized.x, noise)) + quantized.loss


def _wave_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    quantized = tok.quantizer(tok.encode_vectors(tok._pad(x, tok._legal_size(tuple(x.shape[2:])))))
    return _distance(x, tok.decode_vectors(quantized.x)[..., : x.shape[2]]) + quantized.loss


def _speech_tokenizer_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    quantized = tok.quantizer(tok.encode_vectors(x))
    taught = tok.semantic_features(x)
    teacher = torch.randn(taught.shape, generator=draws)
    return _distance(x, tok.decode_vectors(quantized.x)[..., : x.shape[2]]) + quantized.loss + _distance(taught, teacher)


def _cosmos_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    x = tok._pad(x, tok._legal_size(tuple(x.shape[2:])))
    z = tok.encode_latents(x)
    return _distance(x, tok.decode_latents(z if tok.quantizer is None else tok.quantizer(z).x))


def _cvivit_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    quantized = tok.quantize(tok.encode_vectors(x))
    return _distance(x, tok.decode_vectors(quantized.x)) + quantized.loss


def _gaussian_video_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    x = tok._pad(x, tok._legal_size(tuple(x.shape[2:])))
    mean, logvar = tok.moments(x).chunk(2, -1)
    y = tok.decode_raw(mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=draws))
    return _distance(x, y) + 1e-4 * (mean.square() + logvar.exp() - logvar).mean()


def _vidtok_loss(tok: Any, x: Tensor, draws: torch.Generator) -> Tensor:
    x = tok._pad(x, tok._legal_size(tuple(x.shape[2:])))
    h = tok.moments(x)
    if tok.quantizer is not None:
        quantized = tok.quantizer(h)
        return _distance(x, tok.decode_vectors(quantized.x)) + quantized.loss
    mean, logvar = h.chunk(2, -1)
    return _distance(x, tok.decode_vectors(mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=draws)))


def _vidtok_step(tok: Any, data: Tensor) -> Tensor:
    return tok.decode_vectors(data if tok.quantizer is None else tok.quantizer.decode(data))


_CNN = dict(width=8, multipliers=(1, 2, 2), blocks=1, norm_groups=4, image_size=16)

SMALL: dict[str, Small] = {
    "autoencoder_kl": Small(
        config=lambda entry: dict(
            latent_channels=4, block_channels=(8, 16, 16), layers_per_block=1, norm_groups=4, image_size=16, scaling_factor=0.7
        ),
        loss=_kl_loss,
        step=lambda tok, data: tok.autoencoder.decode(data.permute(0, 3, 1, 2)),
    ),
    "dac": Small(
        config=lambda entry: dict(
            encoder_channels=4, strides=(2, 3) if entry["strides"][2] % 2 else (2, 4), latent_channels=8, decoder_channels=16,
            num_codebooks=3, codebook_size=16, codebook_channels=4,
        ),
        loss=_dac_loss,
        step=lambda tok, data: tok.decoder_chain().push(tok.lookup(data.transpose(1, 2)), last=True),
    ),
    "bigcodec": Small(
        config=lambda entry: dict(width=4, strides=(2, 3), channels=8, decoder_width=16, codebook_size=64, codebook_dim=4),
        loss=_wave_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
    ),
    "cogvideox_vae": Small(
        config=lambda entry: dict(
            latent_channels=4, scaling_factor=0.7, block_channels=(8, 8, 8, 16), layers_per_block=1, norm_groups=4, image_size=16
        ),
        loss=_gaussian_video_loss,
        step=lambda tok, data: tok.decode_latents(data),
    ),
    "cosmos": Small(
        config=lambda entry: dict(
            width=8, multipliers=(1, 2, 2), decoder_multipliers=(1, 2, 2)[: len(entry["decoder_multipliers"])], blocks=1,
            z_channels=4, image_size=16, latent_channels=4, levels=entry["levels"] and (8, 8, 5, 5),
        ),
        loss=_cosmos_loss,
        step=lambda tok, data: tok.decode_latents(data if tok.quantizer is None else tok.quantizer.decode(data)),
    ),
    "cvivit": Small(
        config=lambda entry: dict(
            width=16, codebook_size=64, codebook_channels=entry["codebook_channels"] and 4, image_size=(16, 16), patch=4,
            spatial_depth=1, temporal_depth=2, heads=2, head=8, time_window=entry["time_window"] and 3,
        ),
        loss=_cvivit_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
    ),
    "dc_ae": Small(
        config=lambda entry: dict(
            latent_channels=4, block_channels=(8, 16, 16), conv_resolutions=2, head_width=8, image_size=16,
            encoder_layers=(min(1, entry["encoder_layers"][0]), 1, 1), decoder_layers=(min(1, entry["decoder_layers"][0]), 1, 1),
            attention_kernels=(0, 0, entry["attention_kernels"][-1]), scaling_factor=0.7,
            **{name: (entry[name][0], entry[name][0], entry[name][-1]) for name in ("decoder_norms", "decoder_activations")},
        ),
        loss=lambda tok, x, draws: _distance(x, tok.autoencoder(x).sample),
        step=lambda tok, data: tok.autoencoder.decode(data.permute(0, 3, 1, 2)).sample,
    ),
    "elm": Small(
        config=lambda entry: dict(
            _CNN, bits=6, splits=(3, 3) if entry["splits"] else None, latent_channels=8, decoder_blocks=1, attention_sides=(4,)
        ),
        loss=_elm_loss,
        step=lambda tok, data: _elm_decode(tok, tok.quantizer.decode(data)),
    ),
    "encodec": Small(
        config=lambda entry: dict(
            sample_rate=60, width=4, strides=(3, 2), latent_channels=8, num_codebooks=16 if entry["normalize"] else 3,
            codebook_size=1024 if entry["normalize"] else 16, lstm_layers=1, chunk_samples=entry["chunk_samples"] and 60,
        ),
        loss=_encodec_loss,
        step=lambda tok, data: tok.decoder_chain().push(tok.lookup(data.transpose(1, 2)), last=True),
    ),
    "flextok": Small(
        config=lambda entry: dict(
            latent_channels=4, vae_channels=(8, 8), vae_layers=1, vae_groups=4, vae_scaling=0.7, grid=4, registers=6,
            encoder_width=16, encoder_depth=2, encoder_head=8, decoder_width=24, decoder_depth=2, decoder_head=12, time_features=16,
            steps=3, guidance=2.0, keep_sampling="uniform",
        ),
        loss=_flextok_loss,
        step=_flextok_step,
        frozen={"vae.": "the autoencoder is trained before and stays as it is"},
    ),
    "hunyuan_video_vae": Small(
        config=lambda entry: dict(
            latent_channels=4, scaling_factor=0.7, block_channels=(16, 16, 16), layers_per_block=1, norm_groups=4, image_size=16,
            window=8, window_stride=4,
        ),
        loss=_gaussian_video_loss,
        step=lambda tok, data: tok.decode_latents(data),
    ),
    "ibq": Small(
        config=lambda entry: dict(_CNN, codebook_size=64, latent_channels=8, z_channels=8, attention_sides=(4,)),
        loss=_grid_loss,
        step=_grid_step,
    ),
    "ltx_video_vae": Small(
        config=lambda entry: dict(
            latent_channels=4, blocks=(1,) * 5, decoder_blocks=(1,) * len(entry["decoder_blocks"]), patch=2, image_size=16,
            block_channels=(8, 8, 16, 16, 16)[: len(entry["block_channels"])],
            decoder_channels=(8, 16, 16, 16) if len(entry["up"]) == 4 else (8, 16, 32),
        ),
        loss=_gaussian_video_loss,
        step=lambda tok, data: tok.decode_latents(data),
        frozen={"vae.decoder.timestep_scale_multiplier": "it multiplies a timestep of zero"},
    ),
    "mar_kl": Small(
        config=lambda entry: dict(_CNN, latent_channels=4, encoder_attention=(2,), scaling_factor=0.7),
        loss=_bridge_loss,
        step=lambda tok, data: tok.decode_latents(data),
    ),
    "mimi": Small(
        config=lambda entry: dict(
            sample_rate=120, width=4, strides=(3, 2), latent_channels=8, num_codebooks=3, codebook_size=16, codebook_channels=4,
            layers=1, heads=2, mlp_width=16, window=5, layer_scale=0.5,
        ),
        loss=_mimi_loss,
        step=lambda tok, data: tok.decoder_chain().push(tok.lookup(data.transpose(1, 2)), last=True),
    ),
    "mochi_vae": Small(
        config=lambda entry: dict(
            latents_mean=(0.5, -0.2, 0.1, 0.0), latents_std=(1.5, 1.0, 0.7, 2.0), blocks=(1,) * 5, image_size=16,
            encoder_channels=(64,) * 4, decoder_channels=(64,) * 4,
        ),
        loss=_gaussian_video_loss,
        step=lambda tok, data: tok.decode_latents(data),
    ),
    "open_magvit2": Small(
        config=lambda entry: dict(_CNN, bits=6, splits=(2, 4) if entry["splits"] else None),
        loss=_grid_loss,
        step=_grid_step,
    ),
    "patch_codec": Small(
        config=lambda entry: dict(
            strides=(2, 3), widths=(4, 8), latent_channels=4, num_codebooks=1 if entry["levels"] else 3,
            codebook_size=60 if entry["levels"] else 16, levels=entry["levels"] and (5, 4, 3),
        ),
        loss=_wave_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
    ),
    "rqvae": Small(
        config=lambda entry: dict(
            _CNN, codebook_sizes=(32,) * len(entry["codebook_sizes"]), latent_channels=8, z_channels=8, attention_sides=(4,)
        ),
        loss=_last_loss,
        step=lambda tok, data: tok.decode_latents(tok.quantizer.decode(data)),
    ),
    "seed": Small(
        config=lambda entry: dict(
            image_size=16, patch=4, vision_width=16, vision_depth=2, vision_heads=2, queries=6, width=24, depth=2, heads=2,
            mlp_width=32, channels=4, codebook_size=64, block_depth=1, block_heads=2, features=8,
        ),
        loss=_seed_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
        frozen=dict.fromkeys(("vision", "queries", "qformer"), "the codebook is trained on finished causal embeddings"),
        embedding=8,
    ),
    "snac": Small(
        config=lambda entry: dict(
            encoder_width=16 if entry["attention_window"] else 4, encoder_strides=(2, 3), decoder_width=64, decoder_strides=(3, 2),
            attention_window=entry["attention_window"] and 16, codebook_size=64, codebook_dim=4,
        ),
        loss=_snac_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
    ),
    "speech_tokenizer": Small(
        config=lambda entry: dict(
            width=4, strides=(3, 2), channels=8, semantic_channels=6, codebook_size=32, num_codebooks=min(4, entry["num_codebooks"])
        ),
        loss=_speech_tokenizer_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
    ),
    "ssl_kmeans": Small(
        config=lambda entry: dict(
            layer=2, codebook_size=entry["codebook_size"] // 500 * 16, width=8, heads=2, mlp_width=16, conv_channels=(8, 8),
            conv_kernels=(5, 2), conv_strides=(5, 2), position_kernel=4, position_groups=2, buckets=8, max_distance=20,
        ),
        loss=lambda tok, x, draws: tok.quantizer(tok.features(x)).loss,
        step=lambda tok, data: tok.quantizer.decode(data),
        frozen={"network.": "the centroids are those of finished features"},
        embedding=8,
        each_position=True,
    ),
    "titok": Small(
        config=lambda entry: dict(
            image_size=16, patch=4, latent_tokens=6, channels=4, codebook_size=64,
            encoder_width=16, encoder_depth=2, encoder_heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2,
            text_positions=3 if entry["text_positions"] else 0, text_features=8, proxy_codes=32, proxy_channels=8,
            pixel_width=32, pixel_multipliers=(1, 1, 1), pixel_blocks=1,
        ),
        loss=_titok_loss,
        step=_titok_step,
        options=_titok_text,
    ),
    "tokenbridge": Small(
        config=lambda entry: dict(
            _CNN, latent_channels=4, encoder_attention=(2,), levels=(8,) * min(4, len(entry["levels"])),
            centre=(0.0,), spread=(2.0,),
        ),
        loss=_bridge_loss,
        step=lambda tok, data: tok.decode_latents(tok.quantizer.decode(data)),
    ),
    "vidtok": Small(
        config=lambda entry: dict(
            width=8, multipliers=(2, 2, 3, 3), blocks=1, image_size=16, space_down=(0, 1, 2), space_up=(1, 2, 3),
            time_down=(1, 2) if len(entry["time_down"]) == 2 else entry["time_down"],
            latent_channels=4, levels=entry["levels"] and (8, 8, 8, 8),
        ),
        loss=_vidtok_loss,
        step=_vidtok_step,
    ),
    "wan_vae": Small(
        config=lambda entry: dict(
            latents_mean=(0.5, -0.2, 0.1, 0.0), latents_std=(1.5, 1.0, 0.7, 2.0), width=8, blocks=1, image_size=16,
            decoder_width=entry["decoder_width"] and 12, multipliers=(1, 2, 2, 2),
        ),
        loss=_gaussian_video_loss,
        step=lambda tok, data: tok.decode_latents(data),
    ),
    "wavtokenizer": Small(
        config=lambda entry: dict(
            width=4, strides=(3, 2), channels=8, codebook_size=64, decoder_width=8, mlp_width=12, blocks=2, norm_groups=2
        ),
        loss=_wave_loss,
        step=lambda tok, data: tok.decode_vectors(tok.quantizer.decode(data)),
    ),
    "xcodec": Small(
        config=lambda entry: dict(
            sample_rate=90 if entry["codebook_channels"] else 60, semantic_sample_rate=60, semantic_padding=3,
            **dict.fromkeys(("strides", "decoder_strides"), (3, 3, 2) if entry["codebook_channels"] else (3, 2)),
            encoder_channels=4, decoder_channels=16, latent_channels=6, num_codebooks=3, codebook_size=16,
            codebook_channels=entry["codebook_channels"] and 4, width=8, layers=2, heads=2, mlp_width=16, conv_channels=(8, 8),
            conv_kernels=(4, 2), conv_strides=(3, 2), position_kernel=4, position_groups=2, buckets=8, max_distance=20,
        ),
        loss=_xcodec_loss,
        step=lambda tok, data: tok.decoder_chain().push(tok.lookup(data).transpose(1, 2), last=True),
        frozen={"model.semantic_model.": "the speech model is finished before and stays as it is"},
    ),
    "xcodec2": Small(
        config=lambda entry: dict(
            encoder_channels=4, strides=(16, 20), levels=(4, 4, 4), width=64, layers=1, heads=2, head=8, mlp_width=16,
            semantic_width=8, semantic_layers=1, semantic_heads=2, semantic_mlp_width=16, semantic_kernel=3,
        ),
        loss=_xcodec2_loss,
        step=lambda tok, data: tok.decode_vectors(tok.lookup(data)),
        frozen={"model.semantic_encoder.": "the speech model is finished before and stays as it is"},
    ),
}  # fmt: skip


# -- the cases ---------------------------------------------------------------------------------------------------------------------


def _overrides(entry: Entry) -> dict[str, Any]:
    from zoo.loading import family_class

    if entry.family not in SMALL:
        raise KeyError(
            f"{entry.name}: the family {entry.family!r} has no small form. Add it to SMALL in tests/contract/small.py: config, "
            "loss and step, as the text at the top of that file says."
        )
    config = family_class(entry.family).Config.from_dict(entry.config)
    return SMALL[entry.family].config({name: getattr(config, name) for name in config.to_dict()})


def cases() -> dict[str, list[str]]:
    """One entry of each kind, with all the entries whose small form is the same; a family without one is a case of its own."""
    kinds: dict[str, list[str]] = {}
    for entry in zoo.find():
        if entry.family not in SMALL:
            kinds.setdefault(entry.family, []).append(entry.name)
            continue
        from zoo.loading import family_class

        cls = family_class(entry.family)
        config = cls.Config.from_dict({**cls.Config.from_dict(entry.config).to_dict(), **_overrides(entry)})
        kinds.setdefault(f"{entry.family} {config}", []).append(entry.name)
    return {names[0]: names for names in kinds.values()}


def built(name: str) -> Tokenizer:
    """Build the small form of an entry in evaluation mode; what training starts at zero is not zero here."""
    torch.manual_seed(0)
    tok = zoo.create(name, info_name=f"small_{name}", **_overrides(zoo.info(name))).eval().requires_grad_(False)
    for parameter in tok.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return tok
