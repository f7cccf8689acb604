"""The command: instant help, messages instead of tracebacks, exit codes, and every subcommand once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from families import tiny
from temper.cli import main
from temper.models.load import load_model, save_model

Cli = Callable[..., tuple[int, str, str]]
HEAVY = ("torch", "transformers", "pyarrow", "numpy", "jinja2", "yaml", "tokenizers", "temper.core.methods")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs the command in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
            sys.exit(0)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a recipe, and the recipe's run."""
    folder = tmp_path_factory.mktemp("finished")
    save_model(tiny("llama", num_hidden_layers=1), folder / "base")
    (folder / "mine.yaml").write_text(
        f"""\
base: {folder / "base"}
measure: {{gain: [lab/copy], keep: [{{drift: {{texts: 4, length: 8}}}}], examples: 4, shots: 1}}
stages:
  - name: adapt
    train: {{data: [lab/copy], tune: {{lora: {{rank: 2}}}}, steps: 3, batch_size: 4, precision: fp32}}
  - name: last
    evaluate: {{gain: [lab/sort], from: adapt}}
"""
    )
    with pytest.raises(SystemExit) as left:
        main(["run", str(folder / "mine.yaml"), "stages.last.evaluate.shots=1", "--runs", str(folder / "runs")])
        sys.exit(0)
    assert left.value.code == 0
    return folder


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["lab", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, time; start = time.monotonic(); from temper.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as left: assert not left.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules], time.monotonic() - start, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, _, seconds = done.stderr.rpartition(" ")
    assert imported == "[]"
    # Half a second is promised; a busy machine may take several times as long.
    assert float(seconds) < 5
    assert "emper" in done.stdout


