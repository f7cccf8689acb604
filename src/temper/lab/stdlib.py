"""Text that nobody made for the purpose: the source of Python's own standard library, as it lies on this machine.

Decisions:
- The split is by module, never by row: a top-level package or module file is whole on one side, decided by a hash
  of its name. Code that lies in the library twice (`_pydecimal` and `decimal`, copied helpers) could still be on
  both sides: a train row is left out when its body is a test row's, or most of its long lines are a test file's.
- Left out: tests, what others installed (`site-packages`), `idlelib`, `lib2to3`, bundles (`ensurepip`), tables
  (`encodings`, `pydoc_data`), and files that do not parse or are not UTF-8.
- Modules, files and rows come in order of name, so the same library gives the same rows.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from temper.core.errors import DataError
from temper.core.hashing import hash_file, hash_json
from temper.data.example import Origin, Row
from temper.data.rows import Rows, write_file
from temper.data.source import OnBadRows, Source, Split

TEST_SHARE = 0.15
"""part of the modules that is held out"""
PIECE_CHARACTERS = 1500
"""characters of a piece of source, about"""
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",
        "ensurepip",
        "idle_test",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
)
LONG_LINE = 30
"""characters from which on a line is taken to say something of its own"""


@dataclass(frozen=True)
class Piece:
    """A piece of a file's source, or a function of it."""

    line: int
    """1-based line where it begins"""
    code: str
    body: str
    """what makes it the same as another: its code, or what follows a function's signature and docstring"""
    name: str = ""
    """qualified name of a function"""
    summary: str = ""


class PythonLibrary(Source, name="python"):
    """Python's standard library: its source in pieces, or functions with the first line of their docstrings.

    `source`: text rows of about 1,500 characters, cut between statements of the top level where that is possible
    and between lines where it is not. `summaries`: the prompt is a function without its docstring, the completion
    is the docstring's first sentence. Rows carry the columns `module`, `task` and `source`; summaries also `name`
    and `level` (lines of the function). The rows depend on the version of Python, which the fingerprint follows.
    """

    example: ClassVar[dict[str, Any]] = {"view": "summaries", "folder": "library"}

    view: Literal["source", "summaries"] = Field(description="pieces of source, or functions and what they do")
    max_characters: int = Field(1500, ge=100, description="longest function that is asked about, in characters")
    folder: str | None = Field(None, description="a library's folder; default: the running Python's own")

    def idle(self) -> dict[str, str]:
        return {} if self.view == "summaries" else {"max_characters": "where view is summaries"}

    @classmethod
    def shorthand(cls, rest: str) -> dict[str, object]:
        """Read `python/source` and `python/summaries`."""
        return {"view": rest}

    @property
    def label(self) -> str:
        return f"python/{self.view}"

    @property
    def library(self) -> Path:
        """The folder that is read."""
        return Path(self.folder) if self.folder else Path(sysconfig.get_paths()["stdlib"])

    def open(self, split: Split, cache: Path, on_bad_rows: OnBadRows = "stop") -> Rows:
        """Read the rows of a split; what was read once is mapped from `cache`.

        Raises:
            DataError: the folder holds nothing for that split.
        """
        fingerprint = f"{self.fingerprint()}-{split}"
        file = cache / "python" / f"{self.view}-{fingerprint}.arrow"
        if not file.is_file():
            rows = list(self._rows(split))
            if not rows:
                fix = "name the folder of a Python library, or leave `folder` out"
                raise DataError(self.library, None, f"holds no rows for the {split} split", fix)
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
            write_file(partial, rows)
            partial.replace(file)
        return Rows.map_file(file, fingerprint)

    def fingerprint(self) -> str:
        settings = self.model_dump(mode="json", exclude={"folder"})
        paths = [path for _, path in library_files(self.library)]
        files = [[path.relative_to(self.library).as_posix(), hash_file(path)] for path in paths]
        return hash_json([settings, files, self.code_version()])

    def _rows(self, split: Split) -> Iterator[Row]:
        files = library_files(self.library)
        held_out = [(module, path) for module, path in files if is_held_out(module)]
        held_out_bodies: set[str] = set()
        held_out_lines: set[str] = set()
        if split == "train":
            files = [(module, path) for module, path in files if not is_held_out(module)]
            for _, path in held_out:
                text, tree = _parse(path)
                held_out_bodies.update(piece.body for piece in self._pieces(text, tree))
                held_out_lines.update(_long_lines(text))
        else:
            files = held_out
        seen: set[str] = set()
        for module, path in files:
            for piece in self._pieces(*_parse(path)):
                if piece.code in seen or piece.body in held_out_bodies or _is_copied(piece.code, held_out_lines):
                    continue
                seen.add(piece.code)
                yield self._row(module, Origin(path.relative_to(self.library).as_posix(), piece.line), piece)

    def _pieces(self, text: str, tree: ast.Module) -> list[Piece]:
        if self.view == "source":
            return cut(text, tree)
        return [piece for piece in functions(text, tree) if len(piece.code) <= self.max_characters]

    def _row(self, module: str, origin: Origin, piece: Piece) -> Row:
        columns: dict[str, Any] = {"task": self.view, "module": module, "source": "python"}
        if self.view == "source":
            return Row("text", {"text": piece.code}, columns, origin)
        columns |= {"name": piece.name, "level": piece.code.count("\n")}
        return Row("completion", {"prompt": piece.code, "completion": piece.summary}, columns, origin)


