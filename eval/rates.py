"""The rates of a tokenizer: a prefix of its positions, or of its depth, or the one rate it has. All cut one full encoding."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.registry import Entry

if TYPE_CHECKING:
    from zoo.tokens import Tokens, TokenSpec

__all__ = ["Rate", "at_rate", "check_rates", "ladder", "parse_rates", "rate_text"]

Rate = dict[str, int]


def _axis(spec: "TokenSpec") -> str | None:
    """Name of the rate argument a tokenizer has."""
    return "tokens" if spec.ordered else "depth" if spec.residual else None


def _allowed(info: Entry, spec: "TokenSpec") -> list[int]:
    """All settings of the rate argument."""
    if _axis(spec) == "depth":
        return spec.depths
    if spec.segments:
        return spec.segment_ends
    if info.tokens is None:
        raise ValueError(f"rates: {info.name} does not say how many tokens it makes. Give rates=.")
    return list(range(1, info.tokens + 1))


def ladder(info: Entry, spec: "TokenSpec") -> list[Rate]:
    """Give the default rates: powers of two up to the full length, and the full length; the ends of segments of multi-rate tokens.

    A tokenizer with one rate gives `[{}]`.
    """
    axis = _axis(spec)
    if axis is None:
        return [{}]
    allowed = _allowed(info, spec)
    if spec.segments:
        return [{axis: k} for k in allowed]
    powers = [2**i for i in range(allowed[-1].bit_length()) if 2**i < allowed[-1]]
    return [{axis: k} for k in [*powers, allowed[-1]]]


def check_rates(rates: Sequence[int | Rate], info: Entry, spec: "TokenSpec") -> list[Rate]:
    """Give rates as `{"tokens": k}` or `{"depth": d}`, rising and without repetition.

    Args:
        rates: numbers for the argument that this tokenizer has, or whole rates.
        info: the tokenizer's entry.
        spec: of its tokens.

    Raises:
        ValueError: none; a rate that this tokenizer does not have.
    """
    name, axis = f"rates of {info.name}", _axis(spec)
    if not rates:
        raise ValueError(f"{name}: the list is empty. Leave it out for all.")
    if axis is None:
        if all(rate == {} for rate in rates):
            return [{}]
        raise ValueError(f"{name}: {list(rates)}, but this tokenizer has one rate only. Leave it out.")
    allowed = _allowed(info, spec)
    chosen = set()
    for rate in rates:
        full = {axis: rate} if isinstance(rate, int) else rate
        if set(full) != {axis}:
            raise ValueError(f"{name}: {rate}. The rate of this tokenizer is {axis}=, {allowed[0]}..{allowed[-1]}.")
        if full[axis] not in allowed:
            shown = f"{allowed[0]}..{allowed[-1]}" if len(allowed) == allowed[-1] else ", ".join(map(str, allowed))
            raise ValueError(f"{name}: {axis}={full[axis]}. Allowed: {shown}.")
        chosen.add(full[axis])
    return [{axis: k} for k in sorted(chosen)]


def parse_rates(text: str) -> list[int | Rate]:
    """Read `1,2,4` or `tokens=1,2,4` or `depth=8`.

    Raises:
        ValueError: something that is no whole number, or another name.
    """
    axis, _, numbers = text.rpartition("=")
    if axis and axis not in ("tokens", "depth"):
        near = difflib.get_close_matches(axis, ("tokens", "depth"), n=1, cutoff=0.0)[0]
        raise ValueError(f"rates: {text!r}. Did you mean {near}={numbers}?")
    parts = [part.strip() for part in numbers.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"rates: {text!r}. Give whole numbers with commas, such as 1,2,4 or depth=1,2,4.")
    return [{axis: int(part)} if axis else int(part) for part in parts]


def at_rate(tokens: "Tokens", rate: Rate) -> "Tokens":
    """Cut fully encoded tokens to a rate."""
    if "tokens" in rate:
        return tokens.keep(min(rate["tokens"], tokens.data.shape[1]))
    return tokens.depth(rate["depth"]) if "depth" in rate else tokens


def rate_text(rate: Rate) -> str:
    """Write a rate for people and CSV files: `tokens=4`, or `full` for a tokenizer with one rate."""
    return ",".join(f"{key}={value}" for key, value in rate.items()) or "full"
