"""Random rows through every kind of file come back the same; random damage is found, on the right line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from temper.core.errors import DataError
from temper.data import readers
from temper.data.example import Row
from temper.data.rows import Rows
from temper.data.source import Source

fast = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

plain = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
scalars = st.one_of(
    st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), plain
)
values = st.recursive(
    scalars | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3)
)
names = st.sampled_from(["task", "group", "level", "source", "score", "größe", "a b"])


def messages() -> Any:
    turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": plain})
    answer = st.fixed_dictionaries({"role": st.just("assistant"), "content": plain})
    return st.tuples(st.lists(turn, max_size=3), answer).map(lambda pair: [*pair[0], pair[1]])


CONTENTS = {
    "text": st.fixed_dictionaries({"text": plain}),
    "messages": st.fixed_dictionaries({"messages": messages()}),
    "completion": st.fixed_dictionaries({"prompt": plain, "completion": plain}),
    "preference": st.fixed_dictionaries({"prompt": messages(), "chosen": messages(), "rejected": messages()}),
    "label": st.fixed_dictionaries({"prompt": plain, "completion": plain, "label": st.booleans()}),
}


@st.composite
def records(draw: Any, formats: list[str] | None = None, columns: Any = values) -> tuple[str, list[dict[str, Any]]]:
    format = draw(st.sampled_from(formats or sorted(CONTENTS)))
    keys = draw(st.lists(names, unique=True, max_size=4))
    each = st.tuples(CONTENTS[format], st.fixed_dictionaries({key: columns for key in keys}))
    return format, [{**content, **rest} for content, rest in draw(st.lists(each, min_size=1, max_size=6))]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with (
        gzip.open(path, "wt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="") as file
    ):
        if kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows)
        elif kind == "json":
            json.dump(rows, file, ensure_ascii=False, indent=len(rows) % 3 or None)
        else:
            # Quotes all around: Python's writer leaves a lone carriage return bare, which ends a row.
            form = {"delimiter": "\t" if kind == "tsv" else ",", "lineterminator": "\n", "quoting": csv.QUOTE_ALL}
            writer = csv.DictWriter(file, list(rows[0]), **form)
            writer.writeheader()
            writer.writerows(rows)
    return path


def opened(path: Path | str, split: Any = "train", skip: bool = False, **options: Any) -> Rows:
    source = Source.parse({"file": {"path": str(path), **options}})
    cache = Path(path).parent / "cache" if "*" not in str(path) else Path(path).parent.parent / "cache"
    return source.open(split, cache, "skip" if skip else "stop")


def back(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{**row.content, **row.columns} for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "json.gz"])
@fast
@given(written=records())
def test_json_comes_back(kind: str, written: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    format, rows = written
    if format == "preference":
        for row in rows:  # an answer that repeats its prompt is cut, which another test holds
            assume(all(row[key][: len(row["prompt"])] != row["prompt"] for key in ("chosen", "rejected")))
    read = opened(write(tmp_path / f"rows.{kind}", rows))
    assert back(read) == rows
    assert {row.format for row in read} == {format}
    assert [row.origin.file for row in read] == [str(tmp_path / f"rows.{kind}")] * len(rows)
    if "jsonl" in kind:
        assert [row.origin.line for row in read] == list(range(1, len(rows) + 1))
    assert back(read.take(range(len(rows))[::-1])) == rows[::-1]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz"])
@fast
@given(written=records(["text", "completion", "label"], columns=plain.map(lambda text: f"x{text}")))
def test_csv_comes_back(kind: str, written: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, rows = written
    read = opened(write(tmp_path / f"rows.{kind}", rows))
    assert back(read) == rows
    # A row begins on the line after the one on which the row before it ended, line ends inside cells counted.
    heights = [1 + sum(str(value).count("\n") for value in row.values()) for row in rows]
    header = 1 + sum(name.count("\n") for name in rows[0])
    assert [row.origin.line for row in read] == [1 + header + sum(heights[:number]) for number in range(len(rows))]


@fast
@given(written=records(["text", "completion", "label", "messages"], columns=st.integers(-5, 5) | st.none()))
def test_parquet_comes_back(written: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, rows = written
    read = opened(write(tmp_path / "rows.parquet", rows))
    assert back(read) == rows
    assert [row.origin.line for row in read] == list(range(1, len(rows) + 1))


def test_csv_numbers_are_numbers_where_a_whole_column_is(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        'prompt,completion,score,level,code,id,mixed,note\n1,2,0.5,3,007,12345678901234567890,1,a\n3,4,,-4,008,2,x,""\n'
    )
    rows = list(opened(tmp_path / "rows.csv"))
    assert rows[0].content == {"prompt": "1", "completion": "2"}
    assert [dict(row.columns) for row in rows] == [
        {"score": 0.5, "level": 3, "code": "007", "id": "12345678901234567890", "mixed": "1", "note": "a"},
        {"score": None, "level": -4, "code": "008", "id": "2", "mixed": "x", "note": ""},
    ]


def test_csv_cells_of_messages_are_json(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(tmp_path / "rows.csv", [{"dialogue": json.dumps(talk), "task": "t"}])
    rows = list(opened(tmp_path / "rows.csv", columns={"messages": "dialogue"}))
    assert rows[0].content == {"messages": talk} and rows[0].columns == {"task": "t"}


@fast
@given(data=st.data(), size=st.integers(2, 30))
def test_damage_to_a_line_is_found_on_that_line(data: st.DataObject, size: int, tmp_path: Path) -> None:
    """Cut short, run into more, given bytes that are no text, or emptied: never read, never another line's fault."""
    lines = [json.dumps({"text": f"row {number} é 😀", "score": number}).encode() for number in range(size)]
    victim = data.draw(st.integers(0, size - 2))
    line = lines[victim]
    cut = data.draw(st.integers(1, len(line) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                line[:cut],
                line[cut:],
                line + b"}",
                line + b"," + line,
                b"",
                b'["a"]',
                b"3",
                line[:3] + b"\xff" + line[3:],
                line.replace(b'"text"', b'"score"'),
                line.replace(b'"row', b"row"),
                line.replace(b": ", b": NaN, ", 1),
                b'{"text": 3}',
                b'{"text": "a", "text": "a"}',
                b'{"text": null}',
                b'{"text": "  "}',
                b'{"txt": "a"}',
                b'{"text": "\\ud800"}',
            ]
        )
    )
    lines[victim] = damaged
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "rows.jsonl", format="text")
    assert caught.value.line == victim + 1 and caught.value.file == str(tmp_path / "rows.jsonl")
    rows = opened(tmp_path / "rows.jsonl", format="text", skip=True)
    assert [bad.origin.line for bad in rows.bad] == [victim + 1] and rows.bad[0].reason == caught.value.reason
    assert [row.columns["score"] for row in rows] == [number for number in range(size) if number != victim]


