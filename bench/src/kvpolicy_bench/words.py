"""Every word of the world. Names, cells and codes are one token each, so that one lookup answers one question."""

from __future__ import annotations

__all__ = ["BOS", "CODES", "EOS", "GLUE", "IMAGE", "NAMES", "NONE", "ORDINALS", "PAD", "SPECIAL", "UNK"]

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(len(SPECIAL))
NONE = -1  # in arrays of word ids: no word here

# The emoji whose drawings by Google and by Twitter are most alike, among those that are not alike to each other.
NAMES = tuple(
    """airplane ambulance avocado axe badger banana bat bear bed blueberries bomb boomerang bow briefcase broccoli
    bucket bulb burrito bus butter cactus cake castle cheese cherries chick church clover coconut coffee coin cucumber
    dart disk dolphin dragon droplet duck eggplant factory flute football giraffe globe grapes guitar heel hibiscus
    honey jeans joystick kangaroo koala ladder ladybug lemon leopard llama lollipop mango maple medal microbe mirror
    moneybag monkey moon mushroom ocean olive otter ox panda paperclip parachute parrot peacock peanuts pencil pepper
    phone pine pineapple pizza plug pretzel printer pushpin radio rainbow ribbon ring rocket rose sauropod saxophone
    scissors scooter screwdriver scroll seedling skateboard snowflake soccer spaghetti speaker star stop sunrise sushi
    swan taco taxi teddy telescope tent toilet tomato tractor train tram truck umbrella volleyball watermelon window
    wine wrench""".split()
)
CODES = tuple(first + second + third for first in "zwvk" for second in "aeio" for third in "bgmp")
ORDINALS = ("one", "two", "three", "four")
GLUE = tuple(
    """what is are at where the read row describe picture count code means ; : nothing answer
    a b c d e f g h 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
    there not no in image does contain present color of shape circle rectangle triangle
    black blue brown gray green red teal yellow yes""".split()
)
