"""The value that passes between every room: codes or latents, with all that is needed to read them again.

Shapes: `b` batch, `n` positions of a 1D layout, `d` depth (codes of one position). See `Tokens` for the layouts.
"""

import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["FORMAT", "Segment", "TokenSpec", "Tokens", "narrowest"]

Order = Literal["position", "level", "delay"]
ORDERS: tuple[Order, ...] = ("position", "level", "delay")
_EXTENT_AXES = {"image": 2, "video": 3, "audio": 1}
_NORMALISATIONS = ("normalised", "raw")
FORMAT = "zoo-tokens-1"
"""Said in the header of a file of tokens."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a multi-rate axis: `length` codes of one level, each covering `stride` positions of the finest grid."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if self.length < 1 or self.stride < 1:
            raise ValueError(f"Segment: length={self.length}, stride={self.stride}. Both must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """What the numbers in `Tokens.data` mean.

    Attributes:
        tokenizer: name of the tokenizer that made them; only it decodes them.
        modality: "image", "video" or "audio".
        vocabulary: codebook size for each depth; empty for continuous latents.
        channels: size of the last axis of continuous latents.
        ordered: the positions are ordered, any prefix decodes.
        residual: the depth axis is ordered, any prefix decodes.
        sample_rate: samples per second of the audio, frames per second of the video; for rates in time.
        segments: levels of a multi-rate axis, coarse to fine; empty for one rate. The axis is the positions (a picture in scales),
            or the depth where that is ordered and the positions are not (a codec whose coarse frame holds 1 + 2 + 4 codes).
        latents: how continuous latents were normalised ("normalised" or "raw").
    """

    tokenizer: str
    modality: Literal["image", "video", "audio"]
    vocabulary: tuple[int, ...] = ()
    channels: int | None = None
    ordered: bool = False
    residual: bool = False
    sample_rate: float | None = None
    segments: tuple[Segment, ...] = ()
    latents: str = "normalised"

    def __post_init__(self) -> None:
        name = f"TokenSpec of {self.tokenizer}"
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        object.__setattr__(self, "segments", tuple(self.segments))
        if self.modality not in _EXTENT_AXES:
            raise ValueError(f"{name}: modality={self.modality!r}. Allowed: {', '.join(_EXTENT_AXES)}.")
        if bool(self.vocabulary) == (self.channels is not None):
            raise ValueError(f"{name}: give either vocabulary (discrete) or channels (continuous), not both or none.")
        if not all(1 <= size < 2**63 for size in self.vocabulary):
            raise ValueError(f"{name}: vocabulary={self.vocabulary} must hold sizes of at least 1 and below 2^63.")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"{name}: channels={self.channels}. Allowed: at least 1.")
        if self.latents not in _NORMALISATIONS:
            raise ValueError(f"{name}: latents={self.latents!r}. Allowed: {', '.join(_NORMALISATIONS)}.")
        if self.deep_segments and self.segment_ends[-1] != len(self.vocabulary):
            held = f"segments hold {self.segment_ends[-1]} codes for {len(self.vocabulary)} vocabularies"
            raise ValueError(f"{name}: {held}. Levels on the depth axis need one each.")

    @property
    def discrete(self) -> bool:
        return bool(self.vocabulary)

    @property
    def segment_ends(self) -> list[int]:
        """Places at which a multi-rate axis may be cut: the end of each level; empty for one rate."""
        return list(accumulate(segment.length for segment in self.segments))

    @property
    def deep_segments(self) -> bool:
        """The segments are stretches of the depth axis."""
        return bool(self.segments) and self.discrete and self.residual and not self.ordered

    @property
    def depths(self) -> list[int]:
        """Numbers of codes of one position that decode: all of them, or also less for residual tokens."""
        whole = len(self.vocabulary)
        if self.deep_segments:
            return self.segment_ends
        return list(range(1, whole + 1)) if self.residual else [whole]

    def to_json(self) -> str:
        """Text for the header of a file; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TokenSpec":
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON, or other keys or values than `to_json` writes.
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "segments": tuple(Segment(**segment) for segment in values["segments"])})
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"TokenSpec.from_json: {text[:80]!r} is not what to_json writes ({error}).") from error


