"""Running: nothing is done twice, everything that must be redone is, and a failure leaves what was finished."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import temper
from fake_methods import known_fakes, weight  # noqa: F401 (a fixture)
from families import tiny
from temper.core.errors import DataError, GateError, SettingError, StageError
from temper.models.load import save_model
from temper.pipeline.recipe import Recipe
from temper.pipeline.result import Run
from temper.pipeline.run import run

pytestmark = pytest.mark.usefixtures("known_fakes")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(tiny("llama", num_hidden_layers=1), folder)
    return folder


class Desk:
    """A recipe that can be changed and run, and what was called."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.runs = folder / "runs"
        self.calls = folder / "calls"
        self.said: list[str] = []
        self.recipe: dict[str, Any] = {
            "name": "mine",
            "base": str(base),
            "measure": {"gain": [self.suite("weight")], "keep": []},
            "stages": [self.train("a"), self.train("b"), self.train("side", amount=0.5, **{"from": "base"})],
        }

    def train(self, name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "fake_train": {"calls": str(self.calls), **more}}

    def suite(self, name: str, **more: Any) -> dict[str, Any]:
        return {"fake_suite": {"name": name, "calls": str(self.calls), **more}}

    def run(self, **how: Any) -> Run:
        return run(Recipe.parse(self.recipe), runs=self.runs, say=self.said.append, **how)

    def called(self) -> list[str]:
        """Return what has been called since the last time."""
        lines = self.calls.read_text().split() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def desk(tmp_path: Path, base: Path) -> Desk:
    return Desk(tmp_path, base)


def value(result: Run, stage: str, suite: str = "weight") -> float:
    return float(result.stages[stage].suites[suite]["value"])


def test_stages_follow_one_another_and_are_measured(desk: Desk) -> None:
    result = desk.run()
    assert desk.called() == ["weight", "a", "weight", "b", "weight", "side", "weight"]
    start = value(result, "base")
    # Each stage adds 1 to the weight of the stage that it reads.
    gains = {name: round(value(result, name) - start, 5) for name in result.stages}
    assert gains == {"base": 0, "a": 1, "b": 2, "side": 0.5}
    changes = result.stages["b"].suites["weight"]["changes"]
    assert changes["base"]["difference"] == pytest.approx(2) and changes["previous"]["difference"] == pytest.approx(1)
    assert result.stages["side"].suites["weight"]["changes"]["previous"]["difference"] == pytest.approx(0.5)
    assert float(weight(result.model("b").module)) == pytest.approx(start - 0.015 + 2, abs=1e-5)
    assert result.report.is_file() and "side" in result.table()
    record = result.stages["a"].record
    assert record["status"] == "done" and record["precision"] == "float32" and record["warnings"] == ["it is a fake"]
    assert record["versions"]["python"] and record["code"]["stage/fake_train"]
    assert result.record["machine"]["cores"] >= 1
    assert result.matrix["rows"] == ["base", "a", "b", "side"]


def test_a_second_run_does_nothing(desk: Desk) -> None:
    desk.run()
    desk.called()
    files = {
        path: path.stat().st_mtime_ns for path in desk.runs.rglob("*") if path.name in ("stage.json", "measure.json")
    }
    desk.run()
    assert desk.called() == []
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_changed_stage_redoes_only_what_follows(desk: Desk) -> None:
    first = desk.run()
    desk.called()
    desk.recipe["stages"][0]["fake_train"]["amount"] = 3.0
    second = desk.run()
    assert desk.called() == ["a", "weight", "b", "weight"]
    assert value(second, "b") - value(second, "base") == pytest.approx(4)
    # What was there before is still there, and is found again.
    assert first.stages["a"].folder.name != second.stages["a"].folder.name
    desk.recipe["stages"][0]["fake_train"]["amount"] = 1.0
    desk.run()
    assert desk.called() == []


def test_a_renamed_stage_is_the_same(desk: Desk) -> None:
    desk.run()
    desk.called()
    desk.recipe["stages"][0]["name"] = "first"
    result = desk.run()
    assert desk.called() == []
    assert result.stages["first"].is_done and float(weight(result.model("b").module))
    assert result.stages["b"].record["models"] == ["first"]


def test_a_new_suite_measures_only_itself(desk: Desk) -> None:
    desk.run()
    desk.called()
    desk.recipe["measure"]["keep"] = [desk.suite("more")]
    result = desk.run()
    assert desk.called() == ["more"] * 4
    assert set(result.stages["a"].suites) == {"weight", "more"}
    assert result.stages["a"].suites["more"]["role"] == "keep"


