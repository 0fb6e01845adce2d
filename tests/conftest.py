"""Every test runs on one thread, without the user's caches or settings, and finds parity fixtures by family and case.

The variables are set before anything imports `huggingface_hub`, which reads them once; sub-processes inherit them.
The million objects of the libraries and of the tests themselves stay to the end, so the garbage collector is told to pass them by.
"""

import atexit
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_HOME = tempfile.mkdtemp(prefix="zoo-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HOME,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    OMP_NUM_THREADS="1",
)
for _name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402 - after the environment
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
settings.load_profile("tests")
PARITY = Path(__file__).parent / "parity"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without looking for garbage, of which imports make none; what lives then is never looked through again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@dataclass(frozen=True)
class ParityCase:
    """One case of a public model: its configuration, its weights, and tensors it gave."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        return json.loads((self.folder / "config.json").read_text())

    @property
    def weights(self) -> Path:
        """The weight file: `model.safetensors`, else `weights.safetensors`."""
        named = self.folder / "model.safetensors"
        return named if named.exists() else self.folder / "weights.safetensors"

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Inputs and outputs, by name."""
        from safetensors.torch import load_file

        return load_file(self.folder / "io.safetensors")


@pytest.fixture(scope="session")
def parity() -> Callable[[str, str], ParityCase]:
    """Give `parity(family, case)`, from `tests/parity/<family>/<case>/`."""

    def find(family: str, case: str) -> ParityCase:
        folder = PARITY / family / case
        if not folder.is_dir():
            raise ValueError(f"no parity case {family}/{case}; there: {sorted(p.name for p in (PARITY / family).glob('*'))}")
        return ParityCase(folder)

    return find