def narrowest(largest: int) -> torch.dtype:
    """Smallest integer type that safetensors stores and that holds 0..largest."""
    for dtype, top in ((torch.uint8, 2**8), (torch.uint16, 2**16), (torch.int32, 2**31)):
        if largest < top:
            return dtype
    return torch.int64


@dataclass(frozen=True, eq=False)
class Tokens:
    """Immutable tokens of a batch.

    Attributes:
        data: `(b, *positions, d)` int64 codes, or `(b, *positions, c)` floating-point latents. `positions` is `(n,)` for 1D
            tokens and audio frames, `(h, w)` for a grid, `(t, h, w)` for video.
        spec: what the numbers mean.
        extent: `(b, m)` int64, each item's size before encoding: `(h, w)`, `(t, h, w)` or `(samples,)`. Decoding gives it back.
        lengths: how much of each item is real, where items differ: int64 `(b,)` along the first axis of positions, or
            `(b, axes)` along every axis of a grid. None when all is real. The rest is filler (zeros).
        side: named tensors that the decoder needs beside the codes, batch first; counted in `bits`.
    """

    data: Tensor
    spec: TokenSpec
    extent: Tensor
    lengths: Tensor | None = None
    side: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not torch.is_tensor(self.extent):
            rows = [self.extent] * len(self.data) if self.extent and isinstance(self.extent[0], int) else self.extent
            object.__setattr__(self, "extent", torch.tensor(rows, dtype=torch.int64, device=self.data.device))
        object.__setattr__(self, "side", dict(self.side))
        name = f"Tokens of {self.spec.tokenizer}"
        self._check_data(name)
        self._check_extent(name)
        self._check_lengths(name)
        for key, value in self.side.items():
            if not torch.is_tensor(value):
                raise ValueError(f"{name}: side[{key!r}] is a {type(value).__name__}. Needed: a tensor, batch first.")
            if value.ndim < 1 or len(value) != len(self.data):
                held = len(value) if value.ndim else "one number, not"
                raise ValueError(f"{name}: side[{key!r}] holds {held} items for a batch of {len(self.data)}.")

    def _check_data(self, name: str) -> None:
        if self.data.ndim < 3:
            raise ValueError(f"{name}: data has shape {tuple(self.data.shape)}. Needed: (batch, *positions, depth).")
        last = self.data.shape[-1]
        if self.spec.discrete:
            if self.data.dtype != torch.int64:
                raise ValueError(f"{name}: data has dtype {self.data.dtype}. Codes must be torch.int64.")
            if last not in self.spec.depths:
                raise ValueError(f"{name}: depth {last}. Needed: {_shown(self.spec.depths)}, the number of its vocabularies.")
        else:
            if not self.data.is_floating_point():
                raise ValueError(f"{name}: data has dtype {self.data.dtype}. Latents must be floating point.")
            if last != self.spec.channels:
                raise ValueError(f"{name}: {last} channels on the last axis. Needed: {self.spec.channels}.")
        if self.spec.segments and not self.spec.deep_segments:
            if len(self.positions) != 1:
                raise ValueError(f"{name}: positions {self.positions}. Tokens with segments have one axis of positions.")
            ends = self.spec.segment_ends
            if self.positions[0] not in ends:
                raise ValueError(f"{name}: {self.positions[0]} positions do not end with a level. Allowed: {ends}.")

    def _check_extent(self, name: str) -> None:
        axes, modality = _EXTENT_AXES[self.spec.modality], self.spec.modality
        if self.extent.ndim != 2 or len(self.extent) != len(self.data):
            raise ValueError(f"{name}: extent has shape {tuple(self.extent.shape)}. Needed: (batch, axes of the signal).")
        if self.extent.dtype != torch.int64:
            raise ValueError(f"{name}: extent has dtype {self.extent.dtype}. Needed: torch.int64.")
        if self.extent.shape[1] != axes:
            raise ValueError(f"{name}: extent has {self.extent.shape[1]} numbers for an item. Needed: {axes} for {modality}.")
        if len(self.extent) and not self.extent.is_meta and int(self.extent.min()) < 1:
            raise ValueError(f"{name}: extent={self.extent.tolist()}. Every side must be at least 1.")

    def _check_lengths(self, name: str) -> None:
        if self.lengths is None:
            return
        allowed = [(len(self.data),)] + ([(len(self.data), len(self.positions))] if len(self.positions) > 1 else [])
        if tuple(self.lengths.shape) not in allowed:
            raise ValueError(f"{name}: lengths has shape {tuple(self.lengths.shape)}. Needed: {' or '.join(map(str, allowed))}.")
        if self.lengths.dtype != torch.int64:
            raise ValueError(f"{name}: lengths has dtype {self.lengths.dtype}. Needed: torch.int64.")
        if len(self.data) and not self.lengths.is_meta:
            most = torch.tensor(self.positions, device=self.lengths.device)
            inside = self.lengths <= (most if self.lengths.ndim == 2 else most[0])
            if int(self.lengths.min()) < 0 or not bool(inside.all()):
                sides = self.positions[:1] if self.lengths.ndim == 1 else self.positions
                ranges = ", ".join(f"0..{side}" for side in sides)
                raise ValueError(f"{name}: lengths={self.lengths.tolist()} are not all in {ranges}.")

    # -- facts ---------------------------------------------------------------------------------------------------------------

    @property
    def discrete(self) -> bool:
        """Codes (True) or latents (False)."""
        return self.spec.discrete

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of the token grid, `(n,)`, `(h, w)` or `(t, h, w)`."""
        return tuple(self.data.shape[1:-1])

    @property
    def levels(self) -> int:
        """Codes (or channels) at one position: the size of the depth axis."""
        return self.data.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def sizes(self) -> Tensor:
        """`(b, axes)` int64: real positions of each item along each axis of positions."""
        if self.lengths is not None and self.lengths.ndim == 2:
            return self.lengths
        sizes = torch.tensor(self.positions, dtype=torch.int64, device=self.device).repeat(len(self), 1)
        if self.lengths is not None:
            sizes[:, 0] = self.lengths
        return sizes

    @property
    def counts(self) -> Tensor:
        """`(b,)` int64: real positions of each item."""
        return self.sizes.prod(1)

    @property
    def mask(self) -> Tensor:
        """`(b, *positions)` boolean: True where the position is real."""
        return _real(self.positions, self.sizes)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        kind = f"vocabulary {self.spec.vocabulary[: self.levels]}" if self.discrete else f"{self.data.dtype} latents"
        cut = "" if self.lengths is None else f", lengths {self.lengths.tolist()}"
        return f"Tokens({self.spec.tokenizer}, {tuple(self.data.shape)}, {kind}{cut})"

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Tokens":
        """Select items of the batch; an int keeps the batch axis. Filler that none of them needs is left out."""
        if hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0:
            row = operator.index(index)  # type: ignore[arg-type]
            if not -len(self) <= row < len(self):
                raise IndexError(f"Tokens of {self.spec.tokenizer}: item {row} of a batch of {len(self)}.")
            index = [row]
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.device)
            index = index if index.numel() else index.long()
        data, lengths = self.data[index], None
        if self.lengths is not None:
            data, lengths = _tight(data, self.sizes[index])
        side = {key: value[index] for key, value in self.side.items()}
        return replace(self, data=data, extent=self.extent[index], lengths=lengths, side=side)

    def __iter__(self) -> Iterator["Tokens"]:
        return (self[i] for i in range(len(self)))

    # -- rate ----------------------------------------------------------------------------------------------------------------

    def keep(self, k: int | Sequence[int] | Tensor) -> "Tokens":
        """Keep the first `k` positions of an ordered tokenizer; a sequence gives each item its own.

        Multi-rate tokens are cut at the ends of their segments.

        Raises:
            ValueError: positions are not ordered, or a k outside 1..n, or inside a segment.
        """
        name = f"Tokens of {self.spec.tokenizer}.keep"
        n = self.data.shape[1]
        if not self.spec.ordered:
            raise ValueError(f"{name}: the positions of this tokenizer are not ordered. Use depth(d) if it is residual.")
        try:
            ks = torch.as_tensor(k, device=self.device)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: k={k!r}. Needed: one int, or one for each item.") from error
        if ks.numel() and (ks.is_floating_point() or ks.is_complex() or ks.dtype == torch.bool):
            raise ValueError(f"{name}: k={k}. Needed: one int, or one for each item.")
        if ks.shape not in ((), (len(self),)):
            raise ValueError(f"{name}: k has shape {tuple(ks.shape)} for a batch of {len(self)}. Give one int, or one for each.")
        ks = ks.long()
        if ks.numel() and (int(ks.min()) < 1 or int(ks.max()) > n):
            raise ValueError(f"{name}: k={k} is outside 1..{n}, the positions there are.")
        ends = [] if self.spec.deep_segments else self.spec.segment_ends
        if ends and any(v not in ends for v in ks.reshape(-1).tolist()):
            raise ValueError(f"{name}: k={k} cuts inside a level. Allowed: {ends}.")
        if not len(self):
            return replace(self, data=self.data[:, : int(ks)] if ks.ndim == 0 else self.data)
        sizes = self.sizes.clone()
        sizes[:, 0] = torch.minimum(sizes[:, 0], ks)
        data, lengths = _tight(self.data, sizes)
        return replace(self, data=data, lengths=lengths)

    def depth(self, d: int) -> "Tokens":
        """Keep the first `d` codes of each position of a residual tokenizer; multi-rate tokens are cut at the ends of their levels.

        Raises:
            ValueError: the depth axis is not ordered, or d outside 1..levels, or inside a level.
        """
        name = f"Tokens of {self.spec.tokenizer}.depth"
        if not self.spec.residual:
            raise ValueError(f"{name}: the codes of one position are not levels of refinement here, so none can be left out.")
        if not hasattr(d, "__index__") or isinstance(d, bool):
            raise ValueError(f"{name}: d={d!r}. Needed: an int in 1..{self.levels}.")
        if not 1 <= d <= self.levels:
            raise ValueError(f"{name}: d={d} is outside 1..{self.levels}, the levels there are.")
        if d not in self.spec.depths:
            raise ValueError(f"{name}: d={d} cuts inside a level. Allowed: {_shown(self.spec.depths)}.")
        return replace(self, data=self.data[..., :d])

    def bits(self) -> Tensor:
        """Bits of each item, `(b,)` float64: real positions times the bits of their codes, side tensors included.

        Latents count the bits of their floating-point type.
        """
        if self.discrete:
            per_position = sum(math.log2(size) for size in self.spec.vocabulary[: self.levels])
        else:
            per_position = self.levels * torch.finfo(self.data.dtype).bits
        side = sum(value[0].numel() * value.element_size() * 8 for value in self.side.values()) if len(self) else 0
        return self.counts.double() * per_position + side

    def bits_per_pixel(self) -> Tensor:
        """Bits over pixels (over pixels and frames for video), `(b,)` float64.

        Raises:
            ValueError: sound has no pixels.
        """
        if self.spec.modality == "audio":
            raise ValueError(f"Tokens of {self.spec.tokenizer}.bits_per_pixel: sound has no pixels. Use bits_per_second().")
        return self.bits() / self.extent.prod(1).double()

    def bits_per_second(self) -> Tensor:
        """Bits over seconds, `(b,)` float64.

        Raises:
            ValueError: pictures last no time, or the sample or frame rate is unknown.
        """
        if self.spec.modality == "image" or self.spec.sample_rate is None:
            raise ValueError(f"Tokens of {self.spec.tokenizer}.bits_per_second: no duration is known. Use bits_per_pixel().")
        return self.bits() * self.spec.sample_rate / self.extent[:, 0].double()

    # -- sequences for language models -----------------------------------------------------------------------------------------

    def vocabulary_offsets(self) -> tuple[int, ...]:
        """First id of each depth in the joint vocabulary; its size is the last offset plus the last codebook size."""
        sizes = self.spec.vocabulary[: self.levels]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def offset(self) -> Tensor:
        """Codes with a vocabulary of their own for each depth, same shape as `data`: add `vocabulary_offsets()`.

        Raises:
            ValueError: latents have no vocabulary, or the joint one does not fit 64 bits.
        """
        name = f"Tokens of {self.spec.tokenizer}.offset"
        if not self.discrete:
            raise ValueError(f"{name}: latents have no vocabulary.")
        if sum(self.spec.vocabulary[: self.levels]) >= 2**63:
            raise ValueError(f"{name}: a joint vocabulary of {self.spec.vocabulary[: self.levels]} does not fit 64 bits.")
        return self.data + torch.tensor(self.vocabulary_offsets(), dtype=torch.int64, device=self.device)

    def flatten(self, *, order: Order = "position", joint: bool = False, pad: int = -1) -> Tensor:
        """Lay the codes out as one sequence for each item.

        Args:
            order: "position" gives all depths of a position before the next position; "level" gives all positions of a depth
                before the next depth; "delay" shifts depth j by j positions and fills with `pad`, position by position.
            joint: use one vocabulary over all depths (`offset`).
            pad: fills positions that are not real (items of unequal length, and the corners of "delay").

        Returns:
            int64 `(b, n * d)`, or `(b, (n + d - 1) * d)` for "delay".

        Raises:
            ValueError: latents, another order, or a joint vocabulary that does not fit 64 bits.
        """
        name = f"Tokens of {self.spec.tokenizer}.flatten"
        if order not in ORDERS:
            raise ValueError(f"{name}: order={order!r}. Allowed: {', '.join(ORDERS)}.")
        if not self.discrete:
            raise ValueError(f"{name}: latents are not a sequence of codes.")
        codes = self.offset() if joint else self.data
        if self.lengths is not None:
            codes = codes.masked_fill(~self.mask[..., None], pad)
        codes = codes.flatten(1, -2)
        b, n, d = codes.shape
        if order == "level":
            return codes.transpose(1, 2).reshape(b, n * d)
        if order == "delay":
            out = codes.new_full((b, n + d - 1, d), pad)
            for level in range(d):
                out[:, level : level + n, level] = codes[:, :, level]
            return out.reshape(b, -1)
        return codes.reshape(b, n * d)

    def unflatten(self, ids: Tensor, *, order: Order = "position", joint: bool = False) -> "Tokens":
        """Read sequences made by `flatten` of tokens laid out like these; extent, lengths and side come from here.

        Args:
            ids: int64 `(b, length)`; padding is ignored where these tokens have no real position.

        Raises:
            ValueError: wrong length or dtype, a code outside its vocabulary, no batch of the same size, or latents.
        """
        name = f"Tokens of {self.spec.tokenizer}.unflatten"
        if order not in ORDERS:
            raise ValueError(f"{name}: order={order!r}. Allowed: {', '.join(ORDERS)}.")
        if not self.discrete:
            raise ValueError(f"{name}: latents are not a sequence of codes.")
        if ids.dtype != torch.int64:
            raise ValueError(f"{name}: ids have dtype {ids.dtype}. Needed: torch.int64.")
        n, d = math.prod(self.positions), self.levels
        wanted = (len(self), (n + d - 1) * d if order == "delay" else n * d)
        if tuple(ids.shape) != wanted:
            raise ValueError(f"{name}: ids have shape {tuple(ids.shape)}. Needed: {wanted} for order {order!r}.")
        if order == "level":
            codes = ids.reshape(-1, d, n).transpose(1, 2)
        elif order == "delay":
            shifted = ids.reshape(len(self), n + d - 1, d)
            codes = torch.stack([shifted[:, level : level + n, level] for level in range(d)], dim=-1)
        else:
            codes = ids.reshape(-1, n, d)
        if joint:
            codes = codes - torch.tensor(self.vocabulary_offsets(), dtype=torch.int64, device=codes.device)
        codes = codes.reshape(self.data.shape)
        if self.lengths is not None:
            codes = codes.masked_fill(~self.mask[..., None], 0)
        tokens = replace(self, data=codes.contiguous())
        tokens.check_codes(name)
        return tokens

    def check_codes(self, name: str | None = None) -> None:
        """Refuse codes outside their vocabulary and latents that are not finite.

        Raises:
            ValueError: names the value and what is allowed.
        """
        name = name or f"Tokens of {self.spec.tokenizer}"
        if not self.discrete:
            if not torch.isfinite(self.data).all():
                raise ValueError(f"{name}: the latents hold NaN or infinity.")
            return
        sizes = torch.tensor(self.spec.vocabulary[: self.levels], device=self.device)
        bad = (self.data < 0) | (self.data >= sizes)
        if bad.any():
            level = int(bad.nonzero()[0, -1])
            value = int(self.data[..., level][bad[..., level]][0])
            raise ValueError(f"{name}: code {value} at depth {level} is outside 0..{int(sizes[level]) - 1}.")

    # -- moving and keeping ----------------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> "Tokens":
        """Move every tensor to a device."""
        return replace(
            self,
            data=self.data.to(device),
            extent=self.extent.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
            side={key: value.to(device) for key, value in self.side.items()},
        )

    @staticmethod
    def cat(parts: Sequence["Tokens"]) -> "Tokens":
        """Join batches of one tokenizer; smaller items are padded with zeros and `lengths` remembers. So are smaller side tensors.

        Raises:
            ValueError: nothing to join, or parts that differ in tokenizer, depth, axes of the grid, dtype or names of side tensors.
        """
        if not parts:
            raise ValueError("Tokens.cat: parts is empty. Give at least one Tokens.")
        first, name = parts[0], f"Tokens.cat of {parts[0].spec.tokenizer}"
        for part in parts[1:]:
            if part.spec != first.spec or part.levels != first.levels or part.data.ndim != first.data.ndim:
                raise ValueError(f"Tokens.cat: {part} does not fit {first}: same tokenizer, depth and axes of the grid are needed.")
            if part.data.dtype != first.data.dtype:
                raise ValueError(f"{name}: latents are {first.data.dtype} and {part.data.dtype}. Needed: one dtype.")
            if part.side.keys() != first.side.keys():
                raise ValueError(f"{name}: parts have the side tensors {[*first.side]} and {[*part.side]}. Needed: the same.")
        largest = [max(sides) for sides in zip(*(part.positions for part in parts), strict=True)]
        rows = []
        for part in parts:
            row = part.data.new_zeros(len(part), *largest, part.levels)
            row[(slice(None), *(slice(side) for side in part.positions))] = part.data
            rows.append(row)
        data, lengths = _tight(torch.cat(rows), torch.cat([part.sizes for part in parts]))
        return Tokens(
            data,
            first.spec,
            torch.cat([part.extent for part in parts]),
            lengths,
            {key: _stacked([part.side[key] for part in parts]) for key in first.side},
        )

    @staticmethod
    def join(parts: Sequence["Tokens"]) -> "Tokens":
        """Join stretches of one signal along its first axis of positions, such as the parts that a stream gives.

        Side tensors are joined along their second axis.

        Raises:
            ValueError: nothing to join, parts that differ in tokenizer, batch, depth, grid or dtype, or parts with `lengths`.
        """
        if not parts:
            raise ValueError("Tokens.join: parts is empty. Give at least one Tokens.")
        first, name = parts[0], f"Tokens.join of {parts[0].spec.tokenizer}"
        for part in parts:
            if part.spec != first.spec or part.data.dtype != first.data.dtype or part.side.keys() != first.side.keys():
                raise ValueError(f"{name}: {part} does not fit {first}: same tokenizer, dtype and side tensors are needed.")
            if len(part) != len(first) or part.positions[1:] != first.positions[1:] or part.levels != first.levels:
                raise ValueError(f"{name}: {part} does not fit {first}: same batch, grid and depth are needed.")
            if part.lengths is not None or (part.spec.segments and not part.spec.deep_segments):
                raise ValueError(f"{name}: {part} has lengths or scales of its own. Join stretches of whole, equal items.")
            if not torch.equal(part.extent[:, 1:], first.extent[:, 1:]):
                found = f"extents {part.extent.tolist()} and {first.extent.tolist()}"
                raise ValueError(f"{name}: {found} differ beyond their first axis. Join stretches of one signal.")
        extent = first.extent.clone()
        extent[:, 0] = sum(part.extent[:, 0] for part in parts)
        side = {key: torch.cat([part.side[key] for part in parts], 1) for key in first.side}
        return Tokens(torch.cat([part.data for part in parts], 1), first.spec, extent, None, side)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with the narrowest integers and the meaning in its header.

        Raises:
            ValueError: codes outside their vocabulary, or latents that are not finite.
            FileNotFoundError: the folder to write to does not exist.
            IsADirectoryError: the path is a folder.
        """
        from safetensors.torch import save_file

        path, name = Path(path), f"Tokens of {self.spec.tokenizer}.save"
        self.check_codes(name)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{name}: no folder {path.parent}. Make it first.")
        if path.is_dir():
            raise IsADirectoryError(f"{name}: {path} is a folder. Give the name of a file.")
        data = self.data
        if self.discrete:
            data = data.to(narrowest(max(self.spec.vocabulary[: self.levels]) - 1))
        tensors = {"data": data, "extent": self.extent, **{f"side.{key}": value for key, value in self.side.items()}}
        if self.lengths is not None:
            tensors["lengths"] = self.lengths
        temporary = path.with_name(path.name + ".part")
        save_file(
            # A copy of each: the format cannot express tensors that share memory.
            {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()},
            temporary,
            metadata={"format": FORMAT, "spec": self.spec.to_json()},
        )
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Tokens":
        """Read a file written by `save`.

        Raises:
            ValueError: not a file of tokens.
            FileNotFoundError: no such file.
        """
        from safetensors import SafetensorError, safe_open

        name = f"Tokens.load of {path}"
        if not Path(path).exists():
            raise FileNotFoundError(f"{name}: no such file.")
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{name}: not a readable safetensors file ({error}).") from error
        missing = [key for key in ("data", "extent") if key not in tensors] + [key for key in ("spec",) if key not in metadata]
        if metadata.get("format") != FORMAT or missing:
            lack = f"it lacks {', '.join(missing)}" if missing else f"its header has no format {FORMAT}"
            raise ValueError(f"{name}: the file holds no tokens ({lack}).")
        data = tensors["data"]
        try:
            spec = TokenSpec.from_json(metadata["spec"])
            if spec.discrete and not data.is_floating_point():
                data = data.long()
            side = {key.removeprefix("side."): value for key, value in tensors.items() if key.startswith("side.")}
            tokens = cls(data, spec, tensors["extent"], tensors.get("lengths"), side)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        tokens.check_codes(name)
        return tokens