def test_forcing_redoes_the_followers_only_if_it_came_out_otherwise(desk: Desk, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.write_text("0")
    desk.recipe["stages"][0]["fake_train"]["add_from"] = str(hidden)
    desk.run()
    desk.called()
    desk.run(force=["a"])
    assert desk.called() == ["a"]
    hidden.write_text("5")
    result = desk.run(force=["a"])
    assert desk.called() == ["a", "weight", "b", "weight"]
    assert value(result, "b") - value(result, "base") == pytest.approx(7)
    with pytest.raises(SettingError, match="no stage of this recipe"):
        desk.run(force=["absent"])


def test_what_is_gone_is_made_again(desk: Desk) -> None:
    desk.recipe["stages"].append({"name": "ship", "export": {"from": "b", "to": str(desk.runs.parent / "shipped")}})
    result = desk.run()
    desk.called()
    shipped = desk.runs.parent / "shipped" / "model.safetensors"
    first = shipped.read_bytes()
    shutil.rmtree(result.stages["a"].folder / "model")
    desk.run()
    assert desk.called() == ["a"] and any("no longer there" in text for text in desk.said)
    # A folder outside of the run holds what the recipe says now, also when a setting is changed back.
    desk.recipe["stages"][1]["fake_train"]["amount"] = 7.0
    desk.run()
    assert shipped.read_bytes() != first
    desk.recipe["stages"][1]["fake_train"].pop("amount")
    desk.run()
    assert shipped.read_bytes() == first
    shutil.rmtree(shipped.parent)
    desk.run()
    assert shipped.read_bytes() == first


def test_rows_that_are_trained_on_and_scored_are_told(tmp_path: Path, base: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{n} ", "completion": str(n)}) + "\n" for n in range(40)))

    def warnings(trained: Any, scored: Any) -> list[str]:
        recipe = {
            "name": "leak",
            "base": str(base),
            "measure": {"gain": [{"perplexity": {"source": scored}}], "keep": [], "shots": 0},
            "stages": [{"name": "a", "train": {"data": [trained], "steps": 1, "batch_size": 2}}],
        }
        done = run(Recipe.parse(recipe), runs=tmp_path / "runs", say=lambda text: None)
        return list(done.stages["a"].record["warnings"])

    whole, divided = str(rows), {"file": {"path": str(rows), "test_share": 0.2}}
    assert any("scores 40 rows that this stage trains on" in text for text in warnings(whole, whole))
    assert any("rows that this stage trains on" in text for text in warnings(whole, divided))
    assert not any("trains on" in text for text in warnings(divided, divided))


def test_what_dead_processes_left_in_the_cache_is_removed(desk: Desk) -> None:
    cache = desk.runs / ".cache"
    (cache / f"rows-x.{2**22 + 5}.partial").mkdir(parents=True)
    (cache / f"rows-y.{os.getpid()}.partial").mkdir()
    desk.run()
    left = [path.name for path in cache.iterdir() if path.name.endswith(".partial")]
    assert left == [f"rows-y.{os.getpid()}.partial"]


def test_until_stops_after_a_stage(desk: Desk) -> None:
    result = desk.run(until="a")
    assert [name for name, stage in result.stages.items() if stage.is_done] == ["base", "a"]
    assert desk.run().stages["side"].is_done


def test_a_failure_names_the_stage_and_keeps_the_rest(desk: Desk, tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"
    trouble.touch()
    desk.recipe["stages"][1]["fake_train"]["fails_while"] = str(trouble)
    with pytest.raises(StageError) as caught:
        desk.run(command=["temper", "run", "mine.yaml"])
    text = str(caught.value)
    assert "stage 'b' failed: the loss is not a number" in text
    assert "finished and kept: a" in text and "temper run mine.yaml" in text
    assert type(caught.value.__cause__).__name__ == "TrainingError"
    result = Run(desk.runs / "mine")
    assert result.stages["a"].is_done and result.stages["b"].record["status"] == "failed"
    assert "the loss is not a number" in result.stages["b"].record["error"]
    assert "stage 'b' failed" in str(result.record["error"]) and result.report.is_file()
    desk.called()
    trouble.unlink()
    assert desk.run().record["error"] is None
    assert desk.called() == ["b", "weight", "side", "weight"]


def test_a_failure_that_nobody_foresaw_is_a_stage_s_failure_too(desk: Desk, tmp_path: Path) -> None:
    desk.recipe["stages"][1]["fake_train"]["add_from"] = str(tmp_path / "absent")
    with pytest.raises(StageError, match="stage 'b' failed: FileNotFoundError"):
        desk.run()


def test_a_measurement_that_fails_keeps_the_stage(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_methods import FakeSuite

    original = FakeSuite.measure

    def measure(self: FakeSuite, subject: Any, *rest: Any) -> Any:
        if subject.base_fingerprint:
            raise RuntimeError("out of memory")
        return original(self, subject, *rest)

    monkeypatch.setattr(FakeSuite, "measure", measure)
    with pytest.raises(StageError, match="stage 'a' could not be measured: RuntimeError: out of memory"):
        desk.run()
    assert Run(desk.runs / "mine").stages["a"].is_done
    monkeypatch.setattr(FakeSuite, "measure", original)
    desk.called()
    desk.run()
    assert desk.called()[:2] == ["weight", "b"]


def test_data_goes_from_stage_to_stage(desk: Desk) -> None:
    select = {"name": "curate", "fake_select": {"num": 5, "calls": str(desk.calls)}}
    desk.recipe["stages"] = [select, desk.train("a", data=["curate"])]
    result = desk.run()
    assert result.stages["a"].record["details"]["rows"] == 5
    assert result.record["stages"][-1]["sources"] == ["curate"]
    desk.called()
    desk.recipe["stages"][0]["fake_select"]["num"] = 6
    assert desk.run().stages["a"].record["details"]["rows"] == 6
    # The fake only counts the rows, so the model is the same, bit for bit, and its scores are known.
    assert desk.called() == ["curate", "a"]


def test_a_gate_stops_the_run_and_keeps_the_stage(desk: Desk) -> None:
    desk.recipe["measure"] = {"keep": [desk.suite("kept", higher_is_better=False)]}
    desk.recipe["stages"][1]["gate"] = 1.5
    with pytest.raises(GateError, match=r"stages\.b\.gate: kept"):
        desk.run()
    result = Run(desk.runs / "mine")
    assert result.stages["b"].is_done and not result.stages["side"].is_done
    assert "stages.b.gate" in str(result.record["error"])
    desk.called()
    # Nothing is trained again for another gate; against the stage before, the fall is 1.
    desk.recipe["stages"][1]["gate"] = {"max_fall": 1.5, "against": "previous"}
    desk.run()
    assert desk.called() == ["side", "kept"]


def test_one_run_at_a_time(desk: Desk) -> None:
    desk.run(until="a")
    with (desk.runs / "mine" / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(SettingError, match=f"in use by another run \\(process {os.getpid()}\\)"):
            desk.run()
    desk.run()


def break_stage_json(folder: Path) -> None:
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({**record, "status": "running"}))


@pytest.mark.parametrize(
    "harm",
    [
        break_stage_json,
        lambda folder: (folder / "stage.json").unlink(),
        shutil.rmtree,
        lambda folder: folder.rename(folder.with_name(f"{folder.name}.old")),
    ],
    ids=["running", "no record", "no folder", "half removed"],
)
def test_a_stage_that_a_kill_left_is_done_again(desk: Desk, harm: Callable[[Path], Any]) -> None:
    result = desk.run()
    desk.called()
    harm(result.stages["b"].folder)
    again = desk.run()
    assert "b" in desk.called() and value(again, "b") == value(result, "b")
    assert not list(desk.runs.rglob("*.old"))


def test_the_base_s_path_does_not_count(desk: Desk, base: Path, tmp_path: Path) -> None:
    desk.run()
    desk.called()
    shutil.copytree(base, tmp_path / "moved")
    desk.recipe["base"] = str(tmp_path / "moved")
    desk.run()
    assert desk.called() == []
    desk.recipe["base"] = {"path": str(tmp_path / "moved"), "dtype": "bfloat16"}
    desk.run()
    assert desk.called()[:2] == ["weight", "a"]


def test_prepared_data_and_scores_may_be_deleted(desk: Desk) -> None:
    desk.recipe["measure"]["keep"] = ["drift"]
    before = desk.run()
    shutil.rmtree(desk.runs / ".cache")
    desk.recipe["stages"].append(desk.train("new"))
    after = desk.run()
    assert value(after, "a", "drift") == value(before, "a", "drift") > 0
    assert value(after, "base", "drift") == 0 and value(after, "new", "drift") > 0


def test_missing_data_is_found_before_anything_runs(desk: Desk, tmp_path: Path) -> None:
    desk.recipe["stages"][2]["fake_train"]["data"] = [str(tmp_path / "absent.jsonl")]
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        desk.run()
    assert desk.called() == []


def test_the_api_of_a_run(desk: Desk, base: Path) -> None:
    result = desk.run(until="a")
    assert list(result) == ["base", "a", "b", "side"]
    assert temper.Run(result.folder).stages["a"].key == result.stages["a"].key
    with pytest.raises(SettingError, match="not finished"):
        result.model("b")
    with pytest.raises(SettingError, match="is no stage of the run 'mine'"):
        result.model("aa")
    with pytest.raises(DataError, match="give the folder of a run"):
        temper.Run(desk.runs)
    # Every way of naming one model leads to it.
    named = [
        temper.load_model(result.folder, "a"),
        temper.load_model(result.folder),
        temper.load_model(result.stages["a"].folder),
        temper.load_model(result.stages["a"].folder / "model"),
    ]
    assert len({model.fingerprint for model in named}) == 1
    assert temper.load_model(base).fingerprint == temper.load_model(result.folder, "base").fingerprint
    with pytest.raises(SettingError, match="needs the folder of a run"):
        temper.load_model(base, "a")


def test_a_recipe_file_with_overrides(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "written.yaml"
    path.write_text(Recipe.parse({**desk.recipe, "name": "written"}).to_yaml())
    result = run(path, ["stages.a.fake_train.amount=2"], runs=desk.runs, say=desk.said.append)
    assert value(result, "a") - value(result, "base") == pytest.approx(2)
    assert result.record["command"] == f"temper run {path} stages.a.fake_train.amount=2"
    assert result.record["source"] == str(path)
