"""`zoo.load` and `zoo.create`: names, folders of ours and of the public releases, and every way a folder can be wrong."""

import json
import logging
import pickle
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from zoo import loading, registry
from zoo.checkpoint import write_folder
from zoo.publishing import folder_config

PARITY = Path(__file__).parent / "parity"
PUBLIC = PARITY / "flextok" / "d2_d3_small_heads"
ORIGIN = dict(
    summary="A stand-in.", trained_on="noise", license_code="MIT", license_weights="MIT", paper="none", source="a/b", parameters=3
)
TINY = dict(latent_channels=4, block_channels=(8, 8), layers_per_block=1, norm_groups=4, image_size=16)


def tiny(**more):
    torch.manual_seed(0)
    return zoo.create("autoencoder_kl", info_name="tiny_vae", **{**TINY, **more})


def written(tok, folder):
    return write_folder(folder, config=folder_config(tok), tensors=tok.state_dict())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return written(tiny(), tmp_path_factory.mktemp("folders") / "tiny_vae")


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "tiny_vae"))


@pytest.fixture
def public(tmp_path):
    return Path(shutil.copytree(PUBLIC, tmp_path / "public"))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def change(folder, **values):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# -- a folder of ours --------------------------------------------------------------------------------------------------------------


def test_a_folder_gives_back_what_was_written(good):
    tok, loaded = tiny().eval(), zoo.load(good)
    assert type(loaded) is type(tok)
    assert loaded.config == tok.config
    assert loaded.info == tok.info
    assert loaded.state_dict().keys() == tok.state_dict().keys()
    for key, value in tok.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    x = torch.rand(1, 3, 12, 9) * 2 - 1
    assert torch.equal(loaded(x), tok(x))