def _shown(numbers: Sequence[int]) -> str:
    """Write `1..4` for a run of numbers, `1, 3, 7` for others."""
    run = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}..{numbers[-1]}" if run else ", ".join(map(str, numbers))


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Join batches along the first axis; what is smaller along the others is filled with zeros."""
    largest = [max(sides) for sides in zip(*(row.shape[1:] for row in rows), strict=True)]
    out = rows[0].new_zeros(sum(len(row) for row in rows), *largest)
    start = 0
    for row in rows:
        out[(slice(start, start + len(row)), *(slice(side) for side in row.shape[1:]))] = row
        start += len(row)
    return out


def _real(positions: Sequence[int], sizes: Tensor) -> Tensor:
    """Mask `(b, *positions)` of the corner of a grid that is real, by `sizes (b, axes)`."""
    mask = torch.ones(len(sizes), *positions, dtype=torch.bool, device=sizes.device)
    for axis, side in enumerate(positions):
        inside = torch.arange(side, device=sizes.device) < sizes[:, axis, None]
        mask &= inside.view(len(sizes), *(side if other == axis else 1 for other in range(len(positions))))
    return mask


def _tight(data: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut `data (b, *positions, d)` to its largest item, zero what is not real, and give `lengths` as `Tokens` keeps them."""
    if not len(data):
        return data, None
    largest = sizes.amax(0)
    data = data[(slice(None), *(slice(side) for side in largest.tolist()))]
    same = (sizes == largest).all(0)
    if bool(same.all()):
        return data, None
    data = data.masked_fill(~_real(data.shape[1:-1], sizes)[..., None], 0)
    return data, sizes[:, 0] if bool(same[1:].all()) else sizes
