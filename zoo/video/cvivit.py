"""C-ViViT: a transformer over patches of the first frame and tubelets of the later ones, causal in time, for pictures and video.

Paper: Phenaki (Villegas et al., arXiv 2210.02399), section 2.1. Behaviour checked against lucidrains/phenaki-pytorch 0.5.0 (MIT)
and obvious-research/phenaki-cvivit (Unlicense), the code of the only public weights, through tests/parity/cvivit.

Each time step is encoded by attention within it, then each place by attention over time; the decoder does it in reverse order. A
clip of 1 + k * temporal_patch frames has 1 + k steps, a picture one. Any length is coded by going on: a stream keeps the keys and
values of earlier steps and two steps of every position convolution. With `time_window` they are those of so many steps, and memory
is constant; without, attention reaches back to the start, and the cache grows with the length.

Differences: our form is causal exactly. The public code lays the axes of the convolution over time wrongly, and the public
weights attend to later frames as well. It also normalises the pixels of each patch before the linear map, which takes
brightness and contrast out of the codes. All three are `quirk_` flags, off unless public weights need them. The shift of the
norms before attention, a constant zero there, is learned here. In training, codes that fall out of use are put at vectors of
the batch.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config as BaseConfig
from zoo.layers.geglu import GEGLU
from zoo.quantizers import LFQ, VQ, Projected, Quantized, Quantizer
from zoo.registry import Entry
from zoo.streaming import Stream
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["CViViT", "CViViTConfig", "CViViTStream"]

_ATTENTION_SCALE = 8.0  # of the cosine between query and key
_PAST = 2  # steps that the position convolution looks back
_DECAY = 0.95  # of the codebook's running averages: short runs, in which codes must follow the vectors
_PIXEL_START = 0.004  # largest weight of the untrained layers that make pixels
_REVIVE_BELOW = 0.1  # vectors a step, by running average; a code with fewer starts anew


# -- configuration -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CViViTConfig(BaseConfig):
    """Values of the network; the defaults are those of the paper's 128 px model as far as it states them.

    Attributes:
        width: channels of the transformers.
        codebook_size: codes; a power of two for "lfq".
        quantizer: "vq", nearest code by cosine, or "lfq", one bit for the sign of each of log2(codebook_size) channels.
        codebook_channels: of "vq": channels of the space that is searched; None searches in `width` channels.
        image_size: `(h, w)` the weights are trained at.
        patch: side of a patch in pixels.
        temporal_patch: frames of a tubelet.
        spatial_depth, temporal_depth: blocks of each transformer, the same in encoder and decoder.
        heads, head: number and size of the attention heads.
        mlp_ratio: the gated hidden layer has 2/3 of it times the width.
        time_window: steps that attention over time looks back, itself included; None looks back to the start.
        spatial_position_conv: a position convolution also before the attention within a step.
        quirk_position_layout: the convolution of the blocks over time takes rows of places for time steps, as the public code does,
            so that time and space mix and the result depends on the grid; public weights were trained so.
        quirk_unmasked_time: attention over time sees later steps and knows no distances; the public weights were trained so.
        quirk_normed_patches: the pixels of each patch lose their mean and are divided by their deviation before they are embedded,
            so that codes do not know how bright a patch is; public weights were trained so.
    """

    width: int = 512
    codebook_size: int = 8192
    quantizer: Literal["vq", "lfq"] = "vq"
    codebook_channels: int | None = 32
    image_size: tuple[int, int] = (128, 128)
    patch: int = 8
    temporal_patch: int = 2
    spatial_depth: int = 4
    temporal_depth: int = 4
    heads: int = 8
    head: int = 64
    mlp_ratio: float = 4.0
    time_window: int | None = None
    spatial_position_conv: bool = False
    quirk_position_layout: bool = False
    quirk_unmasked_time: bool = False
    quirk_normed_patches: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "patch", "temporal_patch", "spatial_depth", "temporal_depth", "heads", "head"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        if self.quantizer == "lfq":
            self.require(self.codebook_size & (self.codebook_size - 1) == 0, "codebook_size", "a power of two for lfq")
            self.require(self.codebook_channels is None, "codebook_channels", "None for lfq")
        self.require(self.codebook_channels is None or self.codebook_channels >= 1, "codebook_channels", "at least 1, or None")
        legal = len(self.image_size) == 2 and all(side >= 1 and side % self.patch == 0 for side in self.image_size)
        self.require(legal, "image_size", f"two multiples of patch={self.patch}")
        self.require(int(self.mlp_ratio * self.width * 2 / 3) >= 1, "mlp_ratio", "large enough for a hidden layer")
        self.require(self.time_window is None or self.time_window >= 1, "time_window", "at least 1, or None")
        if self.quirk_unmasked_time:
            self.require(self.time_window is None, "time_window", "None with quirk_unmasked_time")

    @property
    def causal(self) -> bool:
        """No output depends on later input."""
        return not (self.quirk_position_layout or self.quirk_unmasked_time)


# -- modules -----------------------------------------------------------------------------------------------------------------------


class _Past:
    """What one block keeps of earlier steps: the end of its convolution's input, and keys and values."""

    def __init__(self) -> None:
        self.tail: Tensor | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]


