"""Cached latents: made once, found again, never half there, drawn like pictures."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from recipes.data.images import random_view
from recipes.data.latent_cache import LatentCache, LatentCacheWriter
from recipes.data.latents import LatentDataModule, weights_hash
from recipes.data.sampler import seeded
from zoo.media import resize_crop
from zoo.tokens import Tokens, TokenSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class FrontEnd(nn.Module):
    """A strided convolution; counts the pictures it encodes and may fail after some."""

    def __init__(self, *, weight: float = 0.05, fail_after: int | None = None, kill: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-weight, weight, self.conv.weight.numel()).view_as(self.conv.weight))
            self.conv.bias.zero_()
        self.dropout = nn.Dropout(0.5)  # must be off
        self.encoded = 0
        self.fail_after = fail_after
        self.kill = kill

    def encode_latents(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.encoded += len(x)
        if self.fail_after is not None and self.encoded > self.fail_after:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("out of memory")
        return self.dropout(self.conv(x))


def module(pack: Path, cache: Path, front_end: object, **options) -> LatentDataModule:
    arguments = {"size": 16, "batch_size": 4, "views": 3, "encode_batch_size": 12, **options}
    return LatentDataModule(str(pack), str(pack), tokenizer=front_end, cache=str(cache), **arguments)


def ready(data: LatentDataModule) -> LatentDataModule:
    data.prepare_data()
    data.setup()
    return data


def files(cache: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in cache.glob("*.safetensors"))


def test_batches_hold_the_latents_of_their_pictures(pack, tmp_path):
    front_end = FrontEnd()
    data = ready(module(pack, tmp_path, front_end))
    assert front_end.encoded == 22 * 3 + 5  # three views for training, the centre for validation
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert batch.images.shape[1:] == (3, 16, 16)
        assert batch.latents.dtype == batch.images.dtype == torch.float32
        with torch.no_grad():
            assert torch.allclose(batch.latents, front_end.conv(batch.images), atol=1e-5)
    assert [batch.index.tolist() for batch in data.val_dataloader()] == [[0, 1, 2, 3], [4]]
    first = next(iter(data.train_dataloader()))
    assert torch.equal(first.labels, first.index % 3)


def test_the_views_are_the_centre_its_mirror_and_random_squares(pack, tmp_path):
    data = ready(module(pack, tmp_path, FrontEnd(), seed=5, random_crop=(0.5, 0.9)))
    cache = data.train_set.cache
    image = data._pictures.corpus("train").read(7)
    center = np.asarray(resize_crop(image, 16))
    drawn = random_view(image, 16, seeded("latent view", 5, 2, 7), scale=(0.5, 0.9), hflip=0.5)
    for view, expected in enumerate([center, center[:, ::-1], np.asarray(drawn)]):
        assert np.array_equal(cache.read(7, view)[1].transpose(1, 2, 0), expected)


def test_without_mirroring_the_second_view_is_random_too(pack, tmp_path):
    data = ready(module(pack, tmp_path, FrontEnd(), hflip=0.0))
    image = data._pictures.corpus("train").read(7)
    drawn = random_view(image, 16, seeded("latent view", 0, 1, 7), scale=(0.6, 1.0), hflip=0.0)
    assert np.array_equal(data.train_set.cache.read(7, 1)[1].transpose(1, 2, 0), np.asarray(drawn))


def test_each_view_comes_once_in_as_many_epochs_as_there_are_views(pack, tmp_path):
    data = ready(module(pack, tmp_path, FrontEnd()))
    first = set()
    for index in range(22):
        stored = [data.train_set.cache.read(index, view)[1].tobytes() for view in range(3)]
        shown = [data.train_set[epoch, index][1].tobytes() for epoch in range(6)]
        assert sorted(shown[:3]) == sorted(stored)
        assert shown[:3] == shown[3:]
        first.add(stored.index(shown[0]))
    assert first == {0, 1, 2}  # pictures do not all begin with the same view


def test_the_next_start_encodes_nothing(pack, tmp_path):
    ready(module(pack, tmp_path, FrontEnd()))
    again = FrontEnd(fail_after=0)
    data = ready(module(pack, tmp_path, again))
    assert again.encoded == 0
    assert len(list(data.train_dataloader())) == 5


@pytest.mark.parametrize(
    ("options", "front_end", "made"),
    [
        ({}, {"weight": 0.06}, ["train", "val"]),
        ({"size": 8}, {}, ["train", "val"]),
        ({"latent_dtype": "float16"}, {}, ["train", "val"]),
        ({"views": 2}, {}, ["train"]),
        ({"seed": 1}, {}, ["train"]),
        ({"random_crop": (0.5, 1.0)}, {}, ["train"]),
        ({"hflip": 0.25}, {}, ["train"]),
        ({"limit": 20}, {}, ["train"]),
        ({"exclude_packages": ("odd",)}, {}, ["train", "val"]),
        ({"num_workers": 2, "encode_batch_size": 5, "batch_size": 3}, {}, []),
    ],
    ids=str,
)
def test_a_cache_is_found_by_all_that_it_depends_on_and_by_nothing_else(pack, tmp_path, options, front_end, made):
    ready(module(pack, tmp_path, FrontEnd()))
    ready(module(pack, tmp_path, FrontEnd(**front_end), **options))
    assert files(tmp_path) == sorted(["train", "val", *made])


def test_worker_processes_do_not_change_the_batches(pack, tmp_path):
    alone = ready(module(pack, tmp_path / "a", FrontEnd()))
    helped = ready(module(pack, tmp_path / "b", FrontEnd(), num_workers=2))
    for one, two in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_failure_leaves_no_cache(pack, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        module(pack, tmp_path, FrontEnd(fail_after=30)).prepare_data()
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    ready(module(pack, tmp_path, FrontEnd()))
    assert files(tmp_path) == ["train", "val"]


def test_a_killed_process_leaves_no_cache_and_no_lock(pack, tmp_path):
    def encode_and_die() -> None:
        module(pack, tmp_path / "killed", FrontEnd(fail_after=30, kill=True)).prepare_data()

    child = multiprocessing.get_context("fork").Process(target=encode_and_die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert files(tmp_path / "killed") == []
    assert list((tmp_path / "killed").glob(".*.partial"))  # it was in the middle of writing
    data = ready(module(pack, tmp_path / "killed", FrontEnd()))
    fresh = ready(module(pack, tmp_path / "fresh", FrontEnd()))
    assert data.train_set.cache.path.read_bytes() == fresh.train_set.cache.path.read_bytes()
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_stopped_in_mid_epoch_goes_on_exactly(pack, tmp_path, linear_run):
    def run(folder: str, **options) -> list:
        data = module(pack, tmp_path / "cache", FrontEnd(), size=linear_run.SIZE, seed=3)
        return linear_run.train(pack, tmp_path / folder, datamodule=data, max_epochs=3, **options).steps

    whole = run("whole")
    assert len(whole) == 15
    for step in (3, 5, 7, 10):
        assert run(f"from{step}", resume=tmp_path / "whole" / f"step={step}.ckpt") == whole[step:]


# -- front ends --------------------------------------------------------------------------------------------------------


class ZooFrontEnd(nn.Module):
    """The same convolution behind the zoo's contract."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = FrontEnd().conv

    def encode(self, x: Tensor) -> Tokens:
        spec = TokenSpec(tokenizer="stub", modality="image", channels=4)
        return Tokens(self.conv(x).movedim(1, -1), spec, torch.tensor([x.shape[2:]] * len(x)))


