"""RQ-VAE: a grid of positions, each coded by a stack of residual codes; every prefix of the stack decodes.

Paper: Lee et al., "Autoregressive Image Generation using Residual Quantization", arXiv 2203.01941 (CVPR 2022). Source repository:
kakaobrain/rq-vae-transformer, commit 341395e (code Apache-2.0; weights CC-BY-NC-SA-4.0, no commercial use). Checked against
tests/parity/rqvae: codes equal, tensors to 1e-4.

    picture -> encoder -> 1x1 -> [fold s x s positions into one] -> residual codes, coarsest first, sharing one codebook or not
    codes[..., :d] -> sum of their vectors -> [unfold] -> 1x1 -> decoder -> picture

How this differs from the original, with the same numbers: a codebook that all depths share is stored once; the padding row of
the public codebooks, which no vector ever chooses, is left out; pictures of any size.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoo.checkpoint import load_strict, read_tensors
from zoo.config import Config
from zoo.layers.vqgan import Decoder, Encoder
from zoo.quantizers.rvq import RVQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["RQVAE", "RQVAEConfig"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(Config):
    """Sizes of an RQ-VAE; the defaults are those of the public ImageNet model.

    Attributes:
        codebook_sizes: entries of the codebook of each depth, coarsest first.
        shared_codebook: one codebook serves all depths.
        latent_channels: channels between the 1x1 convolutions.
        fold: s; s x s positions of the encoder share one stack of codes, with s * s * latent_channels channels.
        z_channels: channels at the end of the encoder and the start of the decoder.
        width: channels of the finest level before its multiplier.
        multipliers: width of each level over `width`, fine to coarse; the encoder divides sides by 2 ** (levels - 1).
        blocks: residual blocks of each encoder level; the decoder has one more.
        attention_sides: levels with this side at `image_size` have attention, in encoder and decoder.
        norm_groups: groups of the group norms.
        dropout: inside the residual blocks, in training.
        image_size: side the model was trained at; others work too.
        commitment_weight: weight of the commitment in the quantizer's loss.
        decay: of the codebooks' running averages.
        restart_codes: in training, codes that fall out of use restart at vectors of the batch.
    """

    codebook_sizes: tuple[int, ...] = (16384, 16384, 16384, 16384)
    shared_codebook: bool = True
    latent_channels: int = 256
    fold: int = 1
    z_channels: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    blocks: int = 2
    attention_sides: tuple[int, ...] = (8,)
    norm_groups: int = 32
    dropout: float = 0.0
    image_size: int = 256
    commitment_weight: float = 0.25
    decay: float = 0.99
    restart_codes: bool = True

    def __post_init__(self) -> None:
        for name in ("latent_channels", "fold", "z_channels", "width", "blocks", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("codebook_sizes", "multipliers"):
            values = getattr(self, name)
            self.require(len(values) >= 1 and min(values) >= 1, name, "one or more numbers of at least 1")
        self.require(
            not self.shared_codebook or len(set(self.codebook_sizes)) == 1, "codebook_sizes", "equal sizes with shared_codebook"
        )
        self.require(
            all(self.width * m % self.norm_groups == 0 for m in (1, *self.multipliers)), "width", "multiples of norm_groups"
        )
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")
        self.require(self.commitment_weight >= 0, "commitment_weight", "0 or more")
        self.require(0 <= self.decay <= 1, "decay", "0..1")
        self.require(self.image_size % self.downsample == 0, "image_size", f"a multiple of {self.downsample}")

    @property
    def depth(self) -> int:
        """Codes of one position."""
        return len(self.codebook_sizes)

    @property
    def downsample(self) -> int:
        """Pixels over positions."""
        return self.fold * 2 ** (len(self.multipliers) - 1)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """Levels whose side at `image_size` is in `attention_sides`."""
        return tuple(i for i in range(len(self.multipliers)) if self.image_size // 2**i in self.attention_sides)


class RQVAE(Tokenizer):
    """Pictures to codes `(b, h / f, w / f, depth)` and back, at any depth up to the full one; any size."""

    family = "rqvae"
    Config = RQVAEConfig

    def __init__(self, config: RQVAEConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        sizes: dict[str, Any] = dict(
            width=config.width,
            multipliers=config.multipliers,
            attention=config.attention_levels,
            groups=config.norm_groups,
            dropout=config.dropout,
        )
        self.encoder = Encoder(channels_out=config.z_channels, blocks=config.blocks, **sizes)
        self.quant_conv = nn.Conv2d(config.z_channels, config.latent_channels, 1)
        self.quantizer = RVQ(
            dim=config.latent_channels * config.fold**2,
            codebook_size=config.codebook_sizes,
            num_codebooks=config.depth,
            shared=config.shared_codebook,
            update_order="per_depth",
            commitment_weight=config.commitment_weight,
            decay=config.decay,
            revive_below=1.0 if config.restart_codes else 0.0,
            kmeans_iterations=0,
        )
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_channels, 1)
        self.decoder = Decoder(channels_in=config.z_channels, blocks=config.blocks + 1, **sizes)

    @classmethod
    def layout_of(cls, config: RQVAEConfig) -> dict[str, Any]:
        factor, side = config.downsample, config.image_size
        positions = (side // factor) ** 2
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": True,
            "residual": True,
            "tokens": positions,
            "depth": config.depth,
            "codebook_size": max(config.codebook_sizes),
            "vocabulary": config.codebook_sizes,
            "native_size": (side, side),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
            "bits_per_pixel": positions * sum(map(log2, config.codebook_sizes)) / side**2,
        }

    # -- the steps between pictures and codes --------------------------------------------------------------------------------------

    def encode_latents(self, x: Tensor) -> Tensor:
        """Vectors before quantization, `(b, h / f, w / f, channels)` of `x (b, 3, h, w)`; a fold is in the channels."""
        return _fold(self.quant_conv(self.encoder(x)), self.config.fold)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Pictures `(b, 3, h, w)` of vectors `(b, h / f, w / f, channels)`, quantized or not."""
        return self.decoder(self.post_quant_conv(_unfold(z, self.config.fold)))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_latents(x), depth=depth)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_latents(self.quantizer.decode(tokens.data).to(self.dtype))

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_release(cls, folder: str | Path, *, name: str = "rqvae") -> Self:
        """Read an unpacked archive of the public release: `config.yaml` and the one `*.pt` of the autoencoder beside it.

        The weights are for non-commercial use (CC-BY-NC-SA-4.0).

        Args:
            folder: holds the two files.
            name: of the tokenizer.

        Raises:
            ValueError: no or several such files, a configuration of another model, or weights that do not fit.
        """
        import yaml

        folder = Path(folder)
        files = sorted(folder.glob("*.pt"))
        if not (folder / "config.yaml").is_file() or len(files) != 1:
            found = ", ".join(path.name for path in files) or "none"
            raise ValueError(f"RQVAE.from_release: {folder} must hold config.yaml and one *.pt file. Its *.pt files: {found}.")
        config = cls.from_public(yaml.safe_load((folder / "config.yaml").read_text()), {})
        tensors = cls.rename_public(read_tensors(files[0], allow_pickle=True), config)
        info = Entry(name=name, family=cls.family, summary="", config=config.to_dict(), **cls.layout_of(config))
        tokenizer = cls(config, info)
        load_strict(tokenizer, tensors, name=name)
        return tokenizer.eval().requires_grad_(False)

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> RQVAEConfig:
        """Read the `arch` block of the public config.yaml.

        Raises:
            ValueError: another model, a missing key, or a value that this family does not cover.
        """
        arch = _object(config, "arch")
        _only("arch", arch, {"type": "rq-vae", "code_hier": 1})
        sizes, net = _object(arch, "hparams"), _object(arch, "ddconfig")
        _only("hparams", sizes, {"bottleneck_type": "rq"})
        _only("ddconfig", net, {"double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True})
        unknown = [
            *(f"arch.{key}" for key in arch if key not in _ARCH),
            *(f"hparams.{key}" for key in sizes if key not in _HPARAMS),
            *(f"ddconfig.{key}" for key in net if key not in _DDCONFIG),
        ]
        if unknown:
            logger.warning("rqvae: keys of the configuration that are not known and not used: %s", ", ".join(unknown))
        missing = [key for key in ("embed_dim", "n_embed", "latent_shape", "code_shape") if key not in sizes]
        missing += [key for key in ("z_channels", "resolution", "ch", "ch_mult", "num_res_blocks") if key not in net]
        if missing:
            raise ValueError(f"rqvae: the configuration has no {', '.join(missing)}. Is it that of an RQ-VAE?")
        rows, columns, depth = _three("code_shape", sizes["code_shape"])
        latent = _three("latent_shape", sizes["latent_shape"])
        fold = latent[0] // max(rows, 1)
        reached = net["resolution"] // 2 ** (len(net["ch_mult"]) - 1)
        if latent != (reached, reached, sizes["embed_dim"]) or (rows * fold, columns * fold) != latent[:2]:
            raise ValueError(
                f"rqvae: latent_shape={list(latent)} and code_shape={[rows, columns, depth]} do not fit. Needed: "
                f"[{reached}, {reached}, {sizes['embed_dim']}] by ddconfig, and a code_shape that divides its two sides equally."
            )
        books = sizes["n_embed"]
        return RQVAEConfig.from_dict(
            {
                "codebook_sizes": list(books) if isinstance(books, Sequence) else [books] * depth,
                "shared_codebook": sizes.get("shared_codebook", False),
                "latent_channels": sizes["embed_dim"],
                "fold": fold,
                "z_channels": net["z_channels"],
                "width": net["ch"],
                "multipliers": net["ch_mult"],
                "blocks": net["num_res_blocks"],
                "attention_sides": net.get("attn_resolutions", []),
                "dropout": net.get("dropout", 0.0),
                "image_size": net["resolution"],
                "commitment_weight": sizes.get("latent_loss_weight", 0.25),
                "decay": sizes.get("decay", 0.99),
                "restart_codes": sizes.get("restart_unused_codes", False),
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: RQVAEConfig) -> dict[str, Tensor]:
        """Give the codebooks our names: no padding row, a shared one once; all other names are the same.

        Raises:
            ValueError: a codebook that the configuration calls shared differs between depths.
        """
        out = {key: value for key, value in tensors.items() if not key.startswith(_BOOKS)}
        for key, value in tensors.items():
            if not key.startswith(_BOOKS):
                continue
            depth, _, part = key.removeprefix(_BOOKS).partition(".")
            if not depth.isdecimal() or int(depth) >= config.depth or part not in _BOOK_PARTS:
                out[key] = value
                continue
            if config.shared_codebook and depth != "0":
                first = tensors.get(f"{_BOOKS}0.{part}")
                if first is None or first.shape != value.shape or not torch.equal(first, value):
                    raise ValueError(f"rqvae: {key} differs from depth 0, but the configuration says that all depths share it.")
                continue
            layer = f"quantizer.layers.{depth}."
            out[layer + _BOOK_PARTS[part]] = value[:-1].contiguous() if part == "weight" else value
            out[layer + "initialized"] = torch.tensor(True)
            out[layer + "clock.steps"] = torch.tensor(0)
        out["quantizer.clock.steps"] = torch.tensor(0)
        return out


def _fold(z: Tensor, side: int) -> Tensor:
    """`(b, c, h, w)` to `(b, h / side, w / side, side * side * c)`: row in the block, column in the block, channel."""
    b, c, h, w = z.shape
    blocks = z.view(b, c, h // side, side, w // side, side)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(b, h // side, w // side, -1)


def _unfold(z: Tensor, side: int) -> Tensor:
    """The inverse of `_fold`."""
    b, rows, columns, _ = z.shape
    blocks = z.view(b, rows, columns, side, side, -1)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * side, columns * side)


# Keys of the public configuration: those that are read, and those that change no number of the network.
_ARCH = ("type", "code_hier", "hparams", "ddconfig", "checkpointing", "ema")
_HPARAMS = (
    *("bottleneck_type", "embed_dim", "n_embed", "latent_shape", "code_shape", "shared_codebook", "decay"),
    *("restart_unused_codes", "loss_type", "latent_loss_weight"),
)
_DDCONFIG = (
    *("double_z", "z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks"),
    *("attn_resolutions", "dropout", "resamp_with_conv"),
)
_BOOKS = "quantizer.codebooks."
_BOOK_PARTS = {"weight": "codebook", "cluster_size_ema": "cluster_size", "embed_ema": "codebook_sum"}


def _object(tree: Any, key: str) -> dict[str, Any]:
    value = tree.get(key) if isinstance(tree, Mapping) else None
    if not isinstance(value, Mapping):
        raise ValueError(f"rqvae: the configuration has no object {key!r}. Is it that of an RQ-VAE?")
    return dict(value)


def _only(where: str, values: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    for key, only in allowed.items():
        if values.get(key, only) != only:
            raise ValueError(f"rqvae: {where}.{key}={values[key]!r}. This implementation knows: {json.dumps(only)}.")


def _three(key: str, value: Any) -> tuple[int, int, int]:
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(side, int) and side >= 1 for side in value):
        raise ValueError(f"rqvae: {key}={value!r}. Needed: three whole numbers of at least 1.")
    return (value[0], value[1], value[2])