def test_importing_the_package_is_light() -> None:
    code = f"import sys, temper; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    import temper

    for name in temper.__all__:
        assert getattr(temper, name).__name__ == name
    assert set(temper.__all__) <= set(dir(temper))
    with pytest.raises(AttributeError, match="nothing_here"):
        temper.nothing_here  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "absent.yaml"], "error: absent.yaml: there is no such file"),
        (["run", "bad.yaml"], "error: bad.yaml:2: stages[0].trian: unknown key; did you mean 'train'?"),
        (["run", "good.yaml", "stages.a.train.lrr=1"], "error: command line: stages[0].train.lrr: unknown key"),
        (["run", "good.yaml", "--until", "b"], "error: stage: 'b' is no stage of this recipe"),
        (["run", "good.yaml"], "error: nowhere/at/all: is no folder"),
        (["preview", "good.yaml", "--stage", "b"], "error: stage: 'b' is no training stage of this recipe"),
        (["plan", "good.yaml", "--memory", "1.2.3GiB"], "error: --memory: '1.2.3GiB' is no amount of memory; write it"),
        (["plan", "good.yaml", "--memory", "0"], "error: --memory: '0' is no amount of memory"),
        (["plan", "good.yaml", "--flops-per-second", "0"], "error: --flops-per-second: 0.0 is no speed"),
        (["plan", "good.yaml", "--layout", "tp=2"], "error: --layout: 'tp=2' divides the work of one process"),
        (
            ["plan", "good.yaml", "--world-size", "4", "--layout", "tp=2,tp=4"],
            "--layout: 'tp=4' says tp a second",
        ),
        (["report", "absent"], "error: absent/run.json: is not there"),
        (["export", "absent", "a", "--to", "x"], "error: absent/run.json: is not there"),
        (["measure", "absent/model/x", "-s", "lab/copy"], "error: absent/model/x: is no folder"),
        (["measure", "base", "-s", "lab/revers"], "suites[0]: 'revers' is no skill method; did you mean 'reverse'?"),
        (["measure", "base", "-s", "{perplexty: {}}"], "suites[0]: 'perplexty' is no suite method; did you mean"),
        (["chat", "lab:tyni"], "error: base: 'lab:tyni' is not a lab base; "),
        (["methods", "lorra"], "error: name: 'lorra' is no method and no axis; did you mean 'lora'?"),
        (["methods", "lora", "--probe", "--json"], "error: --json: True is not printed by --probe, which writes it"),
        (["methods", "lora", "--to", "x.md"], "error: --to: 'x.md' is written by --probe alone; add --probe"),
        (["methods", "lora+lift", "--probe"], "error: name: 'lora+lift' names nothing but tune on both sides"),
        (["lab", "show", "revers"], "is no skill and no base of the lab; did you mean 'reverse'?"),
        (["lab", "make", "tyni"], "error: base: 'lab:tyni' is not a lab base"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(cli: Cli, arguments: list[str], said: str) -> None:
    Path("bad.yaml").write_text("base: x\nstages: [{name: a, trian: {}}]\n")
    Path("good.yaml").write_text("base: nowhere/at/all\nstages: [{name: a, train: {data: [lab/copy]}}]\n")
    save_model(tiny("llama", num_hidden_layers=1), Path("base"))
    code, out, err = cli(*arguments)
    assert code == 2 and said in err and "Traceback" not in err + out


def test_debug_shows_the_traceback(cli: Cli) -> None:
    from temper.core.errors import DataError

    with pytest.raises(DataError):
        main(["run", "absent.yaml", "--debug"])


def test_a_failed_run_has_exit_code_1(cli: Cli, finished: Path) -> None:
    text = (finished / "mine.yaml").read_text().replace("steps: 3", "steps: 3, lr: 1e30")
    Path("wild.yaml").write_text(text)
    code, _, err = cli("run", "wild.yaml")
    assert code == 1
    assert "error: stage 'adapt' failed" in err and "run again: temper run wild.yaml" in err


def test_run_ends_with_the_table_and_where_things_are(cli: Cli, finished: Path) -> None:
    code, out, err = cli(
        "run", str(finished / "mine.yaml"), "stages[1].evaluate.shots=1", "--runs", str(finished / "runs")
    )
    assert code == 0 and "adapt: done before" in err
    assert "lab/copy" in out and "drift" in out
    folder = finished / "runs" / "mine"
    assert f"stages: {folder}" in out and f"report: {folder / 'report.html'}" in out
    assert (folder / "report.html").is_file()


def test_the_evaluate_stage_measures_further_suites(finished: Path) -> None:
    import temper

    result = temper.Run(finished / "runs" / "mine")
    (label,) = result.stages["last"].suites
    report = result.stages["last"].suites[label]
    assert label == "lab/sort" and set(report["changes"]) == {"base", "few_shot"}
    assert result.matrix["rows"] == ["base", "few-shot", "adapt", "last"]
    assert result.matrix["columns"] == ["lab/copy", "drift", "lab/sort"]
    assert result.matrix["values"][2][2] is None and result.matrix["values"][3][2] == report["value"]


def test_preview_shows_what_is_supervised(cli: Cli, finished: Path) -> None:
    code, out, _ = cli("preview", str(finished / "mine.yaml"), "--examples", "2")
    assert code == 0 and out.count("supervised") == 2
    assert "adapt: lab/copy" in out and "⟦" in out


def test_methods_lists_everything(cli: Cli) -> None:
    code, out, _ = cli("methods", "--json")
    axes = {axis["name"]: axis for axis in json.loads(out)}
    assert code == 0
    assert {"tune", "optimizer", "objective", "retain", "merge", "suite", "stage", "source", "schedule"} <= set(axes)
    (lora,) = [method for method in axes["tune"]["methods"] if method["name"] == "lora"]
    assert "arXiv:2106.09685" in lora["source"]
    (rank,) = [field for field in lora["fields"] if field["name"] == "rank"]
    assert (rank["type"], rank["default"], rank["limits"]) == ("integer", 8, "above 0") and rank["description"]
    (train,) = [method for method in axes["stage"]["methods"] if method["name"] == "train"]
    kinds = {field["name"]: field["type"] for field in train["fields"]}
    assert kinds["tune"] == "tune" and kinds["data"] == "list of source" and kinds["lr"] == "number or null"
    assert "from" in kinds and "from_stage" not in kinds
    code, out, _ = cli("methods")
    assert code == 0 and "lora" in out and "What is measured" not in out
    code, out, _ = cli("methods", "lora")
    assert code == 0 and "rank" in out and "integer; default 8; above 0" in out
    code, out, _ = cli("methods", "tune")
    assert code == 0 and "full" in out and "sft" not in out


def test_measure_prints_a_value_with_its_interval(cli: Cli, finished: Path) -> None:
    run = str(finished / "runs" / "mine")
    suites = ["-s", "lab/copy", "-s", "{drift: {texts: 4, length: 8}}"]
    code, out, _ = cli("measure", run, "adapt", *suites, "--examples", "4", "--against", str(finished / "base"))
    assert code == 0 and "lab/copy: exact match" in out and "4 examples" in out and "drift: divergence" in out
    code, out, _ = cli("measure", str(finished / "base"), "-s", "lab/copy", "--examples", "4", "--json")
    assert code == 0 and json.loads(out)["suites"]["lab/copy"]["num_examples"] == 4


def test_chat_answers_once(cli: Cli, finished: Path) -> None:
    run = str(finished / "runs" / "mine")
    code, once, _ = cli("chat", run, "adapt", "-p", "copy:ab=", "--plain", "--max-new-tokens", "5")
    assert code == 0 and once.strip()
    code, again, _ = cli("chat", run, "adapt", "-p", "copy:ab=", "--plain", "--max-new-tokens", "5")
    assert again == once
    code, templated, _ = cli("chat", run, "-p", "copy:ab=", "--max-new-tokens", "5")
    assert code == 0 and templated != once
    code, _, err = cli("chat", run, "-p", "x", "--plain", "--system", "be brief")
    assert code == 2 and "no place without a chat template" in err


def test_chat_is_a_conversation(cli: Cli, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = iter(["one", "", "two", "/reset", "one", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(written))
    code, out, err = cli("chat", str(finished / "base"), "--max-new-tokens", "4")
    answers = out.split("\n")[:-1]
    assert code == 0 and "/reset" in err
    # The second turn sees the first; after /reset, the first answer comes again.
    assert len(answers) == 3 and answers[0] == answers[2]


def test_export_writes_what_others_read(cli: Cli, finished: Path, tmp_path: Path) -> None:
    run = str(finished / "runs" / "mine")
    code, out, _ = cli("export", run, "adapt", "--to", "whole", "--dtype", "bfloat16")
    assert code == 0 and str(tmp_path / "whole") in out
    assert str(load_model(tmp_path / "whole").module.dtype) == "torch.bfloat16"
    code, out, _ = cli("export", run, "adapt", "--to", "adapter", "--as", "adapter")
    assert code == 0 and (tmp_path / "adapter" / "adapter_config.json").is_file()
    code, _, err = cli("export", run, "last", "--to", "none")
    assert code != 0 and "error:" in err and not (tmp_path / "none").exists()


def test_report_is_written_again(cli: Cli, finished: Path) -> None:
    page = finished / "runs" / "mine" / "report.html"
    page.unlink()
    code, out, _ = cli("report", str(page.parent))
    assert code == 0 and page.is_file() and "lab/copy" in out


def test_lab_lists_and_shows(cli: Cli) -> None:
    code, out, _ = cli("lab", "--json")
    listed = json.loads(out)
    assert code == 0 and len(listed["skills"]) >= 12 and listed["bases"]
    code, out, _ = cli("lab")
    assert code == 0 and "lab:tiny" in out and "reverse" in out
    code, out, _ = cli("lab", "show", "lab/reverse", "-n", "2")
    assert code == 0 and out.count("\n    reverse:") == 4
    code, out, _ = cli("lab", "show", "lab:tiny")
    assert code == 0 and "knows: copy" in out


def test_doctor_says_what_there_is(cli: Cli) -> None:
    code, out, _ = cli("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 0 and {"cores", "memory", "disk", "torch", "bf16", "allocator", "extra hub"} <= set(findings)
    code, out, _ = cli("doctor")
    assert (code == 0 and "precision: auto" in out) or "in hardware" in out


def test_control_c_ends_cleanly(tmp_path: Path, finished: Path) -> None:
    text = (finished / "mine.yaml").read_text().replace("steps: 3", "steps: 100000")
    (tmp_path / "long.yaml").write_text(text)
    code = "from temper.cli import main; main(['run', 'long.yaml'])"
    # What a shell without job control starts in the background ignores the signal, and so would what is started here.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, heeded)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/long/adapt-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what is finished stays. To go on: temper run long.yaml" in err and "Traceback" not in err
    assert (tmp_path / "runs" / "long" / "report.html").is_file()
