"""One contender of `peers.py` in a process of its own: trains on given rows, and prints what it took as JSON.

    python benchmarks/contenders.py NAME CASE.json

All read the same weights and the same rows, in the same order, and make the same number of updates of as many rows
each. Temper tokenizes the rows while it trains; the others are given the tokens. The first updates are not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.monotonic()

import torch  # noqa: E402 (the clock runs from before the imports)

Marks = list[tuple[float, int]]
"""time at the end of each update, and the useful tokens of the update"""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP = 2


def rows_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Read `input_ids` and `completion_mask` of each row."""
    return [json.loads(line) for line in Path(case["tokens"]).read_text().splitlines()]


def load(case: dict[str, Any], **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32, **more)


def with_lora(model: Any, case: dict[str, Any]) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, lora_config(case)) if case["tune"] == "lora" else model


def lora_config(case: dict[str, Any]) -> Any:
    from peft import LoraConfig

    rank = case["rank"]
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")


def temper(case: dict[str, Any], **more: Any) -> Marks:
    from temper import FitSettings, fit, load_model, open_rows

    marks: Marks = []
    settings = FitSettings(
        tune={"lora": {"rank": case["rank"]}} if case["tune"] == "lora" else "full",
        lr=case["lr"],
        schedule={"constant": {"warmup": 0}},
        steps=case["steps"],
        batch_size=case["batch"],
        max_length=case["longest"],
        precision=case["precision"],
        recompute=float(torch.cuda.is_available()),  # as the others do there
        spike=None,
        **more,
    )
    seen = [0]

    def on_step(metrics: dict[str, float]) -> None:
        marks.append((time.monotonic(), int(metrics["tokens"]) - seen[0]))
        seen[0] = int(metrics["tokens"])

    fit(load_model(case["model"], dtype="float32"), open_rows(case["rows"]), settings, on_step=on_step)
    return marks


def temper_8bit(case: dict[str, Any]) -> Marks:
    """Temper with Adam's averages in 8 bits."""
    return temper(case, optimizer="adamw_8bit")


def temper_1k(case: dict[str, Any]) -> Marks:
    """Temper with passes of 1,024 tokens at most, where it takes 2,048 on a CPU."""
    return temper(case, micro_tokens=1024)


def temper_nf4(case: dict[str, Any]) -> Marks:
    """Temper with the frozen base in 4 bits."""
    return temper(case, hold="nf4")


