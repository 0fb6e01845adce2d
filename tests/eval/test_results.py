import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import eval.results as results
from eval.protocols import get_protocol
from eval.results import (
    Dataset,
    ItemRow,
    Point,
    Result,
    Score,
    Speed,
    comparable,
    environment,
    item_scores,
    items_path,
    load_result,
    read_items,
    shared_scores,
)

PSNR = {"unit": "dB", "better": "higher", "data_range": 255}
KID = {"unit": "1/1000", "better": "lower", "sha256": "aa"}


def made(**changes) -> Result:
    """A measured result of two items at two rates."""
    protocol = replace(get_protocol("image-64-v1"), decode={"steps": 20}, scorers={"psnr_db": PSNR, "kid_mbv2": KID})
    scores = {"psnr_db": Score(mean=20.5, ci95=(20.0, 21.0), n=2), "kid_mbv2": Score(mean=None, n=0, failed=2)}
    values = {
        "tokenizer": "toy",
        "weights_sha256": "00",
        "dataset": Dataset(name="pack", split="test", count=2, total=5, limit=2, sha256="dd"),
        "protocol": protocol,
        "points": tuple(
            Point(rate={"tokens": k}, bits_per_pixel=0.1 * k, tokens_per_item=float(k), scores=scores, codes={"depths": []})
            for k in (1, 2)
        ),
        "speed": Speed(encode_items_per_s=1.5, decode_items_per_s=0.5, device="cpu", dtype="float32", batch=8, threads=1),
        "environment": {"torch": "2", "date": "2026-01-01", "commit": None},
        "items": tuple(
            ItemRow(item=i, key=f'a,"{i}"', rate=f"tokens={k}", scores={"psnr_db": 20.0 + i + k / 3})
            for k in (1, 2)
            for i in (0, 1)
        ),
    }
    return Result(**{**values, **changes})


def test_json_and_csv_round_trip(tmp_path):
    result = made()
    path = result.save(tmp_path / "toy" / "pack.image-64-v1.json")
    again = load_result(path)
    assert again == result
    assert again.items == result.items
    assert items_path(path).name == "pack.image-64-v1.items.csv"
    assert sorted(file.name for file in path.parent.iterdir()) == ["pack.image-64-v1.items.csv", "pack.image-64-v1.json"]


def test_the_json_has_the_documented_form(tmp_path):
    values = json.loads(made().save(tmp_path / "r.json").read_text())
    assert list(values) == [
        "schema",
        "tokenizer",
        "weights_sha256",
        "dataset",
        "protocol",
        "points",
        "speed",
        "environment",
    ]
    assert values["schema"] == 1
    assert values["dataset"] == {"name": "pack", "split": "test", "count": 2, "total": 5, "limit": 2, "sha256": "dd"}
    point = values["points"][0]
    assert point["rate"] == {"tokens": 1}
    assert point["scores"]["psnr_db"] == {"mean": 20.5, "ci95": [20.0, 21.0], "n": 2, "failed": 0}
    assert point["scores"]["kid_mbv2"] == {"mean": None, "ci95": None, "n": 0, "failed": 2}
    assert len(values["protocol"]["fingerprint"]) == 64


def test_a_failed_item_is_an_empty_cell(tmp_path):
    items = tuple(replace(row, scores={"psnr_db": math.nan}) if row.item else row for row in made().items)
    path = made(items=items).save(tmp_path / "r.json")
    rows = items_path(path).read_text().splitlines()
    assert rows[0] == "item,key,rate,psnr_db"
    assert rows[2].endswith("tokens=1,")
    assert math.isnan(read_items(items_path(path))[1].scores["psnr_db"])


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = made().save(tmp_path / "r.json")
    before = path.read_text()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        made(tokenizer="other").save(path)
    assert path.read_text() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.items.csv", "r.json"]


def test_items_of_a_replaced_result_do_not_stay(tmp_path):
    path = made().save(tmp_path / "r.json")
    made(items=()).save(path)
    assert not items_path(path).exists()