@fast
@given(size=st.integers(2, 12), at=st.floats(0, 1), chunk=st.sampled_from([1, 7, 64, 1 << 20]), indent=st.booleans())
def test_a_broken_array_names_its_line(
    size: int, at: float, chunk: int, indent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    rows = [{"text": f"é😀 {number}", "score": number} for number in range(size)]
    whole = json.dumps(rows, ensure_ascii=False, indent=1 if indent else None)
    path = tmp_path / "rows.json"
    path.write_text(whole, encoding="utf-8")
    assert back(opened(path)) == rows
    lines = whole.count("\n", 0, whole.index(f"é😀 {size // 2}")) + 1
    assert [row.origin.line for row in opened(path)][size // 2] == (lines - 1 if indent else 1)
    place = 1 + int(at * (len(whole) - 2))
    path.write_text(whole[:place] + "\x00" + whole[place:], encoding="utf-8")
    for skip in (False, True):
        with pytest.raises(DataError, match="skip does not help") as caught:
            opened(path, skip=skip)
        assert " at column " not in str(caught.value), "a chunk's columns are not the file's"
        if not (indent and whole[place - 1] == "\n"):
            assert caught.value.line == whole.count("\n", 0, place) + 1
    path.write_text(whole[:place], encoding="utf-8")
    with pytest.raises(DataError):
        opened(path)


@pytest.mark.parametrize("chunk", range(1, 40))
def test_a_number_is_not_cut_where_a_chunk_ends(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    (tmp_path / "rows.json").write_text('[{"text": "a"}, 12345678, {"text": "b"}]')
    rows = opened(tmp_path / "rows.json", skip=True)
    assert back(rows) == [{"text": "a"}, {"text": "b"}]
    assert [(bad.reason, bad.text) for bad in rows.bad] == [("the row is a number, not an object", "12345678")]


def test_broken_csv_and_parquet_name_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for damage, line in (("b", 4), ("b,1,2", 4), ('"b" x,1', 4), ('"b,1', 4), ("", 4), ("\x00", 4)):
        path.write_text('text,n\n"a\nb",1\n' + damage + "\nc,2\n")
        with pytest.raises(DataError) as caught:
            opened(path)
        assert caught.value.line == line, damage
    path.write_bytes(b"text,n\na,1\n\xff,2\n")
    with pytest.raises(DataError, match=r"rows\.csv:3: byte 0xff is not UTF-8"):
        opened(path)
    pq.write_table(pa.table({"text": ["a", "", "c"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet:2: text is empty"):
        opened(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path / "rows.parquet")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:40])
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path / "cut.jsonl.gz")


def test_where_no_row_is_left_the_first_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"no row; 2 put aside, the first .*rows\.jsonl:1: text is empty"):
        opened(tmp_path / "rows.jsonl", skip=True)


def test_byte_order_mark_and_blank_end_are_no_rows(tmp_path: Path) -> None:
    for kind, text in (
        ("jsonl", '{"text": "a"}\r\n\r\n \n'),
        ("json", '[{"text": "a"}]\n\n'),
        ("csv", "text\r\na\r\n\r\n"),
    ):
        (tmp_path / f"rows.{kind}").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert back(opened(tmp_path / f"rows.{kind}")) == [{"text": "a"}]


def test_a_json_file_of_lines_is_read_as_such(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('\n{"text": "a"}\n{"text": "b"}\n'.lstrip())
    assert back(opened(tmp_path / "rows.json")) == [{"text": "a"}, {"text": "b"}]


def test_folder_pattern_and_list(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "deep/.hidden/d.jsonl"):
        write(folder / name, [{"text": name}])
    (folder / "README.md").write_text("about")
    assert [row["text"] for row in back(opened(folder))] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert [row["text"] for row in back(opened(f"{folder}/[ab]*"))] == ["a.jsonl", "b.jsonl"]
    source = Source.parse({"file": {"path": [str(folder / "b.jsonl"), str(folder / "README.md")]}})
    rows = source.open("train", tmp_path / "cache")
    assert [row.content["text"] for row in rows] == ["b.jsonl", "about"]
    assert rows.take([1])[0].origin.file == str(folder / "README.md")
    for name, hint in (("a.jsnl", "did you mean 'a.jsonl'?"), ("nothing*", "no such file")):
        with pytest.raises(DataError, match="no such file") as caught:
            opened(folder / name)
        assert hint.rstrip("?") in str(caught.value)
    (folder / "a.xyz").write_text("x")
    with pytest.raises(DataError, match="ending names no known kind"):
        opened(folder / "a.xyz")
    with pytest.raises(DataError, match="is empty"):
        (folder / "empty.txt").write_text("")
        opened(folder / "empty.txt")


def test_text_shorthand_is_a_path(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}])
    source = Source.parse(str(path))
    assert source.method_name == "file" and source.label == "rows.jsonl"
    before = source.fingerprint()
    assert before == Source.parse(str(path)).fingerprint()
    write(path, [{"text": "b"}])
    assert source.fingerprint() != before
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert Source.parse(str(write(moved / "rows.jsonl", [{"text": "b"}]))).fingerprint() == source.fingerprint()


def test_a_folder_may_be_called_as_a_source_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").mkdir()
    write(Path("file/rows.jsonl"), [{"text": "a"}])
    assert len(Source.parse("file/rows.jsonl").open("train", tmp_path / "cache")) == 1


def test_what_is_cached_is_not_read_again_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "n": 1}, {"text": "b", "n": 2}])
    first = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(readers, "_decoder", None)
        again = opened(path)
        assert back(again) == back(first) and again.fingerprint == first.fingerprint
    assert len(opened(path, limit=1)) == 1
    assert opened(path, limit=1).fingerprint != first.fingerprint
    write(path, [{"text": "c", "n": 1}])
    assert back(opened(path)) == [{"text": "c", "n": 1}]
    assert not list((tmp_path / "cache").glob("*.partial"))
    path.write_text('{"text": "a"}\n{')
    with pytest.raises(DataError):
        opened(path)
    assert not list((tmp_path / "cache").glob("*.partial")), "a stop leaves nothing behind"


