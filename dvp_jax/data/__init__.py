"""Tasks: data sets with their prompts, references and metrics."""

import dataclasses
import os

from dvp_jax.data.samsum import Samsum
from dvp_jax.data.squad import Squad
from dvp_jax.data.task import Example, Task
from dvp_jax.data.text_to_text import TextToText
from dvp_jax.data.translation import Translation

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
        text = str | os.PathLike if field == "dataset" else str
        if types[field] == "str" and not isinstance(value, text):
            wanted = "a text"
        elif types[field] == "str | None" and not isinstance(value, str | os.PathLike | None):
            wanted = "a text or None"
        elif field in ("max_source_length", "max_new_tokens") and (type(value) is not int or value < 1):
            wanted = "an integer of at least 1"
        else:
            continue
        raise ValueError(f"{field} of task {name} is {value!r}; allowed: {wanted}")
    return TASKS[name](**fields)
