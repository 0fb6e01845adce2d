"""Reading and writing weights: every way a file or folder can be wrong has its own words, and nothing is half done."""

import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from zoo.checkpoint import load_strict, read_folder, read_tensors, sha256_of, weight_norm_keys, write_folder

CONFIG = {"family": "toy", "width": 4}


class Toy(nn.Module):
    """A bit of everything: parameter, integer buffer, buffer that is not stored."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("angles", torch.arange(width, dtype=torch.float32), persistent=False)


class Tied(nn.Module):
    """One parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.outside.weight = self.inside.weight


def _tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"linear.weight": torch.randn(4, 4), "linear.bias": torch.randn(4), "steps": torch.tensor(7)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------- read_tensors


def test_safetensors_round_trip_keeps_every_type(tmp_path: Path) -> None:
    tensors = {
        "f32": torch.randn(3, 2),
        "bf16": torch.randn(5).bfloat16(),
        "i64": torch.tensor(2**40),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert _equal(read_tensors(tmp_path / "a.safetensors"), tensors)
    assert _equal(read_tensors(tmp_path / "a.safetensors", sha256=sha256_of(tmp_path / "a.safetensors")), tensors)


WHOLE = save({"a": torch.zeros(64), "b": torch.ones(64)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"abc", "only 3 bytes"),
        (WHOLE[:-1], f"cut off: {len(WHOLE) - 1} bytes where {len(WHOLE)}"),
        (WHOLE[:40], "cut off or foreign: 40 bytes"),
        (WHOLE + b"\0", "bytes too many"),
        (WHOLE[:8] + b"\0" + WHOLE[9:], "header is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"PK\x03\x04" + b"\0" * 99, "pickle or an archive"),
    ],
)
def test_what_is_not_safetensors_is_refused_by_name_and_fault(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


def test_a_flipped_byte_is_refused_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE)
    expected = sha256_of(path)
    path.write_bytes(WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]))
    assert read_tensors(path)["b"].shape == (64,)  # the format itself cannot tell
    with pytest.raises(ValueError, match=f"sha256 is {sha256_of(path)}, {expected} was expected"):
        read_tensors(path, sha256=expected)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_tensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_pickle_needs_permission(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    torch.save(_tensors(), path)
    with pytest.raises(ValueError, match="can run code"):
        read_tensors(path)
    assert _equal(read_tensors(path, allow_pickle=True), _tensors())


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state_dict": _tensors(), "epoch": 3}, None),
        ({"state_dict": _tensors(), "epoch": 3}, "state_dict"),
        ({"ema": {"net": _tensors()}, "lr": 0.1}, "ema.net"),
    ],
)
def test_where_a_pickle_keeps_its_tensors(tmp_path: Path, content: dict[str, object], key: str | None) -> None:
    torch.save(content, tmp_path / "net.pt")
    assert _equal(read_tensors(tmp_path / "net.pt", allow_pickle=True, key=key), _tensors())


@pytest.mark.parametrize(
    ("content", "key", "says"),
    [
        ({"model": _tensors(), "epoch": 3}, None, r"model \(dict\), epoch \(int\)"),
        ({"model": _tensors()}, "ema", "has no 'ema'"),
        ([torch.zeros(1)], None, "It is a list"),
        ({}, None, "not a dictionary of tensors"),
        ({"a": torch.zeros(1), "b": 3}, None, r"1 tensors and 1 other entries: b \(int\)"),
    ],
)
def test_a_pickle_with_another_layout(tmp_path: Path, content: object, key: str | None, says: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=says):
        read_tensors(tmp_path / "net.pt", allow_pickle=True, key=key)


