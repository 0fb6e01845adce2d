"""`python -m eval.codec_speed NAME`: a codec of the zoo beside the plain library class inside it, in one run on one signal.

Weights are random, at the official size. Times are of the processor, medians of a few calls, and the two take turns, so that other
work on the machine disturbs both alike; codes must be equal and the sound close, or the comparison is none.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.tokenizer import Tokenizer

__all__ = ["Comparison", "compare", "in_turn", "main"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Processor seconds of the library's class and of the zoo, for one signal.

    `factor` is of encoding and decoding together.

    Attributes:
        same_codes: share of equal codes.
        difference: largest difference of the sound of the same codes, over its largest value.
    """

    library_encode: float
    zoo_encode: float
    library_decode: float
    zoo_decode: float
    same_codes: float
    difference: float

    @property
    def factor(self) -> float:
        return (self.library_encode + self.library_decode) / (self.zoo_encode + self.zoo_decode)


def _library(tok: Tokenizer, x: Tensor) -> Tensor:
    """Codes `(b, d, n)` of the plain class."""
    if tok.info.family == "encodec":
        return tok.model.encode(x, bandwidth=tok.model.config.target_bandwidths[0]).audio_codes[0]
    return tok.model.encode(x).audio_codes


def _library_sound(tok: Tokenizer, codes: Tensor) -> Tensor:
    if tok.info.family == "encodec":
        return tok.model.decode(codes[None], [None]).audio_values
    y = tok.model.decode(audio_codes=codes).audio_values
    return y if y.ndim == 3 else y[:, None]


def in_turn(functions: Sequence[Callable[[], Any]], calls: int) -> tuple[list[float], list[Any]]:
    """Call functions in turn: their median processor seconds and last results.

    The first call of each, which prepares things, is not counted.
    """
    results = [function() for function in functions]
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(calls):
        for i, function in enumerate(functions):
            start = time.process_time()
            results[i] = function()
            times[i].append(time.process_time() - start)
    return [statistics.median(values) for values in times], results


def compare(tok: Tokenizer, *, seconds: float, calls: int = 5) -> Comparison:
    """Measure both on noise of whole positions.

    Raises:
        ValueError: a family that holds no class of the library, or one that works in chunks of its own.
    """
    if tok.info.family not in ("dac", "encodec", "mimi") or getattr(tok.config, "chunk_samples", None) is not None:
        raise ValueError(f"eval.codec_speed: {tok.info.name} has no plain class to compare with. Allowed: dac, encodec, mimi.")
    hop = tok.info.downsample[0]
    length = max(1, int(seconds * tok.info.sample_rate) // hop) * hop
    noise = torch.randn(1, tok.in_channels, length, generator=torch.Generator().manual_seed(0))
    x = (noise * 0.2).clamp(-1, 1)
    with torch.inference_mode():
        (library_encode, zoo_encode), (codes, tokens) = in_turn([lambda: _library(tok, x), lambda: tok.encode(x)], calls)
        theirs = torch.full_like(tokens.extent, _library_sound(tok, codes).shape[2])  # an odd stride leaves them short of a hop
        same = replace(tokens, data=codes.transpose(1, 2), extent=theirs)  # a code as near as another differs by rounding alone
        coded = [lambda: _library_sound(tok, codes), lambda: tok.decode(same)]
        (library_decode, zoo_decode), (sound, y) = in_turn(coded, calls)
    shared = min(y.shape[2], sound.shape[2])
    return Comparison(
        library_encode=library_encode,
        zoo_encode=zoo_encode,
        library_decode=library_decode,
        zoo_decode=zoo_decode,
        same_codes=float((tokens.data.transpose(1, 2) == codes).float().mean()),
        difference=float((y[..., :shared] - sound[..., :shared]).abs().max() / sound.abs().max()),
    )


def main(arguments: list[str] | None = None) -> None:
    """Print one line for each name."""
    parser = argparse.ArgumentParser(prog="python -m eval.codec_speed", description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.names:
        torch.manual_seed(0)
        tok = zoo.create(name).eval().requires_grad_(False)
        c = compare(tok, seconds=options.seconds, calls=options.calls)
        encode = f"encode {c.library_encode:.2f} -> {c.zoo_encode:.2f} s (x{c.library_encode / c.zoo_encode:.2f})"
        decode = f"decode {c.library_decode:.2f} -> {c.zoo_decode:.2f} s (x{c.library_decode / c.zoo_decode:.2f})"
        both = f"both x{c.factor:.2f}, equal codes {c.same_codes:.4f}, difference {c.difference:.1e}"
        sys.stdout.write(f"{name}: {encode}, {decode}, {both}\n")


if __name__ == "__main__":
    main()
