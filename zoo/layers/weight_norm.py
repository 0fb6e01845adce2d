"""Weight normalisation, folded: a codec's file may hold gain and direction in two spellings, inference wants the weight."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["fold_weight_norm", "remove_weight_norm"]

_SPELLING = "parametrizations.weight.original"


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace gain and direction of weight normalisation by the weight they stand for: g v / |v|, the norm over all but axis 0.

    Takes `X.weight_g` / `X.weight_v` and `X.parametrizations.weight.original0` / `original1`, both to `X.weight`; everything else,
    folded weights too, passes unchanged. Half of a pair is left as it is, so that the strict load reports it.
    """
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for gain, direction in (("weight_g", "weight_v"), (f"{_SPELLING}0", f"{_SPELLING}1")):
            if name.endswith(f".{gain}") and (other := name.removesuffix(gain) + direction) in tensors:
                v = tensors[other].float()
                norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
                folded[name.removesuffix(gain) + "weight"] = (v * (tensor.float() / norm)).to(tensor.dtype)
                break
            if name.endswith(f".{direction}") and name.removesuffix(direction) + gain in tensors:
                break
        else:
            folded[name] = tensor
    return folded


def remove_weight_norm(module: nn.Module) -> None:
    """Turn every weight-normalised layer inside into a plain one with the same weight."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
