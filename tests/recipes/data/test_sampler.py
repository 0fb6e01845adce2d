"""The order of training: stripes, positions, even evaluation steps."""

import pytest
import torch

from recipes.data.sampler import EpochSampler, EvaluationSampler, Position, even_batch_size, seeded


def test_two_ranks_partition_every_epoch():
    for epoch in range(3):
        stripes = [
            EpochSampler(count=23, batch_size=3, seed=1, rank=rank, world_size=2, start=(epoch, 0)) for rank in (0, 1)
        ]
        seen = [list(stripe) for stripe in stripes]
        assert [len(part) for part in seen] == [9, 9] == [len(stripe) for stripe in stripes]  # 23 // 6 steps of 3
        assert {number for part in seen for number, _ in part} == {epoch}
        indices = [index for part in seen for _, index in part]
        assert len(set(indices)) == 18
        assert set(indices) <= set(range(23))


def test_stripes_are_the_one_permutation_dealt_out():
    whole = list(EpochSampler(count=20, batch_size=2, seed=5))
    dealt = [list(EpochSampler(count=20, batch_size=2, seed=5, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [item for pair in zip(*dealt, strict=True) for item in pair] == whole


def test_order_depends_on_seed_and_epoch_only_and_not_on_the_global_generator():
    def order(seed: int, epoch: int) -> list[int]:
        return [index for _, index in EpochSampler(count=50, batch_size=5, seed=seed, start=(epoch, 0))]

    torch.manual_seed(0)
    first = order(1, 2)
    torch.manual_seed(99)
    assert order(1, 2) == first
    assert order(1, 3) != first
    assert order(2, 2) != first
    assert sorted(order(1, 2)) == list(range(50))


def test_what_is_left_over_changes_from_epoch_to_epoch():
    left = {
        frozenset(range(10)) - {index for _, index in EpochSampler(count=10, batch_size=4, seed=0, start=(epoch, 0))}
        for epoch in range(8)
    }
    assert len(left) > 1


def test_iterators_begin_where_training_stands():
    processed = 0
    sampler = EpochSampler(count=12, batch_size=3, seed=0, processed=lambda: processed)
    whole = list(sampler)
    iter(sampler)  # made and thrown away
    processed = 3
    assert sampler.position() == Position(0, 3)
    assert list(sampler) == whole[9:]
    processed = 4
    assert sampler.position() == Position(1, 0)
    sampler.set_epoch(7)  # Lightning's own number: ignored
    assert [epoch for epoch, _ in sampler] == [1] * 12


def test_the_position_is_taken_when_the_iterator_is_made():
    processed = 0
    sampler = EpochSampler(count=12, batch_size=3, seed=0, processed=lambda: processed)
    iterator = iter(sampler)
    processed = 4
    assert next(iterator)[0] == 0


def test_a_start_inside_an_epoch_counts_from_there():
    processed = 100  # batches of the run before
    sampler = EpochSampler(count=12, batch_size=3, seed=0, processed=lambda: processed, start=(5, 2))
    assert sampler.position() == Position(5, 2)
    processed = 103
    assert sampler.position() == Position(6, 1)


def test_limited_epochs_are_shorter():
    processed = 0
    sampler = EpochSampler(count=12, batch_size=3, seed=0, processed=lambda: processed, steps=2)
    processed = 5
    assert sampler.position() == Position(2, 1)


def test_set_epoch_decides_outside_a_trainer():
    sampler = EpochSampler(count=6, batch_size=2, seed=0)
    sampler.set_epoch(3)
    assert {epoch for epoch, _ in sampler} == {3}


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="7 pictures are fewer than batch_size=4 times world_size=2"):
        EpochSampler(count=7, batch_size=4, seed=0, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_shows_every_picture_once_in_the_same_number_of_steps(world_size):
    for count in range(world_size, 60):
        stripes = [list(EvaluationSampler(count=count, rank=r, world_size=world_size)) for r in range(world_size)]
        assert sorted(index for stripe in stripes for index in stripe) == list(range(count))
        for wanted in (1, 2, 3, 4, 7, 16):
            batch_size = even_batch_size(count, wanted, world_size)
            assert batch_size >= 1
            assert len({-(-len(stripe) // batch_size) for stripe in stripes}) == 1


def test_even_batch_size_is_the_wanted_one_where_that_is_even():
    assert even_batch_size(64, 8, 2) == 8
    assert even_batch_size(65, 8, 1) == 8
    assert even_batch_size(65, 8, 2) == 7  # stripes of 33 and 32: 5 and 4 steps of 8, but 5 and 5 of 7
    assert even_batch_size(67, 8, 2) == 8  # 34 and 33: 5 steps each


def test_fewer_pictures_than_processes_are_refused():
    with pytest.raises(ValueError, match="2 pictures are fewer than world_size=3"):
        EvaluationSampler(count=2, world_size=3)


def test_seeded_streams_differ_by_any_part():
    def first(*parts) -> float:
        return float(torch.rand((), generator=seeded(*parts)))

    values = [first("a", 1, 2), first("a", 2, 1), first("b", 1, 2), first("a", 12), first("a", 1, 2, 0)]
    assert len(set(values)) == 5
    assert first("a", 1, 2) == values[0]
