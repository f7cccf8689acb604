"""The lab's teacher: a skill's own rule."""

from __future__ import annotations

import random
from collections.abc import Sequence

from temper.core.errors import SettingError, nearest
from temper.data.example import Row
from temper.lab.skill import DRAWS_PER_ROW, Skill
from temper.synthesize.teachers.base import Teacher


class LabTeacher(Teacher, name="lab"):
    """Write further questions of the same skill and level, with true answers.

    The skill is named by the row's column `task`, the level by `level`; of a row that does not say its level, questions
    of all levels are written that the skill draws by default. Questions are of the train split only.

    Source: the lab; it stands for a strong model that never errs.
    """

    def similar(self, row: Row, num: int, seed: int) -> Sequence[Row]:
        task, known = row.columns.get("task"), Skill.methods()
        if task not in known:
            reason = f"does not know the task {task!r} of {row.origin}"
            raise SettingError("teacher", "lab", reason, f"teach rows of the lab; {nearest(str(task), known)}")
        skill = Skill.parse(task)
        generator = random.Random(f"{task} {seed}")
        level, (low, high) = row.columns.get("level"), skill.lengths or (1, 1)
        if not (level is None or isinstance(level, int)):
            reason = f"cannot write questions of the level {level!r} of {row.origin}"
            raise SettingError("teacher", "lab", reason, "teach rows of the lab, whose column `level` is a number")
        domain = skill.domain()
        found: dict[str, None] = {}
        for _ in range(DRAWS_PER_ROW * num):
            if domain is not None:
                argument = generator.choice(domain)
            else:
                argument = skill.draw(generator, generator.randint(low, high) if level is None else level)
            if not skill.in_test(argument):
                found[argument] = None
            if len(found) == num:
                break
        return [self._row(skill, argument, row) for argument in found]

    def _row(self, skill: Skill, argument: str, like: Row) -> Row:
        prompt, answer = skill.prompt(argument), skill.answer(argument)
        columns = {"task": skill.method_name, "level": skill.level(argument), "source": "teacher"}
        if like.format == "messages":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            return Row("messages", {"messages": turns}, columns, like.origin)
        return Row("completion", {"prompt": prompt, "completion": answer}, columns, like.origin)
