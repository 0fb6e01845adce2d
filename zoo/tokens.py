"""The value that passes between every room: codes or latents, with all that is needed to read them again.

Shapes: `b` batch, `n` positions of a 1D layout, `d` depth (codes of one position). See `Tokens` for the layouts.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Segment", "TokenSpec", "Tokens"]

Order = Literal["position", "level", "delay"]
ORDERS: tuple[Order, ...] = ("position", "level", "delay")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a multi-rate axis: `length` positions of one level, each covering `stride` positions of the finest grid."""

    length: int
    stride: int


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
        segments: levels of a multi-rate axis, in order; empty for one rate.
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
        if bool(self.vocabulary) == (self.channels is not None):
            raise ValueError(
                f"TokenSpec of {self.tokenizer}: give either vocabulary (discrete) or channels (continuous), not both or none."
            )
        if any(size < 1 for size in self.vocabulary):
            raise ValueError(f"TokenSpec of {self.tokenizer}: vocabulary={self.vocabulary} must hold sizes of at least 1.")

    @property
    def discrete(self) -> bool:
        return bool(self.vocabulary)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TokenSpec":
        values = json.loads(text)
        values["vocabulary"] = tuple(values["vocabulary"])
        values["segments"] = tuple(Segment(**segment) for segment in values["segments"])
        return cls(**values)


