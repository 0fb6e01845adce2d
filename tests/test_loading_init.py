"""Building without drawing random weights ends, whatever lies in the fresh memory."""

import torch

from zoo.loading import SkipInit


def test_initialisers_that_reject_values_end():
    """Memory full of values outside the range must not make the truncated normal draw for ever."""
    weights = torch.full((64, 8), 1e9)
    other = torch.full((64,), -5.0)
    with SkipInit():
        torch.nn.init.trunc_normal_(weights, std=0.02)
        torch.nn.init.trunc_normal_(other, mean=5.0, std=0.1, a=0.0, b=1.0)
        linear = torch.nn.Linear(4, 4)
    assert float(weights.abs().max()) <= 2.0
    assert linear.weight.shape == (4, 4)
