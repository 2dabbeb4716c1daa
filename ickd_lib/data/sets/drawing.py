"""Drawing of scenes in integers: several digits on a background, with the pixels that belong to each of them."""

from __future__ import annotations

import numpy as np

SIDE = 96
MOST = 6  # digits in a scene
HEIGHTS = (32, 54)  # smallest and largest height of a digit with its margin; the digit itself takes eight tenths
VISIBLE = 85  # least share of a digit's pixels, in percent, that stays visible when others are drawn over it
BRIGHT = 140  # least brightness of a digit's colour, of 255; most backgrounds are darker
CONTRAST = 40  # least difference in brightness between a digit and what it is drawn on
ATTEMPTS = 10  # places that are tried for a digit
UNIT = 64  # the integer that stands for 1 in fixed-point numbers


class Random:
    """Whole numbers that are the same on every machine: the stream of NumPy's RandomState is fixed for all versions."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def one(self, low: int, end: int) -> int:
        """Draw a number from `low` to `end` - 1."""
        return int(self.state.randint(low, end, dtype=np.int32))

    def many(self, low: int, end: int, *shape: int) -> np.ndarray:
        """Draw an array of such numbers, int32."""
        return self.state.randint(low, end, shape, dtype=np.int32)


def scene(digits: np.ndarray, random: Random) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw a scene.

    Args:
        digits: grey levels from 0 to 16, int32, shape [N, 8, 8].
        random: source of the random numbers.
    Returns:
        The pixels, uint8 [3, SIDE, SIDE]; the object that is visible at each pixel, uint8 [SIDE, SIDE], where 0 is the
        background and objects are numbered from 1 on; and the position in `digits` of each object.
    """
    canvas = _background(random)
    owner = np.zeros((SIDE, SIDE), dtype=np.uint8)
    chosen: list[int] = []
    pixels: list[int] = []  # of each object, before others are drawn over it
    for _ in range(random.one(1, MOST + 1)):
        position = random.one(0, len(digits))
        alpha = _glyph(digits[position], random)
        height, width = alpha.shape
        for _ in range(ATTEMPTS):
            top, left = random.one(0, SIDE - height + 1), random.one(0, SIDE - width + 1)
            area = np.s_[top : top + height, left : left + width]
            inside = alpha >= 128
            changed = owner.copy()
            changed[area][inside] = len(chosen) + 1
            visible = np.bincount(changed.ravel(), minlength=len(chosen) + 2)[1:-1]
            if all(100 * seen >= VISIBLE * all_of_it for seen, all_of_it in zip(visible, pixels, strict=True)):
                _paint(canvas, alpha, top, left, random)
                owner = changed
                chosen.append(position)
                pixels.append(int(inside.sum()))
                break
    return canvas.astype(np.uint8), owner, chosen


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize whole numbers [..., h, w] bilinearly to [..., height, width]; the result is multiplied by UNIT²."""
    return _weights(values.shape[-2], height) @ values @ _weights(values.shape[-1], width).T


def _weights(length: int, size: int) -> np.ndarray:
    """Return the share of each of `length` values in each of `size` interpolated ones, in 1/UNIT, [size, length]."""
    place = (2 * np.arange(size, dtype=np.int32) + 1) * length * UNIT // (2 * size) - UNIT // 2
    distance = abs(place.clip(0, (length - 1) * UNIT)[:, None] - UNIT * np.arange(length, dtype=np.int32))
    return (UNIT - distance).clip(0)


def _glyph(digit: np.ndarray, random: Random) -> np.ndarray:
    """Return the opacity, from 0 to 255, of an enlarged, stretched and slanted digit, int32 [h, w]."""
    height = random.one(HEIGHTS[0], HEIGHTS[1] + 1)
    width = height * random.one(75, 106) // 100
    levels = _resized(np.pad(digit, 1), height, width)
    alpha = ((levels - 4 * UNIT**2) * 255 // (4 * UNIT**2)).clip(0, 255)
    lean = random.one(-25, 26)
    shift = lean * (np.arange(height, dtype=np.int32) - height // 2) // 100
    columns = np.arange(width, dtype=np.int32) + shift[:, None]
    alpha = np.take_along_axis(alpha, columns.clip(0, width - 1), axis=1)
    alpha[(columns < 0) | (columns >= width)] = 0
    y, x = alpha.nonzero()
    return alpha[y.min() : y.max() + 1, x.min() : x.max() + 1]


def _background(random: Random) -> np.ndarray:
    """Return soft clouds of colour with translucent discs and stripes and some noise, int32 [3, SIDE, SIDE]."""
    cells = random.one(2, 6)
    base, spread = random.many(20, 110, 3, 1, 1), random.one(15, 50)
    clouds = (base + random.many(-spread, spread + 1, 3, cells, cells)).clip(0, 255)
    canvas = _resized(clouds, SIDE, SIDE) // UNIT**2
    y, x = np.ogrid[:SIDE, :SIDE]
    for _ in range(random.one(0, 5)):
        colour, (down, right) = random.many(0, 192, 3, 1), random.many(0, SIDE, 2)
        size, (across, along) = random.one(4, 20), random.many(-8, 9, 2)
        if random.one(0, 2):
            shape = (y - down) ** 2 + (x - right) ** 2 <= size**2
        else:
            shape = abs(across * (y - down) + along * (x - right)) <= size * 2
        canvas[:, shape] = (canvas[:, shape] * 3 + colour) // 4
    return (canvas + random.many(-7, 8, SIDE, SIDE)).clip(0, 255)


def _paint(canvas: np.ndarray, alpha: np.ndarray, top: int, left: int, random: Random) -> None:
    """Paint a digit, whose colour changes from its top to its bottom, with a soft shadow on what lies below."""
    height, width = alpha.shape
    area = canvas[:, top : top + height, left : left + width]
    inside = alpha >= 128
    behind = _brightness(area[:, inside].sum(axis=1) // np.count_nonzero(inside))
    colour = random.many(0, 256, 3)
    while _brightness(colour) < BRIGHT or abs(_brightness(colour) - behind) < CONTRAST:
        colour = random.many(0, 256, 3)
    change = random.many(-40, 41, 3)
    down, right = random.one(1, 3), random.one(1, 3)
    shaded = canvas[:, top + down : top + down + height, left + right : left + right + width]
    shaded -= shaded * alpha[: shaded.shape[1], : shaded.shape[2]] // (255 * 3)
    share = np.arange(height, dtype=np.int32)
    fill = (colour[:, None] + change[:, None] * share // height).clip(0, 255)[..., None]
    area += (fill - area) * alpha // 255


def _brightness(colour: np.ndarray) -> int:
    return int(77 * colour[0] + 150 * colour[1] + 29 * colour[2]) >> 8
