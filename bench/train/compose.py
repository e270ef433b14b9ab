"""Draw whole batches of pictures where the model is. `kvpolicy_bench.drawing` is the slow truth beside it."""

from __future__ import annotations

from dataclasses import fields

import torch
from kvpolicy_bench.assets import SHAPE, TILE, Split, atlas, photos, shapes
from kvpolicy_bench.pictures import Pictures
from kvpolicy_bench.words import NAMES, NONE
from kvpolicy_bench.world import World

from .shaped import shaped

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
        self.shaped = torch.from_numpy(shaped(world, split)).to(device)
        self.cell = torch.from_numpy(world.cell_of_token).to(device)
        self.name_ids, self.cell_ids = (torch.from_numpy(ids).to(device) for ids in (world.name_ids, world.cell_ids))

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

    def words(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
        """What each image token shows and in which cell, as word ids, int64 [N, tokens]; `NONE` where that is open."""
        emoji = parts["shape"][:, None] < 0
        names = self.name_ids[parts["objects"][:, self.cell]]
        steps = torch.arange(self.shaped.shape[1], device=self.device)
        across, down = _ways(steps, parts)
        shape = _cut(self.shaped, parts["shape"], down, across)
        cells = self.cell_ids[self.cell].expand_as(names)
        return torch.where(emoji, names, shape.flatten(1)), torch.where(emoji, cells, NONE)

    def _background(self, parts: Parts) -> torch.Tensor:
        side = self.world.side
        steps = torch.arange(side, device=self.device)
        across, down = _ways(steps, parts)
        top, left, cut = parts["crop"][:, :, None].unbind(1)
        photo = _cut(self.photos, parts["photo"], top + down * cut // side, left + across * cut // side)
        photo = (photo * parts["gain"][:, None, None, None]).clamp(max=255)
        shape = _cut(self.shapes, parts["shape"], down * SHAPE // side, across * SHAPE // side)
        plain = parts["colour"][:, None, None, :]
        behind = torch.where((parts["photo"] >= 0)[:, None, None, None], photo, plain)
        return torch.where((parts["shape"] >= 0)[:, None, None, None], shape, behind)


def _ways(steps: torch.Tensor, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The steps across and down each picture, int64 [N, steps] each: backwards where it is mirrored or upside down."""
    back = steps.flip(0)
    return torch.where(parts["mirror"][:, None], back, steps), torch.where(parts["upside"][:, None], back, steps)


def _cut(images: torch.Tensor, number: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """[N, down, across, ...]; where ``number`` is -1, some image that will not be seen."""
    return images[number.clamp(min=0)[:, None, None], down[:, :, None], across[:, None, :]]