def loop(case: dict[str, Any]) -> Marks:
    """A plain loop as one would write it by hand: documents one after another, logits where they are supervised."""
    from torch.nn import functional as F
    from transformers import AttentionInterface

    lengths: list[int] = []

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any) -> Any:
        sizes = list(lengths)
        parts = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
            for q, k, v in zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
        ]
        return torch.cat(parts, 2).transpose(1, 2).contiguous(), None

    AttentionInterface.register("by_document", attention)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(case).to(device)
    model.set_attn_implementation("by_document")
    model = with_lora(model, case)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["lr"], weight_decay=0.0, fused=True)
    whole = model.get_base_model() if case["tune"] == "lora" else model
    rows, marks = rows_of(case), Marks()
    model.train()
    for start in range(0, case["steps"] * case["batch"], case["batch"]):
        batch = rows[start : start + case["batch"]]
        lengths[:] = [len(row["input_ids"]) for row in batch]
        tokens = torch.tensor([token for row in batch for token in row["input_ids"]], device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        supervised = torch.tensor([bit for row in batch for bit in row["completion_mask"]], device=device)
        supervised = supervised.nonzero()[:, 0]
        with torch.autocast(device, torch.bfloat16, enabled=case["precision"] == "bf16"):
            mask = torch.empty(1, 1, 1, 1)
            hidden = whole.model(
                input_ids=tokens[None], position_ids=positions[None], attention_mask=mask, use_cache=False
            ).last_hidden_state[0]
            logits = whole.lm_head(hidden[supervised - 1])
            loss = F.cross_entropy(logits.float(), tokens[supervised])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.append((time.monotonic(), len(tokens)))
    return marks


def _arguments(case: dict[str, Any], config: Callable[..., Any], **more: Any) -> Any:
    return config(
        output_dir=str(Path(case["folder"]) / "out"),
        per_device_train_batch_size=case["batch"],
        max_steps=case["steps"],
        learning_rate=case["lr"],
        lr_scheduler_type="constant",
        bf16=case["precision"] == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        seed=0,
        **more,
    )


def _watched(counted: list[int], marks: Marks) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
            marks.append((time.monotonic(), counted[len(marks)]))

    return Watch()


def trainer(case: dict[str, Any]) -> Marks:
    """Hugging Face's Trainer and PEFT, padded to the longest of a batch."""
    from transformers import Trainer, TrainingArguments

    counted: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        counted.append(sum(len(row["input_ids"]) for row in rows))
        ids, labels, mask = (torch.full((len(rows), longest), fill) for fill in (0, -100, 0))
        for index, row in enumerate(rows):
            own = torch.tensor(row["input_ids"])
            ids[index, : len(own)], mask[index, : len(own)] = own, 1
            labels[index, : len(own)] = torch.where(torch.tensor(row["completion_mask"]) > 0, own, -100)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    marks: Marks = []
    arguments = _arguments(case, TrainingArguments, remove_unused_columns=False, train_sampling_strategy="sequential")
    model = with_lora(load(case), case)
    Trainer(model, arguments, collate, rows_of(case), callbacks=[_watched(counted, marks)]).train()
    return marks


def trl(case: dict[str, Any], packing: bool = False, model: Any = None, **settings: Any) -> Marks:
    """TRL's SFTTrainer as it comes, or packed into rows of the longest length.

    Args:
        model: what it trains, an adapter included; by default the case's, and its adapter.
        settings: further ones of `SFTConfig`.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # As it comes it computes activations again, which saves memory; packed, it is given its fastest way.
    more: dict[str, Any] = {"packing": True, "gradient_checkpointing": False} if packing else {}
    if torch.cuda.is_available():
        # Beside float32 weights and averages of billions of numbers no activations of long rows fit.
        more["gradient_checkpointing"] = True
    more |= settings
    arguments = _arguments(case, SFTConfig, max_length=case["longest"], **more)
    if packing:
        # Rows of `longest` tokens: as many as hold the tokens of an update of the others.
        mean = sum(len(row["input_ids"]) for row in rows_of(case)) * case["batch"] / case["num_rows"]
        arguments.per_device_train_batch_size = max(1, round(mean / case["longest"]))
    counted, marks = list[int](), Marks()
    found = SFTTrainer(
        load(case) if model is None else model,
        arguments,
        train_dataset=Dataset.from_list(rows_of(case)),
        peft_config=lora_config(case) if case["tune"] == "lora" and model is None else None,
        processing_class=_tokenizer(case),
        callbacks=[_watched(counted, marks)],
    )
    collate = found.data_collator

    def counting(rows: list[dict[str, Any]]) -> Any:
        counted.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    found.data_collator = counting
    found.train()
    return marks


def trl_packed(case: dict[str, Any]) -> Marks:
    return trl(case, packing=True)


def trl_liger(case: dict[str, Any]) -> Marks:
    """TRL packed, with Liger's kernels."""
    return trl(case, packing=True, use_liger_kernel=True)


def unsloth(case: dict[str, Any]) -> Marks:
    """TRL packed, with a model that Unsloth has loaded: its own kernels and its own recomputation."""
    from unsloth import FastLanguageModel  # before transformers and TRL, of which it replaces parts

    is_lora = case["tune"] == "lora"
    model, _ = FastLanguageModel.from_pretrained(
        case["model"], max_seq_length=case["longest"], load_in_4bit=False, full_finetuning=not is_lora
    )
    if is_lora:
        rank = case["rank"]
        model = FastLanguageModel.get_peft_model(
            model,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0,
            target_modules=TARGETS,
            use_gradient_checkpointing="unsloth",
        )
    return trl(case, packing=True, model=model)


def _tokenizer(case: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(case["model"])


def peak_memory() -> int:
    """Return the process' largest resident memory, or the GPU's largest allocated memory, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def product_rate(precision: str) -> float:
    """Return the floating-point operations of a matrix product per second, the best of several."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        start = time.monotonic()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    return float(2 * size**3 / min(seconds))


CONTENDERS = {
    "temper": temper,
    "temper 8-bit": temper_8bit,
    "temper 1k": temper_1k,
    "temper nf4": temper_nf4,
    "loop": loop,
    "trainer": trainer,
    "trl": trl,
    "trl packed": trl_packed,
    "trl liger": trl_liger,
    "unsloth": unsloth,
}


def main() -> None:
    case = json.loads(Path(sys.argv[2]).read_text())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    marks = CONTENDERS[sys.argv[1]](case)
    timed = marks[WARM_UP:]
    tokens = sum(count for _, count in timed)
    seconds = timed[-1][0] - marks[WARM_UP - 1][0]
    peak = peak_memory()
    times = [time for time, _ in marks]
    rates = [count / (end - begin) for begin, end, (_, count) in zip(times, times[1:], marks[1:], strict=False)]
    result = {
        "tokens_per_second": tokens / seconds,
        "fastest_tokens_per_second": max(rates),
        "tokens": tokens,
        "seconds": seconds,
        "peak_bytes": peak,
        "first_step_seconds": marks[0][0] - STARTED,
        "product_rate": product_rate(case["precision"]),
    }
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
