"""Results of generators: what stands in one table, what is ranked, what is said of a difference, and what the pages show of it."""

import base64
import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from eval.leaderboard.boards import load_results
from eval.leaderboard.command import build_site
from eval.leaderboard.gallery import Unavailable
from eval.leaderboard.generation_boards import (
    DISTANCE,
    Spread,
    budget_text,
    compare,
    load_generations,
    make_generation_boards,
    welch_interval,
)
from eval.leaderboard.generation_samples import make_strips
from eval.leaderboard.generation_section import generation_titles
from eval.protocols import noise_seed
from eval.runner import tensors_sha256
from zoo.cli import main

GOOD, NEAR, FAR = ({4: [60.0, 61.0, 62.0], 8: [50.0, 51.0, 52.0]}, {8: [50.2, 51.4, 52.2]}, {8: [80.0, 81.0, 82.0]})


@pytest.fixture
def board_of(tmp_path):
    """`board_of(result, ...)` writes results, reads them back and gives their boards."""

    def boards(*results):
        for i, values in enumerate(results):
            (tmp_path / f"{i}.json").write_text(json.dumps(values))
        return make_generation_boards(load_generations(tmp_path))

    return boards


def test_only_one_protocol_data_and_budget_stand_in_one_table(board_of, generation):
    boards = board_of(
        generation("a", GOOD),
        generation("b", FAR),
        generation("c", FAR, protocol={"guidance": 2.0, "sampling": {"temperature": 0.9}, "fingerprint": "gg"}),
        generation("d", FAR, protocol={"noise": "another"}),
        generation("e", FAR, data="ee"),
        generation("f", FAR, budget="unknown"),
        generation("g", FAR, protocol={"scorers": {DISTANCE: {"unit": "1", "better": "lower", "sha256": "another"}}}),
    )
    names = [[result.name for result in board.results] for board in boards]
    assert names == [["a", "b", "c (guidance=2.0, temperature=0.9)"], ["d"], ["e"], ["f"], ["g"]]
    assert [budget_text(board.results[0].budget) for board in boards] == ["2,000 steps"] * 3 + ["unknown", "2,000 steps"]
    titles = generation_titles(boards)
    assert len(set(titles)) == len(titles)
    assert "data ee" in titles[2]
    assert titles[3].endswith("budget unknown)")


def test_ranks_and_intervals_over_trainings(board_of, generation):
    (board,) = board_of(generation("a", GOOD), generation("b", NEAR), generation("c", FAR))
    labels = [row.label for row in board.rows]
    assert labels == ["a tokens=4", "a tokens=8", "b tokens=8", "c tokens=8"]
    said = compare(board)
    assert [told.rank for told in said] == [3, 1, 2, 4]
    verdicts = ["best at no more bits", "best at no more bits", "no significant difference", "worse"]
    assert [told.verdict for told in said] == verdicts
    assert (said[3].other, said[3].mean) == (1, pytest.approx(30.0))
    # equal deviations of 1 over three trainings: Student's t with 4 degrees of freedom, 2.776
    half = 2.7764451 * math.sqrt(2 / 3)
    assert said[3].ci95 == pytest.approx((30 - half, 30 + half))


def test_welch_takes_few_degrees_of_freedom_from_unequal_deviations():
    wide, narrow = (Spread(mean=m, deviation=d, least=0.0, most=9.0, seeds=3) for m, d in ((5.0, 2.0), (4.0, 0.0)))
    half = 4.3026527 * 2 / math.sqrt(3)  # all of the error is of one side: two degrees of freedom
    assert welch_interval(wide, narrow) == pytest.approx((1 - half, 1 + half))
    with pytest.raises(ValueError, match="two at least on each side"):
        welch_interval(wide, Spread(mean=4.0, deviation=None, least=4.0, most=4.0, seeds=1))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seeds": 1}, "not ranked: 1 seed of 1 training"),
        ({"trainings": 1}, "not ranked: 3 seeds of 1 training"),
        ({"trainings": 2}, "not ranked: 3 seeds of 2 trainings"),
        ({"seeds": 2}, "not ranked: 2 seeds of 2 trainings"),
        ({"budget": "unknown"}, "not ranked: budget unknown"),
    ],
)
def test_nothing_is_ranked_by_fewer_than_three_trainings(changes, why, board_of, generation):
    boards = board_of(generation("few", GOOD, **changes), generation("b", FAR), generation("c", NEAR))
    said = {row.label: told for board in boards for row, told in zip(board.rows, compare(board), strict=True)}
    assert {(told.rank, told.why) for label, told in said.items() if label.startswith("few")} == {(None, why)}
    assert [said["c tokens=8"].rank, said["b tokens=8"].rank] == [1, 2]  # the others are ranked among themselves
    assert said["b tokens=8"].other is not None