class Codes(ZooFrontEnd):
    def encode(self, x: Tensor) -> Tokens:
        spec = TokenSpec(tokenizer="stub", modality="image", vocabulary=(8,))
        return Tokens(torch.zeros(len(x), 4, 4, 1, dtype=torch.int64), spec, torch.tensor([x.shape[2:]] * len(x)))


class Plain:
    """No module: its weights cannot be seen."""

    def encode_latents(self, x: Tensor) -> Tensor:
        return x[:, :, ::4, ::4]


def test_tokenizers_of_the_zoo_are_front_ends(pack, tmp_path):
    plain = ready(module(pack, tmp_path / "a", FrontEnd()))
    zoo = ready(module(pack, tmp_path / "b", ZooFrontEnd()))
    for view in range(3):
        assert torch.allclose(zoo.train_set.cache.read(3, view)[0], plain.train_set.cache.read(3, view)[0], atol=1e-6)


def test_a_name_is_loaded_from_the_zoo(pack, tmp_path, monkeypatch):
    import zoo

    asked = []
    monkeypatch.setattr(zoo, "load", lambda name: asked.append(name) or FrontEnd(), raising=False)
    ready(module(pack, tmp_path, "some_nano"))
    assert asked == ["some_nano"]


def test_front_ends_that_do_not_fit_are_refused(pack, tmp_path):
    with pytest.raises(ValueError, match="Codes makes codes"):
        module(pack, tmp_path, Codes()).prepare_data()
    with pytest.raises(TypeError, match=r"Plain is no torch\.nn\.Module.*front_end_id"):
        module(pack, tmp_path, Plain()).prepare_data()
    with pytest.raises(TypeError, match="neither encode_latents"):
        module(pack, tmp_path, nn.Linear(1, 1)).prepare_data()
    broken = FrontEnd()
    with torch.no_grad():
        broken.conv.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        module(pack, tmp_path, broken).prepare_data()
    flat = FrontEnd()
    flat.encode_latents = lambda x: x.flatten(1)
    with pytest.raises(ValueError, match=r"shape \(12, 768\)"):
        module(pack, tmp_path, flat).prepare_data()
    data = ready(module(pack, tmp_path, Plain(), front_end_id="plain-1"))
    assert data.train_set.cache.latent_shape == (3, 4, 4)


