"""SEANet, the convolution network of EnCodec and Mimi, as steps on pieces (`zoo.layers.pieces`) of the library's modules.

Paper: Tagliasacchi et al., "SEANet: A Multi-modal Speech Enhancement Network", arXiv 2009.02095. The modules are those of
transformers: convolutions with `.conv`, `.causal` and `.pad_mode` that pad their own end to whole strides, residual blocks with
`.block` and `.shortcut`, an LSTM with its input added, ELU.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from zoo.layers.activations import elu
from zoo.layers.pieces import (
    ActivationStep,
    Chain,
    ConvStep,
    ElementStep,
    LSTMStep,
    ResidualStep,
    Step,
    TransposeStep,
    narrowing,
    widening,
)
from zoo.quantizers.base import exact_math, working_dtype
from zoo.quantizers.search import SearchTable, nearest, search_table

__all__ = ["Book", "conv_step", "prepared", "residual_codes", "seanet_chain", "seanet_decoder", "seanet_encoder", "transpose_step"]


def conv_step(layer: Any) -> ConvStep:
    """A convolution that pads as the library's module does: all before where it is causal, else the larger half before."""
    conv = layer.conv
    total = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    right = 0 if layer.causal else total // 2
    return ConvStep(conv, left=total - right, right=right, mode=layer.pad_mode, whole_strides=True)


def transpose_step(layer: Any) -> TransposeStep:
    """A transposed convolution cut as the library's module cuts it; a causal one only at its end."""
    conv = layer.conv
    total = conv.kernel_size[0] - conv.stride[0]
    right = total if layer.causal else total // 2
    return TransposeStep(conv, trim_left=total - right, trim_right=right)


def _step(layer: Any) -> Step:
    if isinstance(layer, nn.ELU):
        return ActivationStep(elu)
    if hasattr(layer, "lstm"):
        return LSTMStep(layer.lstm)
    if hasattr(layer, "block"):
        shortcut = None if isinstance(layer.shortcut, nn.Identity) else Chain([_step(layer.shortcut)])
        return ResidualStep(seanet_chain(layer.block), shortcut)
    transposed = isinstance(layer.conv, nn.ConvTranspose1d)
    if getattr(layer, "norm_type", None) != "time_group_norm":
        return transpose_step(layer) if transposed else conv_step(layer)
    if not transposed:
        return Chain([conv_step(layer), ElementStep(layer.norm)])
    cut = transpose_step(layer)  # the library takes the norm before it cuts
    return Chain([TransposeStep(layer.conv), ElementStep(layer.norm), ElementStep(_cut(cut.trim_left, cut.trim_right))])


def _cut(left: int, right: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x[..., left : x.shape[2] - right]


def seanet_chain(layers: Iterable[nn.Module]) -> Chain:
    """The layers of an encoder, decoder or residual block as a chain for one signal.

    Where the layers have a norm over time, the whole signal (a chunk) must be pushed at once.
    """
    return Chain([_step(layer) for layer in layers])


def seanet_encoder(layers: Sequence[Any]) -> Chain:
    """The layers of an encoder without a norm over time; all before the last two rates work in the cache."""
    ends = [i + 1 for i, layer in enumerate(layers) if _ratio(layer) > 1]
    stages = [layers[start:end] for start, end in itertools.pairwise([0, *ends[:-1]])]
    cached = narrowing([(_channels(stage, "in_channels"), seanet_chain(stage).steps) for stage in stages])
    return Chain([cached, seanet_chain(layers[ends[-2] if stages else 0 :])])


def seanet_decoder(layers: Sequence[Any]) -> Chain:
    """The layers of a decoder without a norm over time; all after the first two rates work in the cache."""
    starts = [i - 1 for i, layer in enumerate(layers) if _ratio(layer) > 1]  # each after its activation
    stages = [layers[start:end] for start, end in itertools.pairwise([*starts[1:], len(layers)])]
    cached = widening([(_channels(stage, "out_channels"), seanet_chain(stage).steps) for stage in stages])
    return Chain([seanet_chain(layers[: starts[1] if stages else len(layers)]), cached])


def _ratio(layer: Any) -> int:
    conv = getattr(layer, "conv", None)
    return 1 if conv is None else conv.stride[0]


def _channels(stage: Sequence[Any], end: str) -> int:
    """Of the convolution that changes the rate, on the side of the higher one."""
    return next(getattr(layer.conv, end) for layer in stage if _ratio(layer) > 1)


class Book(NamedTuple):
    """A codebook `(k, c)` prepared for the search."""

    entries: Tensor
    table: SearchTable


def prepared(books: Iterable[Tensor]) -> list[Book]:
    """Make codebooks ready for `residual_codes`, once for all pieces of a signal; in float32 where they are narrower."""
    wide = [book.to(working_dtype(book.dtype)) for book in books]
    return [Book(book, search_table(book)) for book in wide]


def residual_codes(latents: Tensor, books: Iterable[Book]) -> list[Tensor]:
    """Codes `(b, n)` of each level for latents `(b, c, n)`: the nearest entry of what the levels before left, in float32."""
    b, _, n = latents.shape
    codes = []
    with exact_math(latents.device.type):
        residual = latents.transpose(1, 2).flatten(0, 1)
        residual = residual.to(working_dtype(residual.dtype))
        for book in books:
            found = nearest(residual, book.table)
            residual = residual - book.entries[found]
            codes.append(found.view(b, n))
    return codes
