"""Tasks: data sets with their prompts, references and metrics."""

import dataclasses
import os

from dvp_jax.data.samsum import Samsum
from dvp_jax.data.squad import Squad
from dvp_jax.data.task import Example, Task
from dvp_jax.data.text_to_text import TextToText
from dvp_jax.data.translation import Translation
from dvp_jax.exits.policy import check_integer

TASKS: dict[str, type] = {
    "squad": Squad,
    "samsum": Samsum,
    "translation": Translation,
    "text_to_text": TextToText,
}

__all__ = ["TASKS", "Example", "Samsum", "Squad", "Task", "TextToText", "Translation", "make_task"]


def make_task(name: str, /, **fields: object) -> Task:
    """Makes a task.

    Args:
        name: a key of TASKS.
        **fields: fields of the task; the others keep their defaults.

    Raises:
        ValueError: an unknown task, an unknown field, or a value that its field cannot have.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; allowed: {', '.join(TASKS)}")
    allowed = [field.name for field in dataclasses.fields(TASKS[name]) if field.init]
    if unknown := [field for field in fields if field not in allowed]:
        raise ValueError(f"task {name} has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    types = {field.name: field.type for field in dataclasses.fields(TASKS[name])}
    for field, value in fields.items():
        what = f"{field} of task {name}"
        if types[field] == "int":
            check_integer(what, value, 1, None)
        elif types[field] == "str" and not isinstance(value, str | os.PathLike if field == "dataset" else str):
            raise ValueError(f"{what} is {value!r}; allowed: a text")
        elif types[field] == "str | None" and not isinstance(value, str | os.PathLike | None):
            raise ValueError(f"{what} is {value!r}; allowed: a text or None")
    return TASKS[name](**fields)