class _Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch trapped",)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Trap()}, "net.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        read_tensors("net.pt", allow_pickle=True)
    assert not Path("trapped").exists()


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("spoil", [_cut, lambda _: b"", lambda _: b"hello", lambda _: WHOLE])
def test_a_damaged_pickle(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    torch.save(_tensors(), tmp_path / "net.pt")
    (tmp_path / "net.pt").write_bytes(spoil((tmp_path / "net.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"net\.pt"):
        read_tensors(tmp_path / "net.pt", allow_pickle=True)


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ValueError, match=r"net\.pt"):
        read_tensors(tmp_path / "net.pt", allow_pickle=True)


# ---------------------------------------------------------------- load_strict


def test_load_strict_fills_everything() -> None:
    toy = Toy()
    load_strict(toy, _tensors(), name="toy_nano")
    assert _equal(_state(toy), _tensors())
    assert torch.equal(toy.angles, torch.arange(4.0))


def test_every_misfit_is_in_one_error_and_the_module_is_untouched() -> None:
    toy = Toy()
    before = _state(toy)
    tensors = {"linear.weight": torch.zeros(4, 5), "steps": torch.tensor(0.5), "extra": torch.zeros(1)}
    with pytest.raises(ValueError, match="toy_nano: the weights do not fit") as caught:
        load_strict(toy, tensors, name="toy_nano")
    for line in (
        "1 missing: linear.bias",
        "1 unexpected: extra",
        "1 of another shape: linear.weight (4, 5) (needed (4, 4))",
        "1 of another type: steps float32 (needed int64)",
    ):
        assert line in str(caught.value)
    assert _equal(_state(toy), before)


def test_long_lists_show_ten_and_the_count() -> None:
    tensors = {**_tensors(), **{f"extra.{i:02d}": torch.zeros(1) for i in range(25)}}
    with pytest.raises(ValueError, match="25 unexpected") as caught:
        load_strict(Toy(), tensors, name="toy")
    assert "extra.09, ..." in str(caught.value)
    assert "extra.10" not in str(caught.value)


def test_types_follow_the_module() -> None:
    tensors = _tensors()
    toy = Toy().bfloat16()
    load_strict(toy, tensors, name="toy")
    assert toy.linear.weight.dtype == torch.bfloat16
    assert torch.equal(toy.linear.weight, tensors["linear.weight"].bfloat16())
    load_strict(toy, {**tensors, "steps": torch.tensor(3, dtype=torch.int32)}, name="toy")
    assert toy.steps.dtype == torch.int64
    assert toy.steps == 3


@pytest.mark.parametrize(("value", "target"), [(1e6, torch.float16), (2**40, torch.int32)])
def test_a_value_too_large_for_the_module_is_refused(value: float, target: torch.dtype) -> None:
    module = nn.Module()
    module.register_buffer("scale", torch.zeros(2, dtype=target))
    with pytest.raises(ValueError, match="too large for the module's type: scale"):
        load_strict(module, {"scale": torch.tensor([1, value])}, name="toy")
    assert torch.equal(module.scale, torch.zeros(2, dtype=target))


def test_an_infinity_of_the_file_is_kept() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.zeros(2, dtype=torch.float16))
    load_strict(module, {"mask": torch.tensor([0.0, -torch.inf])}, name="toy")
    assert module.mask.tolist() == [0.0, -torch.inf]


def test_a_module_on_the_meta_device_receives_the_tensors() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[0].weight.requires_grad_(False)
    reference = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    load_strict(module, reference.state_dict(), name="toy")
    assert _equal(_state(module), _state(reference))
    assert not module[0].weight.requires_grad
    assert module[0].bias.requires_grad
    assert module.eval()(torch.ones(2, 4)).shape == (2, 4)


def test_what_a_file_cannot_fill_on_the_meta_device_is_named() -> None:
    with torch.device("meta"):
        module = Toy()
    with pytest.raises(ValueError, match=r"not stored .*: angles"):
        load_strict(module, _tensors(), name="toy")
    assert module.linear.weight.is_meta


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shared_parameters_stay_shared(device: str) -> None:
    with torch.device(device):
        module = Tied().requires_grad_(False)
    weight = torch.randn(3, 3)
    load_strict(module, {"inside.weight": weight, "outside.weight": weight.clone()}, name="toy")
    assert module.inside.weight is module.outside.weight
    assert not module.inside.weight.requires_grad
    assert torch.equal(module.inside.weight, weight)
    with pytest.raises(ValueError, match=r"different in the file: inside\.weight = outside\.weight"):
        load_strict(module, {"inside.weight": weight, "outside.weight": weight + 1}, name="toy")
    assert torch.equal(module.inside.weight, weight)


# ---------------------------------------------------------------- weight norm


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_both_spellings_of_weight_norm_load_and_agree() -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(2, 3, 5)
    old = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv1d(2, 3, 5)))
    old[0].weight_g.data.mul_(1.5)
    new = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(conv))
    x = torch.randn(1, 2, 9)
    for state in (old.state_dict(), weight_norm_keys(old.state_dict())):
        load_strict(new, weight_norm_keys(state), name="toy")
        assert torch.allclose(new(x), old(x), atol=1e-6)
    assert weight_norm_keys(new.state_dict()).keys() == new.state_dict().keys()


def test_weight_norm_renames_nothing_else() -> None:
    names = ["weight_g", "weight_v", "a.conv.weight_v", "a.conv.weight_g", "b.weight_g", "c.my_weight_g", "c.my_weight_v", "bias"]
    tensors = {name: torch.zeros(1) for name in names}
    assert list(weight_norm_keys(tensors)) == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "a.conv.parametrizations.weight.original1",
        "a.conv.parametrizations.weight.original0",
        "b.weight_g",
        "c.my_weight_g",
        "c.my_weight_v",
        "bias",
    ]


def test_weight_norm_in_both_spellings_at_once_is_refused() -> None:
    names = ("a.weight_g", "a.weight_v", "a.parametrizations.weight.original0")
    with pytest.raises(ValueError, match="both spellings"):
        weight_norm_keys({name: torch.zeros(1) for name in names})


# ---------------------------------------------------------------- folders


