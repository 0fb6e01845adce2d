"""Checkpoints that keep the moving average of their weights beside them, under names without dots.

Layout of training checkpoints of the latent-diffusion school (TencentARC/SEED-Voken among them): `encoder.conv_in.weight` has its
average under `model_ema.encoderconv_inweight`. The averaged weights are the ones that are evaluated and used.
"""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["averaged_weights"]

_PREFIX = "model_ema."
_COUNTERS = ("decay", "num_updates")


def averaged_weights(tensors: Mapping[str, Tensor], *, name: str, ignore: tuple[str, ...] = ("loss.",)) -> dict[str, Tensor]:
    """Give the averaged weights under their plain names; the weights themselves where the file keeps no average.

    Args:
        tensors: name -> tensor, as the checkpoint has them.
        name: of the family, for the error.
        ignore: beginnings of names that belong to the training and are left out.

    Raises:
        ValueError: averages are there, but not of every weight, or of something that is no weight here.
    """
    weights = {key: value for key, value in tensors.items() if not key.startswith((_PREFIX, *ignore))}
    averages = {key.removeprefix(_PREFIX): value for key, value in tensors.items() if key.startswith(_PREFIX)}
    averages = {key: value for key, value in averages.items() if key not in _COUNTERS}
    if not averages:
        return weights
    owners = {key.replace(".", ""): key for key in weights}
    lonely = [key for key in owners if key not in averages]
    strange = [
        key for key in averages if key not in owners and not key.startswith(tuple(part.replace(".", "") for part in ignore))
    ]
    if lonely or strange or len(owners) != len(weights):
        raise ValueError(
            f"{name}: the averages under {_PREFIX}* do not match the weights: {len(lonely)} weights have none"
            f" ({', '.join(owners[key] for key in lonely[:10]) or '-'}), {len(strange)} belong to no weight"
            f" ({', '.join(strange[:10]) or '-'}). Needed: one average for each weight, or none at all."
        )
    return {owners[key]: value for key, value in averages.items() if key in owners}
