"""Small generators of every family, each with tokens of the kind it is for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import zoo.generators as generators
from zoo.generators.base import Generator
from zoo.tokens import Tokens, TokenSpec

CLASSES = 5


def codes(positions, vocabulary, *, b=2, modality="image", extent=(8, 8), seed=0, **spec) -> Tokens:
    """Random codes `(b, *positions, d)` of a tokenizer that does not exist."""
    draws = torch.Generator().manual_seed(seed)
    columns = [torch.randint(size, (b, *positions), generator=draws) for size in vocabulary]
    made = TokenSpec(tokenizer="made_up", modality=modality, vocabulary=vocabulary, **spec)
    return Tokens(torch.stack(columns, -1), made, extent)


def latents(positions, channels, *, b=2, extent=(8, 8), seed=0) -> Tokens:
    """Random latents `(b, *positions, c)` of a tokenizer that does not exist."""
    draws = torch.Generator().manual_seed(seed)
    data = torch.randn(b, *positions, channels, generator=draws)
    return Tokens(data, TokenSpec(tokenizer="made_up", modality="image", channels=channels), extent)


@dataclass(frozen=True)
class Small:
    """A family's small form: tokens, configuration, and options that make its sampling short."""

    family: str
    tokens: Callable[..., Tokens]
    config: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    learning_steps: int = 60

    def build(self, seed: int = 0) -> Generator:
        """A generator whose every parameter is random, so that nothing hides behind a zero."""
        gen = generators.create(self.family, tokens=self.tokens(), classes=CLASSES, **self.config)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in gen.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * (0.3 if parameter.ndim > 1 else 0.1))
                if parameter.ndim == 1:
                    parameter.add_(1.0)
        return gen.eval()


def grid(**more):
    return codes((3, 2), (7, 5), **more)


def line(**more):
    return codes((6,), (11,), ordered=True, **more)


def digits(**more):
    return codes((6,), (24,), ordered=True, **more)


_TRANSFORMER = dict(width=16, depth_blocks=2, heads=2, hidden_multiple=8)

def image_latents(**more):
    return latents((4, 4), 3, **more)


_STACKS = dict(width=16, heads=2, encoder_depth=1, decoder_depth=1)
_HEAD = dict(head_width=16, head_depth=1, head_heads=2, class_tokens=2, mask_from=0.4)
_RESGEN = dict(width=16, depth_blocks=1, heads=2, code_width=4, components=6, rank=2)
_VIDEO = dict(width=16, depth_blocks=1, heads=2, head=8, bias_width=8)
_FLOW = dict(flow_width=16, flow_depth=1, flow_head=8)

def frames(**more):
    return codes((6,), (7, 5, 6), modality="audio", extent=(600,), residual=True, sample_rate=100.0, **more)


def residual(**more):
    return codes((3, 2), (9, 9, 9), residual=True, **more)


def clip(**more):
    return codes((3, 2, 2), (9,), modality="video", extent=(5, 8, 8), sample_rate=8.0, **more)


def even_grid(**more):
    return codes((4, 2), (7, 5), **more)


SMALL: dict[str, Small] = {
    "autoregressive_line": Small("autoregressive", line, _TRANSFORMER),
    "autoregressive_grid": Small("autoregressive", grid, _TRANSFORMER),
    "autoregressive_delay": Small("autoregressive", frames, {**_TRANSFORMER, "pattern": "delay"}),
    "autoregressive_flat": Small("autoregressive", grid, {**_TRANSFORMER, "pattern": "flat"}),
    "autoregressive_digits": Small("autoregressive", digits, {**_TRANSFORMER, "pattern": "delay", "factors": (2, 3, 4)}),
    "autoregressive_flat_digits": Small("autoregressive", digits, {**_TRANSFORMER, "pattern": "flat", "factors": (4, 6)}),
    "autoregressive_mixture": Small("autoregressive", grid, {**_TRANSFORMER, "mixture": (0.3, 0.3, 0.4)}, {}, 80),
    "cvivit": Small("cvivit", clip, _VIDEO, {"steps": 3}, 80),
    "cvivit_shared": Small("cvivit", clip, {**_VIDEO, "critic": "shared"}, {"steps": 3}, 80),
    "cvivit_separate": Small("cvivit", clip, {**_VIDEO, "critic": "separate"}, {"steps": 3}, 80),
    "elm_grid": Small("elm", grid, _TRANSFORMER),
    "elm_line": Small("elm", line, _TRANSFORMER),
    "elm_masked": Small("elm", grid, {**_TRANSFORMER, "order": "masked", "label_smoothing": 0.0}, {"steps": 3}, 240),
    "flexar_line": Small("flexar", line, _TRANSFORMER),
    "flexar_grid": Small("flexar", grid, {**_TRANSFORMER, "norm": "layer", "qk_norm": "rms", "score_norm": True, "bias": True}),
    "flowar": Small("flowar", image_latents, {**_STACKS, **_FLOW}, {"steps": 3}),
    "flowar_cross": Small("flowar", image_latents, {**_STACKS, **_FLOW, "cross": True}, {"steps": 3}),
    "resgen": Small("resgen", residual, _RESGEN, {"steps": 3}),
    "token_shuffle": Small("token_shuffle", even_grid, {**_TRANSFORMER, "window": 2}),
    "token_shuffle_1": Small("token_shuffle", even_grid, {**_TRANSFORMER, "window": 1}),
    "tokenbridge": Small("tokenbridge", grid, {**_STACKS, **_HEAD}, {"steps": 3}),
    "tokenbridge_embedded": Small("tokenbridge", grid, {**_STACKS, **_HEAD, "embed_codes": True, "order": (1, 0)}, {"steps": 6}),
    "xar_cell": Small("xar", image_latents, {**_STACKS, "side": 2}, {"steps": 3}),
    "xar_scale": Small("xar", image_latents, {**_STACKS, "entity": "scale"}, {"steps": 3}),
    "xar_subsample": Small("xar", image_latents, {**_STACKS, "side": 2, "entity": "subsample"}, {"steps": 3}),
}


@pytest.fixture(params=SMALL)
def small(request) -> Small:
    return SMALL[request.param]


@pytest.fixture
def all_small() -> dict[str, Small]:
    return SMALL


@pytest.fixture
def made_codes():
    return codes


@pytest.fixture
def made_latents():
    return latents
