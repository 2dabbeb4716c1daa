"""The look of all figures: matplotlib settings, a style for each method, colours for classes, and number formats."""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike

WIDTH = 10.0  # inches, the width of a notebook's column
PALETTE: list[tuple[float, float, float]] = list(sns.color_palette("colorblind"))
LINES = ("-", "--", "-.", ":", (0, (7, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAGothic", "NanumGothic", "Source Han Sans SC"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
)
HATCHES = ("", "///", "...", "xxx", "---")
REST = {"color": "0.85", "marker": "o"}  # the look of the group of all classes without a colour
SAME, OTHER = PALETTE[0], PALETTE[3]  # in-context samples of the query's class, and of other classes

# Colour (index into PALETTE), line style and marker of the methods that most figures contain. Line style and marker
# remain distinct in a greyscale figure. For any other method, the three are computed from its name.
_KNOWN = {
    "ce": (7, ":", "v"),
    "ls": (5, "-.", "<"),
    "kd": (1, "--", "s"),
    "picd": (2, (0, (7, 1.5)), "^"),
    "nicd": (4, (0, (3, 1, 1, 1, 1, 1)), "D"),
    "ickd": (0, "-", "o"),
    "ckd": (3, "-.", "P"),
    "refilled": (9, "--", "X"),
    "lskd": (1, "-.", "D"),
    "lwf": (1, ":", "P"),
    "dkd": (4, "--", "s"),
    "dist": (6, "-", "^"),
    "mlkd": (3, ":", "D"),
    "rkd": (2, "-.", "p"),
    "pkt": (2, ":", "<"),
    "sp": (5, "--", ">"),
    "cskd": (5, ":", "p"),
    "at": (7, "--", "X"),
    "crd": (9, ":", "P"),
    "crd_bank": (9, ":", "v"),
    "ickd_online": (0, "--", "P"),
    "ickd_self": (9, "-", "s"),
    "dml": (3, "--", "^"),
    "kdcl": (4, "-.", "v"),
    "pskd": (2, ":", "X"),
    "tfkd": (5, (0, (7, 1.5)), "D"),
    "uskd": (5, "-", "o"),
    "nkd": (4, "-", "p"),
    "ctkd": (1, "-", "X"),
    "ttm": (6, "--", "D"),
    "wttm": (6, ":", "P"),
    "skd": (3, "-", "<"),
    "wkd_l": (8, "--", "o"),
    "wkd_f": (8, ":", "s"),
    "fitnet": (7, "-", ">"),
    "vid": (7, "-.", "p"),
    "reviewkd": (8, "-", "D"),
    "catkd": (6, "-.", "X"),
    "simkd": (4, ":", "<"),
    "seed": (9, "-.", "^"),
}


def use(dark: bool = False) -> None:
    """Set matplotlib's defaults so that figures are readable at a notebook's width, on screens and in print.

    Chinese, Japanese and Korean characters are drawn with the fonts in `FALLBACKS` that are installed.

    Args:
        dark: whether the figures are displayed on a page with a dark theme.
    """
    installed = set(font_manager.get_font_names())
    ground, ink, line = ("#111111", "0.9", "0.3") if dark else ("white", "black", "0.9")
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "figure.figsize": (WIDTH, 4),
            "font.family": ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)],
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "grid.color": line,
            "figure.facecolor": ground,
            "axes.facecolor": ground,
            "savefig.facecolor": ground,
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.axisbelow": True,
            "lines.markersize": 5,
            "image.interpolation": "nearest",
        }
    )


