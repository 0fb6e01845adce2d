"""IBQ: pictures as a grid of codes of one very large codebook, all of whose entries learn at every step.

Paper: "Scalable Image Tokenization with Index Backpropagation Quantization", arXiv 2412.02692. Source repository:
TencentARC/SEED-Voken, commit b9a17ea (Apache-2.0). Checked against tests/parity/ibq: codes equal, tensors to 1e-4.

    picture -> VQGAN encoder -> 1x1 -> code with the largest inner product
    codes -> codebook -> 1x1 -> VQGAN decoder -> picture

How this differs from the original, with the same numbers: the table of vectors x codes (4 GB of it for a batch of sixteen pictures
and the largest codebook, several times over in training) exists for a few hundred vectors at a time.
"""

from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.ema_weights import averaged_weights
from zoo.layers.vqgan import Decoder, Encoder
from zoo.quantizers.ibq import IBQ as IBQQuantizer
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["IBQ", "IBQConfig"]


@dataclass(frozen=True, kw_only=True)
class IBQConfig(Config):
    """Sizes of the tokenizer; the defaults are those of the public model with 16384 codes.

    Attributes:
        codebook_size: entries of the codebook.
        latent_channels: channels of a code, between the two 1x1 convolutions.
        z_channels: channels at the end of the encoder and the start of the decoder.
        width: channels of the finest level before its multiplier.
        multipliers: width of each level over `width`, fine to coarse; the downsampling is 2 ** (len - 1).
        blocks: residual blocks of each encoder level; the decoder has one more.
        attention_sides: levels with this side at `image_size` have attention, in encoder and decoder.
        norm_groups: groups of the group norms; divides every width.
        dropout: inside the residual blocks, in training.
        image_size: side the weights were trained at.
        commitment_weight, entropy_weight, sample_weight, batch_weight, temperature: of the quantizer's loss in training.
    """

    codebook_size: int = 16384
    latent_channels: int = 256
    z_channels: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 4
    attention_sides: tuple[int, ...] = (16,)
    norm_groups: int = 32
    dropout: float = 0.0
    image_size: int = 256
    commitment_weight: float = 0.25
    entropy_weight: float = 0.05
    sample_weight: float = 1.0
    batch_weight: float = 1.0
    temperature: float = 0.01

    def __post_init__(self) -> None:
        for name in ("codebook_size", "latent_channels", "z_channels", "width", "blocks", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("commitment_weight", "entropy_weight", "sample_weight", "batch_weight"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(self.temperature > 0, "temperature", "a positive number")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")
        self.require(len(self.multipliers) >= 1, "multipliers", "at least one level")
        self.require(min(self.multipliers) >= 1, "multipliers", "multipliers of at least 1")
        self.require(self.width % self.norm_groups == 0, "width", "a multiple of norm_groups")

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """Levels with attention, 0 the finest."""
        sides = [self.image_size // 2**level for level in range(len(self.multipliers))]
        return tuple(level for level, side in enumerate(sides) if side in self.attention_sides)


class IBQ(Tokenizer):
    """Pictures to codes `(b, h / f, w / f, 1)` and back; any size."""

    family = "ibq"
    Config = IBQConfig

    def __init__(self, config: IBQConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        sizes = {
            "width": config.width,
            "multipliers": config.multipliers,
            "attention": config.attention_levels,
            "groups": config.norm_groups,
            "dropout": config.dropout,
        }
        self.encoder = Encoder(channels_out=config.z_channels, blocks=config.blocks, **sizes)
        self.quant_conv = nn.Conv2d(config.z_channels, config.latent_channels, 1)
        self.quantizer = IBQQuantizer(
            dim=config.latent_channels,
            codebook_size=config.codebook_size,
            commitment_weight=config.commitment_weight,
            entropy_weight=config.entropy_weight,
            sample_weight=config.sample_weight,
            batch_weight=config.batch_weight,
            temperature=config.temperature,
        )
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_channels, 1)
        self.decoder = Decoder(channels_in=config.z_channels, blocks=config.blocks + 1, **sizes)

    @classmethod
    def layout_of(cls, config: IBQConfig) -> dict[str, Any]:
        factor = 2 ** (len(config.multipliers) - 1)
        grid = -(-config.image_size // factor)
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": True,
            "tokens": grid**2,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "native_size": (config.image_size, config.image_size),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
            "bits_per_pixel": grid**2 * log2(config.codebook_size) / config.image_size**2,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> IBQConfig:
        """Read the training configuration of the release: `class_path` and `init_args`, alone or under `model`.

        Raises:
            ValueError: another class, a key that is missing, or a value that this family does not cover.
        """
        model = config.get("model", config)
        arguments = model.get("init_args") if isinstance(model, dict) else None
        if not isinstance(arguments, dict) or not isinstance(arguments.get("ddconfig"), dict):
            raise ValueError("ibq: the configuration has no 'init_args' with a 'ddconfig'. Is it that of IBQ?")
        kind = str(model.get("class_path", "IBQ")).rpartition(".")[2]
        if kind != "IBQ":
            raise ValueError(f"ibq: the configuration is of class {kind!r}. Needed: 'IBQ'.")
        network = arguments["ddconfig"]
        missing = [key for key in ("z_channels", "ch", "ch_mult", "num_res_blocks", "resolution") if key not in network]
        missing += [key for key in ("n_embed", "embed_dim") if key not in arguments]
        if missing:
            raise ValueError(f"ibq: the configuration has no {', '.join(missing)}. Is it that of IBQ?")
        for place, key, only in (
            (network, "in_channels", 3),
            (network, "out_ch", 3),
            (network, "double_z", False),
            (arguments, "l2_normalize", False),
        ):
            if place.get(key, only) != only:
                raise ValueError(f"ibq: {key}={place[key]!r} in the configuration. This implementation knows: {only!r}.")
        values = {
            "codebook_size": arguments["n_embed"],
            "latent_channels": arguments["embed_dim"],
            "z_channels": network["z_channels"],
            "width": network["ch"],
            "multipliers": network["ch_mult"],
            "blocks": network["num_res_blocks"],
            "attention_sides": network.get("attn_resolutions", []),
            "dropout": network.get("dropout", 0.0),
            "image_size": network["resolution"],
            "commitment_weight": arguments.get("beta", 0.25),
            "sample_weight": arguments.get("sample_minimization_weight", 1.0),
            "batch_weight": arguments.get("batch_maximization_weight", 1.0),
            "temperature": arguments.get("entropy_temperature", 0.01),
        }
        if not arguments.get("use_entropy_loss", True):
            values["entropy_weight"] = 0.0
        return IBQConfig.from_dict(values)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: IBQConfig) -> dict[str, Tensor]:
        """Take the averaged weights where the checkpoint has them; the discriminator is left out.

        Raises:
            ValueError: averages of a part of the weights only.
        """
        weights = averaged_weights(tensors, name="ibq")
        return {"quantizer.codebook" if key == "quantize.embedding.weight" else key: value for key, value in weights.items()}

    # -- pieces for training and research ----------------------------------------------------------------------------------------

    def encode_latents(self, x: Tensor) -> Tensor:
        """Give the vectors that are quantized, `(b, latent_channels, h / f, w / f)`, of pictures."""
        return self.quant_conv(self.encoder(x))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Give pictures of quantized vectors `(b, latent_channels, h, w)`."""
        return self.decoder(self.post_quant_conv(latents))

    # -- the contract --------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_latents(x).permute(0, 2, 3, 1))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        latents = self.quantizer.decode(tokens.data).to(self.dtype)
        return self.decode_latents(latents.permute(0, 3, 1, 2).contiguous())
