"""Fixtures of public implementations, and one small quantizer of every kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zoo.quantizers import BSQ, FSQ, IBQ, LFQ, RVQ, VQ, DimensionWise, Grouped, Projected, Quantizer, Residual, ResidualFSQ, SimVQ

PARITY = Path(__file__).parents[1] / "parity"


class Case:
    """One parity case: `io` and `weights` tensors, `config`, and views on sub-cases by prefix."""

    def __init__(self, path: Path) -> None:
        self.io = load_file(path / "io.safetensors")
        weights = path / "weights.safetensors"
        self.weights = load_file(weights) if weights.exists() else {}
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())

    def sub(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors of one sub-case, without its prefix."""
        return {name.removeprefix(prefix + "."): t for name, t in self.io.items() if name.startswith(prefix + ".")}


@pytest.fixture(scope="session")
def public_case() -> Callable[[str], Case]:
    cache: dict[str, Case] = {}

    def load(name: str) -> Case:
        if name not in cache:
            cache[name] = Case(PARITY / name)
        return cache[name]

    return load


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


SMALL: dict[str, Callable[[], Quantizer]] = {
    "fsq": lambda: FSQ(levels=(8, 5, 3)),
    "fsq_symmetric": lambda: FSQ(levels=(2, 2, 4), symmetric=True),
    "residual_fsq": lambda: ResidualFSQ(levels=(4, 5), num_codebooks=3),
    "lfq": lambda: LFQ(bits=6),
    "lfq_split": lambda: LFQ(bits=6, splits=(2, 4), bit_order="first_is_low", soft_clamp=2.0),
    "bsq": lambda: BSQ(bits=6),
    "vq": lambda: VQ(dim=5, codebook_size=17),
    "vq_cosine": lambda: VQ(dim=5, codebook_size=17, distance="cosine", estimator="rotation"),
    "vq_gradient": lambda: VQ(dim=5, codebook_size=17, learning="gradient", revive_below=0.5),
    "rvq": lambda: RVQ(dim=5, codebook_size=17, num_codebooks=3, dropout=0.5, revive_below=0.5),
    "rvq_shared": lambda: RVQ(dim=5, codebook_size=17, num_codebooks=3, shared=True, update_order="per_depth"),
    "rvq_mixed": lambda: RVQ(dim=5, codebook_size=(17, 9), num_codebooks=2, learning="gradient", estimator="rotation"),
    "simvq": lambda: SimVQ(dim=5, codebook_size=17, frozen_dim=7),
    "ibq": lambda: IBQ(dim=5, codebook_size=17),
    "dimension_wise": lambda: DimensionWise(dim=4, levels=16),
    "dimension_wise_mixed": lambda: DimensionWise(dim=3, levels=(1, 5, 16), spread=(1.0, 0.5, 2.0)),
    "projected": lambda: Projected(FSQ(levels=(8, 5, 3)), dim=6),
    "grouped": lambda: Grouped([LFQ(bits=3), LFQ(bits=4)]),
    "residual": lambda: Residual([Projected(VQ(dim=2, codebook_size=9, distance="cosine_search"), dim=6) for _ in range(3)]),
}


@pytest.fixture(params=SMALL)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)  # linear layers of `Projected`
    return SMALL[request.param]().eval()


@pytest.fixture
def x(quantizer: Quantizer) -> torch.Tensor:
    return torch.randn(2, 7, quantizer.dim, generator=torch.Generator().manual_seed(1))
