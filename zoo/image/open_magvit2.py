"""Open-MAGVIT2: pictures as a grid of sign codes, one bit for each channel, without a codebook table.

Paper: "Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual Generation", arXiv 2409.04410, after
MAGVIT-v2, arXiv 2310.05737. Source repository: TencentARC/SEED-Voken, commit b9a17ea (Apache-2.0). Checked against
tests/parity/open_magvit2: codes equal, tensors to 1e-4.

    picture -> convolutions (no attention) -> (h/f, w/f, bits) -> sign -> codes, first channel = lowest bit
    codes -> +-1 -> convolutions, every level normed with gain and bias made of the mean and spread of the code -> picture

How this differs from the original, with the same numbers: nothing is as long as the vocabulary (the original keeps a table of
2^bits x bits numbers); a code map of one position, whose spread is undefined, counts as spread 0 instead of giving NaN; the
codes of one position can be split into several smaller ones (`splits`), exactly and both ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.ema_weights import averaged_weights
from zoo.quantizers.lfq import LFQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["OpenMAGVIT2", "OpenMAGVIT2Config"]

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class OpenMAGVIT2Config(Config):
    """Sizes of the tokenizer; the defaults are those of the public model for 256 px.

    Attributes:
        bits: channels of the code, 1..22; the vocabulary is 2^bits.
        splits: cut each code into consecutive groups of so many bits, codes of their own on the depth axis; None is one code.
        width: channels of the finest level before its multiplier.
        multipliers: width of each level over `width`, fine to coarse; the downsampling is 2 ** (len - 1).
        blocks: residual blocks of each level and of the middle, in both halves.
        norm_groups: groups of the group norms; divides every width.
        image_size: side the weights were trained at.
        entropy_weight, sample_weight, batch_weight, commitment_weight: of the quantizer's loss in training.
    """

    bits: int = 18
    splits: tuple[int, ...] | None = None
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 4
    norm_groups: int = 32
    image_size: int = 256
    entropy_weight: float = 0.1
    sample_weight: float = 1.0
    batch_weight: float = 1.0
    commitment_weight: float = 0.25

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("entropy_weight", "sample_weight", "batch_weight", "commitment_weight"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(1 <= self.bits <= 22, "bits", "1..22")
        self.require(len(self.multipliers) >= 1, "multipliers", "at least one level")
        self.require(min(self.multipliers) >= 1, "multipliers", "multipliers of at least 1")
        self.require(self.width % self.norm_groups == 0, "width", "a multiple of norm_groups")
        if self.splits is not None:
            fits = min(self.splits, default=0) >= 1 and sum(self.splits) == self.bits
            self.require(fits, "splits", f"positive numbers of bits that add up to bits={self.bits}, or None")


class _ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), all convolutions without bias; a 1x1 one on x where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


def _blocks(channels_in: int, channels_out: int, count: int, groups: int) -> nn.ModuleList:
    """`count` residual blocks; the first one changes the width."""
    return nn.ModuleList(_ResBlock(channels_out if i else channels_in, channels_out, groups) for i in range(count))


class _DownLevel(nn.Module):
    def __init__(self, block: nn.ModuleList, width: int, *, halve: bool) -> None:
        super().__init__()
        self.block = block
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class _Upsample(nn.Module):
    """Double both sides: a convolution to four times the channels, whose quarters (row, column) become the four pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.conv1(x).view(b, 2, 2, c, h, w)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(b, c, 2 * h, 2 * w)