class _PositionConv(nn.Module):
    """Depthwise 3 x 3 x 3 convolution, zeros around, that looks back in time only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, groups=width)

    def forward(self, x: Tensor, past: _Past | None) -> Tensor:
        """Convolve `(b, t, h, w, d)`."""
        b, _, h, w, d = x.shape
        before = None if past is None else past.tail
        x = torch.cat([x.new_zeros(b, _PAST, h, w, d) if before is None else before, x], 1)
        if past is not None:
            past.tail = x[:, -_PAST:].clone()
        y = self.conv(F.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1)))
        return y.permute(0, 2, 3, 4, 1)


class _Attention(nn.Module):
    """Cosine attention with learned scales; keys and values come from the input before its norm."""

    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head))
        self.k_scale = nn.Parameter(torch.ones(head))
        self.to_out = nn.Linear(heads * head, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None, past: _Past | None = None, window: int | None = None) -> Tensor:
        """Attend in `(rows, n, d)`; `bias (heads, n, past + n)` is added to the products."""
        q = self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        if past is not None:
            if past.keys is not None and past.values is not None:
                k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
            start = 0 if window is None else max(0, k.shape[2] - (window - 1))
            past.keys, past.values = k[:, :, start:].clone(), v[:, :, start:].clone()
        mask = None if bias is None else bias.to(q.dtype)[None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=_ATTENTION_SCALE)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, config: CViViTConfig, *, position: bool) -> None:
        super().__init__()
        self.position = _PositionConv(config.width) if position else None
        self.attention = _Attention(config.width, config.heads, config.head)
        self.feed_forward = GEGLU(config.width, int(config.mlp_ratio * config.width * 2 / 3))


class _SpaceTransformer(nn.Module):
    """Attention within each time step."""

    def __init__(self, config: CViViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(config, position=config.spatial_position_conv) for _ in range(config.spatial_depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, bias: Tensor, pasts: list[_Past] | None = None) -> Tensor:
        """Run `(b, t, h, w, d)` with `bias (heads, h * w, h * w)`."""
        shape = x.shape
        for i, block in enumerate(self.blocks):
            if block.position is not None:
                x = x + block.position(x, None if pasts is None else pasts[i])
            rows = x.flatten(2, 3).flatten(0, 1)
            rows = rows + block.attention(rows, bias)
            x = (rows + block.feed_forward(rows)).reshape(shape)
        return self.norm(x)


class _TimeTransformer(nn.Module):
    """Attention over the steps of each place, with the distances of ALiBi."""

    def __init__(self, config: CViViTConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(_Block(config, position=True) for _ in range(config.temporal_depth))
        self.norm = nn.LayerNorm(config.width)

    def _bias(self, before: int, count: int, like: Tensor) -> Tensor | None:
        """`(heads, count, before + count)` float32: minus infinity for steps that are not seen."""
        if self.config.quirk_unmasked_time:
            return None
        steps = torch.arange(before + count, device=like.device)
        distance = (steps[before:, None] - steps[None, :]).float()
        hidden = distance < 0
        if self.config.time_window is not None:
            hidden = hidden | (distance >= self.config.time_window)
        slopes = torch.tensor(_slopes(self.config.heads), device=like.device)
        return (-distance * slopes[:, None, None]).masked_fill(hidden, -math.inf)

    def forward(self, x: Tensor, pasts: list[_Past] | None = None) -> Tensor:
        """Run `(b, t, h, w, d)`; `pasts` hold what was seen before and are brought up to date."""
        b, t, h, w, d = x.shape
        bias = self._bias(0 if pasts is None else pasts[0].length, t, x)
        for i, block in enumerate(self.blocks):
            past = None if pasts is None else pasts[i]
            rows = x.permute(0, 2, 3, 1, 4).reshape(b * h * w, t, d)
            if self.config.quirk_position_layout:
                rows = rows + block.position(rows.reshape(b, t, h, w, d), None).reshape(b * h * w, t, d)
            else:
                rows = rows + block.position(x, past).permute(0, 2, 3, 1, 4).reshape(b * h * w, t, d)
            rows = rows + block.attention(rows, bias, past, self.config.time_window)
            rows = rows + block.feed_forward(rows)
            x = rows.reshape(b, h, w, t, d).permute(0, 3, 1, 2, 4)
        return self.norm(x)


def _slopes(heads: int) -> list[float]:
    """Slopes of ALiBi: a geometric series, and between its members where the heads are no power of two (arXiv 2108.12409)."""
    whole = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    finer = [2 ** (-8 * (i + 1) / (2 * whole)) for i in range(0, 2 * whole, 2)]
    return slopes + finer[: heads - whole]


class _PositionBias(nn.Module):
    """A network from the distance of two places, in rows and columns, to a number for each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.LeakyReLU(0.1), nn.Linear(width, width), nn.LeakyReLU(0.1), nn.Linear(width, heads)
        )

    def forward(self, h: int, w: int) -> Tensor:
        """Give `(heads, h * w, h * w)`."""
        weight = self.net[0].weight
        sides = [torch.arange(side, device=weight.device, dtype=torch.float32) for side in (h, w)]
        places = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, 1)
        distance = places[:, None] - places[None, :]
        return self.net((distance.sign() * (distance.abs() + 1).log()).to(weight.dtype)).permute(2, 0, 1)


