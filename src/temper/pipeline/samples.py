"""What the examples of methods name, small and made on the spot: a model, rows of every format, functions.

`lay_out` writes them into a folder, in which an example's paths lead somewhere:

- `model/`: a model with random weights, which spells.
- `rows.jsonl`: rows whose columns serve every format (`format:` says which); `rows/`: the same, written by `datasets`.
- `library/`: Python modules, of which one is held out for the test.
- `metric.py`: a function of prompt, output and row.
- `tasks/`: a task of lm-evaluation-harness over the rows, `rows`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from temper.lab.architecture import Architecture
from temper.lab.stdlib import is_held_out
from temper.lab.tokenizer import character_tokenizer
from temper.models.load import new_model, save_model

ARCHITECTURE = Architecture(width=32, layers=2, heads=2, max_positions=128)
VOCABULARY = 96
NUM_ROWS = 16
MODEL, ROWS, HUB_ROWS, LIBRARY, METRIC, TASKS = "model", "rows.jsonl", "rows", "library", "metric.py", "tasks"

FUNCTION = '''def add_{n}(number):
    """Add {n} to a number."""
    return number + {n}
'''
FUNCTIONS = '''"""Metrics of what a model writes."""


def brevity(prompt, output, row):
    """Score an output by how short it is, 0 to 1."""
    return 1 / (1 + len(output))
'''
TASK = {
    "task": "rows",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}


def lay_out(folder: Path) -> None:
    """Write everything that an example may name."""
    save_model(new_model(ARCHITECTURE.config(VOCABULARY), character_tokenizer(), seed=0), folder / MODEL)
    rows = [_row(number) for number in range(NUM_ROWS)]
    file = folder / ROWS
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if find_spec("datasets") is not None:
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a bar for 16 rows
            importlib.import_module("datasets").Dataset.from_list(rows).save_to_disk(folder / HUB_ROWS)
    _write_library(folder / LIBRARY)
    (folder / METRIC).write_text(FUNCTIONS, encoding="utf-8")
    (folder / TASKS).mkdir()
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(file)}}}
    (folder / TASKS / "rows.yaml").write_text(json.dumps(task), encoding="utf-8")


def _row(number: int) -> dict[str, Any]:
    """Return a row that every format can be read from: a word is repeated, with a letter wrong where it should not."""
    word = "".join("abcd"[number // 4**place % 4] for place in range(3))
    prompt, wrong = f"copy {word}: ", word[::-1] + "e"
    kind = "yes" if word[0] in "ab" else "no"
    return {
        "text": prompt + word,
        "prompt": prompt,
        "completion": word,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": word}],
        "chosen": word,
        "rejected": wrong,
        "label": number % 2 == 0,
        "class": kind,
        "words": [word, word[::-1]],
        "tags": [kind, "no"],
        "anchor": word,
        "positive": prompt,
        "choices": [word, wrong],
        "answer": 0,
    }


def _write_library(folder: Path) -> None:
    """Write modules of functions until both splits, which a module's name decides, have one."""
    folder.mkdir()
    is_there = {True: False, False: False}
    for number in itertools.count():
        name = f"module_{number}"
        side = is_held_out(name)
        if not is_there[side]:
            functions = (FUNCTION.format(n=100 * number + n) for n in range(NUM_ROWS))
            (folder / f"{name}.py").write_text("\n\n".join(functions), encoding="utf-8")
            is_there[side] = True
        if all(is_there.values()):
            return
