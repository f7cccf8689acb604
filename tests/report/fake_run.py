"""A run folder as a real run leaves it: three training stages and a merge, measured on five suites.

`python tests/report/fake_run.py FOLDER [whole|failed|started|wild|wide]` writes one to look at.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NASTY = '<script>document.title = "hacked"</script><img src="http://example.com/x.png" onerror="alert(1)">&amp; "\'`'
ARABIC = "مرحبا بالعالم، هذا نص من اليمين إلى اليسار"
WEIRD = "tab\there \x00\x07\x1b[31mred\u202eevil\u202c \U0001f9ea e\u0301 \u200d zero\u200bwidth \ud800 end"
LONG = "a-very-long-stage-name-that-somebody-made-by-joining-everything-together-2025-11-21"


def write_run(
    folder: Path, *, variant: str = "whole", num_steps: int = 300, num_suites: int = 5, num_stages: int = 4
) -> Path:
    """Write a run and return its folder.

    Args:
        variant: `whole`; `failed` (the second stage broke, the rest did not start); `started` (only `run.json`);
            `wild` (nasty text, numbers that are not finite, long names); `wide` (as many suites and stages as asked).
        num_steps: optimizer steps of each training stage.
    """
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    suites = _suites(num_suites)
    if variant == "wild":
        suites[1]["label"] = "lab/" + "incomprehensibly-long-suite-name" * 3
        suites[2]["label"] = NASTY
    names = ["adapt", "recall", "polish", "release"]
    if variant == "wide":
        names = [f"stage-{index}" for index in range(num_stages - 1)] + ["release"]
    if variant == "wild":
        names = ["adapt", LONG, ARABIC, "<b>release</b>"]
    stages = _stages(names)
    recipe = {
        "base": "lab:tiny",
        "seed": 0,
        "on_bad_rows": "skip",
        "measure": {
            "gain": ["lab/reverse", "lab/double"],
            "keep": ["lab/copy", "lab/sort", "python/source"],
            "shots": 4,
            "examples": 200,
        },
        "stages": [{"name": stage["name"], stage["kind"]: stage["settings"]} for stage in stages],
    }
    run = {
        "name": "tiny-temper" if variant != "wild" else f"run {NASTY}",
        "recipe": recipe,
        "source": "recipes/tiny.yaml",
        "command": "temper run recipes/tiny.yaml stages[0].train.lr=2e-3",
        "started": "2025-11-21T09:14:03+00:00",
        "versions": {"temper": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "machine": {
            "platform": "Linux-6.1-x86_64",
            "processor": "x86_64, 2 cores",
            "memory_bytes": 25276510208,
            "devices": ["cpu"],
            "bf16": False,
        },
        "git": {"commit": "3f9a1be07c55d2e80b7f6f0e4f1f1f6c6a0f1d2e", "clean": False},
        "error": None,
        "stages": [
            {"name": "base", "kind": "base", "key": "4be1a2c93d55e017", "folder": "base-4be1a2c93d55e017"},
            *({key: value for key, value in stage.items() if key != "settings"} for stage in stages),
        ],
        "matrix": {},
        "warnings": ["lr 2e-3 was set on the command line; the recipe's file says 1e-3"],
    }
    if variant == "started":
        _write(folder / "run.json", run)
        return folder
    arms: dict[str, dict[str, dict[str, Any]]] = {}
    base_folder = folder / "base-4be1a2c93d55e017"
    base_folder.mkdir(exist_ok=True)
    arms["base"] = _measure(rng, suites, 0, variant, {}, "")
    arms["few-shot"] = _measure(rng, suites, 0.5, variant, {"base": arms["base"]}, "")
    _write(base_folder / "stage.json", _stage_record("base", "base", "4be1a2c93d55e017", {}, [], {}, {}))
    _write(base_folder / "measure.json", {"suites": arms["base"], "few_shot": arms["few-shot"], "seconds": 11.2})
    before = arms["base"]
    for index, stage in enumerate(stages):
        broken = variant == "failed" and index == 1
        if variant == "failed" and index > 1:
            break
        path = folder / stage["folder"]
        path.mkdir(exist_ok=True)
        is_training = stage["kind"] == "train"
        if is_training:
            _write_metrics(path, rng, num_steps // 3 if broken else num_steps, index, variant)
            _write_quarantine(path, index, variant)
        if broken:
            error = (
                "step 100: the loss is nan and the gradient's norm nan; the largest losses come from spring.jsonl:17"
            )
            record = _stage_record(
                stage["name"], stage["kind"], stage["key"], stage["settings"], stage["models"], {}, {}
            )
            _write(path / "stage.json", {**record, "status": "failed", "error": error})
            run["error"] = f"stage {stage['name']!r} failed: {error}\nfinished and kept: adapt"
            continue
        arms[stage["name"]] = _measure(
            rng,
            suites,
            index + 1,
            variant,
            {"base": arms["base"], "few_shot": arms["few-shot"], "previous": before},
            "",
        )
        before = arms[stage["name"]]
        cost = {
            "steps": num_steps,
            "tokens": num_steps * 2048,
            "supervised_tokens": num_steps * 640,
            "flops": num_steps * 2048 * 6 * 1.3e6,
            "seconds": 41.7 + index,
            "peak_memory_bytes": 412_000_000,
        }
        details = {
            "parameters": 1_312_384,
            "trainable_parameters": 1_312_384 if index == 1 else 65_536,
            "rows": 12_000,
            "bad_rows": 5 if index == 0 else 0,
            "truncated": 37 if index == 0 else 0,
            "packing_waste": 0.0123,
        }
        warnings = ["37 rows of lab/reverse were truncated at 256 tokens; raise max_length"] if index == 0 else []
        if not is_training:
            cost, details = {"seconds": 0.8, "flops": None}, {"parameters": 1_312_384, "weights": [0.5, 0.5]}
        record = _stage_record(
            stage["name"], stage["kind"], stage["key"], stage["settings"], stage["models"], cost, details
        )
        record["warnings"] = warnings
        record["sources"] = {source: f"9f0{index}c2d1e5a7b3f4" for source in stage["sources"]}
        _write(path / "stage.json", record)
        _write(path / "measure.json", {"suites": arms[stage["name"]], "seconds": 6.4})
    run["matrix"] = {
        "rows": list(arms),
        "columns": [suite["label"] for suite in suites],
        "values": [[arm[suite["label"]]["value"] for suite in suites] for arm in arms.values()],
        "roles": [suite["role"] for suite in suites],
        "higher_is_better": [suite["higher_is_better"] for suite in suites],
        "average_accuracy": {name: _average(arm.values()) for name, arm in arms.items()},
        "backward_transfer": -0.031 if variant != "failed" else None,
        "forward_transfer": 0.012 if variant != "failed" else None,
        "performance_maintenance": -0.08 if variant != "failed" else None,
        "forgetting": 0.044 if variant != "failed" else None,
    }
    _write(folder / "run.json", run)
    return folder


def _average(suites: Any) -> float:
    values = [suite["value"] for suite in suites if suite["unit"] == "share"]
    return sum(values) / len(values)


def _suites(count: int) -> list[dict[str, Any]]:
    known: list[dict[str, Any]] = [
        {"label": "lab/reverse", "role": "gain", "path": [0.0, 0.31, 0.942, 0.93, 0.955, 0.96]},
        {"label": "lab/double", "role": "gain", "path": [0.01, 0.12, 0.05, 0.88, 0.9, 0.84]},
        {"label": "lab/copy", "role": "keep", "path": [0.99, 0.98, 0.61, 0.975, 0.97, 0.985]},
        {"label": "lab/sort", "role": "keep", "path": [0.97, 0.95, 0.44, 0.92, 0.89, 0.94]},
        {"label": "python/source", "role": "keep", "path": [14.2, 14.4, 21.6, 15.9, 15.7, 15.1], "unit": "perplexity"},
    ]
    extra = [
        {"label": f"lab/skill-{index}", "role": "gain" if index % 3 == 0 else "keep", "path": [0.5, 0.6, 0.55, 0.7]}
        for index in range(max(0, count - len(known)))
    ]
    suites = [*known, *extra][:count]
    for suite in suites:
        is_share = suite.setdefault("unit", "share") == "share"
        suite["higher_is_better"] = is_share
        suite["metric"] = "exact match" if is_share else "perplexity"
    return suites


def _stages(names: Sequence[str]) -> list[dict[str, Any]]:
    adamw = {"adamw": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}}
    lora = {"lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": ["q", "k", "v", "o"], "init": "zeros"}}
    replay = {"replay": {"of": {"lab": {"skill": "copy"}}, "share": 0.1}}
    stages: list[dict[str, Any]] = []
    previous = "base"
    for index, name in enumerate(names):
        key = f"{0x9C41D20E77AA10B3 + 977 * index:016x}"
        if index == len(names) - 1:
            models = ["base", *names[:-1][-2:]]
            settings: dict[str, Any] = {
                "method": {"linear": {"weights": [0.5, 0.5], "normalize": True}},
                "of": models[1:],
            }
            kind, sources = "merge", []
        else:
            kind, models = "train", [previous]
            sources = [["lab/reverse"], ["lab/double", "lab/copy"], ["lab/pairs", "records/2025/spring.jsonl"]][
                index % 3
            ]
            settings = {
                "data": sources,
                "tune": lora if index != 1 else {"full": {}},
                "objective": {"sft": {}},
                "optimizer": adamw,
                "retain": [replay] if index else [],
                "lr": 2e-3 / (index + 1),
                "schedule": {"cosine": {"warmup": 0.05, "floor": 0.1}},
                "epochs": 3,
                "batch_tokens": 2048,
                "max_length": 256,
                "seed": 0,
            }
        stages.append(
            {
                "name": name,
                "kind": kind,
                "key": key,
                "folder": f"stage{index}-{key}",
                "previous": previous,
                "models": models,
                "data": [],
                "sources": sources,
                "settings": settings,
            }
        )
        previous = name
    return stages


def _stage_record(
    name: str,
    kind: str,
    key: str,
    settings: Mapping[str, Any],
    models: Sequence[str],
    cost: Mapping[str, Any],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "key": key,
        "status": "done",
        "settings": dict(settings),
        "models": list(models),
        "sources": {},
        "seed": 0,
        "versions": {"torch": "2.13.0+cpu"},
        "git": {"commit": "3f9a1be07c55", "dirty": True},
        "precision": "float32",
        "started": "2025-11-21T09:14:05+00:00",
        "cost": dict(cost),
        "details": dict(details),
        "warnings": [],
    }


def _measure(
    rng: random.Random,
    suites: Sequence[Mapping[str, Any]],
    at: float,
    variant: str,
    others: Mapping[str, Mapping[str, Any]],
    _: str,
) -> dict[str, Any]:
    return {suite["label"]: _report(rng, suite, at, variant, others) for suite in suites}


def _report(
    rng: random.Random, suite: Mapping[str, Any], at: float, variant: str, others: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    place = {0: 0, 0.5: 1}.get(at, int(at) + 1)
    target = suite["path"][min(place, len(suite["path"]) - 1)]
    count = 200
    if suite["unit"] == "share":
        scores = [1.0 if rng.random() < target else 0.0 for _ in range(count)]
        value = sum(scores) / count
        half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / count)
        correct: list[bool] | None = [score > 0.5 for score in scores]
    else:
        scores = [math.log(target) + rng.gauss(0, 0.4) for _ in range(count)]
        value = math.exp(sum(scores) / count)
        half, correct = 0.05 * value, None
    report: dict[str, Any] = {
        "role": suite["role"],
        "metric": suite["metric"],
        "unit": suite["unit"],
        "higher_is_better": suite["higher_is_better"],
        "value": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half) if suite["unit"] == "share" else value + half,
        "num_examples": count,
        "num_left_out": 3 if suite["label"] == "python/source" else 0,
        "scores": scores,
        "weights": None,
        "correct": correct,
        "transform": "mean" if suite["unit"] == "share" else "exp",
        "samples": _samples(suite, scores, variant),
        "changes": {},
    }
    if variant == "wild" and suite["unit"] == "perplexity" and at >= 2:
        report.update(value=float("inf"), low=None, high=float("nan"))
    for against, reports in others.items():
        other = reports[suite["label"]]
        difference = report["value"] - other["value"]
        spread = half + 0.01
        verdict = "same"
        if abs(difference) > spread:
            verdict = "better" if (difference > 0) == suite["higher_is_better"] else "worse"
        pairs = list(zip(correct, other["correct"], strict=True)) if correct and other["correct"] else None
        report["changes"][against] = {
            "difference": difference,
            "low": difference - spread,
            "high": difference + spread,
            "verdict": verdict,
            "negative_flips": sum(was and not now for now, was in pairs) if pairs else None,
            "positive_flips": sum(now and not was for now, was in pairs) if pairs else None,
            "num_examples": count,
        }
    return report


def _samples(suite: Mapping[str, Any], scores: Sequence[float], variant: str) -> list[dict[str, Any]]:
    letters = random.Random(suite["label"])
    samples = []
    for score in scores[:12]:
        word = "".join(letters.choice("abcdefghijklmnop") for _ in range(letters.randint(3, 9)))
        if suite["unit"] == "share":
            prompt, expected = f"reverse: {word} =", word[::-1]
            output = expected if score > 0.5 else word[::-1][:-1] + "q"
        else:
            prompt = (
                f'def {word}(self, value: int) -> "str":\n    """Return {word}."""\n    if value < 0 && value > 3:\n'
            )
            expected, output = "        raise ValueError(value)\n    return str(value)\n", ""
        samples.append({"prompt": prompt, "expected": expected, "output": output, "score": score})
    if variant == "wild":
        samples[0].update(prompt=NASTY, expected=NASTY, output=f"</dd></article>{NASTY}")
        samples[1].update(prompt=ARABIC, expected=ARABIC[::-1], output=WEIRD)
        samples[2].update(prompt="word " * 3000, expected="x" * 5000, output="")
        samples[3].update(prompt="日本語のとても長い文章" * 30, expected=None, output={"not": "text"}, score=None)
    return samples


def _write_metrics(folder: Path, rng: random.Random, num_steps: int, index: int, variant: str) -> None:
    lines = []
    tokens = seconds = 0.0
    for step in range(1, num_steps + 1):
        progress = step / num_steps
        tokens += 2048 - rng.randrange(40)
        seconds += 0.139 * math.exp(abs(rng.gauss(0, 0.12)))
        line: dict[str, Any] = {
            "step": step,
            "progress": progress,
            "epoch": 3 * progress,
            "loss": (0.25 + 3.4 * math.exp(-6 * progress)) * math.exp(rng.gauss(0, 0.12)) / (index + 1),
            "lr": 2e-3 * min(1, step / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress))) / (index + 1),
            "grad_norm": math.exp(rng.gauss(0.2 - progress, 0.35)) * (80 if step == num_steps // 3 else 1),
            "tokens": tokens,
            "supervised_tokens": 640 * step,
            "seconds": seconds,
        }
        if step % max(1, num_steps // 10) == 0:
            line["validation_loss"] = (0.3 + 3.3 * math.exp(-6 * progress)) / (index + 1)
        if index == 2:
            line["replayed_share"] = 0.1 + rng.gauss(0, 0.01)
        if variant == "wild" and index == 0 and step in (40, 41, 150):
            line["loss"] = float("nan") if step != 150 else float("inf")
        if variant == "wild" and index == 1:
            line["loss"] = -line["loss"]
            line["grad_norm"] = 0.0
            line["seconds"] = 0.0
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + ('\n{"step": 99' if variant == "failed" else "\n"))


def _write_quarantine(folder: Path, index: int, variant: str) -> None:
    if index:
        return
    rows: list[dict[str, Any]] = [
        {
            "file": "records/2025/spring.jsonl",
            "line": 17,
            "reason": "broken JSON: Expecting ',' delimiter",
            "text": '{"prompt": "re',
        },
        {
            "file": "records/2025/spring.jsonl",
            "line": 204,
            "reason": "no supervised token",
            "text": '{"prompt": "x", "completion": ""}',
        },
        {
            "file": "records/2025/spring.jsonl",
            "line": 205,
            "reason": "no supervised token",
            "text": '{"prompt": "y", "completion": ""}',
        },
        {
            "file": "records/2025/spring.jsonl",
            "line": 900,
            "reason": "prompt: 17 is not text",
            "text": '{"prompt": 17}',
        },
        {
            "file": "records/2025/spring.jsonl",
            "line": 901,
            "reason": "prompt: 18 is not text",
            "text": '{"prompt": 18}',
        },
    ]
    if variant == "wild":
        rows.append({"file": None, "line": None, "reason": NASTY, "text": WEIRD})
        rows += [{"file": "b.csv", "line": n, "reason": f"row {n} is too long", "text": "z" * 500} for n in range(40)]
    (folder / "quarantine.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else "whole"
    wide = chosen == "wide"
    write_run(Path(sys.argv[1]), variant=chosen, num_suites=20 if wide else 5, num_stages=8 if wide else 4)
