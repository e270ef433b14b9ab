"""Where information lives in a prompt: one file each."""

from __future__ import annotations

from .book import Book
from .crowd import Crowd
from .easy_vqa import EasyVQA
from .grid import Grid
from .photo import Photo
from .several import Several

__all__ = ["Book", "Crowd", "EasyVQA", "Grid", "Photo", "Several"]
