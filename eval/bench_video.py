"""`zoo bench NAME` of a tokenizer of clips: its speed, and that of diffusers' class with the same weights, in one run.

Weights are random. Times are of the processor, medians of a few calls, and the two take turns, so that other work on the machine
disturbs both alike. Both get the same clip and decode the same latents, and how far apart their results are stands beside the
times: without it a factor says nothing. The clip has a number of frames that the class does not cut off.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.codec_speed import in_turn
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["VideoMeasurement", "measure", "table"]

_FRAMES, _SIDE = 17, 128


@dataclass(frozen=True, kw_only=True)
class VideoMeasurement:
    """One call, here and by diffusers.

    Attributes:
        what: "encode" or "decode".
        batch: clips of the call.
        frames, side: of each clip.
        seconds: processor time of the call.
        peer: name of diffusers' class; None where it has none for these sizes.
        peer_seconds: the same of that class.
        difference: largest difference of the results, over the largest value of the class.
    """

    what: str
    batch: int
    frames: int
    side: int
    seconds: float
    peer: str | None = None
    peer_seconds: float | None = None
    difference: float | None = None

    @property
    def factor(self) -> float | None:
        """How many times as fast as the class."""
        return None if self.peer_seconds is None else self.peer_seconds / self.seconds


@dataclass(frozen=True, kw_only=True)
class _Peer:
    """diffusers' class: a clip `(b, 3, t, h, w)` to latents `(b, c, t', h', w')` and back."""

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def measure(tok: Tokenizer, *, batch: int = 1, frames: int = _FRAMES, side: int = _SIDE, calls: int = 5) -> list[VideoMeasurement]:
    """Measure encode and decode on clips of random values.

    Args:
        tok: a tokenizer of clips in evaluation mode.
        batch: clips of a call.
        frames: of a clip; the next number that the family does not have to fill up is taken.
        side: of a frame; likewise.
        calls: counted calls of each.

    Raises:
        ValueError: not a tokenizer of clips.
    """
    if tok.info.modality != "video":
        raise ValueError(f"eval.bench_video: {tok.info.name} is of modality {tok.info.modality}. Needed: video.")
    size = tok._legal_size((1 + -(-(frames - 1) // tok.info.downsample[0]) * tok.info.downsample[0], side, side))
    draws = torch.Generator().manual_seed(0)
    x = (torch.rand(batch, 3, *size, generator=draws) * 2 - 1).to(tok.device, tok.dtype)
    with torch.inference_mode():
        peer, tokens = _peer_of(tok), tok.encode(x)
        encoders, decoders = [lambda: _latents(tok, tok.encode(x))], [lambda: tok.decode(tokens)]
        if peer is not None:
            z = _latents(tok, tokens)
            encoders.append(lambda: peer.encode(x))
            decoders.append(lambda: peer.decode(z))
        rows = []
        for what, functions in (("encode", encoders), ("decode", decoders)):
            seconds, results = in_turn(functions, calls)
            found: dict[str, Any] = dict(what=what, batch=batch, frames=size[0], side=size[1], seconds=seconds[0])
            if peer is not None:
                apart = float((results[0] - results[1]).abs().max() / results[1].abs().max())
                found.update(peer=peer.name, peer_seconds=seconds[1], difference=apart)
            rows.append(VideoMeasurement(**found))
    return rows


def table(name: str, rows: Sequence[VideoMeasurement]) -> Any:
    """Lay measurements out for the terminal."""
    from rich.table import Table

    peer = next((row.peer for row in rows if row.peer), None)
    beside = f"beside diffusers' {peer} with the same weights" if peer else "diffusers has no class for it"
    first = rows[0]
    title = f"{name}: {first.frames} frames of {first.side} px, {torch.get_num_threads()} thread(s), {beside}"
    shown = Table(title=title, title_justify="left")
    for column in ("call", "batch", "zoo, ms", "frames/s", "diffusers, ms", "times as fast", "apart"):
        shown.add_column(column, justify="left" if column == "call" else "right")
    for row in rows:
        cells = [row.what, str(row.batch), f"{row.seconds * 1e3:.1f}", f"{row.batch * row.frames / row.seconds:.1f}"]
        if row.peer_seconds is not None:
            cells += [f"{row.peer_seconds * 1e3:.1f}", f"{row.factor:.2f}", f"{row.difference:.1e}"]
        shown.add_row(*cells)
    return shown


def _latents(tok: Tokenizer, tokens: Tokens) -> Tensor:
    """Latents of tokens as the class gives and takes them, `(b, c, t, h, w)`."""
    if tokens.discrete:
        z = tok.quantizer.decode(tokens.data)  # type: ignore[union-attr,operator]
    elif hasattr(tok, "latents_std"):
        z = tokens.data * tok.latents_std + tok.latents_mean
    else:
        z = tokens.data
    return z.permute(0, 4, 1, 2, 3)


def _peer_of(tok: Tokenizer) -> _Peer | None:
    if hasattr(tok, "vae"):
        return _inner(tok.vae)
    if tok.info.family == "vidtok" and tok.config.causal and tok.config.padding == "repeat":
        return _vidtok(tok)
    if tok.info.family == "cosmos" and tok.config.z_channels == tok.config.latent_channels:
        return _cosmos(tok)
    return None


def _inner(ours: Any) -> _Peer:
    """The class whose layers the family uses, as it is, with the same weights."""
    vae = type(ours).from_config(ours.config).eval().requires_grad_(False)
    vae.load_state_dict(ours.state_dict())
    vae = _moved(vae, ours)
    timed = getattr(vae.config, "timestep_conditioning", False)
    return _Peer(
        name=type(vae).__name__,
        encode=lambda x: vae.encode(x).latent_dist.mode(),
        decode=lambda z: vae.decode(z, *([z.new_zeros(len(z))] if timed else [])).sample,
    )


def _vidtok(tok: Tokenizer) -> _Peer | None:
    """VidTok 1.1 with our weights; the class gets the copies of the first frame that upstream puts in front of a clip."""
    from diffusers import AutoencoderVidTok

    c = tok.config
    if c.levels is not None and set(c.levels) != {8}:
        return None
    regularizer = dict(regularizer="kl") if c.levels is None else dict(regularizer="fsq", codebook_size=8 ** len(c.levels))
    places = dict(spatial_ds=c.space_down, spatial_us=c.space_up, tempo_ds=c.time_down, tempo_us=c.time_up)
    vae: nn.Module = AutoencoderVidTok(
        ch=c.width,
        ch_mult=list(c.multipliers),
        z_channels=c.latent_channels,
        double_z=c.levels is None,
        num_res_blocks=c.blocks,
        **{key: list(value) for key, value in places.items()},
        **regularizer,
    )
    ours, theirs = tok.state_dict(), {}
    for key, value in vae.state_dict().items():
        renamed = type(tok).rename_public({key: value}, c)
        theirs[key] = next((ours[name].reshape(value.shape) for name in renamed), value)
    vae.load_state_dict(theirs)
    vae = vae.eval().requires_grad_(False)
    vae = _moved(vae, tok)
    lead = tok.info.downsample[0] - 1

    def encode(x: Tensor) -> Tensor:
        y = vae.encode(torch.cat([x[:, :, :1]] * lead + [x], 2))
        return y[0] if c.levels is not None else y.latent_dist.mode()

    return _Peer(name="AutoencoderVidTok", encode=encode, decode=vae.decode)


def _cosmos(tok: Tokenizer) -> _Peer:
    """diffusers' Cosmos with our weights; it has no discrete form, so codes are made of its latents as here."""
    from diffusers import AutoencoderKLCosmos

    c = tok.config
    up = c.decoder_multipliers
    vae: Any = AutoencoderKLCosmos(
        latent_channels=c.latent_channels,
        encoder_block_out_channels=(c.width, *(c.width * m for m in c.multipliers)),
        decode_block_out_channels=tuple(c.width * m for m in (up[0], *up[1:], up[-1])),
        num_layers=c.blocks,
        spatial_compression_ratio=c.space_factor,
        temporal_compression_ratio=c.time_factor,
        latents_mean=None,
        latents_std=None,
    )
    ours = tok.state_dict()
    names = {key: _cosmos_name(key, len(up)) for key in vae.state_dict()}
    theirs = {key: ours.get(name, vae.state_dict()[key]) for key, name in names.items()}  # its wavelets are constants
    if missing := [name for key, name in names.items() if name not in ours and "wavelets" not in name and "_arange" not in name]:
        raise ValueError(f"eval.bench_video: {tok.info.name} has no {missing[0]}. The class of this diffusers has other names.")
    vae.load_state_dict(theirs)
    vae = _moved(vae.eval().requires_grad_(False), tok)

    def encode(x: Tensor) -> Tensor:
        z = vae.encode(x).latent_dist.mode()
        return z if tok.quantizer is None else tok.quantizer.decode(tok.quantizer.encode(z.movedim(1, -1))).movedim(-1, 1)  # type: ignore[union-attr,operator]

    return _Peer(name="AutoencoderKLCosmos", encode=encode, decode=lambda z: vae.decode(z).sample)


_COSMOS = (
    (r"\.norm\.(weight|bias)$", r".\1"),
    (r"(attentions\.0)\.(weight|bias)$", r"\1.norm.\2"),
    (r"\.conv_s\.", ".0."),
    (r"\.conv_t\.", ".1."),
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1.0."),
    (r"mid_block\.temp_attentions\.0\.", "mid.attn_1.1."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)


def _cosmos_name(key: str, levels: int) -> str:
    """Our name of a parameter of diffusers' class, whose decoder counts its levels from coarse to fine."""
    for pattern, name in _COSMOS:
        key = re.sub(pattern, name, key)
    return re.sub(r"\.up\.(\d+)\.", lambda match: f".up.{levels - 1 - int(match[1])}.", key)


def _moved(vae: Any, like: nn.Module) -> Any:
    """To the device and type of another network; diffusers' classes warn of any move."""
    example = next(like.parameters())
    return vae if (example.device.type, example.dtype) == ("cpu", torch.float32) else vae.to(example.device, example.dtype)
