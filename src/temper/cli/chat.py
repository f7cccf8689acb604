"""`temper chat`: talk with a model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from temper.cli.measure import ModelSource, StageOfRun

HELP = "/reset begins anew, /exit (or Ctrl-D) ends"


def add_to(app: typer.Typer) -> None:
    app.command()(chat)


def chat(
    model: ModelSource,
    stage: StageOfRun = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this one and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message; needs a chat template.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Continue the text, without the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0: the likeliest; above 0 samples.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the samples.")] = 0,
) -> None:
    """Talk with a model. It uses the model's chat template where there is one, and continues text where not."""
    from temper.core.errors import SettingError
    from temper.pipeline.conversation import Conversation
    from temper.pipeline.measuring import ready
    from temper.pipeline.models import load_model

    talk = Conversation(
        ready(load_model(model, stage)),
        system=system,
        is_plain=plain,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if prompt is not None:
        typer.echo(talk.answer(prompt))
        return
    typer.echo(HELP if talk.has_template else f"no chat template: the model continues what you write. {HELP}", err=True)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            typer.echo("")
            return
        if text.strip() == "/exit":
            return
        if text.strip() == "/reset":
            talk.reset()
        elif text.strip():
            try:
                typer.echo(talk.answer(text))
            except SettingError as error:
                typer.echo(f"error: {error}", err=True)
