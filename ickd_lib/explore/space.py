"""The logit space as data: maps of it in the plane, and what a region of it holds."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import metrics, runtime
from ickd_lib.runtime import InputError

# Each map's name for people, the package that makes it, and its settings.
MAPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "umap": ("UMAP", "umap-learn", {"n_neighbors": 15, "min_dist": 0.4, "n_epochs": 200, "metric": "cosine"}),
    "pca": ("PCA", "numpy", {}),
    "tsne": ("t-SNE", "scikit-learn", {"perplexity": 30, "init": "pca"}),
}
FEWEST = 5  # points of which there is a map


def embed(
    logits: Tensor,
    how: str = "umap",
    *,
    seed: int = 0,
    cache: str | Path | None = None,
    told: Callable[[str], Any] | None = None,
) -> np.ndarray:
    """A map of logits in the plane. They are brought to unit length first: angles are what is compared.

    Args:
        logits: shape [N, C], finite; N at least 5, C at least 2.
        how: "umap" (McInnes et al. 2018; cosine distance), "tsne" (van der Maaten and Hinton 2008) or "pca" (the first
            two principal components; the largest loading of each is positive). Few points have fewer neighbours, or a
            lower perplexity.
        seed: the map is a function of it, and of the logits; PCA of the logits alone.
        cache: a folder in which maps are kept, by a fingerprint of the logits, the settings and the version of what
            makes them; None keeps none. A damaged file is made anew. Where the folder cannot be written there is a
            warning, and the map.
        told: called with a remark for the person who waits, before what takes a while.
    Returns:
        float32, shape [N, 2].
    Raises:
        InputError: `how` is unknown; the logits are of another shape, too few, not finite, or all of one direction.
    """
    how = runtime.choose(how, MAPS, "map")
    unit = _unit(logits)
    path = None if cache is None else _file(unit, how, seed, cache)
    kept = None if path is None else _kept(path, len(unit))
    if kept is not None:
        return kept
    if told and (remark := waiting(how, len(unit))):
        told(remark)
    points = np.ascontiguousarray(_make(unit.numpy(), how, seed), dtype=np.float32)
    if path is not None:
        try:
            with runtime.replacing(path) as part, open(part, "wb") as file:
                np.save(file, points, allow_pickle=False)
        except OSError as error:  # it took minutes, perhaps: better a map that is not kept than none
            warnings.warn(f"the map is not kept for the next time: {error}", stacklevel=2)
    return points


def waiting(how: str, count: int) -> str:
    """What to tell the person who waits for a map of `count` points; "" where it comes at once.

    The times were measured on one core of a shared server, for logits of 100 classes.
    """
    how = runtime.choose(how, MAPS, "map")
    if how == "pca":
        return ""
    seconds = 2 + count / (800 if how == "umap" else 120)
    about = f"{5 * max(1, round(seconds / 5))} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"
    remark = f"{MAPS[how][0]} maps {count:,} points, which takes about {about}"
    if how == "umap" and "umap" not in sys.modules:
        first = "a minute and a half" if count > 4096 else "20 seconds"  # beyond, it searches neighbours approximately
        remark += f"; before that it compiles itself, once a session, which takes about {first}"
    return remark + " …"


@dataclass(frozen=True)
class Region:
    """What one network makes of some images, the members of a region of its logit space.

    counts: members by class, shape [C].
    accuracy: the share of members whose largest logit is their class's.
    purity: the share of members that are of the most frequent class among them.
    cohesion: the mean cosine of a member to the members' mean direction; 1 where all point the same way.
    within, margin, negative_margin: as in `metrics.separation`, of the members, among the classes of all images. NaN
        margins where all images are of one class.
    separation: `metrics.separation` of the members alone; None where it is not defined: fewer than two classes with
        two members, or members that all lie on their class's mean.
    nearest, cosine: positions of the images outside that are nearest to the members' mean direction, and their cosine
        to it, shapes [k]; the nearest first.
    """

    counts: Tensor
    accuracy: float
    purity: float
    cohesion: float
    within: float
    margin: float
    negative_margin: float
    separation: dict[str, float] | None
    nearest: Tensor
    cosine: Tensor


def region(
    logits: Tensor,
    labels: Tensor,
    members: Tensor,
    *,
    neighbours: int = 16,
    samples: int = 1000,
    margins: tuple[Tensor, Tensor] | None = None,
) -> Region:
    """What lies in a region of one network's logit space, how well its classes are apart, and what lies next to it.

    Near is what has a high cosine to the members' mean direction, the mean of their unit logits: exact, and one
    product of N rows, where the distance to the nearest member would be a product of N and M. A region in several
    pieces has its mean between them.

    Args:
        logits: the network's, shape [N, C].  labels: shape [N].
        members: positions, shape [M], each once; M at least 1.
        neighbours: how many images outside are wanted.
        samples: the silhouette is taken on at most so many members. Where these would be of one class, all numbers of
            `separation` are taken on as many, among which those of other classes are kept.
        margins: `metrics.margins` of all images, where they are known already.
    Returns:
        A Region, on the CPU.
    Raises:
        InputError: shapes differ; no members, one of them twice, or one out of range.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(f"logits {list(logits.shape)} and labels {list(labels.shape)}; region takes [N, C] and [N]")
    logits, labels, members = logits.detach().float().cpu(), labels.cpu(), members.cpu().long()
    if members.ndim != 1 or not len(members):
        raise InputError(f"members of shape {list(members.shape)}; a region has one or more, [M]")
    if members.min() < 0 or members.max() >= len(logits):
        raise InputError(f"members from {members.min()} to {members.max()}; positions go from 0 to {len(logits) - 1}")
    inside = torch.zeros(len(logits), dtype=torch.bool)
    inside[members] = True
    if int(inside.sum()) < len(members):
        raise InputError(f"{len(members)} members, of which {int(inside.sum())} are different; give each once")

    unit = F.normalize(logits, dim=1)
    own, classes = unit[members], labels[members]
    mean = own.double().mean(0)
    cosine = (unit @ F.normalize(mean, dim=0).float()).masked_fill(inside, -torch.inf)
    nearest = cosine.topk(max(0, min(neighbours, len(logits) - len(members))))
    counts = torch.bincount(classes, minlength=logits.shape[1])
    to_own, margin = (values[members] for values in margins or metrics.margins(unit, labels))
    several = bool(margin.isfinite().all())
    return Region(
        counts=counts,
        accuracy=metrics.accuracy(logits[members], classes),
        purity=int(counts.max()) / len(members),
        cohesion=mean.norm().item(),
        within=to_own.mean().item(),
        margin=margin.mean().item() if several else math.nan,
        negative_margin=(margin < 0).double().mean().item() if several else math.nan,
        separation=_separation(own, classes, samples),
        nearest=nearest.indices,
        cosine=nearest.values,
    )