def is_held_out(module: str) -> bool:
    """Tell on which side of the split a module falls, from its name alone."""
    digest = hashlib.blake2b(f"module {module}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < TEST_SHARE * 2**64


def library_files(library: Path) -> list[tuple[str, Path]]:
    """Return every source file with the name of its top-level module, in order of path."""
    found = []
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        found += [Path(folder, name).relative_to(library) for name in names if name.endswith(".py")]
    return [(path.parts[0].removesuffix(".py"), library / path) for path in sorted(found, key=Path.as_posix)]


def _parse(path: Path) -> tuple[str, ast.Module]:
    """Return a file's text and tree; nothing for what is not UTF-8 or does not parse."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return "", ast.Module([], [])


def _long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if len(line) >= LONG_LINE]


def _is_copied(code: str, held_out_lines: set[str]) -> bool:
    lines = _long_lines(code)
    return 2 * sum(line in held_out_lines for line in lines) > len(lines)


def _normalised(code: str) -> str:
    return " ".join(code.split())


def cut(text: str, tree: ast.Module) -> list[Piece]:
    """Cut a file into pieces of about `PIECE_CHARACTERS`; together they are the file, but for blank pieces.

    Statements of the top level are gathered until a piece is full; one that is longer by itself is cut at lines.
    """
    # ast counts lines by \n alone, where splitlines would also cut at form feeds.
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    starts = sorted({_first_line(node) - 1 for node in tree.body} | {0, len(lines)})
    begins = [0]
    size = 0
    for start, stop in itertools.pairwise(starts):
        statement = sum(map(len, lines[start:stop]))
        whole = [(start, statement)]
        parts = whole if statement <= PIECE_CHARACTERS else [(line, len(lines[line])) for line in range(start, stop)]
        for line, length in parts:
            if size and size + length > PIECE_CHARACTERS:
                begins.append(line)
                size = 0
            size += length
    pieces = [(begin, "".join(lines[begin:end])) for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True)]
    return [Piece(begin + 1, code, _normalised(code)) for begin, code in pieces if code.strip()]


def _first_line(node: ast.stmt) -> int:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.decorator_list:
        return node.decorator_list[0].lineno
    return node.lineno


def functions(text: str, tree: ast.Module) -> Iterator[Piece]:
    """Yield each function that has a one-line summary, without its docstring.

    Left out are functions that are nothing but a docstring, and those whose docstring shares a line with code.
    """
    lines = text.split("\n")
    for prefix, function in _functions(tree, ""):
        docstring = function.body[0]
        summary = clean_summary(ast.get_docstring(function) or "")
        if not summary or len(function.body) < 2 or docstring.lineno <= function.lineno:
            continue
        first, last = _first_line(function) - 1, function.end_lineno or function.lineno
        after = docstring.end_lineno or docstring.lineno
        if function.body[1].lineno <= after:
            continue
        body = lines[after:last]
        code = _unindent([*lines[first : docstring.lineno - 1], *body], function.col_offset)
        yield Piece(first + 1, "\n".join(code) + "\n", _normalised(" ".join(body)), prefix + function.name, summary)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)


def _unindent(lines: list[str], columns: int) -> list[str]:
    return [line[columns:] if not line[:columns].strip() else line for line in lines]


def clean_summary(docstring: str) -> str:
    """Return a docstring's first sentence on one line, or nothing where it is no plain sentence.

    The first paragraph's first sentence, 10 to 120 characters that begin with a capital letter, ended by a full
    stop. Signatures ("f(x) -> y"), doctests and markup are not summaries.
    """
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    sentence = re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()), maxsplit=1)[0]
    if not 10 <= len(sentence) <= 120 or not sentence[0].isupper() or re.search(r"->|>>>|^\W|^\w+\(|[:,]$", sentence):
        return ""
    return sentence if sentence[-1] in ".!?" else sentence + "."
