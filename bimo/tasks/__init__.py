"""Tasks: what a GPT is applied to. Each is one small file on the contract of `task.py`; bring your own in the same way.

A task says how a record becomes messages and a target, how output becomes an answer, and how answers are scored. It
knows no model: templates, trainer, engine and evaluation are the same for all of them.
"""

from bimo.tasks.naming import make_task, task_of
from bimo.tasks.task import Metric, Task, TaskExample

__all__ = ["Metric", "Task", "TaskExample", "make_task", "task_of"]
