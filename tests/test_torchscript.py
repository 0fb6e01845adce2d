"""A TorchScript archive read as plain data, against torch's own module; foreign and damaged files are refused."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from zoo.checkpoint import read_tensors
from zoo.torchscript import read_script


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 4))
        self.register_buffer("steps", torch.arange(5))
        self.shape = [1, 2, 3]

    def forward(self, x):
        return x @ self.weight.t()


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Inner(), nn.Conv3d(3, 2, 1))
        self.small = nn.Parameter(torch.rand(2).half())
        self.name = "outer"

    def forward(self, x):
        return self.layers[0](x)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    module = Outer()
    torch.jit.save(torch.jit.script(module), tmp_path / "autoencoder.jit")
    return module, tmp_path / "autoencoder.jit"


@pytest.mark.filterwarnings("ignore")
def test_it_gives_the_state_of_the_module(saved):
    module, path = saved
    found, wanted = read_tensors(path), module.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.filterwarnings("ignore")
def test_a_cut_file_and_a_foreign_one(saved, tmp_path):
    _, path = saved
    cut = tmp_path / "cut.jit"
    cut.write_bytes(path.read_bytes()[:-200])
    text = tmp_path / "text.jit"
    text.write_text("no archive")
    for bad in (cut, text):
        with pytest.raises(ValueError, match=r"is not a readable TorchScript archive"):
            read_script(bad)


def test_a_name_that_could_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "evil.jit"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"it names builtins\.print"):
        read_script(path)