class _UpLevel(nn.Module):
    def __init__(self, block: nn.ModuleList, width: int, *, double: bool) -> None:
        super().__init__()
        self.block = block
        self.upsample = _Upsample(width) if double else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class _AdaptiveNorm(nn.Module):
    """Group norm whose gain and bias are linear in the spread and the mean of the code over the picture."""

    def __init__(self, bits: int, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gamma = nn.Linear(bits, channels)
        self.beta = nn.Linear(bits, channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Give `(b, channels, H, W)`; `code` is `(b, bits, h, w)`."""
        values = code.flatten(2)
        variance, mean = torch.var_mean(values, dim=2, correction=min(1, values.shape[2] - 1))
        gain, bias = self.gamma((variance + _EPS).sqrt()), self.beta(mean)
        normed = F.group_norm(x, self.groups, eps=_EPS)
        return torch.addcmul(bias[:, :, None, None], normed, gain[:, :, None, None])


class OpenMAGVIT2Encoder(nn.Module):
    """Pictures `(b, 3, h, w)` to `(b, bits, h / f, w / f)`, whose signs are the code."""

    def __init__(self, config: OpenMAGVIT2Config) -> None:
        super().__init__()
        groups, widths = config.norm_groups, [config.width * m for m in config.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            _DownLevel(_blocks(before, width, config.blocks, groups), width, halve=level < last)
            for level, (before, width) in enumerate(zip([config.width, *widths], widths, strict=False))
        )
        self.mid_block = _blocks(widths[-1], widths[-1], config.blocks, groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        for block in self.mid_block:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class OpenMAGVIT2Decoder(nn.Module):
    """Codes as signs `(b, bits, h, w)` to pictures `(b, 3, h * f, w * f)`."""

    def __init__(self, config: OpenMAGVIT2Config) -> None:
        super().__init__()
        groups, widths = config.norm_groups, [config.width * m for m in config.multipliers]
        coarser = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], config.blocks, groups)
        self.adaptive = nn.ModuleList(_AdaptiveNorm(config.bits, width, groups) for width in coarser)
        self.up = nn.ModuleList(
            _UpLevel(_blocks(before, width, config.blocks, groups), width, double=level > 0)
            for level, (before, width) in enumerate(zip(coarser, widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight of adversarial losses is measured."""
        return self.conv_out.weight

    def forward(self, code: Tensor) -> Tensor:
        h = self.conv_in(code)
        for block in self.mid_block:
            h = block(h)
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            h = level(norm(h, code))
        return self.conv_out(F.silu(self.norm_out(h)))


class OpenMAGVIT2(Tokenizer):
    """Pictures to codes `(b, h / f, w / f, 1)`, or `(b, h / f, w / f, len(splits))`, and back; any size."""

    family = "open_magvit2"
    Config = OpenMAGVIT2Config

    def __init__(self, config: OpenMAGVIT2Config, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.encoder = OpenMAGVIT2Encoder(config)
        self.quantizer = self._quantizer(config.splits)
        self.decoder = OpenMAGVIT2Decoder(config)

    def _quantizer(self, splits: Sequence[int] | None) -> LFQ:
        config = self.config
        return LFQ(
            bits=config.bits,
            bit_order="first_is_low",
            splits=splits,
            entropy_weight=config.entropy_weight,
            sample_weight=config.sample_weight,
            batch_weight=config.batch_weight,
            commitment_weight=config.commitment_weight,
        )

    @classmethod
    def layout_of(cls, config: OpenMAGVIT2Config) -> dict[str, Any]:
        factor = 2 ** (len(config.multipliers) - 1)
        grid = -(-config.image_size // factor)
        vocabulary = tuple(2**bits for bits in config.splits or (config.bits,))
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": True,
            "tokens": grid**2,
            "depth": len(vocabulary),
            "codebook_size": max(vocabulary),
            "vocabulary": vocabulary,
            "native_size": (config.image_size, config.image_size),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
            "bits_per_pixel": grid**2 * config.bits / config.image_size**2,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> OpenMAGVIT2Config:
        """Read the training configuration of the release: `class_path` and `init_args`, alone or under `model`.

        Raises:
            ValueError: another class, a key that is missing, or a value that this family does not cover.
        """
        model = config.get("model", config)
        arguments = model.get("init_args") if isinstance(model, dict) else None
        if not isinstance(arguments, dict) or not isinstance(arguments.get("ddconfig"), dict):
            raise ValueError("open_magvit2: the configuration has no 'init_args' with a 'ddconfig'. Is it that of Open-MAGVIT2?")
        kind = str(model.get("class_path", "VQModel")).rpartition(".")[2]
        if kind != "VQModel":
            raise ValueError(f"open_magvit2: the configuration is of class {kind!r}. Needed: 'VQModel' of Open-MAGVIT2.")
        network = arguments["ddconfig"]
        missing = [key for key in ("z_channels", "ch", "ch_mult", "num_res_blocks") if key not in network]
        if missing:
            raise ValueError(f"open_magvit2: 'ddconfig' has no {', '.join(missing)}. Is it that of Open-MAGVIT2?")
        bits = network["z_channels"]
        only = {"in_channels": 3, "out_ch": 3, "double_z": False}
        found = {key: network.get(key, value) for key, value in only.items()}
        only |= {"embed_dim": bits, "n_embed": 2**bits}
        found |= {key: arguments.get(key, only[key]) for key in ("embed_dim", "n_embed")}
        for key, value in only.items():
            if found[key] != value:
                raise ValueError(f"open_magvit2: {key}={found[key]!r} in the configuration. This implementation knows: {value!r}.")
        factorized = arguments.get("token_factorization", False)
        if factorized and not arguments.get("factorized_bits"):
            raise ValueError("open_magvit2: token_factorization without factorized_bits. Give the bits of each part, as [6, 12].")
        return OpenMAGVIT2Config.from_dict(
            {
                "bits": bits,
                "splits": arguments["factorized_bits"] if factorized else None,
                "width": network["ch"],
                "multipliers": network["ch_mult"],
                "blocks": network["num_res_blocks"],
                "image_size": network.get("resolution", 256),
                "sample_weight": arguments.get("sample_minimization_weight", 1.0),
                "batch_weight": arguments.get("batch_maximization_weight", 1.0),
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: OpenMAGVIT2Config) -> dict[str, Tensor]:
        """Take the averaged weights where the checkpoint has them; the discriminator is left out, all other names are ours.

        Raises:
            ValueError: averages of a part of the weights only.
        """
        return averaged_weights(tensors, name="open_magvit2")

    # -- pieces for training and research ----------------------------------------------------------------------------------------

    def split_codes(self, codes: Tensor, splits: Sequence[int]) -> Tensor:
        """Cut codes into sub-codes for a generator: `(..., depth)` of this tokenizer to int64 `(..., len(splits))`.

        Part i holds the next `splits[i]` bits, from the lowest on, so with one code per position
        code = part0 + part1 * 2**splits[0] + ...

        Raises:
            ValueError: codes outside the vocabulary, or splits that do not add up to the bits.
        """
        return self._quantizer(tuple(splits)).bits_to_codes(self.quantizer.codes_to_bits(codes))

    def join_codes(self, codes: Tensor, splits: Sequence[int]) -> Tensor:
        """Undo `split_codes`: `(..., len(splits))` to int64 `(..., depth)` of this tokenizer.

        Raises:
            ValueError: as `split_codes`.
        """
        return self.quantizer.bits_to_codes(self._quantizer(tuple(splits)).codes_to_bits(codes))

    # -- the contract --------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encoder(x).permute(0, 2, 3, 1))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        code = self.quantizer.decode(tokens.data).to(self.dtype)
        return self.decoder(code.permute(0, 3, 1, 2).contiguous())
