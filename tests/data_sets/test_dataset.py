"""The reader: each item once over ranks and workers, orders that a seed decides, and the exact rest of an epoch after a stop."""

import shutil

import pytest
from torch.utils.data import DataLoader

from zoo.data import Protocol, TokenDataset, tokenize


@pytest.fixture(scope="module")
def tokens(toys, picture, tmp_path_factory):
    """Tokens of 23 pictures in shards of 5."""
    root = tmp_path_factory.mktemp("tokens")
    (root / "in").mkdir()
    for number in range(23):
        (root / "in" / f"{number:03d}.png").write_bytes(picture(number * 10))
    tokenize(toys.grey(), root / "in", root / "out", Protocol(batch_size=4, shard_items=5))
    return root / "out"


def numbers(samples):
    return [sample.record["number"] for sample in samples]


def loader(dataset, workers, batch_size=2):
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=numbers)


def test_every_item_once_over_ranks_of_equal_length(tokens):
    ranks = [numbers(TokenDataset(tokens, shuffle=True, seed=3, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(rank) for rank in ranks] == [5] * 4
    assert len({number for rank in ranks for number in rank}) == 20
    assert len(TokenDataset(tokens, rank=0, world_size=4)) == 5
    assert numbers(TokenDataset(tokens)) == list(range(23))


def test_the_order_is_that_of_seed_and_epoch(tokens):
    dataset = TokenDataset(tokens, shuffle=True, seed=3)
    first = numbers(dataset)
    assert numbers(dataset) == first
    assert first != sorted(first)
    assert sorted(first) == list(range(23))
    assert numbers(TokenDataset(tokens, shuffle=True, seed=4)) != first
    dataset.set_epoch(1)
    assert numbers(dataset) != first


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 22, 23])
def test_an_iteration_goes_on_inside_an_epoch(tokens, stop):
    dataset = TokenDataset(tokens, shuffle=True, seed=3)
    dataset.set_epoch(2)
    whole = numbers(dataset)
    items = iter(dataset)
    taken = [next(items).record["number"] for _ in range(stop)]
    state = dataset.state_dict() if stop else TokenDataset(tokens, shuffle=True, seed=3).state_dict() | {"epoch": 2}
    again = TokenDataset(tokens, shuffle=True, seed=3)
    again.load_state_dict(state)
    assert taken + numbers(again) == whole
    assert numbers(again) == whole  # the rest was of that iteration only


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_plain_loader_goes_on_inside_an_epoch(tokens, workers, stop):
    dataset = TokenDataset(tokens, shuffle=True, seed=5)
    whole = list(loader(dataset, workers))
    assert sorted(number for batch in whole for number in batch) == list(range(23))
    state = dataset.state_after(stop, batch_size=2, num_workers=workers)
    again = TokenDataset(tokens, shuffle=True, seed=5)
    again.load_state_dict(state)
    assert list(loader(again, workers)) == whole[stop:]


def test_another_order_or_number_of_workers_is_refused(tokens):
    state = TokenDataset(tokens, seed=1).state_after(2, batch_size=2, num_workers=2)
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        TokenDataset(tokens, seed=2).load_state_dict(state)
    again = TokenDataset(tokens, seed=1)
    again.load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of 2 workers, the loader has 1"):
        next(iter(again))
    with pytest.raises(ValueError, match="batches=-1"):
        again.state_after(-1, batch_size=2)


def test_a_batch_is_one_of_tokens(tokens, code_of):
    batch = next(iter(DataLoader(TokenDataset(tokens), batch_size=3, collate_fn=TokenDataset.collate)))
    assert batch.data[:, 0, 0, 0].tolist() == [code_of(0), code_of(10), code_of(20)]
    assert batch.spec.vocabulary == (300,)


def test_a_folder_that_is_not_complete_or_too_small_is_refused(tokens, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no index.json"):
        TokenDataset(tmp_path)
    with pytest.raises(ValueError, match="23 items for 24 ranks"):
        TokenDataset(tokens, rank=0, world_size=24)
    with pytest.raises(ValueError, match="rank=2 of world_size=2"):
        TokenDataset(tokens, rank=2, world_size=2)
    copy = shutil.copytree(tokens, tmp_path / "copy")
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"no shard .*shard-000001.tar"):
        list(TokenDataset(copy))
    with pytest.raises(ValueError, match=r"1 of 5 shards are damaged: shard-000001.tar"):
        TokenDataset(copy).verify()
