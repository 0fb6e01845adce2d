"""TokenBridge: the latents of a continuous autoencoder, each channel rounded on its own after training.

Paper: Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation", arXiv 2503.16430. Source
repository: YuqingWang1029/TokenBridge, commit 3ede281 (code MIT; the licence of the weights is not stated). The autoencoder is the
KL-16 of "Autoregressive Image Generation without Vector Quantization" (MAR), arXiv 2406.11838. Checked against
tests/parity/tokenbridge: codes equal, tensors to 1e-4.

    picture -> encoder -> 1x1 -> mean, log variance -> mean or sample, x 0.2325 -> one code for each of 16 channels
    codes -> values -> / 0.2325 -> 1x1 -> decoder -> picture

The 16 codes of a position have 64 values each and no order of importance: depth cannot be cut. The published numbers sample the
posterior (`encode(x, sample=True)`). Nothing is trained, so any autoencoder of pictures with a grid of latents serves:
`TokenBridge.on(zoo.load("kl_vae_nano"))`. `python -m eval.tokenbridge_bins` measures what the number of bins costs.
"""

import json
import logging
from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.kl16_sizes import kl16_sizes
from zoo.layers.kl_vae import KLAutoencoder
from zoo.layers.vqgan import Decoder, Encoder
from zoo.quantizers.dimension_wise import DimensionWise, calibrate
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["TokenBridge", "TokenBridgeConfig", "frequency_order"]

logger = logging.getLogger(__name__)
_LOGVAR = (-30.0, 20.0)
Network = Literal["kl16", "diffusers", "zoo"]


