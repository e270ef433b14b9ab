"""Build the emoji atlases, background photographs and Easy-VQA arrays from published packages.

    npm pack emoji-datasource-google@16.0.0      (Noto Emoji: what the model is trained on)
    npm pack emoji-datasource-twitter@16.0.0     (Twemoji: the same names in a style that training never sees)
    pip download --no-deps scikit-image==0.26.0 scikit-learn==1.9.1 easy-vqa==1.0

    python bench/build_assets.py FOLDER

FOLDER holds the five packages unpacked, in ``google``, ``twitter``, ``skimage``, ``sklearn`` and ``easy_vqa``: each the
folder that has the files (``emoji.json``, ``data/``, ``datasets/``, ``data/``). The output is committed; this script is
kept so that it can be made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "src"))
from kvpolicy_bench.assets import FOLDER, PHOTO, SHAPE, TILE
from kvpolicy_bench.words import NAMES

SHORT = {  # our one word -> the package's name, where they differ
    "bow": "bow_and_arrow",
    "castle": "european_castle",
    "cheese": "cheese_wedge",
    "chick": "baby_chick",
    "clover": "four_leaf_clover",
    "disk": "floppy_disk",
    "globe": "earth_africa",
    "heel": "high_heel",
    "honey": "honey_pot",
    "maple": "maple_leaf",
    "panda": "panda_face",
    "pepper": "hot_pepper",
    "pine": "evergreen_tree",
    "plug": "electric_plug",
    "giraffe": "giraffe_face",
    "scooter": "motor_scooter",
    "stop": "octagonal_sign",
    "teddy": "teddy_bear",
    "wine": "wine_glass",
}
PHOTOS = {  # file -> the square to crop (left, top, side)
    "skimage/data/brick.png": (0, 0, 512),
    "skimage/data/chelsea.png": (60, 0, 300),
    "skimage/data/coffee.png": (100, 0, 400),
    "skimage/data/grass.png": (0, 0, 512),
    "skimage/data/gravel.png": (0, 0, 512),
    "skimage/data/hubble_deep_field.jpg": (50, 50, 700),
    "skimage/data/rocket.jpg": (107, 0, 427),
    "sklearn/datasets/images/china.jpg": (106, 0, 427),
    "sklearn/datasets/images/flower.jpg": (106, 0, 427),
}


def build_atlas(source: Path, style: str) -> None:
    """Write 32-pixel RGBA tiles, sixteen a row, in the order of `NAMES`."""
    entries = json.loads((source / style / "emoji.json").read_text(encoding="utf-8"))
    files = {name: entry["image"] for entry in entries for name in entry["short_names"]}
    atlas = Image.new("RGBA", (TILE * 16, TILE * -(-len(NAMES) // 16)))
    for number, name in enumerate(NAMES):
        with Image.open(source / style / "img" / style / "64" / files[SHORT.get(name, name)]) as picture:
            tile = picture.convert("RGBA").resize((TILE, TILE), Image.Resampling.LANCZOS)
        atlas.paste(tile, (TILE * (number % 16), TILE * (number // 16)))
    atlas.save(FOLDER / f"{style}.png", optimize=True)


def build_photos(source: Path) -> None:
    """Write each photograph as a small square JPEG."""
    for name, (left, top, side) in PHOTOS.items():
        with Image.open(source / name) as picture:
            square = picture.convert("RGB").crop((left, top, left + side, top + side))
        small = square.resize((PHOTO, PHOTO), Image.Resampling.LANCZOS)
        small.save(FOLDER / "photos" / f"{Path(name).stem}.jpg", quality=85)


def build_shapes(source: Path, split: str) -> None:
    """Write one split of Easy-VQA: its images, its texts once each, and (image, question, answer) triples."""
    data = source / "easy_vqa" / "data" / split
    asked = json.loads((data / "questions.json").read_text(encoding="utf-8"))
    images = np.empty((1 + max(number for _, _, number in asked), SHAPE, SHAPE, 3), np.uint8)
    for number in range(len(images)):
        with Image.open(data / "images" / f"{number}.png") as picture:
            images[number] = np.asarray(picture.convert("RGB"))
    questions = sorted({question.lower().rstrip("?") for question, _, _ in asked})
    answers = sorted({answer for _, answer, _ in asked})
    triples = [
        (image, questions.index(question.lower().rstrip("?")), answers.index(answer))
        for question, answer, image in asked
    ]
    np.savez_compressed(
        FOLDER / f"easy_vqa_{split}.npz",
        images=images,
        questions=np.array(questions),
        answers=np.array(answers),
        asked=np.array(sorted(triples, key=lambda triple: triple[0]), np.int16),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    (FOLDER / "photos").mkdir(parents=True, exist_ok=True)
    build_atlas(Path(sys.argv[1]), "google")
    build_atlas(Path(sys.argv[1]), "twitter")
    build_photos(Path(sys.argv[1]))
    build_shapes(Path(sys.argv[1]), "train")
    build_shapes(Path(sys.argv[1]), "test")