def test_what_is_loaded_is_ready_for_use(good):
    loaded = zoo.load(good)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.dtype == torch.float32
    assert zoo.load(good, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("how", [str, Path, lambda p: f"{p}/"])
def test_paths_of_every_kind(good, how):
    assert zoo.load(how(good)).info.name == "tiny_vae"


def test_home_and_relative_paths(good, monkeypatch):
    monkeypatch.setenv("HOME", str(good.parent))
    monkeypatch.chdir(good.parent)
    for source in ("~/tiny_vae", "./tiny_vae", "tiny_vae", Path("tiny_vae"), Path("~/tiny_vae")):
        assert zoo.load(source).info.name == "tiny_vae"


def test_a_catalog_name_is_never_a_folder_by_chance(good, monkeypatch):
    """A run that was written to ./kl_vae_nano must not answer to the catalog's name."""
    monkeypatch.chdir(good.parent)
    shutil.copytree(good, good.parent / "kl_vae_nano")
    assert zoo.load("kl_vae_nano").config != tiny().config
    assert zoo.load("./kl_vae_nano").config == tiny().config


def test_origin_and_licence_travel_with_the_folder(good, tmp_path):
    tok = tiny()
    tok.info = replace(tok.info, **ORIGIN)
    loaded = zoo.load(written(tok, tmp_path / "x"))
    assert {key: getattr(loaded.info, key) for key in ORIGIN} == ORIGIN
    assert loaded.info == tok.info


def test_loading_draws_nothing_at_random(good):
    before = torch.get_rng_state()
    zoo.load(good)
    zoo.load(PUBLIC, family="flextok")
    assert torch.equal(torch.get_rng_state(), before)


def test_initialisers_end_whatever_lies_in_memory():
    """`trunc_normal_` draws again until every value lies in its bounds; without draws it must not wait for that."""

    def initialise():
        with loading.SkipInit():
            nn.init.trunc_normal_(torch.full((8,), 9.0), std=0.02)

    thread = threading.Thread(target=initialise, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["日本", "___", "2 Fast", "a.b-c", ""])
def test_every_folder_name_gives_a_name(folder, name):
    change(folder, name=name)
    assert zoo.load(folder).info.name


# -- what can be wrong with a folder of ours ---------------------------------------------------------------------------------------


def refuse(folder, words, **options):
    with pytest.raises(ValueError, match=words) as caught:
        zoo.load(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"family": "nothing"}, r"family='nothing' is unknown. Known: autoencoder_kl, .*flextok"),
        ({"family": ["flextok"]}, r"family=\['flextok'\] is unknown"),
        ({"family": "os.system"}, r"family='os\.system' is unknown"),
        ({"family": "flextok"}, r"FlexTokConfig: unknown keys? 'scaling_factor'"),
        ({"family": None}, r"not in our own format. Say which family.*autoencoder_kl, .*flextok"),
        ({"config": [1]}, r"no object 'config'"),
        ({"config": None}, r"not in our own format"),
        ({"config": {**TINY, "colour": 1}}, r"AutoencoderKLConfig: unknown key 'colour'.*Known: latent_channels"),
        ({"config": {**TINY, "latent_chanels": 4}}, r"unknown key 'latent_chanels'. Did you mean 'latent_channels'"),
        ({"config": {**TINY, "latent_channels": "4"}}, r"AutoencoderKLConfig: latent_channels='4'.*int"),
        ({"config": {**TINY, "latent_channels": 4.5}}, r"latent_channels=4\.5.*int"),
        ({"config": {**TINY, "latent_channels": True}}, r"latent_channels=True.*int"),
        ({"config": {**TINY, "latent_channels": None}}, r"latent_channels=None.*int"),
        ({"config": {**TINY, "latent_channels": 0}}, r"latent_channels=0. Allowed: at least 1"),
        ({"config": {**TINY, "scaling_factor": float("nan")}}, r"scaling_factor=nan"),
        ({"config": {**TINY, "scaling_factor": [1.0]}}, r"scaling_factor=\[1\.0\].*float"),
        ({"config": {**TINY, "block_channels": 8}}, r"block_channels=8.*tuple\[int"),
        ({"config": {**TINY, "block_channels": [8, "8"]}}, r"block_channels=\[8, '8'\].*tuple\[int"),
        ({"config": {**TINY, "block_channels": []}}, r"block_channels=\(\). Allowed"),
        ({"config": {**TINY, "norm_groups": 0}}, r"norm_groups=0. Allowed: at least 1"),
        ({"config": {**TINY, "layers_per_block": 0}}, r"layers_per_block=0. Allowed: at least 1"),
        ({"config": {**TINY, "image_size": 0}}, r"image_size=0. Allowed: at least 1"),
        ({"config": {**TINY, "quant_convs": 1}}, r"quant_convs=1.*bool"),
        ({"entry": [1]}, r"'entry' in config\.json.*list"),
        ({"entry": {"colour": 1}}, r"unknown keys under 'entry': colour"),
        ({"entry": {"notice": 3}}, r"'entry' in config\.json.*notice=3.*str"),
        ({"entry": {"parameters": "many"}}, r"'entry' in config\.json.*parameters='many'.*int"),
    ],
)  # fmt: skip
def test_a_config_that_is_wrong(folder, values, words):
    change(folder, **values)
    refuse(folder, words)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ("[1, 2]", "JSON list.*object"), ("null", "NoneType.*object"), ("", "not JSON")]
)
def test_a_config_that_is_no_object(folder, text, words):
    (folder / "config.json").write_text(text)
    refuse(folder, words)


def test_a_record_of_weights_that_is_no_record(folder):
    for value in ("model.safetensors", [1], 3):
        change(folder, weights=value)
        assert zoo.load(folder).info.name == "tiny_vae"
    change(folder, weights={"file": "../../x.safetensors", "sha256": "0", "size": 1})
    refuse(folder, r"'\.\./\.\./x\.safetensors'")


def test_a_changed_byte(folder):
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    refuse(folder, r"model\.safetensors.*sha256")