def positions(text: str, rows: Tensor, where: str) -> Tensor:
    """The positions of the data-set rows that `text` names, as "3 7 10-20"; sorted, each once.

    Args:
        rows: of each image its row, shape [N].
        where: the data's name, for the error.
    Raises:
        InputError: something is no number or range, or names no row there is.
    """
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    for part in text.replace(",", " ").split():
        ends = re.fullmatch(r"(\d{1,12})(?:[-–](\d{1,12}))?", part)
        if not ends:
            raise InputError(f"{part!r} is no row; write rows and ranges such as 3 7 10-20")
        first = int(ends[1])
        found = (rows >= first) & (rows <= int(ends[2] or first))
        if not found.any():
            raise InputError(f"{where} has no row {part}; its rows go from {int(rows.min())} to {int(rows.max())}")
        chosen |= found
    return chosen.nonzero().squeeze(1)


def _separation(unit: Tensor, labels: Tensor, samples: int) -> dict[str, float] | None:
    if int((torch.bincount(labels) >= 2).sum()) < 2:
        return None
    try:
        found = metrics.separation(unit, labels, samples=samples)
    except ZeroDivisionError:
        return None
    except ValueError:  # the silhouette's sample is of one class: the others are few
        most = labels == labels.mode().values
        few, many = (~most).nonzero().squeeze(1), most.nonzero().squeeze(1)
        shuffled = many[torch.randperm(len(many), generator=runtime.generator("region"))]
        kept = torch.cat([few, shuffled])[:samples]
        try:
            found = metrics.separation(unit[kept], labels[kept], samples=samples)
        except (ValueError, ZeroDivisionError):
            return None
    return found if all(np.isfinite(value) for value in found.values()) else None


def _unit(logits: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"logits {list(logits.shape)}; a map takes [N, C] of two classes or more")
    if len(logits) < FEWEST:
        raise InputError(f"{len(logits)} points are too few for a map; give {FEWEST} or more")
    logits = logits.detach().float().cpu()
    if not logits.isfinite().all():
        raise InputError("some logits are nan or infinite; a map needs finite ones: look at the training")
    unit = F.normalize(logits, dim=1)
    if (unit - unit[0]).abs().max() < 1e-6:  # t-SNE would divide by zero, and take the process with it
        raise InputError("all logits point the same way, so there is nothing to map: look at the network")
    return unit


def _settings(how: str, count: int, seed: int) -> dict[str, Any]:
    settings = {**MAPS[how][2]}
    if how == "umap":
        settings |= {"n_neighbors": min(settings["n_neighbors"], count - 1), "random_state": seed}
    if how == "tsne":
        settings |= {"perplexity": min(settings["perplexity"], (count - 1) / 3), "random_state": seed}
    return settings


def _file(unit: Tensor, how: str, seed: int, cache: str | Path) -> Path:
    made_by = version(MAPS[how][1])
    return Path(cache) / f"{how}-{runtime.fingerprint(unit, how, _settings(how, len(unit), seed), made_by)}.npy"


def _kept(path: Path, count: int) -> np.ndarray | None:
    """The map in a file; None where there is none, or the file is damaged."""
    try:
        with open(path, "rb") as file:
            points = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        return None
    fits = points.shape == (count, 2) and points.dtype == np.float32 and bool(np.isfinite(points).all())
    return points if fits else None


def _make(unit: np.ndarray, how: str, seed: int) -> np.ndarray:
    if how == "pca":
        centred = unit.astype(np.float64)
        centred -= centred.mean(0)
        axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, :-3:-1]  # of the largest two, largest first
        axes *= np.sign(np.take_along_axis(axes, abs(axes).argmax(0)[None], 0))
        return centred @ axes
    settings = _settings(how, len(unit), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that do not touch, or of threads, which is nothing to act on
        if how == "tsne":
            from sklearn.manifold import TSNE

            return TSNE(n_jobs=1, **settings).fit_transform(unit)
        from umap import UMAP

        if len(unit) <= 10:  # too few for its spectral start
            settings["init"] = "random"
        return UMAP(n_jobs=1, **settings).fit_transform(unit)