def _patch_layer(features: int, config: CViViTConfig) -> nn.Sequential:
    first = nn.LayerNorm(features) if config.quirk_normed_patches else nn.Identity()
    return nn.Sequential(first, nn.Linear(features, config.width), nn.LayerNorm(config.width))


def _pixel_layer(width: int, features: int) -> nn.Linear:
    """Vectors to pixels in 0..1, of which the untrained layer makes nearly grey.

    At the usual start the pixels of a patch are noise, which training has to unlearn first.
    """
    layer = nn.Linear(width, features)
    nn.init.uniform_(layer.weight, -_PIXEL_START, _PIXEL_START)
    nn.init.constant_(layer.bias, 0.5)
    return layer


def _to_patches(x: Tensor, frames: int, side: int) -> Tensor:
    """Cut `(b, 3, t, h, w)` into `(b, t / frames, h / side, w / side, 3 * frames * side * side)`."""
    x = x.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, frames))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _from_patches(x: Tensor, frames: int, side: int) -> Tensor:
    """Undo `_to_patches`."""
    x = x.unflatten(4, (3, frames, side, side)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


# -- tokenizer ---------------------------------------------------------------------------------------------------------------------


class CViViT(Tokenizer):
    """C-ViViT; codes `(b, 1 + k, h / patch, w / patch, 1)` of `1 + k * temporal_patch` frames."""

    family = "cvivit"
    Config = CViViTConfig
    first_frame_alone = True

    config: CViViTConfig

    def __init__(self, config: CViViTConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        picture = 3 * config.patch**2
        self.patch_first = _patch_layer(picture, config)
        self.patch_later = _patch_layer(picture * config.temporal_patch, config)
        self.spatial_bias = _PositionBias(config.width, config.heads)
        self.encoder_space, self.encoder_time = _SpaceTransformer(config), _TimeTransformer(config)
        self.quantizer = _quantizer(config)
        self.decoder_time, self.decoder_space = _TimeTransformer(config), _SpaceTransformer(config)
        self.pixels_first = _pixel_layer(config.width, picture)
        self.pixels_later = _pixel_layer(config.width, picture * config.temporal_patch)

    @classmethod
    def layout_of(cls, config: CViViTConfig) -> dict[str, Any]:
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": True,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "native_size": tuple(config.image_size),
            "downsample": (config.temporal_patch, config.patch, config.patch),
            "size_multiple": config.patch,
            "causal": config.causal,
            "streaming": config.causal,
            "lookahead_frames": 0 if config.causal else None,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> CViViTConfig:
        """Read the keywords of the public classes: phenaki-pytorch's, or those of the fork behind the public weights.

        Raises:
            ValueError: a keyword that is missing, or a value that this family does not cover.
        """
        names = ("dim", "codebook_size", "image_size", "patch_size", "temporal_patch_size", "spatial_depth", "temporal_depth")
        missing = [name for name in names if name not in config]
        if missing:
            raise ValueError(f"cvivit: the configuration has no {', '.join(missing)}. Is it that of a CViViT?")
        if config.get("channels", 3) != 3 or not isinstance(config["patch_size"], int):
            raise ValueError("cvivit: channels other than 3, or patches that are not square, are not covered.")
        size = config["image_size"]
        fork = any(name.startswith("enc_spatial_transformer.layers.0.0.") for name in shapes) or "codebook_dim" in config
        lfq = not fork and config.get("lookup_free_quantization", True)
        return CViViTConfig(
            width=config["dim"],
            codebook_size=config["codebook_size"],
            quantizer="lfq" if lfq else "vq",
            codebook_channels=config.get("codebook_dim", 32) if fork else None,
            image_size=(size, size) if isinstance(size, int) else tuple(size),
            patch=config["patch_size"],
            temporal_patch=config["temporal_patch_size"],
            spatial_depth=config["spatial_depth"],
            temporal_depth=config["temporal_depth"],
            heads=config.get("heads", 8),
            head=config.get("dim_head", 64),
            mlp_ratio=float(config.get("ff_mult", 4.0)),
            spatial_position_conv=fork,
            quirk_position_layout=True,
            quirk_unmasked_time=fork,
            quirk_normed_patches=True,
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: CViViTConfig) -> dict[str, Tensor]:
        """Give the tensors our names; what takes no part in coding (losses, empty keys, norms of absent text) is left out."""
        out: dict[str, Tensor] = {}
        for key, value in tensors.items():
            if key.startswith(_TRAINING_ONLY) or ".context_norm." in key or key.endswith(".null_kv"):
                continue
            name = key
            for pattern, ours in _RENAMES:
                name = re.sub(pattern, ours, name)
            out[name] = value
        if config.quantizer == "vq":
            inner = "quantizer.quantizer." if config.codebook_channels is not None else "quantizer."
            out = {re.sub(r"^vq\.(?=project_)", "quantizer.", key): value for key, value in out.items()}
            if (codebook := out.pop("vq._codebook.embed", None)) is not None:
                codebook = codebook.squeeze(0) if codebook.ndim == 3 else codebook
                count = out.pop("vq._codebook.cluster_size", torch.ones(1, len(codebook))).reshape(-1)
                sums = out.pop("vq._codebook.embed_avg", codebook * count[:, None])
                out[inner + "codebook"], out[inner + "cluster_size"] = codebook, count
                out[inner + "codebook_sum"] = sums.squeeze(0) if sums.ndim == 3 else sums
                out.pop("vq._codebook.initted", None)
                out[inner + "initialized"], out[inner + "clock.steps"] = torch.tensor(True), torch.tensor(0)
        else:
            out = {re.sub(r"^vq\.(?=project_)", "quantizer.", key): v for key, v in out.items() if key not in _LFQ_CONSTANTS}
        return out

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor, *, first: bool = True) -> Tensor:
        """Turn frames `(b, 3, t, h, w)` in [-1, 1] into patch vectors `(b, steps, h / patch, w / patch, width)`.

        Args:
            x: 1 + k * temporal_patch frames, or without the 1 where `first` is False.
            first: the clip begins here.
        """
        if self.config.quirk_normed_patches:
            x = (x + 1) / 2  # their scale decides when the norm's epsilon counts
        parts = []
        if first:
            parts.append(self.patch_first(_to_patches(x[:, :, :1], 1, self.config.patch)))
            x = x[:, :, 1:]
        if x.shape[2]:
            parts.append(self.patch_later(_to_patches(x, self.config.temporal_patch, self.config.patch)))
        return torch.cat(parts, 1)

    def encode_vectors(self, x: Tensor, *, first: bool = True, pasts: "_Pasts | None" = None) -> Tensor:
        """Encode frames to the vectors that are quantized, `(b, steps, h / patch, w / patch, width)`; arguments as for `embed`."""
        z = self.embed(x, first=first)
        bias = self.spatial_bias(*z.shape[2:4])
        z = self.encoder_space(z, bias, None if pasts is None else pasts.space)
        return self.encoder_time(z, None if pasts is None else pasts.time)

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize vectors, with the losses of training."""
        return self.quantizer(z)

    def decode_vectors(self, z: Tensor, *, first: bool = True, pasts: "_Pasts | None" = None) -> Tensor:
        """Decode quantized vectors to frames `(b, 3, t, h, w)` in about [-1, 1]; `first` says that the clip begins here."""
        z = self.decoder_time(z, None if pasts is None else pasts.time)
        z = self.decoder_space(z, self.spatial_bias(*z.shape[2:4]), None if pasts is None else pasts.space)
        parts = []
        if first:
            parts.append(_from_patches(self.pixels_first(z[:, :1]), 1, self.config.patch))
            z = z[:, 1:]
        if z.shape[1]:
            parts.append(_from_patches(self.pixels_later(z), self.config.temporal_patch, self.config.patch))
        return torch.cat(parts, 2) * 2 - 1

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_vectors(x))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_vectors(self.quantizer.decode(tokens.data).to(self.dtype))

    @property
    def tileable(self) -> bool:
        """No: a position sees the whole frame."""
        return False

    def _stream(self) -> "CViViTStream":
        return CViViTStream(self)


def _quantizer(config: CViViTConfig) -> Quantizer:
    if config.quantizer == "lfq":
        return Projected(LFQ(bits=config.codebook_size.bit_length() - 1), dim=config.width)
    vq = VQ(
        dim=config.codebook_channels or config.width,
        codebook_size=config.codebook_size,
        distance="cosine",
        decay=_DECAY,
        revive_below=_REVIVE_BELOW,
    )
    return vq if config.codebook_channels is None else Projected(vq, dim=config.width)


_TRAINING_ONLY = ("discr.", "i3d.", "vgg.", "loss_fn_lpips.", "lpips.")
_LFQ_CONSTANTS = ("vq.mask", "vq.zero", "vq.codebook")
_RENAMES = (
    (r"^to_patch_emb_first_frame\.(\d)", lambda m: f"patch_first.{int(m[1]) - 1}"),
    (r"^to_patch_emb\.(\d)", lambda m: f"patch_later.{int(m[1]) - 1}"),
    (r"^to_pixels_first_frame\.0", "pixels_first"),
    (r"^to_pixels\.0", "pixels_later"),
    (r"^spatial_rel_pos_bias\.net\.(\d)(\.0)?", lambda m: f"spatial_bias.net.{2 * int(m[1])}"),
    (
        r"^(enc|dec)_(spatial|temporal)_transformer",
        lambda m: f"{m[1]}oder_" + ("space" if m[2] == "spatial" else "time"),
    ),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.norm_out\.", ".norm."),
    (r"\.layers\.(\d+)\.0\.dsconv", r".blocks.\1.position.conv"),
    (r"\.layers\.(\d+)\.1\.", r".blocks.\1.attention."),
    (r"\.layers\.(\d+)\.3\.0\.", r".blocks.\1.feed_forward.norm."),
    (r"\.layers\.(\d+)\.3\.1\.", r".blocks.\1.feed_forward.up."),
    (r"\.layers\.(\d+)\.3\.4\.", r".blocks.\1.feed_forward.down."),
)


# -- streaming ---------------------------------------------------------------------------------------------------------------------


class _Pasts:
    """What one direction of a stream keeps: of the blocks within a step and of those over time."""

    def __init__(self, config: CViViTConfig) -> None:
        self.space = [_Past() for _ in range(config.spatial_depth)]
        self.time = [_Past() for _ in range(config.temporal_depth)]


class CViViTStream(Stream):
    """Frames in chunks of any number; memory is that of a chunk and of `time_window` steps, or of all where there is no window."""

    def __init__(self, tok: CViViT) -> None:
        super().__init__(tok)
        self._held: Tensor | None = None
        self._encoded = self._decoded = False
        self._encoder, self._decoder = _Pasts(tok.config), _Pasts(tok.config)

    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        tok: CViViT = self.tok  # type: ignore[assignment]
        x = x if self._held is None else torch.cat([self._held, x], 2)
        alone, step = int(not self._encoded), tok.config.temporal_patch
        if x.shape[2] < alone:
            self._held = x
            return None
        ready = alone + (x.shape[2] - alone) // step * step
        x, rest = x[:, :, :ready], x[:, :, ready:]
        if last and rest.shape[2]:
            missing = step - rest.shape[2]
            x = torch.cat([x, rest, rest[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
        self._held = rest.clone()
        if not x.shape[2]:
            return None
        z = tok.encode_vectors(x, first=not self._encoded, pasts=self._encoder)
        self._encoded = True
        return tok.quantizer.encode(z)

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        tok: CViViT = self.tok  # type: ignore[assignment]
        if tokens is None:
            return None
        z = tok.quantizer.decode(tokens.data).to(tok.dtype)
        y = tok.decode_vectors(z, first=not self._decoded, pasts=self._decoder)
        self._decoded = True
        return y