def test_a_file_that_was_cut_or_grew(folder):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    for data in (raw[:-5], raw + b"x", b""):
        path.write_bytes(data)
        refuse(folder, r"model\.safetensors has \d+ bytes, config\.json records \d+")
    change(folder, weights=None)
    for data in (raw[:-5], raw[:20], raw[:3], b""):
        path.write_bytes(data)
        refuse(folder, r"model\.safetensors is not a readable safetensors file")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(__file__).parent / "was_run",))


def test_a_pickle_by_the_name_of_safetensors_is_not_run(folder):
    for data in (pickle.dumps(Bomb()), pickle.dumps({"a": torch.zeros(1)})):
        (folder / "model.safetensors").write_bytes(data)
        change(folder, weights=None)
        refuse(folder, r"model\.safetensors is not a readable safetensors file: it is a pickle")
    assert not (Path(__file__).parent / "was_run").exists()


def test_only_pickles(folder):
    (folder / "model.safetensors").unlink()
    change(folder, weights=None)
    torch.save({"a": torch.zeros(1)}, folder / "model.pt")
    refuse(folder, r"no \*\.safetensors file")


def test_weights_that_do_not_fit(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    tensors.pop(names[0])
    tensors[names[1]] = torch.zeros(3, 1, 4)
    tensors["colour"] = torch.zeros(1)
    save_file(tensors, path)
    change(folder, weights=None)
    text = refuse(folder, r"tiny_vae: the weights do not fit the model")
    assert f"1 missing: {names[0]}" in text
    assert "1 unexpected: colour" in text
    assert f"1 of another shape: {names[1]} (3, 1, 4) (needed " in text


def test_families_and_revisions_that_contradict(folder):
    assert zoo.load(folder, family="autoencoder_kl").info.name == "tiny_vae"
    refuse(folder, r"holds a 'autoencoder_kl', but family='flextok'", family="flextok")
    refuse(folder, r"revision='v1'.*folder", revision="v1")
    refuse("kl_vae_nano", r"kl_vae_nano is of the family 'autoencoder_kl', but family='flextok'", family="flextok")
    assert zoo.load("kl_vae_nano", family="autoencoder_kl").info.name == "kl_vae_nano"


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", Path("nowhere"), "~/nowhere"])
def test_no_such_folder(source):
    refuse(source, r"zoo\.load: no folder .*nowhere")


def test_a_file_is_no_folder(folder):
    refuse(folder / "model.safetensors", r"zoo\.load: no folder .*model\.safetensors.*folder with config\.json")


def test_a_folder_without_anything(tmp_path):
    refuse(tmp_path, r"no config\.json in .*There: nothing")


@pytest.mark.parametrize("source", ["org/name/extra", "org/", "/".join("abc"), "org//name", "org/na me", "org/../name", "a/b\\c"])
def test_strings_that_are_no_repository(source):
    refuse(source, r"repo")


def test_a_typo_names_the_neighbours():
    with pytest.raises(zoo.registry.UnknownNameError, match="Closest: flextok_nano"):
        zoo.load("flextok_nno")


@pytest.mark.parametrize("source", [None, 3, b"flextok_nano", ["flextok_nano"]])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match=r"zoo\.load: source.*name, a folder or a repository"):
        zoo.load(source)


# -- a public folder ---------------------------------------------------------------------------------------------------------------


def test_a_public_folder_needs_its_family(public):
    refuse(public, r"not in our own format. Say which family")
    assert zoo.load(public, family="flextok").family == "flextok"
    refuse(public, r"autoencoder_kl: .*config\.json", family="autoencoder_kl")
    refuse(public, r"family='flex' is unknown", family="flex")


def test_a_public_folder_that_is_damaged(public):
    path = public / "weights.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    refuse(public, r"weights\.safetensors is not a readable safetensors file", family="flextok")


# -- entries -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(good, monkeypatch):
    """An entry with a notice, whose weights lie in a local file."""
    monkeypatch.setattr(registry, "_EXTRA", {})
    monkeypatch.setattr(loading, "_NOTICED", set())
    tok = tiny()
    weights = registry.Weights(file=str(good / "model.safetensors"))
    return zoo.register(replace(tok.info, name="stand_in", notice="research use only.", weights=weights))


