"""A trained folder becomes package weights: half precision, the same codes as the rounded weights give, honest facts."""

from dataclasses import replace

import pytest
import torch

import recipes.release
import zoo
from recipes.train import export_tokenizer
from zoo import generators
from zoo.checkpoint import read_tensors, sha256_of
from zoo.registry import Weights

TOY = {
    "rvq_nano": dict(width=8, multipliers=(1, 2), attention_sides=(), norm_groups=4, latent_channels=4, z_channels=8),
    "bae_nano": dict(width=8, multipliers=(1, 2), attention_sides=(), norm_groups=4, latent_channels=8),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    monkeypatch.setattr(recipes.release, "embedded_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("name", sorted(TOY))
def test_release_halves_numbers_and_keeps_counters(name, tmp_path, package):
    torch.manual_seed(0)
    tok = zoo.create(name, info_name=name, **TOY[name]).eval()
    for key, value in tok.state_dict().items():
        if key.endswith("clock.steps"):
            value.fill_(3001)  # odd and above 2048: half precision cannot hold it
    folder = export_tokenizer(tok, tmp_path / "tokenizer")
    facts = recipes.release.release(folder)
    path = package / f"{name}.safetensors"
    assert (facts["file"], facts["size"], facts["sha256"]) == (path.name, path.stat().st_size, sha256_of(path))
    assert facts["config"] == tok.config.to_dict()
    assert facts["parameters"] == sum(value.numel() for value in tok.state_dict().values())
    tensors = read_tensors(path)
    for key, value in tok.state_dict().items():
        wanted = value.half() if value.is_floating_point() else value
        assert tensors[key].dtype == wanted.dtype
        assert torch.equal(tensors[key], wanted)


def test_numbers_beyond_half_precision_are_refused(tmp_path, package):
    tok = zoo.create("rvq_nano", info_name="rvq_nano", **TOY["rvq_nano"])
    tok.quant_conv.weight.data[0] = 1e6
    folder = export_tokenizer(tok, tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"release: quant_conv\.weight .*float16"):
        recipes.release.release(folder)
    assert not (package / "rvq_nano.safetensors").exists()


def test_a_generator_is_released_and_loads_by_its_entry(tmp_path, package, monkeypatch):
    """From the folder of a training to an entry with weights in the package: the same samples as the halved weights give."""
    small = dict(width=24, heads=2, depth_blocks=1, hidden_multiple=8)
    gen = generators.create_for("flextok_ar_nano", zoo.create("flextok_nano", registers=12).eval(), **small).eval()
    for parameter in gen.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    facts = recipes.release.release(generators.save(gen, tmp_path / "generator"))
    assert facts["parameters"] == sum(p.numel() for p in gen.parameters())
    weights = Weights(**{key: facts[key] for key in ("file", "sha256", "size")})
    entry = replace(gen.info, config=facts["config"], parameters=facts["parameters"], weights=weights)
    monkeypatch.setattr("zoo.generators.registry._shipped", lambda: {entry.name: entry})
    monkeypatch.setattr("zoo.generators.loading.embedded_folder", lambda: package)
    loaded = generators.load(entry.name)
    halved = gen.half().float()
    assert loaded.config.positions == (12,)
    assert torch.equal(loaded.sample([0, 3], seed=1).data, halved.sample([0, 3], seed=1).data)
