"""The plain form of FlexTok's decoder: every register at its own position, the whole batch packed in one masked sequence.

This is how the public implementation lays the work out. It shares the weights of a `FlexTokDecoder` and none of its shortcuts, so
it is the oracle of the exact savings and the peer they are timed against.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.layers.patches import patchify, unpatchify

__all__ = ["dense_velocity"]


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def dense_velocity(decoder, x: Tensor, t: Tensor, values: Tensor, keep: Tensor, null: Tensor) -> Tensor:
    """Give the velocity `(b, c, h, w)`; `values (b, n, levels)` are all quantized registers, `keep` and `null` as in `velocity`."""
    config = decoder.config
    b, n = values.shape[:2]
    registers = decoder.project(values) + decoder.register_positions
    masked = torch.arange(n) >= keep[:, None]
    registers = torch.where(masked[..., None], decoder.mask_token, registers)
    registers = torch.where(null[:, None, None], decoder.null_token, registers)
    patches = decoder.patch(patchify(x.permute(0, 2, 3, 1), config.patch))
    h, w = patches.shape[1:3]
    patches = (patches + decoder.positions[:, :, :h, :w].permute(0, 2, 3, 1)).flatten(1, 2)
    each = h * w + n
    length = math.ceil(b * each / 128) * 128
    sequence = F.pad(torch.cat([patches, registers], 1).flatten(0, 1), (0, 0, 0, length - b * each))
    owner = F.pad(torch.arange(b).repeat_interleave(each), (0, length - b * each), value=-1)
    part = F.pad((torch.arange(each) >= h * w).long().repeat(b), (0, length - b * each))
    may_attend = owner[:, None] == owner[None]
    features = F.silu(decoder.embed_time(t))
    for block in decoder.blocks:
        pieces = block.modulation(features).unflatten(1, (2, 6, -1))[owner.clamp(min=0), part]
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = pieces.unbind(1)
        attention, mlp = block.attention, block.mlp
        width, head = sequence.shape[-1], attention.head
        mixed = _norm(sequence) * (1 + scale_a) + shift_a
        q, k, v = (F.linear(mixed, part_of).view(length, -1, head).transpose(0, 1) for part_of in attention.qkv.weight.split(width))
        scores = (_norm(q) @ _norm(k).transpose(1, 2)) * (8 / head)
        mixed = scores.masked_fill(~may_attend, -math.inf).softmax(-1) @ v
        sequence = sequence + gate_a * F.linear(mixed.transpose(0, 1).flatten(1), attention.out.weight)
        mixed = _norm(sequence) * (1 + scale_m) + shift_m
        gate, up = (F.linear(mixed, part_of) for part_of in mlp.gate_up.weight.chunk(2))
        sequence = sequence + gate_m * F.linear(F.silu(gate) * up, mlp.down.weight)
    out = sequence[: b * each].view(b, each, -1)[:, : h * w]
    shift, scale = decoder.head_modulation(features).chunk(2, 1)
    out = decoder.head(_norm(out) * (1 + scale[:, None]) + shift[:, None])
    return unpatchify(out.unflatten(1, (h, w)), config.patch).permute(0, 3, 1, 2)
