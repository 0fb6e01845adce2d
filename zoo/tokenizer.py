"""The contract every tokenizer keeps: tensors in, `Tokens` between, tensors out.

Shapes: `b` batch, `c` channels, `t` frames, `h`, `w` sides in pixels, `s` samples. A family implements `_encode` and `_decode`
on legal sizes; everything people rely on (checks, padding, rates, unequal items) is done here, once.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.config import Config as BaseConfig
from zoo.layers.tiled_stream import TiledStream
from zoo.layers.tiling import Tiling, decode_tiles, encode_tiles
from zoo.registry import Entry
from zoo.streaming import Stream
from zoo.tokens import Tokens, TokenSpec
from zoo.transforms.quality import Quality, smallest_tokens

__all__ = ["Tokenizer"]

_AXES = {"image": ("height", "width"), "video": ("frames", "height", "width"), "audio": ("samples",)}
_SHAPES = {"image": "(b, {}, h, w)", "video": "(b, {}, t, h, w)", "audio": "(b, {}, samples)"}
_OVERSHOOT = 1e-3


class Tokenizer(nn.Module):
    """Base class of the families.

    A subclass sets `family` and `Config`, and implements `layout_of`, `_encode` and `_decode`; one that reads a public release
    also implements `from_public` and `rename_public`.
    """

    family: ClassVar[str]
    Config: ClassVar[type[BaseConfig]]
    families: ClassVar[dict[str, type["Tokenizer"]]] = {}
    first_frame_alone: ClassVar[bool] = False
    """Video: the first position in time stands for one frame, each later one for `downsample[0]` frames."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "family" in cls.__dict__:
            Tokenizer.families[cls.family] = cls

    def __init__(self, config: BaseConfig, info: Entry | None = None) -> None:
        super().__init__()
        self.config = config
        if info is None:
            info = Entry(name=self.family, family=self.family, summary="", config=config.to_dict(), **self.layout_of(config))
        self.info = info

    # -- what a family provides ----------------------------------------------------------------------------------------------

    @classmethod
    def layout_of(cls, config: Any) -> dict[str, Any]:
        """Fields of the catalog entry that follow from the configuration: modality, layout, vocabulary, sizes, rates."""
        raise NotImplementedError

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> BaseConfig:
        """Translate the public release's configuration; `shapes` are those of the tensors beside it."""
        raise ValueError(f"{cls.family}: no public configuration format is known for this family. Load our own format.")

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Give the public release's tensors our parameter names."""
        return tensors

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        """Encode a batch of a legal size to `(b, *positions, d)` codes or latents; `generator` samples, None takes the mode."""
        raise NotImplementedError

    def _side(self, x: Tensor) -> dict[str, Tensor]:
        """Tensors, batch first, that the decoder needs beside the codes of a batch of a legal size."""
        return {}

    def _side_bits(self, extent: tuple[int, ...]) -> float:
        """Bits of an item's side tensors."""
        return 0.0

    def _decode(self, tokens: Tokens, size: tuple[int, ...], **options: Any) -> Tensor:
        """Decode tokens of items of one legal size to `(b, c, *size)`."""
        raise NotImplementedError

    def _stream(self, **options: Any) -> Stream:
        """Give the family's stream; asked for only where `info.streaming` says so."""
        raise NotImplementedError

    def _legal_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Smallest size of the signal axes that the network takes and that holds `size`."""
        multiple = self.info.size_multiple or 1
        sides = tuple(-(-side // multiple) * multiple for side in size)
        if self.info.modality != "video" or self.info.downsample is None:
            return sides
        step, alone = self.info.downsample[0], int(self.first_frame_alone)
        return (alone + -(-(size[0] - alone) // step) * step, *sides[1:])

    def _grid(self, size: tuple[int, ...]) -> tuple[int, ...] | None:
        """Token grid of a legal size; None where any number of positions is allowed (ordered 1D tokens)."""
        if self.info.downsample is None:
            return None
        steps = self.info.downsample[:1] if self.info.modality == "audio" else self.info.downsample[-len(size) :]
        grid = tuple(side // step for side, step in zip(size, steps, strict=True))
        if self.info.modality != "video":
            return grid
        alone = int(self.first_frame_alone)
        return (alone + (size[0] - alone) // steps[0], *grid[1:])

    def _span(self, positions: int) -> int:
        """Length of the signal, in samples or frames, that the first so many positions stand for."""
        step, alone = (self.info.downsample or (1,))[0], self.info.modality == "video" and self.first_frame_alone
        return 1 + (positions - 1) * step if alone and positions else positions * step

    # -- facts -----------------------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> TokenSpec:
        """Meaning of this tokenizer's codes or latents."""
        info = self.info
        return TokenSpec(
            tokenizer=info.name,
            modality=info.modality,
            vocabulary=info.vocabulary,
            channels=info.channels,
            ordered=info.ordered,
            residual=info.residual,
            sample_rate=info.sample_rate,
        )

    @property
    def tileable(self) -> bool:
        """`tile=` works: a grid of tokens over pictures or frames of any size, and a decoder that draws nothing."""
        info = self.info
        grid = (info.modality, info.layout) in (("image", "2d"), ("video", "3d")) and info.downsample is not None
        return grid and info.max_size is None and not info.stochastic_decode

    @property
    def in_channels(self) -> int:
        """Channels of the signal: 3 for pictures and video."""
        return self.info.audio_channels or 1 if self.info.modality == "audio" else 3

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    # -- the three verbs ---------------------------------------------------------------------------------------------------------

    def encode(
        self,
        x: Tensor | Sequence[Tensor],
        *,
        tokens: int | Sequence[int] | Tensor | None = None,
        depth: int | None = None,
        bits_per_pixel: float | None = None,
        bits_per_second: float | None = None,
        quality: Quality | float | None = None,
        sample: bool = False,
        seed: int = 0,
        tile: Tiling | int | None = None,
    ) -> Tokens:
        """Turn a batch into tokens.

        Args:
            x: images `(b, 3, h, w)`, video `(b, 3, t, h, w)` or audio `(b, channels, s)`, floating point in [-1, 1], on the device
                of the weights and cast to their type; or a list of such items without the batch axis, which may differ in
                size. Sides off the grid are padded with their edge and cropped back by `decode`.
            tokens: keep the first so many positions of an ordered tokenizer; a sequence gives each item its own.
            depth: keep the first so many levels of a residual tokenizer.
            bits_per_pixel: the largest rate allowed; picks the nearest lower setting of `tokens` or `depth`, and for a list the
                largest `depth` that no item exceeds the rate with.
            bits_per_second: the same for sound.
            quality: for each item, the smallest `tokens` whose reconstruction reaches a target (a number means PSNR in dB).
            sample: draw from the encoder's distribution instead of taking its mode (`info.stochastic_encode`); each item is
                encoded and drawn as if it were alone.
            seed: for `sample`, and for the reconstructions that `quality` looks at.
            tile: encode pictures with a larger side in overlapping tiles of so many pixels, one after the other, so that memory is
                that of one tile (`zoo.layers.tiling`); the result is close to that of the whole picture. None never cuts.

        Returns:
            Tokens with the extent of every item.

        Raises:
            ValueError: a wrong rank, channels, size, dtype or range (NaN included), an empty batch, a rate that this tokenizer
                does not have, or tiles that it does not take (`tileable`).
        """
        name = f"{self.info.name}.encode"
        rates = {"tokens": tokens, "bits_per_pixel": bits_per_pixel, "bits_per_second": bits_per_second, "quality": quality}
        given = [key for key, value in rates.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{name}: {' and '.join(given)} are given. Give only one of {', '.join(rates)}.")
        if sample and not self.info.stochastic_encode:
            raise ValueError(f"{name}: sample=True, but this encoder has nothing to sample. Leave it out.")
        if depth is not None:
            self._check_depth(depth)
        tiling = self._tiling(tile, "encode")
        goal = quality if isinstance(quality, Quality) or quality is None else Quality(_number(name, "quality", quality))
        if not isinstance(x, Tensor):
            items = self._check_items(x)
            if bits_per_pixel is not None or bits_per_second is not None:
                extents = [tuple(item.shape[1:]) for item in items]
                tokens, depth = self._rate_of_items(bits_per_pixel, bits_per_second, extents, depth)
            return self._encode_items(items, tokens, dict(depth=depth, quality=quality, sample=sample, seed=seed, tile=tile))
        self._check_signal(x)
        extent = tuple(x.shape[2:])
        if bits_per_pixel is not None or bits_per_second is not None:
            tokens, depth = self._rate_of(bits_per_pixel, bits_per_second, extent, depth)
        keep = self._check_keep(tokens, len(x))
        size = self._legal_size(extent)
        self._check_size(extent, size, "encode")
        longest = None if keep is None else int(keep.max())
        padded = self._pad(x.to(self.dtype), size)
        if sample:
            drawn = []
            for item in padded.split(1):
                generator = torch.Generator(device=x.device).manual_seed(seed)
                drawn.append(self._encode_size(item, tiling, tokens=longest, depth=depth, generator=generator))
            data = torch.cat(drawn)
        else:
            data = self._encode_size(padded, tiling, tokens=longest, depth=depth, generator=None)
        each = torch.tensor([extent] * len(x), dtype=torch.int64, device=data.device)
        out = Tokens(data, self.spec, each, None, self._side(padded))
        if keep is not None and bool((keep != data.shape[1]).any()):
            out = out.keep(keep)
        if goal is not None:
            out = smallest_tokens(x, out, lambda part: self.decode(part, **self._seeded(seed)), goal)
        return out

    def decode(self, tokens: Tokens, *, tile: Tiling | int | None = None, **options: Any) -> Tensor:
        """Turn tokens back into a batch of exactly the original size.

        Args:
            tokens: made by this tokenizer, or by a generator trained on its tokens.
            tile: decode pictures with a larger side in overlapping tiles of so many pixels, as `encode` does; best those that were
                encoded with the same number.
            options: of the family, such as `seed`, `steps` and `guidance` of a generative decoder; a list holds one value for
                each item.

        Returns:
            `(b, c, *extent)` floating point, about [-1, 1] (a network may overshoot; `postprocess` clamps). Where items differ
            in size, each lies at the start of the largest, the rest is zero.

        Raises:
            ValueError: tokens of another tokenizer, of a wrong shape, codes outside the vocabulary, latents that are not finite,
                an option that this tokenizer does not have, or tiles that it does not take.
        """
        self._check_tokens(tokens)
        self._check_options(options, len(tokens))
        tiling = self._tiling(tile, "decode")
        if tiling is not None and (each := [key for key, value in options.items() if isinstance(value, list)]):
            raise ValueError(f"{self.info.name}.decode: {each[0]} holds a value for each item. With tile= give one for all.")
        if not tokens.discrete:
            tokens = replace(tokens, data=tokens.data.to(self.dtype))
        extents = [tuple(row) for row in tokens.extent.tolist()]
        if len(set(extents)) == 1:
            return self._decode_size(tokens[:], extents[0], options, tiling)
        largest = tuple(max(sides) for sides in zip(*extents, strict=True))
        out = torch.zeros(len(tokens), self.in_channels, *largest, device=self.device, dtype=self.dtype)
        for extent in dict.fromkeys(extents):
            rows = [i for i, other in enumerate(extents) if other == extent]
            window = (slice(None), *(slice(side) for side in extent))
            own = {key: [value[i] for i in rows] if isinstance(value, list) else value for key, value in options.items()}
            for i, y in zip(rows, self._decode_size(tokens[rows], extent, own, tiling), strict=True):
                out[i][window] = y
        return out

    def forward(self, x: Tensor, **rate: Any) -> Tensor:
        """Reconstruct: `decode(encode(x, **rate))`."""
        return self.decode(self.encode(x, **rate))

    def stream(self, *, tile: Tiling | int | None = None, **options: Any) -> Stream:
        """Give an encoder and decoder for an endless signal: chunks in, tokens out, and the reverse, at constant memory.

        Args:
            tile: as for `encode` and `decode`; each tile of the frames is a stream of its own.
            options: of the family, such as `depth` for residual codes and `seed` of a decoder that draws.

        Raises:
            ValueError: this tokenizer needs the whole signal, or tiles that it does not take.
        """
        if not self.info.streaming:
            known = "`zoo.find(streaming=True)` lists those that do not"
            raise ValueError(f"{self.info.name}.stream: this tokenizer needs the whole signal. {known}.")
        tiling = self._tiling(tile, "stream")
        return self._stream(**options) if tiling is None else TiledStream(self, tiling, lambda: self._stream(**options))

    # -- what people have <-> x ----------------------------------------------------------------------------------------------------

    def preprocess(
        self,
        source: Any,
        *,
        size: int | tuple[int, int] | None = None,
        crop: bool = True,
        sample_rate: int | None = None,
    ) -> Tensor:
        """Turn what people have into `x` on this tokenizer's device.

        Args:
            source: a path, or for pictures a PIL image, uint8 array `(h, w, 3)` or tensor; for video an array `(t, h, w, 3)`, a
                tensor or a list of frames; for sound an array or tensor `(samples,)` or `(channels, samples)`; or a list of them.
            size: pictures and video: sides `(h, w)` or the short side; None takes the native size.
            crop: pictures and video: cut the centre to `size`; False keeps the aspect ratio (one at a time).
            sample_rate: sound: samples per second of an array or tensor; files know their own. It is resampled to that of the
                tokenizer, and its channels are copied or averaged to the number the tokenizer takes.

        Returns:
            `(b, 3, h, w)`, `(b, 3, t, h, w)` or `(b, channels, samples)` in [-1, 1].

        Raises:
            TypeError: something that is no picture, clip or sound.
            ValueError: no such file, a damaged one, values, shapes, sizes or rates that are not allowed, or items that do not fit
                one batch.
        """
        name, modality = f"{self.info.name}.preprocess", self.info.modality
        if modality == "audio":
            if size is not None or not crop:
                raise ValueError(f"{name}: sound has no size to change. Leave size and crop out.")
            if self.info.sample_rate is None:
                raise ValueError(f"{name}: the entry states no sample rate. Give encode() tensors {self._needed_shape}.")
            from zoo.media.audio import read_sounds

            x = read_sounds(source, sample_rate=sample_rate, target_rate=self.info.sample_rate, channels=self.in_channels)
            return x.to(self.device, self.dtype)
        if sample_rate is not None:
            raise ValueError(f"{name}: sample_rate={sample_rate}, but this tokenizer is for {modality}. Leave it out.")
        size = self.info.native_size if size is None else size
        if modality == "video":
            from zoo.media.video import read_videos

            return read_videos(source, size=size, crop=crop).to(self.device, self.dtype)
        from zoo.media.image import read_images

        return read_images(source, size=size, crop=crop).to(self.device, self.dtype)

    def postprocess(self, x: Tensor, *, path: str | Path | None = None, frame_rate: float | None = None) -> list[Any]:
        """Turn a decoded batch into what people use; values are clamped to [-1, 1].

        Args:
            x: as `decode` gives it.
            path: also write the item (one) to this file: a picture in any format of PIL, sound as wav, flac, ogg or mp3, video as
                mp4 in H.264. The file is whole or not there.
            frame_rate: of the video that is written; 25 where nothing is said.

        Returns:
            One object for each item: a PIL image, a uint8 array `(t, h, w, 3)` of frames, or a float32 array
            `(channels, samples)`.

        Raises:
            ValueError: another shape, NaN, several items for one file, or a format that cannot hold it.
        """
        name, modality = f"{self.info.name}.postprocess", self.info.modality
        if frame_rate is not None and (modality != "video" or path is None):
            raise ValueError(f"{name}: frame_rate={frame_rate} goes with a video and a path only. Leave it out.")
        if path is not None and len(x) != 1:
            raise ValueError(f"{name}: {len(x)} items for the one file {path}. Give one, such as x[:1].")
        if modality == "audio":
            from zoo.media.audio import to_arrays, write_sound

            arrays = to_arrays(x)
            if path is not None:
                write_sound(x, path, sample_rate=self.info.sample_rate or 0)
            return arrays
        if modality == "video":
            from zoo.media.video import to_frames, write_video

            clips = to_frames(x)
            if path is not None:
                write_video(x, path, frame_rate=25.0 if frame_rate is None else frame_rate)
            return clips
        from zoo.media.image import to_pil, write_picture

        pictures = to_pil(x)
        if path is not None:
            write_picture(pictures[0], path)
        return pictures

    # -- checks --------------------------------------------------------------------------------------------------------------------

    def _check_signal(self, x: Tensor) -> None:
        name, needed = f"{self.info.name}.encode", self._needed_shape
        shape = tuple(x.shape)
        if x.ndim != 2 + len(_AXES[self.info.modality]):
            raise ValueError(f"{name}: x has shape {shape}. Needed: {needed}; one item gets a batch axis by x[None].")
        if not x.is_floating_point():
            hint = "8-bit values v become v / 127.5 - 1"
            raise ValueError(f"{name}: x has dtype {x.dtype}. Needed: floating point in [-1, 1]; {hint}.")
        if len(x) == 0:
            raise ValueError(f"{name}: x is an empty batch. Give at least one item.")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"{name}: x has {x.shape[1]} channels in shape {shape}. Needed: {self.in_channels}, as {needed}.")
        if 0 in shape:
            raise ValueError(f"{name}: x has shape {shape}. Every axis must be at least 1.")
        if x.device != self.device:
            raise ValueError(f"{name}: x is on {x.device}, the weights are on {self.device}. Move one of them with .to(device).")
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name}: x holds NaN or infinity. Allowed: [-1, 1].")
        if self._bounded and (low < -1 - _OVERSHOOT or high > 1 + _OVERSHOOT):
            raise ValueError(
                f"{name}: x reaches from {low:.4g} to {high:.4g}. Allowed: [-1, 1]; use preprocess(), or clamp a decoded batch."
            )

    @property
    def _bounded(self) -> bool:
        """Signals must lie in [-1, 1]; a family that takes latents says False."""
        return True

    def _check_size(self, extent: tuple[int, ...], size: tuple[int, ...], verb: str) -> None:
        limit = self.info.max_size
        if limit is not None and max(size[-2:]) > limit:
            what, hint = ("x has", "; resize with preprocess(image)") if verb == "encode" else ("tokens are of", "")
            raise ValueError(f"{self.info.name}.{verb}: {what} sides {extent}. Allowed: up to {limit}{hint}.")

    @property
    def _needed_shape(self) -> str:
        return _SHAPES[self.info.modality].format(self.in_channels)

    def _check_items(self, x: Any) -> list[Tensor]:
        """Check a list of items without batch axis."""
        name = f"{self.info.name}.encode"
        if not isinstance(x, list | tuple):
            needed = self._needed_shape
            raise TypeError(f"{name}: x is a {type(x).__name__}. Needed: a tensor {needed}, or a list of its items.")
        if not x:
            raise ValueError(f"{name}: x is an empty list. Give at least one item.")
        for i, item in enumerate(x):
            if not isinstance(item, Tensor):
                raise TypeError(f"{name}: x[{i}] is a {type(item).__name__}. Needed: a tensor; preprocess() makes it of a picture.")
            if item.ndim != 1 + len(_AXES[self.info.modality]):
                shape = self._needed_shape.replace("b, ", "")
                raise ValueError(f"{name}: x[{i}] has shape {tuple(item.shape)}. Needed: {shape}, without a batch axis.")
            self._check_signal(item[None])
        return list(x)

    def _check_options(self, options: dict[str, Any], batch: int) -> None:
        """Refuse options that the family's `_decode` does not take."""
        name = f"{self.info.name}.decode"
        parameters = list(inspect.signature(self._decode).parameters.values())[2:]
        known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        unknown = [key for key in options if key not in known]
        if unknown and len(known) == len(parameters):
            allowed = f"Allowed: {', '.join(known)}" if known else "It takes none"
            raise ValueError(f"{name}: this tokenizer has no option {', '.join(map(repr, unknown))}. {allowed}.")
        for key, value in options.items():
            if isinstance(value, list) and len(value) != batch:
                raise ValueError(f"{name}: {key} holds {len(value)} values for {batch} items. Give one for all or one for each.")

    def _check_keep(self, tokens: int | Sequence[int] | Tensor | None, batch: int) -> Tensor | None:
        """Check `tokens=` and give one count for each item."""
        if tokens is None:
            return None
        name, most = f"{self.info.name}.encode", self.info.tokens
        if not self.info.ordered or most is None:
            raise ValueError(f"{name}: tokens={tokens}, but this tokenizer has a fixed layout. Leave it out.")
        try:
            keep = torch.as_tensor(tokens)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: tokens={tokens!r}. Allowed: one int, or one int for each of the {batch} items.") from error
        if keep.dtype.is_floating_point or keep.dtype == torch.bool or keep.ndim > 1 or (keep.ndim == 1 and len(keep) != batch):
            raise ValueError(f"{name}: tokens={tokens}. Allowed: one int, or one int for each of the {batch} items.")
        if int(keep.min()) < 1 or int(keep.max()) > most:
            raise ValueError(f"{name}: tokens={tokens} is outside 1..{most}. Use a number in it or leave it out for all.")
        return keep.long().expand(batch)

    def _tiling(self, tile: Tiling | int | None, verb: str) -> Tiling | None:
        """Check `tile=`."""
        if tile is None:
            return None
        if not self.tileable or self.info.downsample is None:
            raise ValueError(f"{self.info.name}.{verb}: tile={tile}, but this tokenizer takes whole signals only. Leave it out.")
        try:
            tiling = tile if isinstance(tile, Tiling) else Tiling(tile)
            for f in self.info.downsample[1:]:
                tiling.positions(f)
        except ValueError as error:
            raise ValueError(f"{self.info.name}.{verb}: tile={tile!r}. {error}") from error
        return tiling

    def _check_depth(self, depth: int) -> None:
        name = f"{self.info.name}.encode"
        if not self.info.residual:
            raise ValueError(f"{name}: depth={depth}, but this tokenizer has no residual levels. Leave it out.")
        if not hasattr(depth, "__index__") or isinstance(depth, bool) or not 1 <= depth <= self.info.depth:
            raise ValueError(f"{name}: depth={depth} is outside 1..{self.info.depth}, the levels of this tokenizer.")
        if depth not in self.spec.depths:
            allowed = ", ".join(map(str, self.spec.depths))
            raise ValueError(f"{name}: depth={depth} cuts inside a level. Allowed: {allowed} codes, the ends of its levels.")

    def _check_tokens(self, tokens: Tokens) -> None:
        name = f"{self.info.name}.decode"
        if not isinstance(tokens, Tokens):
            raise TypeError(f"{name}: tokens is a {type(tokens).__name__}. Needed: zoo.Tokens, as encode() returns.")
        if len(tokens) == 0:
            raise ValueError(f"{name}: tokens hold an empty batch. Give at least one item.")
        if tokens.spec.tokenizer != self.info.name:
            raise ValueError(f"{name}: these are tokens of {tokens.spec.tokenizer!r}. Only their maker decodes them.")
        for what in ("vocabulary", "channels", "latents"):
            found, needed = getattr(tokens.spec, what), getattr(self.spec, what)
            if found != needed:
                raise ValueError(f"{name}: tokens have {what} {found}. Needed: {needed}.")
        if tokens.device != self.device:
            raise ValueError(f"{name}: tokens are on {tokens.device}, the weights are on {self.device}. Use tokens.to(device).")
        tokens.check_codes(name)
        for extent, sides in {(tuple(e), tuple(n)) for e, n in zip(tokens.extent.tolist(), tokens.sizes.tolist(), strict=True)}:
            size = self._legal_size(extent)
            self._check_size(extent, size, "decode")
            grid, most = self._grid(size), self.info.tokens
            if grid is not None and sides != grid:
                raise ValueError(f"{name}: positions {sides} for an extent of {extent}. Needed: {grid}.")
            if grid is None and most is not None:
                least = 1 if self.info.ordered else most
                if len(sides) != 1 or not least <= sides[0] <= most:
                    found, allowed = " x ".join(map(str, sides)), f"{least}..{most}" if self.info.ordered else f"{most}"
                    raise ValueError(f"{name}: {found} positions. Allowed: {allowed} for an item.")

    # -- inner steps ---------------------------------------------------------------------------------------------------------------

    def _seeded(self, seed: int) -> dict[str, int]:
        return {"seed": seed} if self.info.stochastic_decode else {}

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Repeat the last edge up to a legal size."""
        for axis, side in enumerate(size, start=2):
            missing = side - x.shape[axis]
            if missing:
                x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1).expand(*_repeat(x, axis, missing))], axis)
        return x

    def _encode_size(self, x: Tensor, tiling: Tiling | None, **rate: Any) -> Tensor:
        """Encode a batch of a legal size, whole or in tiles."""
        if tiling is None or max(x.shape[-2:]) <= tiling.side or self.info.downsample is None:
            return self._encode(x, **rate)
        return encode_tiles(lambda part: self._encode(part, **rate), x, tiling, downsample=self.info.downsample[1:])

    def _decode_size(
        self, tokens: Tokens, extent: tuple[int, ...], options: dict[str, Any], tiling: Tiling | None = None
    ) -> Tensor:
        """Decode items of one extent, whole or in tiles, and cut what was padded."""
        size, downsample = self._legal_size(extent), self.info.downsample
        if tiling is None or max(size[-2:]) <= tiling.side or downsample is None:
            y = self._decode(tokens, size, **options)
        else:
            f, one = downsample[1:], tokens[:1]

            def part(data: Tensor) -> Tensor:
                sides = (*size[:-2], data.shape[-3] * f[0], data.shape[-2] * f[1])
                return self._decode(replace(one, data=data, extent=one.extent.new_tensor([sides])), sides, **options)

            y = decode_tiles(part, tokens.data, tiling, downsample=f)
        return y[(slice(None), slice(None), *(slice(side) for side in extent))]

    def _encode_items(self, items: Sequence[Tensor], tokens: Any, options: dict[str, Any]) -> Tokens:
        """Encode items of unequal size, those of one size together, and keep their order."""
        keep = self._check_keep(tokens, len(items))
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(items):
            groups.setdefault(tuple(item.shape), []).append(i)
        parts: list[tuple[list[int], Tokens]] = []
        for rows in groups.values():
            chosen = None if keep is None else keep[rows]
            parts.append((rows, self.encode(torch.stack([items[i] for i in rows]), tokens=chosen, **options)))
        order = [i for rows, _ in parts for i in rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        return Tokens.cat([part for _, part in parts])[back]

    def _rate_of(
        self, bits_per_pixel: float | None, bits_per_second: float | None, extent: tuple[int, ...], depth: int | None
    ) -> tuple[int | None, int | None]:
        """Largest `tokens` (ordered) or `depth` (residual) of an item whose rate does not exceed the one that is given."""
        name, audio = f"{self.info.name}.encode", self.info.modality == "audio"
        argument, other = ("bits_per_second", bits_per_pixel) if audio else ("bits_per_pixel", bits_per_second)
        if other is not None:
            raise ValueError(f"{name}: the rate of {'sound' if audio else 'pictures'} is given by {argument}.")
        rate = _number(name, argument, bits_per_second if audio else bits_per_pixel)
        units = extent[0] / self.info.sample_rate if audio and self.info.sample_rate else math.prod(extent)
        budget = rate * units * (1 + 1e-9)
        grid = self._grid(self._legal_size(extent))
        if self.info.vocabulary:
            code_bits = [math.log2(size) for size in self.info.vocabulary]
        else:
            code_bits = [torch.finfo(self.dtype).bits * (self.info.channels or 1)]
        if self.info.ordered and self.info.tokens is not None:
            steps = [sum(code_bits[:depth]) * k for k in range(1, self.info.tokens + 1)]
        elif self.info.residual and grid is not None:
            if depth is not None:
                raise ValueError(f"{name}: depth={depth} and {argument}={rate:g} both choose the depth. Give only one.")
            steps = [sum(code_bits[:d]) * math.prod(grid) + self._side_bits(extent) for d in self.spec.depths]
        else:
            raise ValueError(f"{name}: {argument}={rate:g}, but this tokenizer has one rate only. Leave it out.")
        count = sum(bits <= budget for bits in steps)
        if count < 1:
            raise ValueError(f"{name}: {argument}={rate:g} is too little. Allowed: at least {steps[0] / units:.4g} for {extent}.")
        return (count, depth) if self.info.ordered else (None, self.spec.depths[count - 1])

    def _rate_of_items(
        self,
        bits_per_pixel: float | None,
        bits_per_second: float | None,
        extents: list[tuple[int, ...]],
        depth: int | None,
    ) -> tuple[list[int] | None, int | None]:
        """`tokens` of each item; or one `depth` for all, since a batch has one."""
        rates = [self._rate_of(bits_per_pixel, bits_per_second, extent, depth) for extent in extents]
        counts = [count for count, _ in rates if count is not None]
        return (counts, depth) if counts else (None, min(d for _, d in rates if d is not None))


def _number(name: str, argument: str, value: Any) -> float:
    """A finite number."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: {argument}={value!r}. Needed: a finite number.")
    return number


def _repeat(x: Tensor, axis: int, count: int) -> list[int]:
    """Shape for `expand` that repeats one axis."""
    return [count if i == axis else -1 for i in range(x.ndim)]