def test_folder_round_trip(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "deep" / "toy", config=CONFIG, tensors=_tensors(), readme="# Toy\n")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    found = read_folder(folder, verify=True)
    assert {key: found.config[key] for key in CONFIG} == CONFIG
    assert found.config["weights"] == {
        "file": "model.safetensors",
        "sha256": sha256_of(folder / "model.safetensors"),
        "size": (folder / "model.safetensors").stat().st_size,
    }
    assert found.metadata == {"format": "pt"}
    assert found.tensors_path == folder / "model.safetensors"
    assert _equal(read_tensors(found.tensors_path, sha256=found.sha256), _tensors())
    assert os.listdir(folder.parent) == ["toy"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_same_folder_is_written_with_the_same_bytes(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", config=CONFIG, tensors=_tensors(), readme="x")
    again = dict(reversed(_tensors().items()))
    second = write_folder(tmp_path / "b", config=read_folder(first).config, tensors=again, readme="x")
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_shared_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "b": base, "row": base[1], "turned": base.T, "grad": nn.Parameter(base)}
    folder = write_folder(tmp_path / "toy", config={}, tensors=tensors)
    read = read_tensors(folder / "model.safetensors")
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_an_existing_folder_is_replaced_only_on_demand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "toy", config=CONFIG, tensors=_tensors(), readme="old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_folder(folder, config=CONFIG, tensors={"a": torch.zeros(1)})
    assert (folder / "README.md").read_text() == "old"
    write_folder(folder, config=CONFIG, tensors={"a": torch.zeros(1)}, overwrite=True)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["toy"]


def test_overwrite_never_deletes_other_files(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        write_folder(tmp_path / "home", config={}, tensors=_tensors(), overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(ValueError, match="not a folder"):
            write_folder(tmp_path / name, config={}, tensors=_tensors(), overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "home", "link"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    if overwrite:
        write_folder(tmp_path / "toy", config=CONFIG, tensors=_tensors())
    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "toy", config={"family": "new"}, tensors=_tensors(), overwrite=overwrite)
    assert os.listdir(tmp_path) == (["toy"] if overwrite else [])
    if overwrite:
        assert read_folder(tmp_path / "toy", verify=True).config["family"] == "toy"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"a": float("nan")}, r"config\['a'\] is nan"),
        ({"a": [1, float("inf")]}, r"config\['a'\]\[1\] is inf"),
        ({"a": {3: 1}}, "the key 3"),
        ({"a": torch.zeros(1)}, "Tensor"),
        ({"a": Path("x")}, "Path"),
    ],
)
def test_a_config_that_is_not_json_is_refused(tmp_path: Path, config: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_folder(tmp_path / "toy", config=config, tensors=_tensors())
    assert os.listdir(tmp_path) == []


def test_no_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensors is empty"):
        write_folder(tmp_path / "toy", config={}, tensors={})


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "weights.safetensors", "io.safetensors"], "model.safetensors"),
        (["weights.safetensors", "io.safetensors"], "weights.safetensors"),
        (["net.safetensors"], "net.safetensors"),
    ],
)
def test_the_weight_file_of_a_public_folder(tmp_path: Path, names: list[str], chosen: str) -> None:
    (tmp_path / "config.json").write_text('{"weights": "imagenet"}')
    for name in names:
        save_file({"a": torch.zeros(1)}, tmp_path / name, metadata={"name": name})
    found = read_folder(tmp_path, verify=True)
    assert found.tensors_path == tmp_path / chosen
    assert found.metadata == {"name": chosen}
    assert found.sha256 is None


def _public(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "a.safetensors")


def _two(folder: Path) -> None:
    _public(folder)
    save_file({"a": torch.zeros(1)}, folder / "b.safetensors")


def _only_pickle(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    torch.save({}, folder / "net.pt")


def _empty_weights(folder: Path) -> None:
    _public(folder)
    (folder / "a.safetensors").write_bytes(b"")


def _with_config(text: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _public(folder)
        (folder / "config.json").write_bytes(text)

    return make


def _with_record(**record: object) -> Callable[[Path], None]:
    return _with_config(json.dumps({"weights": {"file": "a.safetensors", "sha256": "0", "size": 1} | record}).encode())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, r"no config\.json in .*There: nothing"),
        (_two, r"a\.safetensors, b\.safetensors"),
        (_only_pickle, r"no \*\.safetensors .*There: config\.json, net\.pt"),
        (_empty_weights, "it is empty"),
        (_with_config(b"{"), "is not JSON"),
        (_with_config(b"[]"), "JSON list"),
        (_with_config(b"\xff"), "is not JSON"),
        (_with_record(file="../a.safetensors"), "names the weight file"),
        (_with_record(file="b.safetensors"), r"names 'b\.safetensors', which is not there"),
        (_with_record(), "config.json records 1"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=says):
        read_folder(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        read_folder(tmp_path / "none")


def test_a_flipped_byte_of_a_folder_is_found_when_asked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "toy", config=CONFIG, tensors=_tensors())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ValueError, match="damaged"):
        read_folder(folder, verify=True)
    found = read_folder(folder)
    with pytest.raises(ValueError, match="damaged"):
        read_tensors(found.tensors_path, sha256=found.sha256)
