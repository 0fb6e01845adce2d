"""`zoo push`: the folder, its card, and a real push to the small Hub of tests/hub_server.py."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

import zoo
from zoo.cli import main

CARD = "---\nlicense: cc0-1.0\n---\n# Toy\n"


def _server_module():
    name = "hub_server"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


hub_server = _server_module()


@pytest.fixture
def hub(monkeypatch):
    assert constants.HF_HUB_DISABLE_XET
    with hub_server.HubServer() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # what HF_ENDPOINT sets when the library is imported
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
        yield server


@pytest.fixture
def folder(toy, tmp_path):
    return Path(shutil.copytree(toy("ordered"), tmp_path / "toy_ordered"))


def run(*words):
    return main([str(word) for word in words])


def test_a_dry_run_makes_the_folder_and_sends_nothing(folder, hub, tmp_path, capsys):
    (folder / "README.md").write_text(CARD)
    out = tmp_path / "out"
    assert run("push", folder, "--repo", "acme/toy", "--dry-run", "--out", out) == 0
    said = capsys.readouterr().out
    assert "nothing was sent" in said
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (out / "README.md").read_text() == CARD
    assert json.loads((out / "config.json").read_text())["family"] == "toy_for_tests"
    assert hub.count("POST") == 0
    assert zoo.load(out).info.name == "toy_ordered"


def test_a_folder_is_published_and_loads_again(folder, hub, tmp_path, capsys):
    (folder / "README.md").write_text(CARD)
    assert run("push", folder, "--repo", "acme/toy", "--tag", "v1", "--message", "first") == 0
    commit = capsys.readouterr().out.strip().rpartition(" at ")[2]
    assert len(commit) == 40
    assert hub.repos["acme/toy"].commit_of("v1") == commit
    again = zoo.load("acme/toy", revision="v1")
    assert (zoo.load(folder).basis == again.basis).all()


def test_private(folder, hub):
    (folder / "README.md").write_text(CARD)
    assert run("push", folder, "--repo", "acme/secret", "--private") == 0
    assert hub.repos["acme/secret"].private


def test_a_folder_without_card_gets_one_from_what_it_says(folder, tmp_path):
    from eval.cards import card

    out = tmp_path / "out"
    assert run("push", folder, "--dry-run", "--out", out) == 0
    assert (out / "README.md").read_text() == card(zoo.load(folder).info)
    assert not (folder / "README.md").exists()


def test_a_name_is_published_with_its_generated_card(tmp_path):
    from eval.cards import card

    out = tmp_path / "out"
    assert run("push", "kl_vae_nano", "--dry-run", "--out", out) == 0
    assert (out / "README.md").read_text() == card(zoo.info("kl_vae_nano"))
    loaded, original = zoo.load(out), zoo.load("kl_vae_nano")
    assert loaded.info.license_weights == original.info.license_weights
    for key, value in original.state_dict().items():
        assert (loaded.state_dict()[key] == value).all()


@pytest.mark.parametrize("name", ["flextok_nan", "no/such/place"])
def test_an_unknown_source(name, capsys):
    assert run("push", name, "--dry-run") == 2
    assert capsys.readouterr().err.startswith("zoo has no tokenizer")


def test_a_bad_card_or_repository_is_refused_before_any_request(folder, hub, capsys):
    (folder / "README.md").write_text("# no front matter\n")
    assert run("push", folder, "--repo", "acme/toy") == 2
    assert "front matter" in capsys.readouterr().err
    assert run("push", folder, "--repo", "no spaces/allowed") == 2
    assert run("push", folder, "--repo", "just_a_name") == 2
    assert hub.count("GET") + hub.count("POST") == 0


def test_a_refusal_of_the_hub_is_one_line(folder, hub, monkeypatch, capsys):
    (folder / "README.md").write_text(CARD)
    monkeypatch.setenv("HF_TOKEN", hub_server.READER)
    assert run("push", folder, "--repo", "acme/toy") == 2
    error = capsys.readouterr().err
    assert "acme/toy" in error
    assert "Traceback" not in error
