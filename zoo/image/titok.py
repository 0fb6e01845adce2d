"""TiTok and TA-TiTok: pictures as a few dozen 1D tokens, by a vision transformer on either side.

Papers: "An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv 2406.07550 (NeurIPS 2024); "Democratizing
Text-to-Image Masked Generative Models with Compact Text-Aware One-Dimensional Tokens" (TA-TiTok), arXiv 2501.07730 (ICCV 2025).
Source repository: bytedance/1d-tokenizer, commit 942a96f (Apache-2.0). Checked against tests/parity/titok: codes equal, tensors to
1e-4.

    picture -> [class | patches | latent tokens] -> encoder -> latent tokens -> VQ or Gaussian -> tokens
    [class | masks | tokens (| text)] -> decoder -> patches -> picture                              (one stage)
    [class | masks | tokens] -> decoder -> logits of proxy codes -> soft mixture -> MaskGIT decoder -> picture    (two stages)

How this differs from the original, with the same numbers: pictures are in [-1, 1] (the networks inside see [0, 1]); smaller ones
are padded to the only size there is; the mean is the default of the Gaussian models and samples take a generator; 1x1
convolutions are matrix products. The codebook's replacement of dead codes (`clustering_vq`) is training of the original and not
done here; its counters in a public file are left out.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.maskgit_vqgan import GROUPS, MaskGITDecoder
from zoo.layers.patches import unpatchify
from zoo.quantizers.vq import VQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["Gaussian", "TiTok", "TiTokConfig", "TiTokDecoder", "TiTokEncoder"]

logger = logging.getLogger(__name__)
_MLP_RATIO = 4
_LOGVAR = (-30.0, 20.0)
_AT_LEAST_ONE = (
    *("image_size", "patch", "latent_tokens", "channels", "codebook_size", "text_features"),
    *("encoder_width", "encoder_depth", "encoder_heads", "decoder_width", "decoder_depth", "decoder_heads"),
    *("proxy_codes", "proxy_channels", "pixel_width", "pixel_blocks"),
)


@dataclass(frozen=True, kw_only=True)
class TiTokConfig(Config):
    """Sizes of a TiTok; the defaults are those of the public L-32 model, with two stages.

    Attributes:
        image_size: side of the pictures.
        patch: side of a patch.
        latent_tokens: n, the number of tokens.
        quantizer: "vq" for codes, "vae" for Gaussian latents.
        channels: of one token.
        codebook_size: of the VQ.
        unit_codes: vectors and codes are compared and used at unit length.
        commitment_weight: of the VQ's loss.
        encoder_width, encoder_depth, encoder_heads: width, blocks and heads of the encoder.
        decoder_width, decoder_depth, decoder_heads: the same of the decoder.
        two_stage: the decoder predicts proxy codes, and a MaskGIT decoder paints their mixture.
        quirk_mixed_latents: read the encoder's `(n, width)` outputs as `(width, n)` without transposing. The two-stage weights were
            trained with this slip: one token holds pieces of several latents.
        text_positions: vectors of the caption that the decoder needs; 0 for a decoder without text.
        text_features: channels of such a vector.
        proxy_codes, proxy_channels: size of the proxy codebook.
        pixel_width, pixel_multipliers, pixel_blocks: sizes of the MaskGIT decoder (`zoo.layers.maskgit_vqgan`).
    """

    image_size: int = 256
    patch: int = 16
    latent_tokens: int = 32
    quantizer: str = "vq"
    channels: int = 12
    codebook_size: int = 4096
    unit_codes: bool = True
    commitment_weight: float = 0.25
    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 1024
    decoder_depth: int = 24
    decoder_heads: int = 16
    two_stage: bool = True
    quirk_mixed_latents: bool = True
    text_positions: int = 0
    text_features: int = 768
    proxy_codes: int = 1024
    proxy_channels: int = 256
    pixel_width: int = 128
    pixel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    pixel_blocks: int = 2

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.quantizer in ("vq", "vae"), "quantizer", "vq, vae")
        self.require(self.commitment_weight >= 0, "commitment_weight", "0 or more")
        self.require(self.image_size % self.patch == 0, "image_size", "a multiple of patch")
        self.require(self.encoder_width % self.encoder_heads == 0, "encoder_width", "a multiple of encoder_heads")
        self.require(self.decoder_width % self.decoder_heads == 0, "decoder_width", "a multiple of decoder_heads")
        self.require(self.text_positions >= 0, "text_positions", "0 or more")
        if self.two_stage:
            steps = len(self.pixel_multipliers) - 1
            self.require(self.quantizer == "vq", "quantizer", "vq where two_stage is true")
            self.require(self.text_positions == 0, "text_positions", "0 where two_stage is true")
            self.require(min(self.pixel_multipliers, default=0) >= 1, "pixel_multipliers", "at least one, each at least 1")
            self.require(2**steps == self.patch, "pixel_multipliers", f"1 + log2(patch) of them for patch={self.patch}")
            self.require(self.pixel_width % GROUPS == 0, "pixel_width", f"a multiple of {GROUPS}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch


class Gaussian(NamedTuple):
    """Distribution of the latents of each token.

    Attributes:
        mean: `(b, n, c)`.
        logvar: logarithm of the variance, `(b, n, c)`.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Shift and scale standard normal `noise (b, n, c)`."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal distribution in nats, `(b, n)`."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(-1)