@dataclass(frozen=True, kw_only=True)
class TokenBridgeConfig(Config):
    """Sizes of the autoencoder and cells of the quantizer; the defaults are the published ones.

    `levels`, `centre` and `spread` hold one number for all channels or one for each; `zoo.quantizers.dimension_wise` measures them
    on latents (`calibrate`, `allocate_bits`).

    Attributes:
        network: "kl16", that of MAR's release; "diffusers", an AutoencoderKL (`zoo.layers.kl_vae`); or "zoo", another family of
            autoencoders here, whose scale and shift are its own.
        latent_channels: channels of the latents, and codes of one position.
        scaling_factor: on the latents, so that their deviation is about 1.
        shift_factor: subtracted before that.
        block_channels: of "diffusers": width of each level, fine to coarse.
        quant_convs: of "diffusers": 1x1 convolutions around the latents.
        vae_family: of "zoo": name of the family.
        vae_config: of "zoo": its configuration as JSON text.
        width: of "kl16": channels of the finest level before its multiplier.
        multipliers: of "kl16": width of each level over `width`, fine to coarse; the encoder divides sides by 2 ** (levels - 1).
        blocks: residual blocks of each encoder level; the decoder has one more.
        encoder_attention: of "kl16": levels of the encoder with attention, 0 is the finest.
        decoder_attention: of "kl16": levels of the decoder with attention.
        norm_groups: groups of the group norms.
        image_size: side the model was trained at; others work too.
        levels: values that a channel can take.
        centre: of the range of values.
        spread: scaled latents over it are rounded as a standard normal variable.
        reach: limit of that variable; the range of values lies inside centre +- reach * spread.
    """

    network: Network = "kl16"
    latent_channels: int = 16
    scaling_factor: float = 0.2325
    shift_factor: float = 0.0
    block_channels: tuple[int, ...] = ()
    quant_convs: bool = True
    vae_family: str = ""
    vae_config: str = ""
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    encoder_attention: tuple[int, ...] = (4,)
    decoder_attention: tuple[int, ...] = ()
    norm_groups: int = 32
    image_size: int = 256
    levels: tuple[int, ...] = (64,)
    centre: tuple[float, ...] = (0.0,)
    spread: tuple[float, ...] = (5 / 3,)
    reach: float = 3.0

    def __post_init__(self) -> None:
        self.require(self.network in get_args(Network), "network", ", ".join(get_args(Network)))
        for name in ("latent_channels", "width", "blocks", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        self.require(len(self.multipliers) >= 1 and min(self.multipliers) >= 1, "multipliers", "one or more numbers of at least 1")
        self.require(
            all(self.width * m % self.norm_groups == 0 for m in (1, *self.multipliers)), "width", "multiples of norm_groups"
        )
        own = self.network == "diffusers"
        self.require(bool(self.block_channels) == own, "block_channels", "widths for network 'diffusers', none for the others")
        fitting = all(c >= 1 and c % self.norm_groups == 0 for c in self.block_channels)
        self.require(fitting, "block_channels", "multiples of norm_groups")
        for name in ("encoder_attention", "decoder_attention"):
            known = range(len(self.multipliers))
            self.require(all(level in known for level in getattr(self, name)), name, f"levels in 0..{len(known) - 1}")
        wrapped = self.network == "zoo"
        self.require(bool(self.vae_family) == wrapped, "vae_family", "a family for network 'zoo', empty for the others")
        self.require(bool(self.vae_config) == wrapped, "vae_config", "JSON text for network 'zoo', empty for the others")
        self.require(wrapped or self.image_size % self.downsample == 0, "image_size", f"a multiple of {self.downsample}")
        for name in ("levels", "centre", "spread"):
            allowed = (1, self.latent_channels)
            self.require(len(getattr(self, name)) in allowed, name, f"one number, or {self.latent_channels} of them")
        self.require(all(1 <= level <= 1024 for level in self.levels), "levels", "1..1024")
        self.require(all(value > 0 for value in self.spread), "spread", "positive numbers")
        self.require(self.reach > 0, "reach", "a positive number")

    @property
    def downsample(self) -> int:
        """Pixels over positions, of "kl16" and "diffusers"."""
        return 2 ** (len(self.block_channels or self.multipliers) - 1)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Values of each channel."""
        return self.levels if len(self.levels) == self.latent_channels else self.levels * self.latent_channels


class TokenBridge(Tokenizer):
    """Pictures to codes `(b, h / f, w / f, channels)` and back; any size."""

    family = "tokenbridge"
    Config = TokenBridgeConfig

    def __init__(self, config: TokenBridgeConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        channels = config.latent_channels
        if config.network == "diffusers":
            self.autoencoder = KLAutoencoder(
                latent_channels=channels,
                scaling_factor=config.scaling_factor,
                shift_factor=config.shift_factor,
                block_channels=config.block_channels,
                layers_per_block=config.blocks,
                norm_groups=config.norm_groups,
                quant_convs=config.quant_convs,
            )
        elif config.network == "zoo":
            family, of = _vae_of(config)
            self.vae = family(of)
        else:
            sizes: dict[str, Any] = dict(width=config.width, multipliers=config.multipliers, groups=config.norm_groups)
            self.encoder = Encoder(channels_out=2 * channels, blocks=config.blocks, attention=config.encoder_attention, **sizes)
            self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
            self.post_quant_conv = nn.Conv2d(channels, channels, 1)
            self.decoder = Decoder(channels_in=channels, blocks=config.blocks + 1, attention=config.decoder_attention, **sizes)
        self.quantizer = DimensionWise(
            dim=channels,
            levels=config.vocabulary,
            centre=config.centre[0] if len(config.centre) == 1 else config.centre,
            spread=config.spread[0] if len(config.spread) == 1 else config.spread,
            reach=config.reach,
        )

    @classmethod
    def on(
        cls,
        vae: Tokenizer,
        *,
        bins: int = 64,
        limit: float = 5.0,
        reach: float = 3.0,
        latents: Tensor | None = None,
        name: str | None = None,
    ) -> Self:
        """Round the latents of an autoencoder of this zoo; it keeps its weights, which are copied.

        Args:
            vae: a tokenizer of pictures that gives a grid of latents: `zoo.find(modality="image", layout="2d", discrete=False)`.
            bins: values that a channel can take, 2..1024.
            limit: scaled latents are rounded inside +-limit.
            reach: see `TokenBridgeConfig`.
            latents: scaled latents `(..., c)` as `vae.encode(x).data` gives them; each channel is then rounded around its
                own mean on them, inside +-limit of its own deviations.
            name: of the new tokenizer; None appends `_{bins}bins` to the name of `vae`.

        Raises:
            TypeError: `vae` does not give a grid of latents.
            ValueError: a number outside its range, or latents of another width.
        """
        entry = vae.info
        channels = entry.channels
        if channels is None or (entry.modality, entry.layout) != ("image", "2d"):
            raise TypeError(
                f"TokenBridge.on: vae is a {type(vae).__name__}. Needed: a tokenizer of pictures that gives a grid of latents; "
                '`zoo.find(modality="image", layout="2d", discrete=False)` lists them.'
            )
        if not isinstance(bins, int) or isinstance(bins, bool) or not 2 <= bins <= 1024:
            raise ValueError(f"TokenBridge.on: bins={bins!r}. Allowed: 2..1024.")
        if not (limit > 0 and reach > 0):
            raise ValueError(f"TokenBridge.on: limit={limit}, reach={reach}. Allowed: positive numbers.")
        centre: tuple[float, ...] = (0.0,)
        spread: tuple[float, ...] = (limit / reach,)
        if latents is not None:
            if latents.shape[-1] != channels:
                raise ValueError(f"TokenBridge.on: latents have shape {tuple(latents.shape)}. Needed: (..., {channels}).")
            centre, deviation = calibrate(latents)
            spread = tuple(limit / reach * value for value in deviation)
        config = TokenBridgeConfig(
            latent_channels=channels, levels=(bins,), centre=centre, spread=spread, reach=reach, **_network_of(vae)
        )
        info = Entry(
            name=name or f"{entry.name}_{bins}bins",
            family=cls.family,
            summary=f"{entry.name} with each channel rounded to {bins} values.",
            config=config.to_dict(),
            **cls.layout_of(config),
        )
        inherited = ("trained_on", "training_pack", "license_code", "license_weights", "notice", "paper", "source", "parameters")
        tokenizer = cls(config, replace(info, **{key: getattr(entry, key) for key in inherited}))
        if config.network == "zoo":
            tokenizer.vae.load_state_dict(vae.state_dict())
        else:
            tokenizer.autoencoder.load_state_dict(vae.autoencoder.state_dict())
        return tokenizer.to(device=vae.device, dtype=vae.dtype).eval().requires_grad_(False)

    @classmethod
    def layout_of(cls, config: TokenBridgeConfig) -> dict[str, Any]:
        if config.network == "zoo":
            return _layout_of_vae(config)
        factor, side = config.downsample, config.image_size
        positions = (side // factor) ** 2
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": True,
            "tokens": positions,
            "depth": config.latent_channels,
            "codebook_size": max(config.vocabulary),
            "vocabulary": config.vocabulary,
            "native_size": (side, side),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
            "bits_per_pixel": positions * sum(map(log2, config.vocabulary)) / side**2,
            "stochastic_encode": True,
        }

    # -- the steps between pictures and codes --------------------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(b, c, h / f, w / f)` of the unscaled latents of `x (b, 3, h, w)`.

        Raises:
            ValueError: the autoencoder is of another family, which may have no posterior; `encode_latents` works.
        """
        if self.config.network == "zoo":
            raise ValueError(f"{self.info.name}.posterior: that of {self.config.vae_family} is not known here. Use encode_latents.")
        if self.config.network == "diffusers":
            distribution = self.autoencoder.posterior(x)
            return distribution.mean, distribution.logvar
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return mean, logvar.clamp(*_LOGVAR)

    def encode_latents(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents `(b, h / f, w / f, c)`, float32: the mean, or a sample where a generator is given."""
        if self.config.network == "zoo":
            return self.vae._encode(x, tokens=None, depth=None, generator=generator).float()
        mean, logvar = self.posterior(x)
        latents = mean.float()
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=torch.float32)
            latents = latents + (logvar.float() / 2).exp() * noise
        return ((latents - self.config.shift_factor) * self.config.scaling_factor).permute(0, 2, 3, 1)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Pictures `(b, 3, h, w)` of scaled latents `(b, h / f, w / f, c)`, rounded or not."""
        if self.config.network == "zoo":
            _, fy, fx = self.vae.info.downsample
            size = (z.shape[1] * fy, z.shape[2] * fx)
            return self.vae._decode(Tokens(z.to(self.dtype), self.vae.spec, [size] * len(z)), size)
        latents = z.to(self.dtype).permute(0, 3, 1, 2).contiguous()
        if self.config.network == "diffusers":
            return self.autoencoder.decode(latents)
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor + self.config.shift_factor))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_latents(x, generator))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_latents(self.quantizer.decode(tokens.data))

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TokenBridgeConfig:
        """Read the sizes in the tensors; the release has no configuration file, so every key of `config` is optional.

        `latent_scale`, `quant_bits`, `quant_min`, `quant_max`, `std_range` and `resolution` have the published values where they
        are missing; `fixture_extra_scale` multiplies the first, and `tiny_overrides` may hold the last.

        Raises:
            ValueError: tensors of another network, an autoencoder without a posterior, or a range that is empty.
        """
        if config.get("use_variational", True) is not True:
            raise ValueError(f"tokenbridge: use_variational={config['use_variational']!r}. This implementation knows: True.")
        unknown = sorted(key for key in config if key not in _KEYS)
        if unknown:
            logger.warning("tokenbridge: keys of the configuration that are not known and not used: %s", ", ".join(unknown))
        low, high = config.get("quant_min", -5.0), config.get("quant_max", 5.0)
        reach = config.get("std_range", 3.0)
        if not (low < high and reach > 0):
            raise ValueError(f"tokenbridge: quant_min={low}, quant_max={high}, std_range={reach}. Needed: min < max, reach > 0.")
        sizes = {**config, **(config.get("tiny_overrides") or {})}
        return TokenBridgeConfig.from_dict(
            {
                **kl16_sizes(shapes, family="tokenbridge"),
                "scaling_factor": config.get("latent_scale", 0.2325) * config.get("fixture_extra_scale", 1.0),
                "image_size": sizes.get("resolution", 256),
                "levels": [2 ** config.get("quant_bits", 6)],
                "centre": [(low + high) / 2],
                "spread": [(high - low) / 2 / reach],
                "reach": reach,
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: TokenBridgeConfig) -> dict[str, Tensor]:
        """Names are the same; what belongs to the loss of the autoencoder's training is left out."""
        return {key: value for key, value in tensors.items() if not key.startswith("loss.")}


def frequency_order(latents: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Order channels for a model that predicts them one by one: those of large structures first.

    Args:
        latents: `(b, h, w, c)` of many pictures.

    Returns:
        the channels, and for each channel (in its own place) the share of its energy below half of the highest frequency, by which
        they are ordered, largest first. The channel's mean over all latents is not counted.

    Source: TokenBridge, section on the order of dimensions. Its code holds only the resulting constant for KL-16; this measure is
    our reading of the text.
    """
    h, w = latents.shape[1:3]
    planes = latents.detach().double().permute(3, 0, 1, 2)
    planes = planes - planes.mean((1, 2, 3), keepdim=True)
    energy = torch.fft.fft2(planes).abs().square().mean(1)
    fy, fx = torch.fft.fftfreq(h, dtype=torch.float64), torch.fft.fftfreq(w, dtype=torch.float64)
    low = (fy.square()[:, None] + fx.square() <= 0.25**2).to(energy.device)
    share = (energy * low).sum((1, 2)) / energy.sum((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    return tuple(share.argsort(descending=True, stable=True).tolist()), tuple(share.tolist())


def _network_of(vae: Tokenizer) -> dict[str, Any]:
    """Fields of the configuration that build the network of `vae`."""
    of: Any = vae.config
    if not isinstance(getattr(vae, "autoencoder", None), KLAutoencoder):
        text = json.dumps(of.to_dict())
        return dict(network="zoo", vae_family=vae.family, vae_config=text, scaling_factor=1.0, image_size=vae.info.native_size[0])
    return dict(
        network="diffusers",
        scaling_factor=of.scaling_factor,
        shift_factor=of.shift_factor,
        block_channels=of.block_channels,
        blocks=of.layers_per_block,
        norm_groups=of.norm_groups,
        quant_convs=of.quant_convs,
        image_size=of.image_size,
    )


def _vae_of(config: TokenBridgeConfig) -> tuple[type[Tokenizer], Config]:
    """Class and configuration of the autoencoder of network "zoo", by the table of families."""
    from zoo.loading import family_class

    family = family_class(config.vae_family)
    return family, family.Config.from_dict(json.loads(config.vae_config))


def _layout_of_vae(config: TokenBridgeConfig) -> dict[str, Any]:
    family, of = _vae_of(config)
    layout = {key: value for key, value in family.layout_of(of).items() if key != "channels"}
    bits = layout["tokens"] * sum(map(log2, config.vocabulary)) / prod(layout["native_size"])
    return {
        **layout,
        "discrete": True,
        "depth": config.latent_channels,
        "codebook_size": max(config.vocabulary),
        "vocabulary": config.vocabulary,
        "bits_per_pixel": bits,
    }


_KEYS = (
    *("latent_scale", "fixture_extra_scale", "quant_bits", "quant_min", "quant_max", "std_range", "resolution", "tiny_overrides"),
    *("use_variational", "embed_dim", "ch_mult", "source", "commit"),
)
