import math

import numpy as np
import pytest
import scipy.stats
import torch

from eval.scorers import make_scorers
from eval.scorers.tokens import entropy_bits, position_groups
from zoo.tokens import Segment, Tokens, TokenSpec


def spec(**facts) -> TokenSpec:
    return TokenSpec(**{"tokenizer": "toy", "modality": "image", "vocabulary": (8,), **facts})


def tokens_of(codes, made: TokenSpec, **facts) -> Tokens:
    data = torch.as_tensor(codes)
    return Tokens(data, made, torch.tensor([[16, 16]] * len(data)), **facts)


def test_use_and_perplexity_equal_numpy_counts():
    made = spec(vocabulary=(50, 7), residual=True)
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 30, (4, 3, 5)), rng.integers(0, 7, (4, 3, 5))], -1)
    scorers = make_scorers(["codebook_use", "code_perplexity"], spec=made)
    for scorer in scorers.values():
        scorer.update(tokens_of(codes[:3], made))
        scorer.update(tokens_of(codes[3:], made))
    flat = [codes[..., depth].ravel() for depth in (0, 1)]
    use = [len(set(part)) / size for part, size in zip(flat, (50, 7), strict=True)]
    perplexity = [2 ** scipy.stats.entropy(np.bincount(part), base=2) for part in flat]
    assert scorers["codebook_use"].result().mean == pytest.approx(np.mean(use))
    assert scorers["code_perplexity"].result().mean == pytest.approx(np.mean(perplexity), rel=1e-9)
    assert scorers["codebook_use"].result().n == 4
    details = scorers["codebook_use"].details()
    assert [row["perplexity"] for row in details["depths"]] == pytest.approx(perplexity)
    assert [row["use_bound"] for row in details["depths"]] == [1.0, 1.0]
    assert [row["codes_seen"] for row in details["depths"]] == [60, 60]
    assert "position_groups" not in details


def test_use_is_bounded_by_the_codes_seen():
    made = spec(vocabulary=(64000,))
    scorer = make_scorers(["codebook_use"], spec=made)["codebook_use"]
    scorer.update(tokens_of(torch.arange(32).view(2, 16, 1) * 1999, made))
    (row,) = scorer.details()["depths"]
    assert row["use"] == row["use_bound"] == 32 / 64000
    assert row["perplexity"] == pytest.approx(32)


def test_only_the_depths_that_were_kept_count():
    made = spec(vocabulary=(8, 8, 8), residual=True)
    scorer = make_scorers(["codebook_use"], spec=made)["codebook_use"]
    codes = torch.stack([torch.arange(4), torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)], -1)[None]
    scorer.update(tokens_of(codes, made).depth(1))
    assert scorer.result().mean == pytest.approx(4 / 8)
    assert len(scorer.details()["depths"]) == 1


def test_ordered_positions_are_looked_at_in_groups():
    made = spec(ordered=True)
    scorer = make_scorers(["code_perplexity"], spec=made, positions=6)["code_perplexity"]
    codes = torch.tensor([[3, 0, 1, 2, 4, 5], [3, 1, 1, 2, 4, 6]])[..., None]
    scorer.update(tokens_of(codes, made))
    groups = scorer.details()["position_groups"]
    assert [group["positions"] for group in groups] == [[0, 0], [1, 1], [2, 3], [4, 5]]
    assert [group["depths"][0]["perplexity"] for group in groups] == pytest.approx([1, 2, 2, 2**1.5])
    scorer.reset()
    scorer.update(tokens_of(codes, made).keep(2))
    assert [group["positions"] for group in scorer.details()["position_groups"]] == [[0, 0], [1, 1]]


@pytest.mark.parametrize("positions", [1, 2, 3, 8, 31, 256])
def test_groups_cover_every_position_once(positions):
    covered = [p for first, last in position_groups(positions, spec(ordered=True)) for p in range(first, last + 1)]
    assert covered == list(range(positions))


def test_groups_of_multi_rate_tokens_are_their_levels():
    made = spec(ordered=True, segments=(Segment(length=1, stride=4), Segment(length=4, stride=1)))
    assert position_groups(5, made) == [(0, 0), (1, 4)]


def test_positions_that_are_not_real_do_not_count():
    made = spec(ordered=True)
    scorer = make_scorers(["codebook_use"], spec=made, positions=4)["codebook_use"]
    tokens = tokens_of(torch.tensor([[5, 6, 7, 0], [5, 0, 0, 0]])[..., None], made, lengths=torch.tensor([3, 1]))
    scorer.update(tokens)
    (row,) = scorer.details()["depths"]
    assert (row["codes_seen"], row["used"]) == (4, 3)


def test_failed_items_are_counted_and_left_out():
    made = spec()
    scorers = make_scorers(["codebook_use", "bits_per_pixel"], spec=made)
    for scorer in scorers.values():
        scorer.update(
            tokens_of(torch.tensor([[1, 1], [2, 3]])[..., None], made),
            index=torch.tensor([7, 8]),
            failed=torch.tensor([False, True]),
        )
    use, bits = (scorers[name].result() for name in ("codebook_use", "bits_per_pixel"))
    assert (use.mean, use.n, use.failed) == (1 / 8, 1, 1)
    assert (bits.mean, bits.n, bits.failed) == (pytest.approx(2 * 3 / 256), 1, 1)
    index, values = scorers["bits_per_pixel"].per_item()
    assert index.tolist() == [7, 8]
    assert values.isnan().tolist() == [False, True]


def test_latents_count_the_bits_of_their_type():
    made = spec(vocabulary=(), channels=4)
    scorer = make_scorers(["bits_per_pixel"])["bits_per_pixel"]
    scorer.update(tokens_of(torch.zeros(1, 2, 2, 4), made))
    scorer.update(tokens_of(torch.zeros(1, 2, 2, 4, dtype=torch.bfloat16), made))
    assert scorer.per_item()[1].tolist() == [4 * 4 * 32 / 256, 4 * 4 * 16 / 256]


def test_entropy_of_known_counts():
    assert float(entropy_bits(torch.tensor([2, 1, 1, 0]))) == pytest.approx(1.5)
    assert float(entropy_bits(torch.tensor([0, 0]))) == 0.0
    assert float(entropy_bits(torch.tensor([9]))) == 0.0
    assert math.isclose(float(entropy_bits(torch.ones(1000, dtype=torch.long))), math.log2(1000))


def test_what_has_no_codes_is_refused():
    with pytest.raises(ValueError, match=r"codebook_use: toy makes latents, which have no codebook"):
        make_scorers(["codebook_use"], spec=spec(vocabulary=(), channels=4))
    with pytest.raises(ValueError, match=r"codebook_use: there are no codes to count"):
        make_scorers(["codebook_use"])
    with pytest.raises(ValueError, match=r"more than 33554432 counters"):
        make_scorers(["codebook_use"], spec=spec(vocabulary=(2**26,)))
    with pytest.raises(ValueError, match=r"positions is needed for toy"):
        make_scorers(["codebook_use"], spec=spec(ordered=True))
    scorer = make_scorers(["codebook_use"], spec=spec())["codebook_use"]
    other = spec(vocabulary=(9,))
    with pytest.raises(ValueError, match=r"tokens have vocabulary \(9,\). Needed: \(8,\)"):
        scorer.update(tokens_of(torch.zeros(1, 2, 1, dtype=torch.long), other))
