"""The convolution networks of the Descript Audio Codec as steps on pieces (`zoo.layers.pieces`) of the library's modules.

Paper: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", arXiv 2306.06546. The modules are the encoder and the
decoder of transformers' `DacModel`, weight normalisation folded; other codecs are built around them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.layers.activations import snake
from zoo.layers.pieces import ActivationStep, Chain, ElementStep, ResidualStep, Step, TransposeStep, narrowing, same_step, widening

__all__ = ["dac_decoder_steps", "dac_encoder_steps"]


class _Bend:
    """Snake of the library's module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return snake(x, self.module.alpha, out)


def _units(block: nn.Module) -> Iterator[Step]:
    for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
        layers = ((unit.snake1, unit.conv1), (unit.snake2, unit.conv2))
        steps = [step for bend, conv in layers for step in (ActivationStep(_Bend(bend)), same_step(conv))]
        yield ResidualStep(Chain(steps))


def dac_encoder_steps(net: nn.Module) -> Iterator[Step]:
    """Samples `(b, 1, s)` to latents `(b, c, n)`; all before the last rates in pieces that fit the cache."""
    first = [same_step(net.conv1)]
    stages: list[tuple[int, list[Step]]] = []
    for block in net.block:
        steps = [*first, *_units(block), ActivationStep(_Bend(block.snake1)), same_step(block.conv1)]
        stages.append((block.conv1.in_channels, steps))
        first = []
    *cached, (_, rest) = stages
    yield narrowing(cached)
    yield from rest
    yield ActivationStep(_Bend(net.snake1))
    yield same_step(net.conv2)


def dac_decoder_steps(net: nn.Module) -> Iterator[Step]:
    """Latents `(b, c, n)` to samples, with the output padding of the transposed convolutions; the tanh only where there is one."""
    yield same_step(net.conv1)
    stages: list[tuple[int, list[Step]]] = []
    for block in net.block:
        cut = block.conv_t1.padding[0]
        up = TransposeStep(block.conv_t1, trim_left=cut, trim_right=cut - block.conv_t1.output_padding[0])
        stages.append((block.conv_t1.out_channels, [ActivationStep(_Bend(block.snake1)), up, *_units(block)]))
    (_, rest), *cached = stages
    end = [ActivationStep(_Bend(net.snake1)), same_step(net.conv2)]
    if isinstance(net.tanh, nn.Tanh):
        end.append(ElementStep(torch.tanh))
    yield from rest
    if cached:
        cached[-1][1].extend(end)
        yield widening(cached)
    else:
        yield from end
