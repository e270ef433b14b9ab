"""What is asked: one file each."""

from __future__ import annotations

from ..situations import Book, Crowd, EasyVQA, Grid, Photo, Several
from ._task import Asked, Task
from .at import At
from .count import Count
from .decode import Decode
from .describe import Describe
from .find import Find
from .picture_at import PictureAt
from .picture_describe import PictureDescribe
from .picture_where import PictureWhere
from .places import Places
from .published import Published
from .recite import Recite
from .row import Row
from .where import Where

__all__ = [
    "TASKS",
    "Asked",
    "At",
    "Count",
    "Decode",
    "Describe",
    "Find",
    "PictureAt",
    "PictureDescribe",
    "PictureWhere",
    "Places",
    "Published",
    "Recite",
    "Row",
    "Task",
    "Where",
]

TASKS: tuple[Task, ...] = (
    At(Grid()),
    Where(Grid()),
    Places(Grid()),
    Row(Grid()),
    Describe(Grid()),
    At(Photo()),
    Where(Photo()),
    Describe(Photo()),
    Count(Crowd()),
    Decode(Book()),
    Recite(Book()),
    Find(Book()),
    PictureAt(Several()),
    PictureWhere(Several()),
    PictureDescribe(Several()),
    Published(EasyVQA()),
)
