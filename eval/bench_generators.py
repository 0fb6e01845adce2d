"""Speed of sampling: with keys and values kept, without, and transformers' `generate` on an equal GPT, all in one run.

    python -m eval.bench_generators

Times are the best of several alternating runs on the CPU with the thread count torch is set to. Only ratios of times taken in
one run mean something; absolute times belong to the machine.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import zoo.generators as generators
from zoo.generators.base import Generator
from zoo.tokens import Tokens, TokenSpec

__all__ = ["Speed", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds for one batch of samples.

    Attributes:
        cached, uncached: ours; the tokens were compared and are equal.
        theirs: `transformers`' generate on a Llama of the same sizes.
        parameters, their_parameters: of both models; they differ by the separate tables of classes and start.
    """

    cached: float
    uncached: float
    theirs: float
    parameters: int
    their_parameters: int

    @property
    def gain(self) -> float:
        """How many times faster the cache makes sampling."""
        return self.uncached / self.cached

    @property
    def against_transformers(self) -> float:
        """How many times faster ours is than `generate`."""
        return self.theirs / self.cached


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _ours(count: int, codebook_size: int, width: int, blocks: int, heads: int) -> Generator:
    spec = TokenSpec(tokenizer="made_up", modality="image", vocabulary=(codebook_size,), ordered=True)
    tokens = Tokens(torch.zeros(1, count, 1, dtype=torch.int64), spec, (256, 256))
    sizes = dict(width=width, depth_blocks=blocks, heads=heads, hidden_multiple=64, classes=10)
    return generators.create("autoregressive", tokens=tokens, **sizes).eval()


def run(
    *, count: int = 256, codebook_size: int = 4096, width: int = 256, blocks: int = 6, heads: int = 4, batch: int = 4, runs: int = 3
) -> Speed:
    """Measure sampling of `batch` items of `count` tokens.

    Raises:
        RuntimeError: cached and uncached sampling gave different tokens, or `generate` another number of them.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = _ours(count, codebook_size, width, blocks, heads)
    for parameter in ours.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    config = LlamaConfig(
        vocab_size=codebook_size,
        hidden_size=width,
        intermediate_size=ours.trunk.layers[0].feed_forward.w1.out_features,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        max_position_embeddings=count + 1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = LlamaForCausalLM(config).eval()
    prompt, labels = torch.zeros(batch, 1, dtype=torch.int64), torch.arange(batch) % 10

    def generate() -> torch.Tensor:
        return theirs.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=True, top_k=0, use_cache=True)

    if generate().shape[1] != count + 1:
        raise RuntimeError(f"bench_generators: generate gave {generate().shape[1] - 1} tokens where {count} were asked for.")
    if not torch.equal(ours.sample(labels).data, ours.sample(labels, cache=False).data):
        raise RuntimeError("bench_generators: sampling with and without the cache gave different tokens at one seed.")
    cached, uncached, other = [], [], []
    for _ in range(runs):
        cached.append(_seconds(lambda: ours.sample(labels)))
        other.append(_seconds(generate))
        uncached.append(_seconds(lambda: ours.sample(labels, cache=False)))
    return Speed(
        cached=min(cached),
        uncached=min(uncached),
        theirs=min(other),
        parameters=sum(p.numel() for p in ours.parameters()),
        their_parameters=sum(p.numel() for p in theirs.parameters()),
    )


def main(argv: list[str] | None = None) -> int:
    """Write one line for the speed of sampling."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench_generators", description=__doc__)
    sizes = {"count": 256, "codebook-size": 4096, "width": 256, "blocks": 6, "heads": 4, "batch": 4, "runs": 3}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    speed = run(**vars(parser.parse_args(argv)))
    sys.stdout.write(
        f"cached {speed.cached:.3f} s, uncached {speed.uncached:.3f} s ({speed.gain:.1f} x), transformers' generate "
        f"{speed.theirs:.3f} s ({speed.against_transformers:.2f} x ours); {speed.parameters:,} and {speed.their_parameters:,} "
        f"parameters, {torch.get_num_threads()} thread(s)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
