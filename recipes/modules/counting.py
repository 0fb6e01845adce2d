"""Which codes a validation uses."""

from typing import Any, ClassVar

from torch import Tensor

from zoo.quantizers.usage import UsageMonitor

__all__ = ["CountsCodes"]

_COUNTED = 2**20  # largest codebook whose use is counted
_ALL = 2**40  # codes to look back on: all of a validation


class CountsCodes:
    """Part of a recipe: counts the codes of all validation batches and logs their use at the end.

    Attributes:
        usage_per_level: log the use of each residual level (`_1`, `_2`, ...) beside the mean.
    """

    usage_per_level: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._usage: list[UsageMonitor] = []  # in a list it is no part of the module, so averaged weights leave its counts alone

    def count_codes(self: Any, codes: Tensor) -> None:
        """Count the codes `(..., depth)` of a validation batch; codebooks beyond 2^20 entries are not counted."""
        info = self.tokenizer.info
        if max(info.vocabulary) > _COUNTED:
            return
        if not self._usage:
            self._usage = [UsageMonitor(codebook_size=max(info.vocabulary), depth=info.depth, window=_ALL).to(self.device)]
        self._usage[0].update(codes)

    def on_validation_epoch_end(self: Any) -> None:
        """Log the use of the codes counted in this validation, and forget them."""
        for usage in self._usage:
            found = usage.compute()
            values = {name: found[name].mean() for name in ("used_fraction", "perplexity")}
            if self.usage_per_level and self.tokenizer.info.residual:
                values |= {f"{name}_{level + 1}": each for name in list(values) for level, each in enumerate(found[name])}
            self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)
            usage.reset()
