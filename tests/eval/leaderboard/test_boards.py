"""What stands in one table, ranks, paired differences, and what plots and script are given."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from eval.leaderboard.boards import CODEC, load_results, make_boards, rank, worst_items
from eval.leaderboard.index_page import board_data
from eval.leaderboard.plots import rate_lines, speed_lines
from eval.leaderboard.words import board_titles, compared_text, number, parameters_text, slug

PSNR = {"unit": "dB", "better": "higher", "data_range": 255}
KID = {"unit": "1/1000", "better": "lower", "sha256": "aa"}


def test_another_protocol_or_data_gives_another_board(results):
    other_protocol = replace(results[0], protocol=replace(results[0].protocol.varied(seed=7)))
    other_data = replace(results[0], dataset=replace(results[0].dataset, sha256="ee"))
    steps = replace(results[0], protocol=replace(results[0].protocol, decode={"steps": 20}))
    boards = make_boards([*results, other_protocol, other_data, steps])
    assert [len(board.results) for board in boards] == [5, 1, 1]
    assert [row.name for row in boards[0].rows][-1] == "near (steps=20)"
    assert boards[1].results[0].protocol.id == "image-64-v1+seed=7"
    assert boards[2].results[0].dataset.sha256 == "ee"


def test_titles_tell_data_of_one_name_apart(results):
    others = [replace(results[0], dataset=replace(results[0].dataset, sha256=sha256)) for sha256 in ("eeeeeeee11", "ffffffff22")]
    other_rule = replace(results[0], protocol=replace(results[0].protocol, resize="adm-box-bicubic"))
    assert board_titles(results[:1]) == ["pack, val: image-64-v1"]
    titles = board_titles([results[0], *others])
    assert titles == [f"pack, val: image-64-v1 (data {sha256})" for sha256 in ("dd", "eeeeeeee", "ffffffff")]
    assert board_titles([results[0], other_rule]) == ["pack, val: image-64-v1", "pack, val: image-64-v1 #2"]


def test_a_name_that_a_board_has_twice_is_numbered(results):
    again = replace(results[0], environment={"torch": "3"})
    assert [row.name for row in make_boards([results[0], again, again])[0].rows] == ["near", "near #2", "near #3"]


def test_a_score_of_another_definition_is_another_column(results):
    other = replace(results[1].protocol, scorers={"psnr_db": {**PSNR, "data_range": 1}, "kid_mbv2": KID})
    board = make_boards([results[0], replace(results[1], protocol=other)])[0]
    assert [column.key for column in board.columns] == ["psnr_db", "kid_mbv2", "psnr_db (2)"]
    first, second = rank(board, board.columns[0]), rank(board, board.columns[2])
    assert (first.order, second.order) == ((0,), (1,))


def test_rows_know_their_facts(results):
    board = make_boards(results)[0]
    facts = {row.name: row.facts for row in board.rows}
    assert facts["flextok_nano"].family == "flextok"
    assert facts["flextok_nano"].licence == "GPL-3.0-or-later"
    assert facts["jpeg"].kind == CODEC
    assert (facts["near"].kind, facts["near"].licence) == ("tokenizer", None)


def test_ranks_and_the_best_at_no_more_bits(results):
    board = make_boards(results)[0]
    labels = [row.label for row in board.rows]
    assert labels == ["near", "same", "flextok_nano tokens=1", "flextok_nano tokens=32", "jpeg quality=10", "jpeg quality=90"]
    ranking = rank(board, board.columns[0])
    assert [ranking.order[0], ranking.order[1], ranking.order[-1]] == [5, 3, 2]
    assert ranking.ranks[5] == 1
    assert ranking.fair[5] == 5  # no other row spends more, and it is the best of all
    assert ranking.fair[0] == 3  # 32 tokens: 0.5 bits, better than the row of 1 bit
    assert ranking.fair[2] == 2  # nothing is cheaper
    lower = rank(board, board.columns[1])  # KID: minus PSNR, lower is better
    assert lower.order == ranking.order


def test_differences_are_paired_over_the_items(results):
    board = make_boards(results)[0]
    ranking = rank(board, board.columns[0])
    a, b = (np.array([item.scores["psnr_db"] for item in board.rows[i].items.values()]) for i in (4, 3))
    difference = ranking.difference(4, 3)
    assert difference.mean == pytest.approx((a - b).mean())
    draws = np.random.default_rng(0).integers(0, 40, (20000, 40))
    low, high = np.quantile((a - b)[draws].mean(1), [0.025, 0.975])
    assert difference.ci95 == pytest.approx((low, high), abs=0.03)
    assert high - low < 0.5  # the pictures differ by 5 dB: unpaired means could not tell
    assert ranking.difference(3, 4).mean == pytest.approx(-difference.mean)
    assert ranking.difference(3, 4).ci95 == (-difference.ci95[1], -difference.ci95[0])
    assert (ranking.verdict(4, 3), ranking.verdict(3, 4)) == ("worse", "better")


def test_no_significant_difference_is_said(results):
    board = make_boards(results[:2])[0]
    ranking = rank(board, board.columns[0])
    assert ranking.verdict(0, 1) == ranking.verdict(1, 0) == "no significant difference"
    loser = ranking.order[1]
    text = compared_text(board, ranking, loser)
    assert re.fullmatch(r"no significant difference from (near|same): −0\.\d+ \[−0\.\d+, 0\.\d+\]", text)


def test_a_better_mean_of_a_lower_score_is_better(results):
    lower = replace(results[0].protocol, scorers={"psnr_db": {**PSNR, "better": "lower"}, "kid_mbv2": KID})
    board = make_boards([replace(result, protocol=lower) for result in results])[0]
    assert rank(board, board.columns[0]).verdict(4, 3) == "better"


def test_scores_without_items_have_no_interval(results):
    board = make_boards(results)[0]
    kid, means = rank(board, board.columns[1]), [row.point.scores["kid_mbv2"].mean for row in board.rows]
    assert kid.difference(4, 3).why == "a score of whole sets"
    assert kid.difference(4, 3).mean == pytest.approx(means[4] - means[3])
    assert kid.verdict(4, 3) == ""
    bare = make_boards([results[0], replace(results[1], items=())])[0]
    ranking = rank(bare, bare.columns[0])
    assert ranking.difference(0, 1).why == "no items beside the result"
    assert "no interval: no items beside the result" in compared_text(bare, ranking, ranking.order[1])


def test_failed_items_are_left_out_of_both_sides(measured):
    values = {"a": [20.0, math.nan, 22.0, 30.0], "b": [19.0, 5.0, 21.0, 29.0]}
    board = make_boards([measured(name, {"full": column}, bits={"full": 1.0}) for name, column in values.items()])[0]
    difference = rank(board, board.columns[0]).difference(0, 1)
    assert (difference.mean, difference.n) == (pytest.approx(1.0), 3)


def test_other_items_under_the_same_hash_are_an_error(results):
    moved = tuple(replace(item, key="x" + item.key) for item in results[1].items)
    board = make_boards([results[0], replace(results[1], items=moved)])[0]
    with pytest.raises(ValueError, match="items are in one set only"):
        rank(board, board.columns[0])


def test_what_is_no_quality_is_not_ranked(results):
    scorers = {**results[0].protocol.scorers, "bits_per_pixel": {"better": "lower"}, "codebook_use": {"better": "higher"}}
    board = make_boards([replace(results[0], protocol=replace(results[0].protocol, scorers=scorers))])[0]
    assert {column.key: column.ranked for column in board.columns} == {"psnr_db": True, "kid_mbv2": True, "codebook_use": False}
    with pytest.raises(ValueError, match=r"not ranked by codebook_use\. Ranked here: psnr_db, kid_mbv2"):
        rank(board, board.columns[2])


def test_the_worst_items_are_of_the_last_rate_and_failures_come_first(measured):
    values = {"tokens=1": [1.0, 2.0, 3.0, 4.0], "tokens=2": [30.0, 10.0, math.nan, 20.0]}
    result = measured("a", values, bits={"tokens=1": 1.0, "tokens=2": 2.0})
    score, worst = worst_items(result, count=3)
    assert score == "psnr_db"
    assert [row.item for row in worst] == [2, 1, 3]
    lower = replace(result, protocol=replace(result.protocol, scorers={"psnr_db": {**PSNR, "better": "lower"}, "kid_mbv2": KID}))
    assert [row.item for row in worst_items(lower, count=3)[1]] == [2, 0, 3]
    assert worst_items(replace(result, items=())) == ("", [])


def test_plots_hold_every_row_that_has_both(results):
    board = make_boards(results)[0]
    lines = {line.name: line for line in rate_lines(board, board.columns[0])}
    assert [(spot.x, spot.y) for spot in lines["flextok_nano"].spots] == [
        (point.bits_per_pixel, point.scores["psnr_db"].mean) for point in results[2].points
    ]
    assert [line.classical for line in lines.values()] == [False, False, False, True]
    speed = {line.name: line for line in speed_lines(board, board.columns[0])}
    assert [spot.x for spot in speed["flextok_nano"].spots] == [pytest.approx(20.0)]  # 1 / (1/30 + 1/60), the full rate only
    assert [spot.x for spot in speed["jpeg"].spots] == [30.0, 30.0]  # both ways together, the mean over the rates


def test_the_script_gets_ranks_and_differences(results):
    board = make_boards(results)[0]
    rankings = [rank(board, column) for column in board.ranked]
    data = json.loads(json.dumps(board_data(board, rankings)))
    psnr, kid = data["scores"]["psnr_db"], data["scores"]["kid_mbv2"]
    assert psnr["rank"] == [rankings[0].ranks[i] for i in range(6)]
    assert psnr["verdict"][4][3] == "w"
    assert psnr["verdict"][3][4] == "b"
    assert [psnr["verdict"][i][i] for i in range(6)] == [" "] * 6
    assert (
        psnr["said"][4][3]
        == f"{number(rankings[0].difference(4, 3).mean, sign=True)} ["
        + ", ".join(number(end) for end in rankings[0].difference(4, 3).ci95)
        + "]"
    )
    assert kid["why"][int(kid["verdict"][4][3])] == "a score of whole sets"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (-1.23456, "−1.235"), (12345.6, "12,350"), (0.003898, "0.003898"), (1e-7, "1e−07")],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


def test_sizes_and_file_names():
    assert [parameters_text(count) for count in (None, 12, 1_870_000, 2_500_000_000)] == ["–", "12", "1.87 M", "2.5 B"]
    assert [slug(name) for name in ("flextok_nano", "org/name v2", "../..")] == ["flextok_nano", "org-name-v2", "unnamed"]


def test_the_stored_results_can_be_read():
    boards = make_boards(load_results())
    assert {board.modality for board in boards} >= {"image", "audio"}
    assert all(len({(r.dataset.sha256, r.protocol.id) for r in board.results}) == 1 for board in boards)