def test_a_notice_is_shown_once(stand_in, caplog):
    with caplog.at_level(logging.WARNING, logger="zoo"):
        for _ in range(3):
            assert zoo.load("stand_in").info is stand_in
    assert [r.getMessage() for r in caplog.records] == ["stand_in: research use only."]


def test_a_notice_belongs_to_weights_that_were_loaded(stand_in, caplog):
    zoo.register(replace(stand_in, name="gone", weights=registry.Weights(file="/nowhere/model.safetensors")))
    with caplog.at_level(logging.WARNING, logger="zoo"), pytest.raises(FileNotFoundError, match="nowhere"):
        zoo.load("gone")
    assert not caplog.records


def test_a_notice_travels_with_the_folder(stand_in, caplog, tmp_path):
    tok = zoo.load("stand_in")
    loading._NOTICED.clear()
    folder = written(tok, tmp_path / "copy")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="zoo"):
        zoo.load(folder)
        zoo.load(folder)
    assert [r.getMessage() for r in caplog.records] == ["stand_in: research use only."]


def test_every_restricted_entry_has_a_notice_to_show():
    assert all(e.notice for e in zoo.find(license_weights__contains="LicenseRef"))


def test_weights_of_another_hash_are_refused(stand_in, monkeypatch):
    zoo.register(replace(stand_in, name="wrong", weights=replace(stand_in.weights, sha256="0" * 64)))
    refuse("wrong", r"sha256")


def test_an_entry_without_weights_says_so(stand_in):
    zoo.register(replace(stand_in, name="untrained", weights=None))
    refuse("untrained", r"untrained has no published weights.*zoo\.create\('untrained'\)")


def test_a_repository_of_another_layout_wins_over_the_catalog(stand_in, good, tmp_path, monkeypatch, caplog):
    """What a tokenizer says of itself is what its weights are, also where the catalog is out of date."""
    from zoo import hub

    larger = written(tiny(latent_channels=8), tmp_path / "larger")
    monkeypatch.setattr(hub, "fetch", lambda repo, file, **options: larger / file)
    zoo.register(replace(stand_in, name="moved", weights=registry.Weights(repo="org/larger"), notice=None))
    with caplog.at_level(logging.WARNING, logger="zoo"):
        tok = zoo.load("moved")
    assert "latent_channels: 8 (catalog: 4)" in caplog.text
    assert tok.info.channels == tok.spec.channels == 8
    assert tok.info.config["latent_channels"] == 8
    assert tok.encode(torch.zeros(1, 3, 16, 16)).levels == 8


# -- create ------------------------------------------------------------------------------------------------------------------------


def test_create_by_name_family_and_overrides():
    assert zoo.create("kl_vae_nano").info is zoo.info("kl_vae_nano")
    changed = zoo.create("kl_vae_nano", latent_channels=8)
    assert changed.info.name == "autoencoder_kl"
    assert changed.info.channels == 8
    assert zoo.create("kl_vae_nano", info_name="mine", latent_channels=8).info.name == "mine"
    with torch.device("meta"):
        assert zoo.create("autoencoder_kl").config.latent_channels == 4


def test_create_is_a_function_of_the_seed():
    assert all(torch.equal(a, b) for a, b in zip(tiny().parameters(), tiny().parameters(), strict=True))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"chanels": 3}, r"AutoencoderKLConfig: unknown key 'chanels'.*Known"),
        ({"latent_channels": "3"}, r"latent_channels='3'.*int"),
        ({"norm_groups": 5}, r"block_channels=.*multiples of norm_groups"),
    ],
)
def test_create_refuses_wrong_overrides(overrides, words):
    with pytest.raises(ValueError, match=words):
        zoo.create("kl_vae_nano", **overrides)


def test_loading_a_name_imports_only_its_family(monkeypatch):
    monkeypatch.delitem(sys.modules, "zoo.image.flextok", raising=False)
    zoo.load("kl_vae_nano")
    assert "zoo.image.flextok" not in sys.modules