@fast
@given(share=st.floats(0.05, 0.95), size=st.integers(30, 80))
def test_test_share_divides_by_content(share: float, size: int, tmp_path: Path) -> None:
    rows = [{"text": f"t{number % (size // 2)}", "n": number} for number in range(size)]
    path = write(tmp_path / "rows.jsonl", rows)
    try:
        train, test = (back(opened(path, split, test_share=share)) for split in ("train", "test"))
    except DataError as error:
        assert "no row in the" in str(error) and not 0.2 < share < 0.8
        return
    assert sorted(row["n"] for row in [*train, *test]) == list(range(size))
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    write(path, [{"text": "more", "n": -1}, *({"n": row["n"], "text": row["text"]} for row in rows)])
    grown = {row["text"] for row in back(opened(path, "test", test_share=share))}
    assert grown - {"more"} == {row["text"] for row in test}, "a row keeps its side"
    assert back(opened(path, "test")) == back(opened(path, "train"))


def test_test_share_is_a_share(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": f"text {number}"} for number in range(4000)])
    # Binomial: 4 standard deviations are 0.025.
    assert abs(len(opened(path, "test", test_share=0.2)) / 4000 - 0.2) < 0.026


def test_rows_from_many_batches_are_taken_in_any_order(tmp_path: Path) -> None:
    count = 40_000
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "a{number}"}}\n' for number in range(count)))
    (tmp_path / "b.csv").write_text("text\n" + "".join(f"b{number}\n" for number in range(count)))
    rows = opened(tmp_path)
    picked = [0, 2 * count - 1, 16_384, 16_383, count, count - 1, 5, 5]
    expected = [f"a{index}" if index < count else f"b{index - count}" for index in picked]
    assert [row.content["text"] for row in rows.take(picked)] == expected
    assert [row.origin.line for row in rows.take([count - 1, count])] == [count, 2]
    assert [row.content["text"] for row in rows] == [f"a{n}" for n in range(count)] + [f"b{n}" for n in range(count)]
    twice = Rows.concatenate([rows, rows], "twice")
    assert twice.take([2 * count])[0].content == {"text": "a0"}
    with pytest.raises(IndexError):
        rows.take([2 * count])
