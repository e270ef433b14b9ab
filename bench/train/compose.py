"""Draw whole batches of pictures where the model is. `kvpolicy_bench.drawing` is the slow truth beside it."""

from __future__ import annotations

from dataclasses import fields

import torch
from kvpolicy_bench.assets import SHAPE, TILE, Split, atlas, photos, shapes
from kvpolicy_bench.pictures import Pictures
from kvpolicy_bench.words import NAMES
from kvpolicy_bench.world import World

__all__ = ["Composer", "Parts"]

Parts = dict[str, torch.Tensor]  # the arrays of `Pictures`, by name, on the model's device


class Composer:
    """The vendored pictures as tensors, and how a picture is put together from them."""

    def __init__(self, world: World, device: torch.device, split: Split = "train") -> None:
        self.world, self.device = world, device
        tiles = torch.from_numpy(atlas("google")[[NAMES.index(name) for name in world.names]])
        nothing = torch.zeros(1, *tiles.shape[1:])  # where -1 leads: transparent
        self.tiles = torch.cat([tiles, nothing]).to(device)
        self.photos = torch.from_numpy(photos()).to(device)
        self.shapes = torch.from_numpy(shapes(split).images).to(device)

    def parts(self, pictures: Pictures) -> Parts:
        """Bring a batch's numbers to the device."""
        named = {field.name: torch.from_numpy(getattr(pictures, field.name)) for field in fields(pictures)}
        return {name: values.to(self.device, non_blocking=True) for name, values in named.items()}

    def draw(self, parts: Parts) -> torch.Tensor:
        """The pictures, float32 [N, side, side, 3]: whole numbers from 0 to 255."""
        grid, side = self.world.grid, self.world.side
        tiles = self.tiles[parts["objects"]].reshape(-1, grid, grid, TILE, TILE, 4)
        tiles = tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 4)
        behind = self._background(parts)
        return (behind + tiles[..., 3:] * (tiles[..., :3] - behind)).round()

    def pixels(self, parts: Parts) -> torch.Tensor:
        """The pictures as the model reads them, float32 [N, 3, side, side] in -1..1."""
        return (self.draw(parts) / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()

    def _background(self, parts: Parts) -> torch.Tensor:
        side = self.world.side
        steps = torch.arange(side, device=self.device)
        across = torch.where(parts["mirror"][:, None], side - 1 - steps, steps)
        down = torch.where(parts["upside"][:, None], side - 1 - steps, steps)
        top, left, cut = parts["crop"][:, :, None].unbind(1)
        photo = _cut(self.photos, parts["photo"], top + down * cut // side, left + across * cut // side)
        photo = (photo * parts["gain"][:, None, None, None]).clamp(max=255)
        shape = _cut(self.shapes, parts["shape"], down * SHAPE // side, across * SHAPE // side)
        plain = parts["colour"][:, None, None, :]
        behind = torch.where((parts["photo"] >= 0)[:, None, None, None], photo, plain)
        return torch.where((parts["shape"] >= 0)[:, None, None, None], shape, behind)


def _cut(images: torch.Tensor, number: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """float32 [N, side, side, 3]; where ``number`` is -1, some image that will not be seen."""
    return images[number.clamp(min=0)[:, None, None], down[:, :, None], across[:, None, :]].float()
