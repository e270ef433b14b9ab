"""Build the demo's emoji atlas and background photographs from two published packages.

    npm pack emoji-datasource-google@16.0.0      (images: Noto Emoji, Apache-2.0)
    pip download --no-deps scikit-image==0.26.0  (photographs: CC0 or public domain, see NOTICE)

    python scripts/build_demo_assets.py EMOJI_TGZ_DIR SKIMAGE_WHEEL_DIR

Both arguments are the unpacked packages. The output is committed; this script is kept so that it can be made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from kvpolicy_hf.demo.scenes import ASSETS, NAMES, TILE

PHOTOS = {  # name in scikit-image -> the square to crop (left, top, side)
    "chelsea.png": (60, 0, 300),
    "coffee.png": (100, 0, 400),
    "rocket.jpg": (107, 0, 427),
    "hubble_deep_field.jpg": (50, 50, 700),
    "gravel.png": (0, 0, 512),
    "grass.png": (0, 0, 512),
    "brick.png": (0, 0, 512),
}
PHOTO_SIDE = 256


def build_atlas(package: Path) -> None:
    """Write one row of 32-pixel RGBA tiles in the order of `NAMES`."""
    entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    files = {name: entry["image"] for entry in entries for name in entry["short_names"]}
    atlas = Image.new("RGBA", (TILE * len(NAMES), TILE))
    for column, name in enumerate(NAMES):
        with Image.open(package / "img" / "google" / "64" / files[name]) as picture:
            tile = picture.convert("RGBA").resize((TILE, TILE), Image.Resampling.LANCZOS)
        atlas.paste(tile, (TILE * column, 0))
    atlas.save(ASSETS / "atlas.png", optimize=True)


def build_photos(package: Path) -> None:
    """Write each photograph as a small square JPEG."""
    for name, (left, top, side) in PHOTOS.items():
        with Image.open(package / "skimage" / "data" / name) as picture:
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
        small = square.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
        small.save(ASSETS / "photos" / f"{Path(name).stem}.jpg", quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    (ASSETS / "photos").mkdir(parents=True, exist_ok=True)
    build_atlas(Path(sys.argv[1]))
    build_photos(Path(sys.argv[2]))
