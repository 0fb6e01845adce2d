"""Pickles of training frameworks: the tensors come out, nothing that the file names is looked up or run, others are refused."""

import argparse
import collections
import os
import pathlib
import pickle
import sys
import types
import typing

import numpy as np
import pytest
import torch
from torch import nn

from zoo.checkpoint import read_tensors
from zoo.pickles import read_pickle

RAN: list[str] = []


def tensors():
    return {"net.weight": torch.arange(6.0).view(2, 3), "net.bias": torch.tensor([1.0, 2.0])}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def module_of(monkeypatch, name, **members):
    """A package that is there while the file is written."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    for key, value in members.items():
        value.__module__, value.__qualname__ = name, key
        setattr(sys.modules[name], key, value)


class Loud:
    """What runs when an object of it is made."""

    def __init__(self, value=None):
        self.value = value

    def __reduce__(self):
        return type(self), (self.value,), {"value": self.value}

    def __setstate__(self, state):
        RAN.append("state")


def test_objects_of_settings_are_left_out_and_never_made(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    with monkeypatch.context() as patch:
        module_of(patch, "omegaconf.dictconfig", DictConfig=type("DictConfig", (Loud,), {}))
        module_of(patch, "pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=type("ModelCheckpoint", (Loud,), {}))
        config = sys.modules["omegaconf.dictconfig"].DictConfig
        callback = sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint
        torch.save(
            {
                "state_dict": tensors(),
                "epoch": 3,
                "hyper_parameters": {
                    "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])),
                    "config": config({"a": 1}),
                    "kind": typing.Any,
                    "counts": collections.defaultdict(list, a=[1]),
                    "seen": {config("key"): 1},
                },
                "callbacks": {callback: {"best": np.float64(0.5), "dirpath": pathlib.PurePosixPath("/a/b")}},
                "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
            },
            path,
        )
    RAN.clear()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    content = read_pickle(path)
    assert "omegaconf" not in sys.modules, "nothing was imported"
    assert RAN == []
    assert content["epoch"] == 3
    held = content["hyper_parameters"]
    assert not isinstance(held["args"], argparse.Namespace)
    assert not vars(held["args"]), "what it held is lost"
    assert held["counts"] == {"a": [1]}
    assert content["optimizer_states"][0]["state"][0]["step"] == 3
    assert same(read_tensors(path, allow_pickle=True), tensors())
    assert same(read_tensors(path, allow_pickle=True, key="state_dict"), tensors())


def test_a_checkpoint_that_lightning_wrote(tmp_path):
    import lightning
    from lightning.fabric.utilities.data import AttributeDict

    class Module(lightning.LightningModule):
        def __init__(self, args, where):
            super().__init__()
            self.save_hyperparameters({"args": args, "where": where, "more": AttributeDict(a=1)})
            self.net = nn.Linear(3, 2)

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet)
    module = Module(argparse.Namespace(lr=0.1), pathlib.PurePosixPath("/data"))
    data = torch.utils.data.TensorDataset(torch.ones(2, 3))
    trainer.fit(module, torch.utils.data.DataLoader(data))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(read_tensors(tmp_path / "last.ckpt", allow_pickle=True), module.state_dict())


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_other_names_refuse_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": tensors(), "hyper_parameters": argparse.Namespace(a=Trap())}, "net.ckpt")
    with pytest.raises(ValueError, match=r"plain tensors.*names (posix|nt)\.system"):
        read_tensors("net.ckpt", allow_pickle=True)
    torch.save({"state_dict": tensors(), "model": nn.Linear(1, 1)}, "net.ckpt")
    with pytest.raises(ValueError, match=r"it names .*torch\.nn\.modules\.linear\.Linear"):
        read_tensors("net.ckpt", allow_pickle=True)
    torch.save({"state_dict": tensors(), "f": eval}, "net.ckpt")
    with pytest.raises(ValueError, match=r"it names builtins\.eval"):
        read_tensors("net.ckpt", allow_pickle=True)
    assert not (tmp_path / "trapped").exists()


def test_names_stay_refused_elsewhere(tmp_path):
    """What is allowed for one file is not allowed for the next reader."""
    torch.save({"state_dict": tensors(), "args": argparse.Namespace()}, tmp_path / "net.ckpt")
    read_pickle(tmp_path / "net.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "net.ckpt", weights_only=True)


def test_a_stand_in_for_tensors_is_no_tensor(tmp_path):
    torch.save({"state_dict": argparse.Namespace(**{"a": torch.zeros(1)})}, tmp_path / "net.ckpt")
    with pytest.raises(ValueError, match="not a dictionary of tensors"):
        read_tensors(tmp_path / "net.ckpt", allow_pickle=True, key="state_dict")


def test_the_old_form_of_files_is_read_strictly(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    assert same(read_tensors(path, allow_pickle=True), tensors())
    torch.save({"state_dict": tensors(), "a": argparse.Namespace()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="plain tensors"):
        read_tensors(path, allow_pickle=True)
