"""Rows of Python's own library: cut and split as said, on a made library and on the real one."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temper.core.errors import DataError
from temper.data.example import Row
from temper.data.source import Source, Split
from temper.lab.stdlib import PIECE_CHARACTERS, PythonLibrary, clean_summary, cut, functions, is_held_out

VIEWS = ("source", "summaries")
SPLITS: tuple[Split, ...] = get_args(Split)

FUNCTION = '''
def {name}(first, second):
    """Return the sum of two numbers.

    More about it.
    """
    total_of_{name}_numbers = first + second
    return total_of_{name}_numbers
'''


def module_names(held_out: bool, num: int) -> list[str]:
    return [name for name in (f"module{number}" for number in range(200)) if is_held_out(name) is held_out][:num]


def made_library(folder: Path, files: dict[str, str]) -> PythonLibrary:
    for name, text in files.items():
        path = folder / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return PythonLibrary(view="summaries", folder=str(folder / "lib"))


def test_a_function_is_asked_for_its_summary(tmp_path: Path) -> None:
    (train,), (test,) = module_names(False, 1), module_names(True, 1)
    text = textwrap.dedent(
        '''
        class Shape:
            @property
            def area(self):
                """Return how large it is

                in square metres."""
                return self._width * self._height_of_the_shape
        '''
    )
    library = made_library(tmp_path, {f"{train}.py": text, f"{test}/part.py": FUNCTION.format(name="add")})
    (row,) = library.open("train", tmp_path)
    assert row.content == {
        "prompt": "@property\ndef area(self):\n    return self._width * self._height_of_the_shape\n",
        "completion": "Return how large it is.",
    }
    assert row.columns == {"module": train, "task": "summaries", "source": "python", "name": "Shape.area", "level": 3}
    assert (row.origin.file, row.origin.line) == (f"{train}.py", 3)
    (row,) = library.open("test", tmp_path)
    assert row.columns["module"] == test and row.origin.file == f"{test}/part.py"


def test_what_is_on_both_sides_leaves_train(tmp_path: Path) -> None:
    train, test = module_names(False, 5), module_names(True, 1)
    # Its lines are too short to say anything alone: only the whole body gives it away.
    short = 'def {name}(a):\n    """Return the one after."""\n    a += 1\n    return a\n'
    copied = "def other_name(a):\n" + FUNCTION.format(name="add").partition("\n")[2].partition("\n")[2]
    partly = FUNCTION.format(name="add").replace("def add", "def nearly").replace("return total", "return -total")
    library = made_library(
        tmp_path,
        {
            f"{test[0]}.py": FUNCTION.format(name="add") + short.format(name="following"),
            f"{train[0]}.py": FUNCTION.format(name="add"),
            f"{train[1]}.py": copied,
            f"{train[2]}.py": partly,
            f"{train[3]}.py": FUNCTION.format(name="subtract"),
            f"{train[4]}.py": short.format(name="successor"),
        },
    )
    assert [row.columns["name"] for row in library.open("train", tmp_path)] == ["subtract"]


def test_what_is_no_library_is_left_out(tmp_path: Path) -> None:
    (train,), (test,) = module_names(False, 1), module_names(True, 1)
    names = ["good.py", "site-packages/x.py", "sub/tests/x.py", "__pycache__/x.py", "broken.py"]
    files = {f"{train}/{name}": FUNCTION.format(name=f"f{number}") for number, name in enumerate(names)}
    files[f"{train}/broken.py"] = "def f(:\n"
    library = made_library(tmp_path, files | {f"{test}.py": FUNCTION.format(name="add")})
    (tmp_path / "lib" / train / "latin.py").write_bytes("# é\n".encode("latin-1"))
    assert [row.origin.file for row in library.open("train", tmp_path)] == [f"{train}/good.py"]


def test_a_name_follows_the_bytes_and_nothing_else(tmp_path: Path) -> None:
    (train,), (test,) = module_names(False, 1), module_names(True, 1)
    files = {f"{train}.py": FUNCTION.format(name="one"), f"{test}.py": FUNCTION.format(name="two")}
    here, there = made_library(tmp_path / "a", files), made_library(tmp_path / "b", files)
    assert here.fingerprint() == there.fingerprint()
    there.open("train", tmp_path)
    (tmp_path / "b" / "lib" / f"{train}.py").write_text(FUNCTION.format(name="three"), encoding="utf-8")
    assert here.fingerprint() != there.fingerprint()
    assert [row.columns["name"] for row in there.open("train", tmp_path)] == ["three"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows for the train split"):
        made_library(tmp_path, {}).open("train", tmp_path)


STATEMENTS = st.sampled_from(
    [
        "x = 1\n",
        "\n\n",
        "# a comment\n",
        "y = '''a\n\n\x0cb'''\n",
        "@decorated\ndef f():\n    return 1\n",
        "class A:\n" + "".join(f"    name{number} = {number}\n" for number in range(150)),
        "z = '" + "long" * 500 + "'\n",
        "\x0c\n",
    ]
)


@given(st.lists(STATEMENTS, max_size=12))
def test_pieces_are_the_file_again(statements: list[str]) -> None:
    text = "".join(statements)
    pieces = cut(text, ast.parse(text))
    assert "".join("".join(piece.code.split()) for piece in pieces) == "".join(text.split())
    lines = text.split("\n")
    for piece in pieces:
        assert len(piece.code) <= PIECE_CHARACTERS or piece.code.count("\n") == 1
        assert piece.code.startswith(lines[piece.line - 1])
    # A function of three lines is never divided: no piece begins inside one.
    assert not any(piece.code.startswith(("def f", "    return")) for piece in pieces)


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Return the sum.", "Return the sum."),
        ("Return the sum\nof two.\n\nMore.", "Return the sum of two."),
        ("Return it. And more.", "Return it."),
        ("Return the sum", "Return the sum."),
        ("add(x, y) -> number", ""),
        ("Frobnicate(x) does it.", ""),
        ("See also:", ""),
        ("Short.", ""),
        ("lower case is no sentence.", ""),
        ("Return " + "x" * 200, ""),
        ("", ""),
    ],
)
def test_summaries_are_plain_sentences(docstring: str, summary: str) -> None:
    assert clean_summary(docstring) == summary


@pytest.mark.parametrize(
    "text",
    [
        'def f(): "Return what it returns."\n',
        'def f():\n    "Return what it returns."\n',
        'def f():\n    "Return what it returns."; return 1\n',
        "def f():\n    return 1\n",
    ],
)
def test_functions_that_cannot_be_parted_from_their_docstring_are_left_out(text: str) -> None:
    assert list(functions(text, ast.parse(text))) == []


@pytest.fixture(scope="module")
def real(shared_cache: Path) -> dict[tuple[str, Split], list[Row]]:
    return {
        (view, split): list(Source.parse(f"python/{view}").open(split, shared_cache))
        for view in VIEWS
        for split in SPLITS
    }


def test_the_real_library_is_large_enough(real: dict[tuple[str, Split], list[Row]]) -> None:
    sizes = {key: len(rows) for key, rows in real.items()}
    assert sizes["source", "train"] > 3000 and sizes["source", "test"] > 300
    assert sizes["summaries", "train"] > 2000 and sizes["summaries", "test"] > 200


def test_no_module_is_on_both_sides(real: dict[tuple[str, Split], list[Row]]) -> None:
    sides = {split: {row.columns["module"] for view in VIEWS for row in real[view, split]} for split in SPLITS}
    assert not sides["train"] & sides["test"]
    assert min(map(len, sides.values())) > 15
    files = {split: {row.origin.file for view in VIEWS for row in real[view, split]} for split in SPLITS}
    assert not files["train"] & files["test"]


def test_no_function_is_on_both_sides(real: dict[tuple[str, Split], list[Row]]) -> None:
    def bodies(split: Split) -> set[str]:
        trees = (ast.parse(row.content["prompt"]).body[0] for row in real["summaries", split])
        return {
            ast.unparse(ast.Module(tree.body, []))
            for tree in trees
            if isinstance(tree, ast.FunctionDef) and len(tree.body) > 1
        }

    train, test = bodies("train"), bodies("test")
    assert len(train) > 1000 and len(test) > 100
    # Ours is by text, this one by syntax tree: what differs in comments or brackets alone still gets through.
    assert len(train & test) <= 0.002 * len(test)


def test_prompts_are_code_without_docstring(real: dict[tuple[str, Split], list[Row]]) -> None:
    for split in SPLITS:
        for row in real["summaries", split]:
            (function,) = ast.parse(row.content["prompt"]).body
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            assert function.name == row.columns["name"].split(".")[-1]
            assert row.content["completion"] not in row.content["prompt"]


def test_rows_come_in_order_and_once(real: dict[tuple[str, Split], list[Row]]) -> None:
    for (view, _), rows in real.items():
        contents = [row.content["text" if view == "source" else "prompt"] for row in rows]
        assert len(set(contents)) == len(contents)
        files: list[Any] = list(dict.fromkeys(row.origin.file for row in rows))
        assert files == sorted(files)
