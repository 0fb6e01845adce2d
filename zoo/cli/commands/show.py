"""Everything about one tokenizer."""

import argparse
import json
import shutil
import sys
import textwrap

from zoo.cli.text import count, plural, rate, tokens_by_vocabulary, where_weights
from zoo.registry import Entry, info

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name that `zoo list` shows")
    parser.add_argument("--json", action="store_true", help="all fields, for programs")


def run(arguments: argparse.Namespace) -> int:
    entry = info(arguments.name)
    if arguments.json:
        sys.stdout.write(json.dumps({**entry.to_dict(), "embedded": entry.embedded}, indent=1) + "\n")
        return 0
    width = min(100, shutil.get_terminal_size((100, 24)).columns) if sys.stdout.isatty() else 100
    parts = [f"{entry.name}\n{_wrapped(entry.summary, width)}"]
    for title, facts in _sections(entry).items():
        lines = [f"  {name:20}{_wrapped(value, width, 22)}" for name, value in facts.items() if value is not None]
        if lines:
            parts.append("\n".join([title, *lines]))
    if entry.notice:
        parts.append(f"Notice\n  {_wrapped(entry.notice, width, 2)}")
    parts.append("Use\n" + "\n".join(f"  {line}" for line in use(entry)))
    sys.stdout.write("\n\n".join(parts) + "\n")
    return 0


def _wrapped(text: str, width: int, indent: int = 0) -> str:
    return f"\n{' ' * indent}".join(textwrap.wrap(text, max(20, width - indent)) or [""])


def _sections(entry: Entry) -> dict[str, dict[str, str | None]]:
    """Facts under headings; None leaves a line out, because the fact does not apply or nobody states it."""
    weights = entry.weights
    rate_words = []
    if entry.ordered and entry.tokens:
        rate_words.append(f"tokens=1..{entry.tokens}: any prefix decodes")
    if entry.residual:
        rate_words.append(f"depth=1..{entry.depth}: any prefix of the levels decodes")
    flags = [
        word
        for word, said in (
            ("causal", entry.causal),
            ("streams", entry.streaming),
            ("the encoder can sample (sample=True, seed=)", entry.stochastic_encode),
            ("the decoder samples (seed=)", entry.stochastic_decode),
        )
        if said
    ]
    return {
        "Tokens": {
            "for": entry.modality,
            "layout": f"{entry.layout}, {'codes' if entry.discrete else 'latents'}, {tokens_by_vocabulary(entry)}",
            "vocabulary": _vocabulary(entry),
            "rate": None if rate(entry) == "-" else f"{rate(entry)} in full",
            "rate is chosen by": "; ".join(rate_words) or None,
            "native size": None if entry.native_size is None else "{} x {} px".format(*entry.native_size),
            "largest side": None if entry.max_size is None else f"{entry.max_size} px",
            "downsampling": None if entry.downsample is None else " x ".join(map(str, entry.downsample)) + " (t, h, w)",
            "sample rate": None if entry.sample_rate is None else f"{entry.sample_rate:,} samples per second",
            "frame rate": None if entry.frame_rate is None else f"{entry.frame_rate:g} positions per second",
            "channels of sound": None if entry.audio_channels is None else str(entry.audio_channels),
            "lookahead": None if entry.lookahead_frames is None else plural(entry.lookahead_frames, "frame"),
            "behaviour": "; ".join(flags) or None,
        },
        "Weights": {
            "family": entry.family,
            "parameters": None if entry.parameters is None else f"{entry.parameters:,} ({count(entry.parameters)})",
            "where": f"Hub: {weights.repo} at {weights.revision}" if weights and weights.repo else where_weights(entry),
            "file": None if weights is None else weights.file + ("" if weights.size is None else f", {weights.size:,} bytes"),
            "sha256": None if weights is None else weights.sha256,
            "trained on": entry.trained_on,
            "training": entry.training,
            "recipe": None if entry.recipe is None else f"zoo train {entry.recipe}",
            "licence of weights": entry.license_weights or "unknown",
            "licence of code": entry.license_code or "unknown",
        },
        "Origin": {
            "paper": entry.paper,
            "source": entry.source,
            "tags": ", ".join(entry.tags) or None,
        },
        "Configuration": {key: str(value) for key, value in entry.config.items()},
    }


def _vocabulary(entry: Entry) -> str | None:
    if not entry.vocabulary or len(set(entry.vocabulary)) == 1:
        return None
    return " x ".join(map(str, entry.vocabulary))


def use(entry: Entry) -> list[str]:
    """Three lines of Python that work for this entry."""
    if entry.weights is None:
        built = f"tok = zoo.create({entry.name!r})  # random weights: no published ones yet"
    else:
        built = f"tok = zoo.load({entry.name!r})"
    name = {"image": "picture.jpg", "audio": "sound.wav", "video": "clip.mp4"}[entry.modality]
    few = ""
    if entry.ordered and entry.tokens and entry.tokens > 1:
        few = f", tokens={max(1, entry.tokens // 4)}"
    elif entry.residual and entry.depth > 1:
        few = f", depth={max(1, entry.depth // 2)}"
    return [built, f"tokens = tok.encode(tok.preprocess({name!r}){few})", "y = tok.decode(tokens)"]
