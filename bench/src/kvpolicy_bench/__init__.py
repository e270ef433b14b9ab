"""Tasks that differ in where information lives, and the small vision-language model that answers them."""

from __future__ import annotations

from .sample import Sample, encode
from .tasks import TASKS, Task
from .world import FULL, TINY, World

__all__ = ["FULL", "TASKS", "TINY", "Sample", "Task", "World", "encode"]
