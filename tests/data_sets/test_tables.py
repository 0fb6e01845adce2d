"""Parquet as the Hub stores it, Arrow as `datasets` saves it, and Parquet shards of tokens."""

import json

import pytest

from zoo.data import Protocol, TokenDataset, tokenize

pa = pytest.importorskip("pyarrow", reason="Parquet is of the extra `data`")
pq = pytest.importorskip("pyarrow.parquet", reason="Parquet is of the extra `data`")

SMALL = Protocol(batch_size=2, shard_items=5, shards="parquet")


@pytest.fixture
def rows(picture):
    """Twelve rows in the Hub's layout; one without bytes, one with a broken picture."""
    cells = [{"bytes": picture(number * 20), "path": f"{number}.png"} for number in range(12)]
    cells[3] = {"bytes": None, "path": "lost.png"}
    cells[8] = {"bytes": b"no picture", "path": "8.png"}
    return pa.table({"image": cells, "label": list(range(12)), "mask": [b"m"] * 12})


def found(out):
    return [
        (s.record["number"], s.tokens.data[0, 0, 0, 0].item(), json.loads(s.others["json"])["label"], s.others["mask.bin"])
        for s in TokenDataset(out, verify=True)
    ]


@pytest.mark.parametrize("shards", ["parquet", "webdataset"])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_keep_their_other_columns_and_bad_ones_are_listed(toys, rows, tmp_path, code_of, kind, shards):
    source = tmp_path / "in"
    source.mkdir()
    if kind == "parquet":
        pq.write_table(rows, source / f"train-00000-of-00001.{kind}", row_group_size=5)
    else:
        with pa.OSFile(str(source / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, rows.schema) as stream:
            stream.write_table(rows, max_chunksize=5)
        (source / "state.json").write_text("{}")
    protocol = Protocol(batch_size=2, shard_items=5, shards=shards, column="image")
    done = tokenize(toys.grey(), source, tmp_path / "out", protocol)
    assert (done.items, done.tokenized, done.errors) == (12, 10, 2)
    assert found(tmp_path / "out") == [(n, code_of(n * 20), n, b"m") for n in range(12) if n not in (3, 8)]
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [error["number"] for error in errors] == [3, 8]
    assert "no bytes in column image" in errors[0]["error"]
    assert errors[1]["item"].endswith("/000000008")


def test_integers_in_parquet_are_narrow_and_the_file_says_what_they_mean(toys, rows, tmp_path):
    pq.write_table(rows, tmp_path / "a.parquet")
    tokenize(toys.grey(), tmp_path / "a.parquet", tmp_path / "out", SMALL)
    table = pq.read_table(tmp_path / "out" / "shard-000000.parquet")
    assert table.schema.field("codes").type.value_type == pa.uint16()
    assert json.loads(table.schema.metadata[b"zoo_token_spec"])["vocabulary"] == [300]
    assert table.column("shape")[0].as_py() == [4, 4, 1]


def test_the_column_is_found_by_name_or_must_be_said(toys, rows, tmp_path):
    pq.write_table(rows.rename_columns(["front", "label", "back"]), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"which column of two.parquet holds the image.*front, back"):
        tokenize(toys.grey(), tmp_path / "two.parquet", tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="no column 'side' of bytes"):
        tokenize(toys.grey(), tmp_path / "two.parquet", tmp_path / "out", Protocol(column="side"))
    assert tokenize(toys.grey(), tmp_path / "two.parquet", tmp_path / "out", Protocol(column="front")).tokenized == 10


def test_a_broken_table_is_an_error_beside_the_good_ones(toys, rows, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    pq.write_table(rows, source / "a.parquet")
    (source / "b.parquet").write_bytes((source / "a.parquet").read_bytes()[:-50])
    done = tokenize(toys.grey(), source, tmp_path / "out", SMALL)
    assert (done.items, done.tokenized, done.errors) == (13, 10, 3)
    assert "not a readable parquet file" in (tmp_path / "out" / "errors.jsonl").read_text()
