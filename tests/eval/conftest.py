"""Toy tokenizers and pictures for the tests of the scorers."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    """The module `toys.py` beside this file."""
    spec = importlib.util.spec_from_file_location("eval_toys", Path(__file__).parent / "toys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pair(toys: ModuleType) -> tuple[Tensor, Tensor]:
    """Six originals and noisy copies of growing noise, uint8 `(6, 3, 40, 32)`; the first copy is exact."""
    generator = torch.Generator().manual_seed(1)
    a = torch.stack([torch.from_numpy(toys.waves(i, 40))[:, :32] for i in range(6)]).permute(0, 3, 1, 2).contiguous()
    noise = torch.randn(a.shape, generator=generator) * torch.arange(6).view(-1, 1, 1, 1) * 6
    return a, (a + noise).round().clamp(0, 255).to(torch.uint8)