def method_style(name: str) -> dict[str, Any]:
    """Return colour, line style and marker of a method, the same in every figure.

    Args:
        name: a method as `methods.create` takes it, "teacher", or "pixels". A variant such as "ickd(nicd=0)" has the
            colour of its method, and another line style and marker.
    """
    base, bracket, arguments = name.lower().partition("(")
    base = base.strip()
    if base == "teacher":
        dark = to_rgb(mpl.rcParams["figure.facecolor"])[0] < 0.5
        return {"color": "0.95" if dark else "0.1", "linestyle": "-", "marker": "*"}
    if base == "pixels":
        return {"color": PALETTE[5], "linestyle": ":", "marker": "x"}
    code = zlib.crc32(base.encode())
    colour, line, marker = _KNOWN.get(base, (code % 10, LINES[code // 10 % len(LINES)], MARKERS[code // 60 % 10]))
    if bracket:
        code = zlib.crc32(arguments.replace(" ", "").encode())
        line = [other for other in LINES if other != line][code % (len(LINES) - 1)]
        marker = [other for other in MARKERS if other != marker][code // 5 % (len(MARKERS) - 1)]
    return {"color": PALETTE[colour], "linestyle": line, "marker": marker}


def looks(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return one style for each name, such as "kd, seed 0": that of the method with which the name begins.

    Further names that begin with the same method have darker shades of its colour, and other line styles and markers.
    """
    found: list[dict[str, Any]] = []
    before: dict[str, int] = {}
    for name in names:
        match = re.match(r"[^\s(,]+(\([^)]*\)[^\s(,]*)*", name)
        method = match[0] if match else name
        look, n = method_style(method), before.get(method, 0)
        before[method] = n + 1
        if n:
            colour = to_rgb(look["color"])
            look["color"] = tuple(max(0.7**n, 0.3) * part for part in colour)
            for key, every in (("linestyle", LINES), ("marker", MARKERS)):
                at = every.index(look[key]) if look[key] in every else 0
                look[key] = every[(at + n) % len(every)]
        found.append(look)
    return found


def _shaded(part: float, dark: bool) -> float:
    return 1 - 0.55 * (1 - part) if dark else 0.55 * part


def class_colours(
    classes: Sequence[str],
    superclasses: Sequence[str] = (),
    superclass_of: Sequence[int] = (),
    highlight: Sequence[int] = (),
    dark: bool = False,
) -> tuple[list[str], list[int], list[dict[str, Any]]]:
    """Choose groups of classes to colour, and a colour and marker for each group.

    Up to ten classes are one group each. More classes are grouped by superclass; without superclasses, ten classes
    have a group each and all others are grey.

    Args:
        classes: names of the C classes.
        superclasses, superclass_of: names of the superclasses, and the superclass of each class; empty for none.
        highlight: at most ten classes that are coloured while all others are grey. If empty, and there are more than
            ten classes and no superclasses, these are the first ten classes.
        dark: whether the background is dark.
    Returns:
        Names of the groups, group of each class [C], and colour and marker of each group, which are REST for a group of
        all other classes. Twenty groups have different looks: groups 11 to 20 have another marker and the colours of
        the first ten in a darker shade (a lighter one on a dark background).
    """
    rest = False  # whether the last group is that of all other classes
    if len(classes) <= 10 and not highlight:
        names, group = list(classes), list(range(len(classes)))
    elif superclasses and not highlight:
        names, group = list(superclasses), list(superclass_of)
    else:
        chosen = list(highlight)[:10] or list(range(10))
        names, rest = [classes[c] for c in chosen] + ["others"], True
        group = [chosen.index(c) if c in chosen else len(chosen) for c in range(len(classes))]
    looks: list[dict[str, Any]] = [
        {
            "color": tuple(_shaded(part, dark) if i // 10 % 2 else part for part in PALETTE[i % 10]),
            "marker": ("o", "^", "s", "D")[i // 10 % 4],
        }
        for i in range(len(names))
    ]
    if rest:
        looks[-1] = dict(REST)
    return names, group, looks


def by_superclass(
    classes: Sequence[str], superclasses: Sequence[str] = (), superclass_of: Sequence[int] = ()
) -> tuple[list[int], list[tuple[str, int]]]:
    """Return an order of the C classes in which each superclass is one block, and the name and length of each block."""
    if not superclasses:
        return list(range(len(classes))), [(name, 1) for name in classes]
    order = sorted(range(len(classes)), key=lambda c: (superclass_of[c], c))
    return order, [(name, list(superclass_of).count(s)) for s, name in enumerate(superclasses)]


def wrapped(name: str) -> str:
    """Break a long method name into several lines, for an axis or a legend."""
    return textwrap.fill(name, 30, break_long_words=False)


def array(values: Any) -> np.ndarray:
    """Convert a tensor on any device, or anything else that NumPy accepts, to a NumPy array."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def mean_and_std(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (ddof = 1) over the first axis; the deviation of a single value is 0."""
    stacked = np.asarray(values, dtype=float)
    spread = stacked.std(0, ddof=1) if len(stacked) > 1 else np.zeros_like(stacked[0])
    return stacked.mean(0), spread


def mean_std_text(mean: float, std: float, count: int, digits: int = 1) -> str:
    """Return a text such as "94.1 ± 0.5", or only the mean where there is one value."""
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if count > 1 else "")