def test_the_hash_sees_weights_buffers_names_and_class():
    class Other(FrontEnd):
        pass

    with_buffer = FrontEnd()
    with_buffer.register_buffer("scale", torch.ones(1))
    rescaled = FrontEnd()
    rescaled.register_buffer("scale", torch.full((1,), 2.0))
    half = FrontEnd().half()
    hashes = [weights_hash(each) for each in (FrontEnd(), FrontEnd(weight=0.06), with_buffer, rescaled, Other(), half)]
    assert len(set(hashes)) == 6
    assert weights_hash(FrontEnd()) == hashes[0]


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_the_file_is_plain_safetensors(pack, tmp_path, name):
    front_end = FrontEnd()
    data = ready(module(pack, tmp_path, front_end, latent_dtype=name))
    cache = data.train_set.cache
    with safe_open(cache.path, "pt") as file:
        latents, images, labels = (file.get_tensor(key) for key in ("latents", "images", "labels"))
        made_from = json.loads(file.metadata()["made_from"])
    assert latents.shape == (22, 3, 4, 4, 4)
    assert latents.dtype == getattr(torch, name)
    assert images.shape == (22, 3, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(labels, torch.arange(22) % 3)
    assert made_from == cache.made_from
    assert made_from["front_end"] == weights_hash(front_end)
    assert torch.equal(cache.read(9, 2)[0], latents[9, 2].float())
    assert np.array_equal(cache.read(9, 2)[1], images[9, 2].numpy())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_finished_caches_need_no_tokenizer(pack, tmp_path, suffix):
    made = ready(module(pack, tmp_path, FrontEnd())).train_set.cache
    path = made.path
    if suffix == ".npz":
        path = tmp_path / "latents.npz"
        with safe_open(made.path, "np") as file:
            np.savez(path, **{key: file.get_tensor(key) for key in ("latents", "images", "labels")})
    data = ready(LatentDataModule(str(path), batch_size=4))
    batch = next(iter(data.train_dataloader()))
    assert batch.latents.shape == (4, 4, 4, 4)
    assert torch.equal(batch.labels, batch.index % 3)
    assert data.val_dataloader() == []


def test_what_is_no_whole_cache_is_refused(pack, tmp_path):
    with pytest.raises(ValueError, match="tokenizer is missing"):
        LatentDataModule(str(pack))
    path = ready(module(pack, tmp_path, FrontEnd())).train_set.cache.path
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.safetensors is cut short"):
        LatentCache(cut)
    cut.write_bytes(b"text")
    with pytest.raises(ValueError, match="no safetensors file"):
        LatentCache(cut)
    np.savez(tmp_path / "other.npz", latents=np.zeros((2, 1, 4, 2, 2)))
    with pytest.raises(ValueError, match=r"lacks \['images', 'labels'\]"):
        LatentCache(tmp_path / "other.npz")
    np.savez(
        tmp_path / "other.npz", latents=np.zeros((2, 1, 4, 2, 2)), images=np.zeros((2, 2, 3, 8, 8)), labels=np.zeros(2)
    )
    with pytest.raises(ValueError, match="do not fit each other"):
        LatentCache(tmp_path / "other.npz")


def test_a_writer_that_got_too_few_rows_writes_nothing(tmp_path):
    shape = {"count": 2, "views": 1, "latent_shape": (1, 1, 1), "latent_dtype": torch.float32, "size": 2}
    with (
        pytest.raises(ValueError, match="1 of 2 pictures"),
        LatentCacheWriter(tmp_path / "x.safetensors", **shape, metadata={}) as writer,
    ):
        writer.append(torch.zeros(1, 1, 1, 1, 1), np.zeros((1, 1, 3, 2, 2), np.uint8), np.zeros(1, np.int64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views=0"),
        ({"encode_batch_size": 0}, "encode_batch_size=0"),
        ({"latent_dtype": "int8"}, "latent_dtype='int8'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=f"LatentDataModule: {message}"):
        LatentDataModule("samples", tokenizer=FrontEnd(), **options)
