"""Sounds and clips, to tokens and back: in stretches at constant memory where the tokenizer streams, else whole."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from zoo.cli.files import kind_of
from zoo.cli.progress import steps
from zoo.cli.text import plural
from zoo.token_files import TokenFile, TokenWriter
from zoo.tokens import Tokens
from zoo.whole_files import whole_file

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = ["decode_signals", "encode_signals"]

_FRAME_RATE = 25.0  # of a clip whose tokens do not say
_SECONDS = 5.0  # of a chunk of sound
_FRAMES = 8  # of a chunk of video
_WORDS = {"audio": "sound", "video": "clip"}
_DEFAULT_ENDING = {"audio": ".wav", "video": ".mp4"}

Advance = Callable[[int], None]


# -- encode ------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """What the tokens of one file are."""

    positions: int = 0
    bits: float = 0.0
    length: int = 0
    area: int = 1
    levels: int = 1

    def add(self, part: Tokens) -> None:
        self.positions += int(part.counts[0])
        self.bits += float(part.bits()[0])
        self.length += int(part.extent[0, 0])
        self.area = math.prod(part.extent[0, 1:].tolist())
        self.levels = part.levels


@torch.inference_mode()
def encode_signals(
    tokenizer: "Tokenizer",
    paths: Sequence[Path],
    targets: Sequence[Path] | None,
    out: Path,
    *,
    size: int | tuple[int, int] | None,
    crop: bool,
    rate: Mapping[str, Any],
) -> str:
    """Encode files one by one.

    Args:
        paths: sounds or clips.
        targets: a token file for each; None puts all into `out`.
        size, crop: of clips, as for `preprocess`.
        rate: as for `encode`.

    Returns:
        A line that says what was done.
    """
    one, kept = len(paths) == 1, []
    sums = [_Sums() for _ in paths]
    if one and targets is None:
        targets = [out]
    with steps("encoding", _length(tokenizer, paths[0]) if one else len(paths)) as advance:
        for i, path in enumerate(paths):
            with _Source(tokenizer, path, size, crop) as source:
                parts = _encoded(tokenizer, source, rate, advance if one else lambda done: None)
                if targets is None:
                    kept.append(Tokens.join(list(_added(parts, sums[i]))))
                else:
                    with TokenWriter(targets[i], frame_rate=source.frame_rate) as writer:
                        for part in _added(parts, sums[i]):
                            writer.write(part)
            if not one:
                advance(1)
    if kept:
        with whole_file(out) as temporary:
            Tokens.cat(kept).save(temporary)
    written = [out] if targets is None else targets
    return _report(tokenizer, sums, out, sum(path.stat().st_size for path in written))


def _added(parts: Iterator[Tokens], sums: _Sums) -> Iterator[Tokens]:
    for part in parts:
        sums.add(part)
        yield part


class _Source:
    """The chunks of a file, and for a clip its frame rate."""

    def __init__(self, tokenizer: "Tokenizer", path: Path, size: int | tuple[int, int] | None, crop: bool) -> None:
        self.tokenizer, self.path, self.crop = tokenizer, path, crop
        self.size = tokenizer.info.native_size if size is None else size
        self.frame_rate: float | None = None
        self._reader: Any = None

    def __enter__(self) -> "_Source":
        if self.tokenizer.info.modality == "video":
            from zoo.media.video import ClipReader

            self._reader = ClipReader(self.path, size=self.size, crop=self.crop, frames=_FRAMES).__enter__()
            self.frame_rate = self._reader.frame_rate
        return self

    def __iter__(self) -> Iterator[Tensor]:
        if self._reader is not None:
            return iter(self._reader)
        from zoo.media.audio import sound_chunks

        rate = _sample_rate(self.tokenizer)
        return sound_chunks(self.path, target_rate=rate, channels=self.tokenizer.in_channels, seconds=_SECONDS)

    def __exit__(self, *error: Any) -> None:
        if self._reader is not None:
            self._reader.__exit__(*error)


def _sample_rate(tokenizer: "Tokenizer") -> int:
    if tokenizer.info.sample_rate is None:
        raise ValueError(f"{tokenizer.info.name}: its entry states no sample rate. In Python: tok.encode(x), tok.decode(tokens).")
    return tokenizer.info.sample_rate


def _length(tokenizer: "Tokenizer", path: Path) -> int | None:
    """Samples or frames of a file, for the bar."""
    if tokenizer.info.modality == "audio":
        from zoo.media.audio import sound_length

        return sound_length(path, target_rate=_sample_rate(tokenizer))
    from zoo.media.video import ClipReader

    with ClipReader(path) as reader:
        return reader.length


def _encoded(tokenizer: "Tokenizer", source: _Source, rate: Mapping[str, Any], advance: Advance) -> Iterator[Tokens]:
    """Tokens of one file, part by part; in one part where the tokenizer needs the whole."""

    def placed() -> Iterator[Tensor]:
        for x in source:
            yield x.to(tokenizer.device)
            advance(x.shape[2])

    if not tokenizer.info.streaming or set(rate) - {"depth", "bits_per_second", "tile"}:
        yield tokenizer.encode(torch.cat(list(placed()), 2), **rate).to("cpu")
        return
    depth = _depth(tokenizer, rate)
    for part in tokenizer.stream(tile=rate.get("tile")).encode_all(placed()):
        yield (part if depth is None else part.depth(depth)).to("cpu")


def _depth(tokenizer: "Tokenizer", rate: Mapping[str, Any]) -> int | None:
    """Levels of a stream: those asked for, or the most whose nominal rate does not exceed the one that is given."""
    name, info = f"{tokenizer.info.name}.encode", tokenizer.info
    if (budget := rate.get("bits_per_second")) is None:
        return rate.get("depth")
    if "depth" in rate:
        raise ValueError(f"{name}: depth={rate['depth']} and bits_per_second={budget:g} both choose the depth. Give only one.")
    if not info.residual or info.frame_rate is None:
        raise ValueError(f"{name}: bits_per_second={budget:g}, but this tokenizer has one rate only. Leave it out.")
    rates = {d: info.frame_rate * sum(math.log2(size) for size in info.vocabulary[:d]) for d in tokenizer.spec.depths}
    fitting = [d for d, found in rates.items() if found <= budget * (1 + 1e-9)]
    if not fitting:
        raise ValueError(f"{name}: bits_per_second={budget:g} is too little. Allowed: at least {min(rates.values()):g}.")
    return fitting[-1]


def _report(tokenizer: "Tokenizer", sums: Sequence[_Sums], out: Path, size: int) -> str:
    info = tokenizer.info
    counts = [one.positions for one in sums]
    many = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    depth = f" of depth {sums[0].levels}" if info.discrete and sums[0].levels > 1 else ""
    if info.modality == "audio":
        unit = "bits per second"
        rates = [one.bits * _sample_rate(tokenizer) / one.length for one in sums]
    else:
        unit = "bits per pixel"
        rates = [one.bits / (one.length * one.area) for one in sums]
    kind, mean = "tokens" if info.discrete else "latents", sum(rates) / len(rates)
    done = f"{plural(len(sums), _WORDS[info.modality])} to {out}"
    return f"{done}: {many} {kind}{depth} each, {mean:.4g} {unit}, {size:,} bytes in all\n"


# -- decode ------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def decode_signals(
    tokenizer: "Tokenizer",
    files: Sequence[TokenFile],
    places: Sequence[Path],
    out: Path,
    *,
    options: Mapping[str, Any],
    tokens: int | None,
    depth: int | None,
    frame_rate: float | None,
) -> str:
    """Decode token files one by one.

    Args:
        files: token files of one tokenizer.
        places: of each below its input, which names the output.
        out: a file for one item, or a folder.
        options: of the decoder.
        tokens, depth: use the first so many positions or levels.
        frame_rate: of clips; None takes that of the source, else 25.

    Returns:
        A line that says what was done.

    Raises:
        ValueError: an ending that cannot be written, several items for one file, or two inputs for one output.
    """
    targets = _targets(tokenizer, files, places, out)
    one = len(targets) == 1
    with steps("decoding", files[0].positions if one else len(targets)) as advance:
        place = iter(targets)
        for file in files:
            rate = frame_rate or file.frame_rate or _FRAME_RATE
            if _streams(tokenizer, file, options, tokens):
                parts = _parts(tokenizer, file, depth, advance if one else lambda done: None)
                _write(tokenizer, tokenizer.stream(**options).decode_all(parts), next(place), rate)
                if not one:
                    advance(1)
                continue
            loaded = Tokens.load(file.path)
            for i, item in enumerate(loaded):
                item = item if tokens is None else item.keep(tokens)
                item = item if depth is None else item.depth(depth)
                own = {key: [value[i]] if isinstance(value, list) else value for key, value in options.items()}
                _write(tokenizer, _whole(tokenizer, item, own), next(place), rate)
                advance(file.positions if one else 1)
    return f"{plural(len(targets), _WORDS[tokenizer.info.modality])} to {out}\n"


def _targets(tokenizer: "Tokenizer", files: Sequence[TokenFile], places: Sequence[Path], out: Path) -> list[Path]:
    modality = cast(Literal["audio", "video"], tokenizer.info.modality)
    word, count = _WORDS[modality], sum(file.items for file in files)
    if modality == "audio":
        from zoo.media.audio import SOUND_ENDINGS as endings
    else:
        from zoo.media.video import VIDEO_ENDINGS as endings
    if out.suffix.lower() in endings:
        if count != 1:
            raise ValueError(f"zoo decode: OUT {out} is one {word}, but there are {count} to write. Give a folder.")
        return [out]
    if kind_of(out) is not None or out.is_file():
        allowed = ", ".join(endings)
        raise ValueError(f"zoo decode: OUT {out} cannot be written as a {word}. Allowed: {allowed}, or a folder.")
    targets: list[Path] = []
    for file, place in zip(files, places, strict=True):
        stem, ending = place.with_suffix(""), _DEFAULT_ENDING[modality]
        names = [stem.name] if file.items == 1 else [f"{stem.name}_{i:04d}" for i in range(file.items)]
        targets += [out / place.parent / f"{name}{ending}" for name in names]
    twice = {path for path in targets if targets.count(path) > 1}
    if twice:
        raise ValueError(f"zoo decode: several inputs would be written to {min(twice)}. Decode them into different folders.")
    return targets


def _streams(tokenizer: "Tokenizer", file: TokenFile, options: Mapping[str, Any], tokens: int | None) -> bool:
    """The file can be decoded in stretches: its decoder streams, and takes there what it was given."""
    if not tokenizer.info.streaming or not file.in_stretches or tokens is not None:
        return False
    parameters = inspect.signature(tokenizer._stream).parameters.values()
    return set(options) - {"tile"} <= {p.name for p in parameters} or any(p.kind is p.VAR_KEYWORD for p in parameters)


def _parts(tokenizer: "Tokenizer", file: TokenFile, depth: int | None, advance: Advance) -> Iterator[Tokens]:
    frames = tokenizer.info.frame_rate
    count = max(1, int(_SECONDS * frames)) if tokenizer.info.modality == "audio" and frames else _FRAMES
    for part in file.stretches(tokenizer._span, positions=count):
        positions = part.positions[0]
        yield (part if depth is None else part.depth(depth)).to(tokenizer.device)
        advance(positions)


def _whole(tokenizer: "Tokenizer", item: Tokens, options: Mapping[str, Any]) -> Iterator[Tensor]:
    y = tokenizer.decode(item.to(tokenizer.device), **options)
    if y.shape[1] != tokenizer.in_channels:  # a tokenizer of meaning gives features, which `_write` refuses
        yield y
        return
    yield y[(slice(None), slice(None), *(slice(side) for side in item.extent[0].tolist()))]


def _write(tokenizer: "Tokenizer", chunks: Iterator[Tensor], target: Path, frame_rate: float) -> None:
    """Send chunks to a writer as they come."""
    writer: Any
    if tokenizer.info.modality == "audio":
        from zoo.media.audio import SoundWriter

        writer = SoundWriter(target, sample_rate=_sample_rate(tokenizer), channels=tokenizer.in_channels)
    else:
        from zoo.media.video import VideoWriter

        writer = VideoWriter(target, frame_rate=frame_rate)
    with writer:
        for y in chunks:
            if y.ndim < 2 or y.shape[1] != tokenizer.in_channels:
                found = f"its decoder gives features {tuple(y.shape)}, no {_WORDS[tokenizer.info.modality]}"
                raise ValueError(f"{tokenizer.info.name}: {found}. Use them in Python.")
            writer.write(y)
