"""Tasks: data sets with their prompts, references and metrics."""

import dataclasses

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


def make_task(name: str, **fields: object) -> Task:
    """Makes a task.

    Args:
        name: a key of TASKS.
        **fields: fields of the task; the others keep their defaults.

    Raises:
        ValueError: an unknown task or an unknown field.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; allowed: {', '.join(TASKS)}")
    allowed = [field.name for field in dataclasses.fields(TASKS[name]) if field.init]
    if unknown := [field for field in fields if field not in allowed]:
        raise ValueError(f"task {name} has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return TASKS[name](**fields)