def _edit(path: Path, change) -> Path:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema=2), "schema 2. This version reads schema 1"),
        (lambda v: v.update(extra=1), r"result has unknown keys \['extra'\]"),
        (lambda v: v.pop("dataset"), "dataset is a NoneType"),
        (lambda v: v.pop("protocol"), "A number without its protocol cannot be used"),
        (lambda v: v["protocol"].update(seed=7), "edited by hand"),
        (lambda v: v["dataset"].update(hash=1), r"dataset has unknown keys \['hash'\]"),
        (lambda v: v["dataset"].pop("sha256"), "dataset does not fit"),
        (lambda v: v["points"][0]["scores"]["psnr_db"].update(n=1), "counts 1 scored and 0 failed items of 2"),
        (lambda v: v["points"][0]["scores"].update(ssim={"mean": 1.0, "n": 2}), "ssim is not defined in protocol.scorers"),
        (lambda v: v["points"].pop(), "4 rows of items for 2 items at 1 rates"),
        (lambda v: v.update(points=[]), "no points"),
        (lambda v: v.pop("environment"), "result does not fit"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    path = _edit(made().save(tmp_path / "r.json"), change)
    with pytest.raises(ValueError, match=message) as caught:
        load_result(path)
    assert str(path) in str(caught.value)


def test_numbers_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"Finite numbers only"):
        Score(mean=math.nan, n=1)
    with pytest.raises(ValueError, match=r"Counts do not fit"):
        Score(mean=1.0, n=0)


def test_comparable_rows():
    a = made()
    other = replace(a.protocol, decode={"steps": 5, "guidance": 1})
    assert comparable(a, made(tokenizer="other", protocol=other)) is None
    assert shared_scores(a, made()) == ["psnr_db", "kid_mbv2"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("to_uint8", "truncate"),
        ("size", (32, 32)),
        ("resize", "adm-box-bicubic"),
        ("dtype", "bfloat16"),
        ("id", "image-64-v2"),
    ],
)
def test_rows_of_other_protocols_are_refused(field, value):
    a = made()
    reason = comparable(a, made(tokenizer="other", protocol=replace(a.protocol, **{field: value})))
    assert reason.startswith("other protocol: " + field)


def test_rows_of_other_data_are_refused():
    a = made()
    b = made(dataset=replace(a.dataset, sha256="ee"))
    assert comparable(a, b).startswith("other data: pack (2 items, dd)")


def test_scores_of_other_networks_are_not_shared():
    a = made()
    b = made(protocol=replace(a.protocol, scorers={"psnr_db": PSNR, "kid_mbv2": {**KID, "sha256": "bb"}}))
    assert shared_scores(a, b) == ["psnr_db"]
    scores = {"kid_mbv2": Score(mean=1.0, n=2)}
    only = [
        made(
            protocol=replace(a.protocol, scorers={"kid_mbv2": {**KID, "sha256": digest}}),
            points=tuple(replace(point, scores=scores) for point in a.points),
        )
        for digest in ("aa", "bb")
    ]
    assert "no score in common that is defined alike (same names: kid_mbv2)" in comparable(*only)


def test_item_scores():
    items = made().items
    assert item_scores(items, "psnr_db", rate={"tokens": 1}) == {row.key: row.scores["psnr_db"] for row in items[:2]}
    assert item_scores(items, "psnr_db") == {row.key: row.scores["psnr_db"] for row in items[2:]}
    with pytest.raises(ValueError, match=r"no items at rate 'tokens=3'. Rates there: \['tokens=1', 'tokens=2'\]"):
        item_scores(items, "psnr_db", rate="tokens=3")
    with pytest.raises(ValueError, match=r"no per-item score 'ssim'. There: psnr_db"):
        item_scores(items, "ssim")
    with pytest.raises(ValueError, match=r"1 keys occur twice"):
        item_scores([items[0], replace(items[1], key=items[0].key)], "psnr_db", rate="tokens=1")


def test_other_csv_files_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"does not start with item,key,rate"):
        read_items(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("item,key,rate,psnr_db\n1,k,full\n")
    with pytest.raises(ValueError, match=r"line 2 of .* has 3 columns. Needed: 4"):
        read_items(tmp_path / "y.csv")


def test_environment_names_versions_and_commit(tmp_path, monkeypatch):
    import torch

    found = environment()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["date"].endswith("+00:00")
    package = tmp_path / "eval"
    package.mkdir()
    (package / "results.py").write_text("")
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    assert environment()["commit"] is None, "no repository"
    git = ["git", "-C", str(package), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment()["commit"] is None, "a repository that does not hold this package"
    subprocess.run([*git, "add", "results.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment()["commit"] == commit
    (package / "results.py").write_text("changed")
    assert environment()["commit"] == f"{commit}+changes"
