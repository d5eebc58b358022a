"""Tables of all kinds, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data import tables


def test_rows_have_the_lines_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a , b\n1,"x\ny"\n\n2,z\n')
    columns, rows = tables.read(tmp_path / "x.csv")
    assert columns == ("a", "b")
    assert list(rows) == [(3, {"a": "1", "b": "x\ny"}), (5, {"a": "2", "b": "z"})]


@pytest.mark.parametrize("header", ['a;b;"c, d"', "a;b;c, d", "a\tb\tc;d"])
def test_a_separator_within_a_column_does_not_separate(tmp_path: Path, header: str) -> None:
    (tmp_path / "x.csv").write_text(f"{header}\n")
    assert [*tables.read(tmp_path / "x.csv")[0]][:2] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"a,b\n\xff\xfe,\n", "not a CSV file in UTF-8"),
        ("x.jsonl", b'{"a": "\xff"}\n', "not a JSON lines file in UTF-8"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("x.jsonl", b'{"a": 1}\n{"a"\n', "line 2 is not a JSON object"),
        ("x.parquet", b"PAR1", "not a whole parquet file"),
        ("x.csv", b"a,b\n1\n", "line 2 has 1 fields, not 2"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"\A\S+{name}: [^\n]*{words}[^\n]*\Z"):
        list(tables.read(path)[1])


def test_a_table_without_rows_has_columns_or_none(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n")
    assert tables.read(tmp_path / "x.jsonl")[0] == ()
    (tmp_path / "x.tsv").write_text("a,b\tc\n")
    assert tables.read(tmp_path / "x.tsv")[0] == ("a,b", "c")