class _Block(nn.Module):
    """Pre-norm transformer block with full attention and biases everywhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, _MLP_RATIO * width)
        self.down = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TiTokEncoder(nn.Module):
    """Pictures `(b, 3, h, w)` in [0, 1] to `(b, n, c)`, or `(b, n, 2c)` for the mean and the log-variance."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width, n = config.encoder_width, config.latent_tokens
        self.mixed = config.quirk_mixed_latents
        self.patch = nn.Conv2d(3, width, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.positions = nn.Parameter(torch.empty(1 + config.grid**2, width))
        self.latent_tokens = nn.Parameter(torch.empty(n, width))
        self.latent_positions = nn.Parameter(torch.empty(n, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width, config.encoder_heads) for _ in range(config.encoder_depth))
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.channels * (2 if config.quantizer == "vae" else 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape[0], len(self.latent_tokens)
        patches = self.patch(x).flatten(2).transpose(1, 2)
        grid = torch.cat([self.class_token.expand(b, 1, -1), patches], 1) + self.positions
        latents = (self.latent_tokens + self.latent_positions).expand(b, -1, -1)
        x = self.norm_in(torch.cat([grid, latents], 1))
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x[:, -n:])
        if self.mixed:
            x = x.reshape(b, -1, n).transpose(1, 2)
        return self.head(x)


class TiTokDecoder(nn.Module):
    """Token vectors `(b, n, c)` to pictures `(b, 3, h, w)`, about [0, 1], or to logits of proxy codes `(b, h', w', k)`."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.grid, self.patch = config.grid, config.patch
        self.embed = nn.Linear(config.channels, width)
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1 + config.grid**2, width))
        self.latent_positions = nn.Parameter(torch.empty(config.latent_tokens, width))
        self.text_embed = None
        if config.text_positions:
            self.text_embed = nn.Linear(config.text_features, width)
            self.text_positions = nn.Parameter(torch.empty(config.text_positions, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.norm_out = nn.LayerNorm(width)
        if config.two_stage:
            hidden = 2 * width
            self.head: nn.Module = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, config.proxy_codes))
            self.smooth = None
        else:
            self.head = nn.Linear(width, 3 * config.patch**2)
            self.smooth = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, values: Tensor, text: Tensor | None = None) -> Tensor:
        """Decode; `text (b, text_positions, text_features)` is given to a decoder with text, and only to it."""
        b, masks = values.shape[0], self.grid**2
        class_token = self.class_token.expand(b, 1, -1)
        grid = torch.cat([class_token, self.mask_token.expand(b, masks, -1)], 1) + self.positions
        parts = [grid, self.embed(values) + self.latent_positions]
        if self.text_embed is not None and text is not None:
            parts.append(self.text_embed(text) + self.text_positions)
        x = self.norm_in(torch.cat(parts, 1))
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm_out(x[:, 1 : 1 + masks])).unflatten(1, (self.grid, self.grid))
        if self.smooth is None:
            return x
        return self.smooth(unpatchify(x, self.patch).permute(0, 3, 1, 2))


def _init(module: nn.Module) -> None:
    """Truncated normal matrices of deviation 0.02, zero biases, and tokens and positions of deviation width ** -0.5."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, TiTokEncoder | TiTokDecoder):
            for _, table in part.named_parameters(recurse=False):
                nn.init.normal_(table, std=table.shape[-1] ** -0.5)


class TiTok(Tokenizer):
    """Pictures of one size to n codes or n latents, and back; TA-TiTok's decoder also reads a caption.

    `decode(tokens, text=...)` of a TA-TiTok needs the caption's features: CLIP ViT-L/14 at 336 px (OpenAI's weights), all 77
    positions after the final norm and before the projection, `(77, 768)`. Those of the empty caption "" are the neutral choice.
    """

    family = "titok"
    Config = TiTokConfig
    config: TiTokConfig

    def __init__(self, config: TiTokConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.encoder = TiTokEncoder(config)
        self.quantizer = None
        if config.quantizer == "vq":
            self.quantizer = VQ(
                dim=config.channels,
                codebook_size=config.codebook_size,
                learning="gradient",
                commitment_weight=config.commitment_weight,
                distance="cosine" if config.unit_codes else "euclidean",
                kmeans_iterations=0,
            )
            nn.init.uniform_(self.quantizer.codebook, -1 / config.codebook_size, 1 / config.codebook_size)
        self.decoder = TiTokDecoder(config)
        _init(self.encoder)
        _init(self.decoder)
        self.pixel_decoder = None
        if config.two_stage:
            self.proxy_codebook = nn.Parameter(torch.empty(config.proxy_codes, config.proxy_channels))
            nn.init.uniform_(self.proxy_codebook, -1 / config.proxy_codes, 1 / config.proxy_codes)
            self.pixel_decoder = MaskGITDecoder(
                channels=config.proxy_channels,
                width=config.pixel_width,
                multipliers=config.pixel_multipliers,
                blocks=config.pixel_blocks,
            )

    @classmethod
    def layout_of(cls, config: TiTokConfig) -> dict[str, Any]:
        layout = {
            "modality": "image",
            "layout": "1d",
            "tokens": config.latent_tokens,
            "native_size": (config.image_size, config.image_size),
            "size_multiple": config.image_size,
            "max_size": config.image_size,
        }
        if config.quantizer == "vae":
            return {**layout, "discrete": False, "channels": config.channels, "stochastic_encode": True}
        return {
            **layout,
            "discrete": True,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "bits_per_pixel": config.latent_tokens * math.log2(config.codebook_size) / config.image_size**2,
        }

    # -- steps that recipes and tests look at ------------------------------------------------------------------------------------

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what the quantizer gets: `(b, n, c)` of pictures `(b, 3, h, w)` in [-1, 1] of the native size; 2c for Gaussians."""
        return self.encoder(x * 0.5 + 0.5)

    def posterior(self, x: Tensor) -> Gaussian:
        """Give the distribution of the latents of pictures `(b, 3, h, w)` in [-1, 1] of the native size.

        Raises:
            ValueError: a tokenizer with a codebook.
        """
        if self.quantizer is not None:
            raise ValueError(f"{self.info.name}.posterior: this tokenizer has codes, not a distribution. Use encode().")
        mean, logvar = self.encode_vectors(x).chunk(2, -1)
        return Gaussian(mean, logvar.clamp(*_LOGVAR))

    def decode_vectors(self, values: Tensor, text: Tensor | None = None) -> Tensor:
        """Give pictures `(b, 3, h, w)`, about [-1, 1], of token vectors `(b, n, c)`; with gradient to them."""
        y = self.decoder(values, text)
        if self.pixel_decoder is not None:
            y = self.pixel_decoder(self.mix_proxies(y))
        return y * 2 - 1

    def mix_proxies(self, logits: Tensor) -> Tensor:
        """Mix the proxy codebook by the softmax of `logits (b, h', w', k)`: `(b, c', h', w')`."""
        return (logits.softmax(-1) @ self.proxy_codebook).permute(0, 3, 1, 2)

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        if self.quantizer is not None:
            return self.quantizer.encode(self.encode_vectors(x))
        posterior = self.posterior(x)
        if generator is None:
            return posterior.mean
        mean = posterior.mean
        return posterior.sample(torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype))

    def decode(self, tokens: Tokens, **options: Any) -> Tensor:
        """Turn tokens back into pictures of exactly the original size.

        Args:
            tokens: made by this tokenizer, or by a generator trained on its tokens.
            options: `text`, for a TA-TiTok only and always: features of the captions `(b, 77, 768)`, a list of `(77, 768)`, or one
                `(77, 768)` for all items.

        Returns:
            `(b, 3, *extent)`, about [-1, 1].

        Raises:
            ValueError: as every tokenizer; or `text` is missing, not wanted, or of a wrong shape, type, device or value.
        """
        text = options.get("text")
        if isinstance(text, Tensor) and text.ndim == 3:
            options["text"] = list(text)
        return super().decode(tokens, **options)

    def _decode(self, tokens: Tokens, size: tuple[int, ...], *, text: Tensor | list[Tensor] | None = None) -> Tensor:
        captions = self._check_text(text, len(tokens))
        values = tokens.data if self.quantizer is None else self.quantizer.decode(tokens.data)
        return self.decode_vectors(values.to(self.dtype), captions)

    def _check_text(self, text: Any, batch: int) -> Tensor | None:
        """Give `(b, text_positions, text_features)`, or None for a decoder without text."""
        name, config = f"{self.info.name}.decode", self.config
        shape = (config.text_positions, config.text_features)
        if not config.text_positions:
            if text is not None:
                raise ValueError(f"{name}: text is given, but this decoder reads no caption. Leave it out.")
            return None
        if text is None:
            raise ValueError(
                f"{name}: text is missing, and this decoder needs a caption. Give its features {shape} from CLIP ViT-L/14 at "
                "336 px (after the final norm, before the projection), one for each item; those of '' are allowed."
            )
        items = text if isinstance(text, list | tuple) else [text]
        for item in items:
            if not isinstance(item, Tensor) or tuple(item.shape) != shape or not item.is_floating_point():
                found = f"{tuple(item.shape)} {item.dtype}" if isinstance(item, Tensor) else f"a {type(item).__name__}"
                raise ValueError(f"{name}: text holds {found}. Needed: floating-point features {shape} for each item.")
            if item.device != self.device:
                raise ValueError(f"{name}: text is on {item.device}, the weights are on {self.device}. Use text.to(device).")
            if not bool(torch.isfinite(item).all()):
                raise ValueError(f"{name}: text holds NaN or infinity. Needed: finite features.")
        return torch.stack([item.to(self.dtype) for item in items]).expand(batch, -1, -1)

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TiTokConfig:
        return _config_from_public(config, shapes)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: TiTokConfig) -> dict[str, Tensor]:
        return _rename_public(tensors)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
_KNOWN = (
    *("codebook_size", "token_size", "use_l2_norm", "commitment_cost", "clustering_vq", "num_latent_tokens", "quantize_mode"),
    *("vit_enc_model_size", "vit_dec_model_size", "vit_enc_patch_size", "vit_dec_patch_size", "finetune_decoder", "is_legacy"),
    *("text_context_length", "text_embed_dim"),
)


def _object(where: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"titok: {where} in config.json is a {type(values).__name__}. Needed: an object. Is it that of a TiTok?")
    return values


def _need(values: dict[str, Any], where: str, key: str) -> Any:
    if key not in values:
        raise ValueError(f"titok: {where}.{key} is missing in config.json.")
    return values[key]


def _network_size(name: Any, part: str, own: dict[str, Any]) -> dict[str, int]:
    """Width, blocks and heads of a size name: a published one, or one that the file's own table `own` describes."""
    if isinstance(name, str) and name in _SIZES:
        width, depth, heads = _SIZES[name]
    elif isinstance(name, str) and name in own:
        sizes = _object(f"_fixture.{name}.{part}", _object(f"_fixture.{name}", own[name]).get(part))
        width, depth, heads = (_need(sizes, f"_fixture.{name}.{part}", key) for key in ("width", "layers", "heads"))
    else:
        raise ValueError(f"titok: {part} of size {name!r} in config.json. Known: {', '.join(_SIZES)}.")
    return {f"{part}_width": width, f"{part}_depth": depth, f"{part}_heads": heads}


def _config_from_public(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TiTokConfig:
    """Translate the training configuration that the release stores; absent keys mean what they mean there (the oldest models).

    Raises:
        ValueError: a key is missing, or a value or combination that this family does not cover.
    """
    where = "model.vq_model"
    values = _object(where, _object("model", config.get("model")).get("vq_model"))
    unknown = [key for key in values if key not in _KNOWN]
    if unknown:
        logger.warning("titok: keys of %s in config.json that are not known and not used: %s", where, ", ".join(unknown))
    own = _object("_fixture", config.get("_fixture", {}))
    two_stage, legacy = values.get("finetune_decoder", True), values.get("is_legacy", True)
    if two_stage != legacy:
        raise ValueError(
            f"titok: finetune_decoder={two_stage} with is_legacy={legacy} in config.json (both are true when absent). "
            "Known: both true (two stages) or both false (one stage)."
        )
    patch, other = (_need(values, where, f"vit_{part}_patch_size") for part in ("enc", "dec"))
    if patch != other:
        raise ValueError(f"titok: vit_enc_patch_size={patch} and vit_dec_patch_size={other} in config.json. Needed: one size.")
    crop = _object("dataset.preprocessing", _object("dataset", config.get("dataset", {})).get("preprocessing", {}))
    mode = values.get("quantize_mode", "vq")
    out = {
        "image_size": crop.get("crop_size", 256),
        "patch": patch,
        "latent_tokens": _need(values, where, "num_latent_tokens"),
        "quantizer": mode,
        "channels": _need(values, where, "token_size"),
        "two_stage": two_stage,
        "quirk_mixed_latents": legacy,
        **_network_size(_need(values, where, "vit_enc_model_size"), "encoder", own),
        **_network_size(_need(values, where, "vit_dec_model_size"), "decoder", own),
    }
    if mode == "vq":
        out["codebook_size"] = _need(values, where, "codebook_size")
        out["unit_codes"] = _need(values, where, "use_l2_norm")
        out["commitment_weight"] = values.get("commitment_cost", 0.25)
    # The text sizes are often absent from the file, so the tensors tell whether the decoder reads a caption.
    text = shapes.get("decoder.text_guidance_proj.weight")
    if text is not None or (not shapes and "text_context_length" in values):
        out["text_positions"] = values.get("text_context_length", 77)
        out["text_features"] = values.get("text_embed_dim", 768)
    if two_stage and "pixel_decoder" in own:
        pixel = _object("_fixture.pixel_decoder", own["pixel_decoder"])
        out["proxy_codes"] = _need(own, "_fixture", "proxy_codebook_size")
        out["proxy_channels"] = _need(own, "_fixture", "proxy_embedding_dim")
        out["pixel_width"] = _need(pixel, "_fixture.pixel_decoder", "hidden_channels")
        out["pixel_multipliers"] = _need(pixel, "_fixture.pixel_decoder", "channel_mult")
        out["pixel_blocks"] = _need(pixel, "_fixture.pixel_decoder", "num_res_blocks")
    return TiTokConfig.from_dict(out)


_WHOLE = {
    "latent_tokens": "encoder.latent_tokens",
    "pixel_quantize.embedding.weight": "proxy_codebook",
    "quantize.embedding.weight": "quantizer.codebook",
}
_PARTS = {
    ".transformer.": ".blocks.",
    ".attn.in_proj_": ".qkv.",
    ".attn.out_proj.": ".out.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".mlp.c_fc.": ".up.",
    ".mlp.c_proj.": ".down.",
    ".ln_pre.": ".norm_in.",
    ".ln_post.": ".norm_out.",
    ".patch_embed.": ".patch.",
    ".class_embedding": ".class_token",
    ".latent_token_positional_embedding": ".latent_positions",
    ".text_guidance_positional_embedding": ".text_positions",
    ".text_guidance_proj.": ".text_embed.",
    ".positional_embedding": ".positions",
    ".decoder_embed.": ".embed.",
}


def _rename_public(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give public tensors our names; 1x1 convolutions become matrices. A name that is not known stays as it is."""
    two_stage = "decoder.ffn.2.weight" in tensors
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key == "quantize.embed_prob":
            continue
        new = _WHOLE.get(key, key)
        if key.startswith(("encoder.", "decoder.")):
            for old, ours in _PARTS.items():
                new = new.replace(old, ours)
            new = new.replace("encoder.conv_out.", "encoder.head.").replace("decoder.conv_out.", "decoder.smooth.")
            new = new.replace("decoder.ffn.", "decoder.head.")
            if not two_stage:
                new = new.replace("decoder.head.0.", "decoder.head.")
            if ".head." in new and value.ndim == 4 and value.shape[2:] == (1, 1):
                value = value[:, :, 0, 0].contiguous()
        out[new] = value
    codebook = out.get("quantizer.codebook")
    if codebook is not None:
        out["quantizer.cluster_size"] = torch.ones(len(codebook))
        out["quantizer.initialized"] = torch.tensor(True)
        out["quantizer.clock.steps"] = torch.tensor(0)
    return out