def test_budgets_of_one_result_that_differ_are_unknown(board_of, generation):
    values = generation("a", GOOD)
    values["runs"][1]["training"]["budget"] = {"steps": 1}
    assert board_of(values)[0].results[0].budget is None


def test_reference_rows_have_no_rank_and_come_once(board_of, generation):
    (board,) = board_of(generation("a", GOOD), generation("b", NEAR), generation("c", FAR, tokenizer="other"))
    names = [(reference.name, reference.tokenizer) for reference in board.references]
    reconstructions = [("reconstructions", "toy"), ("reconstructions", "other")]
    assert sorted(names, key=str) == sorted([*reconstructions, ("other real pictures", None), ("the real pictures", None)], key=str)
    assert all(row.label.split(" ")[0] in "abc" for row in board.rows)


def test_a_file_that_lacks_something_is_told(tmp_path, generation):
    values = generation("a", GOOD)
    del values["anchors"]
    (tmp_path / "a.json").write_text(json.dumps({**values, "runs": []}))
    with pytest.raises(ValueError, match=r"a\.json is not complete"):
        load_generations(tmp_path)
    assert load_results(tmp_path) == []


# -- pages -----------------------------------------------------------------------------------------------------------


def test_the_pages_of_generators(board_of, results, tmp_path, generation):
    board_of(generation("toy_ar", GOOD), generation("<b>", NEAR), generation("few", FAR, trainings=1))
    for result in results[:1]:
        result.save(tmp_path / "rec" / f"{result.tokenizer}.json")
    assert main(["leaderboard", "--results", str(tmp_path), "--out", str(tmp_path / "site"), "--tables-only"]) == 0
    index = (tmp_path / "site" / "index.html").read_text()
    section = index[index.index('id="generators"') :]
    assert 'href="#made-0"' in index
    assert 'href="generators/toy_ar.html"' in section
    assert "best at no more bits" in section
    assert "no significant difference from toy_ar tokens=8" in section
    assert "not ranked: 3 seeds of 1 training" in section
    assert "<b>" not in section.replace("&lt;b&gt;", "")
    assert "other real pictures: 20" in section, "a line across the plot"
    page = (tmp_path / "site" / "generators" / "few.html").read_text()
    assert "Not ranked: 3 seeds of 1 training." in page
    assert "budget of each training: 2,000 steps" in page
    assert "This site was built without samples." in page
    assert 'href="../index.html#made-0"' in page


def test_samples_are_those_of_the_first_run():
    stored = next(result for result in load_generations() if result.generator == "flextok_ar_nano")
    gen, tok = zoo.generators.load("flextok_ar_nano"), zoo.load("flextok_nano")
    values = copy.deepcopy(dict(stored.values))
    values["runs"][0]["weights_sha256"], values["tokenizer_sha256"] = tensors_sha256(gen), tensors_sha256(tok)
    values["summary"] = values["summary"][:2]
    first, second = (told["rate"]["tokens"] for told in values["summary"])
    result = type(stored)(**{**vars(stored), "values": values, "points": stored.points[:2]})
    strips = make_strips(result, columns=2)
    assert (list(strips.steps), strips.columns, strips.size) == ([f"tokens={first}", f"tokens={second}"], 2, (64, 64))
    assert list(strips.classes) == list(range(gen.config.classes))
    seeds = [noise_seed(values["runs"][0]["seed"], number) for number in range(2)]
    with torch.inference_mode():
        y = tok.decode(gen.sample([7, 7], seed=seeds).keep(second), seed=seeds)
    wanted = np.concatenate([(255 * (p + 1) / 2).clamp(0, 255).permute(1, 2, 0).numpy() for p in y], axis=1)
    kind, content = strips.strips[7][1].split(",", 1)
    assert kind == "data:image/webp;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(float)
    assert shown.shape == (64, 128, 3)
    assert np.abs(shown - wanted).mean() < 6  # stored with a little loss
    other = type(stored)(**{**vars(result), "values": {**values, "tokenizer_sha256": "00"}})
    with pytest.raises(Unavailable, match="flextok_nano in the package are not those that were measured"):
        make_strips(other)


def test_a_sheet_that_lies_beside_a_result_is_shown(board_of, tmp_path, generation):
    board_of(generation("unknown", GOOD))
    Image.new("RGB", (20, 10), (200, 30, 30)).save(tmp_path / "0.sheet.png")
    build_site([], tmp_path / "site", generations=load_generations(tmp_path))
    page = (tmp_path / "site" / "generators" / "unknown.html").read_text()
    assert 'class="sheet" src="data:image/webp;base64,' in page
    (tmp_path / "0.sheet.png").unlink()
    build_site([], tmp_path / "bare", generations=load_generations(tmp_path))
    assert "The weights of unknown do not ship" in (tmp_path / "bare" / "generators" / "unknown.html").read_text()
