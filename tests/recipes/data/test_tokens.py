"""Cached tokens: made once, found again, each the tokens of its view, drawn like pictures."""

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from recipes.data.images import to_float
from recipes.data.tokens import TokenDataModule
from recipes.data.views import ViewDataset
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens, TokenSpec


class _Blocks(Tokenizer):
    """Codes of 4 x 4 blocks: mean brightness in 40,000 steps, or the mean colours as latents. Counts what it encodes."""

    def __init__(self, *, latents: bool = False, native: int | None = 16) -> None:
        facts = dict(channels=3, discrete=False) if latents else dict(vocabulary=(40000,), codebook_size=40000, discrete=True)
        name = "colour_blocks" if latents else "grey_blocks"
        super().__init__(
            None,
            Entry(
                name=name, family="blocks", modality="image", summary="", layout="2d", tokens=16, downsample=(1, 4, 4),
                native_size=None if native is None else (native, native), size_multiple=4, **facts,
            ),
        )  # fmt: skip
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.encoded = 0

    def encode(self, x: Tensor, *, depth: int | None = None, **options: object) -> Tokens:
        self.encoded += len(x)
        means = torch.nn.functional.avg_pool2d(x, 4) * self.weight
        if not self.info.discrete:
            data = means.movedim(1, -1)
        else:
            data = ((means.mean(1) + 1) / 2 * 39999).round().long()[..., None]
        return Tokens(data, self.spec, tuple(x.shape[2:]))


def module(pack, cache, tokenizer, **options):
    arguments = {"batch_size": 4, "views": 3, "encode_batch_size": 12, **options}
    return TokenDataModule(str(pack), str(pack), tokenizer=tokenizer, cache=str(cache), **arguments)


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def files(cache):
    return sorted(path.name.split("-")[0] for path in cache.glob("*.safetensors"))


@pytest.mark.parametrize("latents", [False, True])
def test_batches_hold_the_tokens_of_the_views(pack, tmp_path, latents):
    tok = _Blocks(latents=latents)
    data = ready(module(pack, tmp_path, tok, latent_dtype="float32"))
    assert tok.encoded == 22 * 3 + 5
    views = ViewDataset(data.pictures().corpus("train"), size=16, views=3, seed=0, scale=(0.6, 1.0), hflip=0.5)
    for index in (0, 7):
        pictures, label = views[index]
        expected = tok.encode(to_float(torch.from_numpy(pictures))).data
        for view in range(3):
            assert torch.equal(data.train_set.cache.read(index, view), expected[view].detach())
        assert int(data.train_set.cache.labels[index]) == label
    batch = next(iter(data.train_dataloader()))
    assert batch.tokens.spec == tok.spec
    assert batch.tokens.extent.tolist() == [[16, 16]] * 4
    assert torch.equal(batch.labels, batch.index % 3)
    assert [batch.index.tolist() for batch in data.val_dataloader()] == [[0, 1, 2, 3], [4]]


def test_codes_are_stored_in_the_narrowest_type(pack, tmp_path):
    from safetensors import safe_open

    ready(module(pack, tmp_path, _Blocks()))
    with safe_open(next(tmp_path.glob("train-*.safetensors")), "pt") as file:
        assert file.get_slice("tokens").get_dtype() == "U16"
        assert sorted(file.keys()) == ["labels", "tokens"]


def test_each_view_comes_once_in_as_many_epochs_as_there_are_views(pack, tmp_path):
    data = ready(module(pack, tmp_path, _Blocks()))
    for index in range(22):
        stored = sorted(data.train_set.cache.read(index, view).tolist() for view in range(3))
        shown = [data.train_set[epoch, index][0].tolist() for epoch in range(6)]
        assert sorted(shown[:3]) == stored
        assert shown[:3] == shown[3:]


@pytest.mark.parametrize(
    ("options", "made"),
    [({}, []), ({"views": 2}, ["train"]), ({"seed": 1}, ["train"]), ({"size": 8}, ["train", "val"]), ({"num_workers": 2}, [])],
    ids=str,
)
def test_a_cache_is_found_by_all_that_it_depends_on_and_by_nothing_else(pack, tmp_path, options, made):
    ready(module(pack, tmp_path, _Blocks()))
    again = _Blocks()
    ready(module(pack, tmp_path, again, **options))
    assert files(tmp_path) == sorted(["train", "val", *made])
    assert (again.encoded == 0) == (not made)


def test_other_weights_make_another_cache(pack, tmp_path):
    ready(module(pack, tmp_path, _Blocks()))
    other = _Blocks()
    with torch.no_grad():
        other.weight.fill_(0.5)
    ready(module(pack, tmp_path, other))
    assert files(tmp_path) == ["train", "train", "val", "val"]


def test_levels_of_a_residual_tokenizer(pack, tmp_path):
    torch.manual_seed(0)
    tok = zoo.create("rvq_nano", info_name="rvq_nano").eval()
    data = ready(module(pack, tmp_path, tok, depth=2, limit=4, views=1))
    assert next(iter(data.train_dataloader())).tokens.data.shape == (4, 8, 8, 2)


def test_refusals(pack, tmp_path):
    with pytest.raises(ValueError, match="tokenizer is missing"):
        module(pack, tmp_path, None)
    with pytest.raises(ValueError, match="views=0"):
        module(pack, tmp_path, _Blocks(), views=0)
    with pytest.raises(ValueError, match="no native size"):
        ready(module(pack, tmp_path, _Blocks(native=None)))

    class Broken(_Blocks):
        def encode(self, x, **options):
            tokens = super().encode(x)
            return Tokens(torch.full_like(tokens.data, np.nan), tokens.spec, tokens.extent)

    with pytest.raises(ValueError, match="not finite"):
        ready(module(pack, tmp_path, Broken(latents=True)))
    assert not list(tmp_path.glob("*.safetensors"))
    assert isinstance(_Blocks().spec, TokenSpec)