def _narrowest(largest: int) -> torch.dtype:
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
        lengths: `(b,)` int64, how many positions of each item are real, where items differ; None when all are.
        side: named tensors that the decoder needs beside the codes, batch first; counted in `bits`.
    """

    data: Tensor
    spec: TokenSpec
    extent: Tensor
    lengths: Tensor | None = None
    side: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"Tokens of {self.spec.tokenizer}"
        if self.data.ndim < 3:
            raise ValueError(f"{name}: data has shape {tuple(self.data.shape)}. Needed: (batch, *positions, depth).")
        last = self.data.shape[-1]
        if self.spec.discrete:
            if self.data.dtype != torch.int64:
                raise ValueError(f"{name}: data has dtype {self.data.dtype}. Codes must be torch.int64.")
            if not 1 <= last <= len(self.spec.vocabulary):
                raise ValueError(f"{name}: depth {last} is not in 1..{len(self.spec.vocabulary)}, the number of its vocabularies.")
        else:
            if not self.data.is_floating_point():
                raise ValueError(f"{name}: data has dtype {self.data.dtype}. Latents must be floating point.")
            if last != self.spec.channels:
                raise ValueError(f"{name}: {last} channels on the last axis. Needed: {self.spec.channels}.")
        if not torch.is_tensor(self.extent):
            rows = [self.extent] * len(self.data) if self.extent and isinstance(self.extent[0], int) else self.extent
            object.__setattr__(self, "extent", torch.tensor(rows, dtype=torch.int64, device=self.data.device))
        if self.extent.ndim != 2 or len(self.extent) != len(self.data):
            raise ValueError(f"{name}: extent has shape {tuple(self.extent.shape)}. Needed: (batch, axes of the signal).")
        if self.lengths is not None:
            if self.lengths.shape != (len(self.data),):
                raise ValueError(f"{name}: lengths has shape {tuple(self.lengths.shape)}. Needed: ({len(self.data)},).")
            if len(self.data) and not (0 <= int(self.lengths.min()) and int(self.lengths.max()) <= self.data.shape[1]):
                raise ValueError(f"{name}: lengths={self.lengths.tolist()} are not all in 0..{self.data.shape[1]}.")
        for key, value in self.side.items():
            if len(value) != len(self.data):
                raise ValueError(f"{name}: side[{key!r}] holds {len(value)} items for a batch of {len(self.data)}.")

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
    def counts(self) -> Tensor:
        """`(b,)` int64: real positions of each item."""
        if self.lengths is not None:
            per_step = math.prod(self.positions[1:])
            return self.lengths * per_step
        return torch.full((len(self),), math.prod(self.positions), dtype=torch.int64, device=self.device)

    @property
    def mask(self) -> Tensor:
        """`(b, positions[0])` boolean: True where the position is real."""
        index = torch.arange(self.data.shape[1], device=self.device)
        if self.lengths is None:
            return torch.ones(len(self), len(index), dtype=torch.bool, device=self.device)
        return index < self.lengths[:, None]

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        kind = f"vocabulary {self.spec.vocabulary[: self.levels]}" if self.discrete else f"{self.data.dtype} latents"
        cut = "" if self.lengths is None else f", lengths {self.lengths.tolist()}"
        return f"Tokens({self.spec.tokenizer}, {tuple(self.data.shape)}, {kind}{cut})"

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Tokens":
        """Select items of the batch; an int keeps the batch axis."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Tokens of {self.spec.tokenizer}: item {index} of a batch of {len(self)}.")
            index = [index]
        if not isinstance(index, slice | Tensor):
            index = list(index)
        return replace(
            self,
            data=self.data[index],
            extent=self.extent[index],
            lengths=None if self.lengths is None else self.lengths[index],
            side={key: value[index] for key, value in self.side.items()},
        )

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
        per_item = not isinstance(k, int)
        ks = torch.as_tensor(k, dtype=torch.int64, device=self.device).expand(len(self)) if not per_item else torch.as_tensor(
            k, dtype=torch.int64, device=self.device
        )
        if ks.shape != (len(self),):
            raise ValueError(f"{name}: k has shape {tuple(ks.shape)} for a batch of {len(self)}. Give one int or one for each item.")
        if len(ks) and not (1 <= int(ks.min()) and int(ks.max()) <= n):
            raise ValueError(f"{name}: k={k} is outside 1..{n}, the positions there are.")
        if self.spec.segments:
            ends = torch.tensor([s.length for s in self.spec.segments]).cumsum(0).tolist()
            if any(v not in ends for v in ks.tolist()):
                raise ValueError(f"{name}: k={k} cuts inside a level. Allowed: {ends}.")
        longest = int(ks.max()) if len(ks) else n
        data = self.data[:, :longest]
        counts = ks if self.lengths is None else torch.minimum(ks, self.lengths)
        uniform = len(counts) == 0 or bool((counts == longest).all())
        if not uniform:
            real = torch.arange(longest, device=self.device) < counts[:, None]
            data = data * real.view(*real.shape, *[1] * (data.ndim - 2)).to(data.dtype)
        return replace(self, data=data, lengths=None if uniform else counts)

    def depth(self, d: int) -> "Tokens":
        """Keep the first `d` codes of each position of a residual tokenizer.

        Raises:
            ValueError: the depth axis is not ordered, or d outside 1..levels.
        """
        name = f"Tokens of {self.spec.tokenizer}.depth"
        if not self.spec.residual:
            raise ValueError(f"{name}: the codes of one position are not levels of refinement here, so none can be left out.")
        if not 1 <= d <= self.levels:
            raise ValueError(f"{name}: d={d} is outside 1..{self.levels}, the levels there are.")
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
            ValueError: latents have no vocabulary.
        """
        if not self.discrete:
            raise ValueError(f"Tokens of {self.spec.tokenizer}.offset: latents have no vocabulary.")
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
        """
        if order not in ORDERS:
            raise ValueError(f"Tokens of {self.spec.tokenizer}.flatten: order={order!r}. Allowed: {', '.join(ORDERS)}.")
        codes = self.offset() if joint else self.data
        if not self.discrete:
            raise ValueError(f"Tokens of {self.spec.tokenizer}.flatten: latents are not a sequence of codes.")
        if self.lengths is not None:
            mask = self.mask.view(*self.mask.shape, *[1] * (codes.ndim - 2))
            codes = codes.masked_fill(~mask, pad)
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
            ValueError: wrong length, a code outside its vocabulary, or no batch of the same size.
        """
        name = f"Tokens of {self.spec.tokenizer}.unflatten"
        if order not in ORDERS:
            raise ValueError(f"{name}: order={order!r}. Allowed: {', '.join(ORDERS)}.")
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
            mask = self.mask.view(*self.mask.shape, *[1] * (codes.ndim - 2))
            codes = codes.masked_fill(~mask, 0)
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
        return replace(
            self,
            data=self.data.to(device),
            extent=self.extent.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
            side={key: value.to(device) for key, value in self.side.items()},
        )

    @staticmethod
    def cat(parts: Sequence["Tokens"]) -> "Tokens":
        """Join batches of one tokenizer; shorter ones are padded with zeros and `lengths` remembers.

        Raises:
            ValueError: nothing to join, or parts of different tokenizers, depths or grids.
        """
        if not parts:
            raise ValueError("Tokens.cat: parts is empty. Give at least one Tokens.")
        first = parts[0]
        for part in parts[1:]:
            if part.spec != first.spec or part.data.shape[2:] != first.data.shape[2:]:
                raise ValueError(f"Tokens.cat: {part} does not fit {first}: same tokenizer, depth and grid are needed.")
        longest = max(part.data.shape[1] for part in parts)
        unequal = any(part.lengths is not None or part.data.shape[1] != longest for part in parts)
        rows, lengths = [], []
        for part in parts:
            missing = longest - part.data.shape[1]
            filler = part.data.new_zeros(len(part), missing, *part.data.shape[2:])
            rows.append(torch.cat([part.data, filler], 1))
            full = torch.full((len(part),), part.data.shape[1], dtype=torch.int64, device=part.device)
            lengths.append(full if part.lengths is None else part.lengths)
        return Tokens(
            torch.cat(rows),
            first.spec,
            torch.cat([part.extent for part in parts]),
            torch.cat(lengths) if unequal else None,
            {key: torch.cat([part.side[key] for part in parts]) for key in first.side},
        )

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with the narrowest integers and the meaning in its header."""
        from safetensors.torch import save_file

        data = self.data
        if self.discrete:
            data = data.to(_narrowest(max(self.spec.vocabulary[: self.levels]) - 1))
        tensors = {"data": data, "extent": self.extent, **{f"side.{key}": value for key, value in self.side.items()}}
        if self.lengths is not None:
            tensors["lengths"] = self.lengths
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            temporary,
            metadata={"format": "zoo-tokens-1", "spec": self.spec.to_json()},
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

        if not Path(path).exists():
            raise FileNotFoundError(f"Tokens.load: no file {path}.")
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise ValueError(f"Tokens.load: {path} is not a safetensors file ({error}).") from error
        if metadata.get("format") != "zoo-tokens-1":
            raise ValueError(f"Tokens.load: {path} holds no tokens (its header has no format zoo-tokens-1).")
        spec = TokenSpec.from_json(metadata["spec"])
        data = tensors["data"].long() if spec.discrete else tensors["data"]
        side = {key.removeprefix("side."): value for key, value in tensors.items() if key.startswith("side.")}
        tokens = cls(data, spec, tensors["extent"], tensors.get("lengths"), side)
        tokens.check_codes(f"Tokens.load of {path}")
        return tokens
