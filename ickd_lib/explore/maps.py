"""Maps of a logit space: the samples' logits as points in the plane."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import checked

# For each kind of map its name in figures, the package that computes it, and its settings.
MAPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "umap": ("UMAP", "umap-learn", {"n_neighbors": 15, "min_dist": 0.4, "n_epochs": 200, "metric": "cosine"}),
    "pca": ("PCA", "numpy", {}),
    "tsne": ("t-SNE", "scikit-learn", {"perplexity": 30, "init": "pca"}),
}
FEWEST = 5  # points that a map needs


@checked
def embed(
    logits: Tensor,
    how: str = "umap",
    *,
    seed: int = 0,
    cache: str | Path | None = None,
    report: Callable[[str], Any] | None = None,
) -> np.ndarray:
    """Compute a map of logits in the plane. The logits are first scaled to unit length, so only their directions count.

    Args:
        logits: finite logits, shape [N, C] with N at least 5 and C at least 2.
        how: "umap" (McInnes et al. 2018; cosine distance), "tsne" (van der Maaten and Hinton 2008) or "pca" (the first
            two principal components; the largest loading of each is positive). With few points, UMAP uses fewer
            neighbours and t-SNE a lower perplexity.
        seed: seed of UMAP and t-SNE. The map is a function of the seed and the logits; PCA needs no seed.
        cache: a folder in which maps are stored, named by a fingerprint of the logits, the settings and the version of
            the computing package. None stores nothing. A damaged file is ignored, and the map is computed again. If the
            folder cannot be written, a warning is issued and the map is returned all the same.
        report: called with a message before a computation that takes some time.
    Returns:
        Coordinates of the N points, float32, shape [N, 2].
    Raises:
        InputError: `how` is unknown; the logits have a wrong shape, are too few or not finite, or all have the same
            direction.
    """
    how = runtime.choose(how, MAPS, "map")
    unit = _unit(logits)
    path = None if cache is None else _file(unit, how, seed, cache)
    stored = None if path is None else _stored(path, len(unit))
    if stored is not None:
        return stored
    if report and (message := waiting(how, len(unit))):
        report(message)
    points = np.ascontiguousarray(_compute(unit.numpy(), how, seed), dtype=np.float32)
    if path is not None:
        try:
            with runtime.replacing(path) as part, open(part, "wb") as file:
                np.save(file, points, allow_pickle=False)
        except OSError as error:  # the map may have taken minutes: returning it matters more than storing it
            warnings.warn(f"the map could not be stored and will be computed again next time: {error}", stacklevel=2)
    return points


def waiting(how: str, count: int) -> str:
    """Return a message about how long a map takes, or "" for a kind of map that is computed at once.

    The times were measured on one core of a shared server, for logits of 100 classes.

    Args:
        how: "umap", "tsne" or "pca".
        count: number of points.
    Raises:
        InputError: `how` is unknown.
    """
    how = runtime.choose(how, MAPS, "map")
    if how == "pca":
        return ""
    seconds = 2 + count / (800 if how == "umap" else 120)
    duration = f"{5 * max(1, round(seconds / 5))} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"
    message = f"{MAPS[how][0]} of {count:,} points takes about {duration}"
    if how == "umap" and "umap" not in sys.modules:
        # With more than 4,096 points UMAP searches neighbours approximately, and this code takes longer to compile.
        first = "a minute and a half" if count > 4096 else "20 seconds"
        message += f"; before that, UMAP is compiled once in each session, which takes about {first}"
    return message + " …"


def _unit(logits: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"a map takes logits of shape [N, C] with two classes or more, not {list(logits.shape)}")
    if len(logits) < FEWEST:
        raise InputError(f"{len(logits)} points are too few for a map; pass {FEWEST} or more")
    logits = logits.detach().float().cpu()
    if not logits.isfinite().all():
        raise InputError("some logits are nan or infinite, and a map needs finite ones; check the network's training")
    unit = F.normalize(logits, dim=1)
    if (unit - unit[0]).abs().max() < 1e-6:  # t-SNE would divide by zero and crash the process
        raise InputError("all logits have the same direction, so there is nothing to map; check the network")
    return unit


def _settings(how: str, count: int, seed: int) -> dict[str, Any]:
    settings = {**MAPS[how][2]}
    if how == "umap":
        settings |= {"n_neighbors": min(settings["n_neighbors"], count - 1), "random_state": seed}
    if how == "tsne":
        settings |= {"perplexity": min(settings["perplexity"], (count - 1) / 3), "random_state": seed}
    return settings


def _file(unit: Tensor, how: str, seed: int, cache: str | Path) -> Path:
    package_version = version(MAPS[how][1])
    return Path(cache) / f"{how}-{runtime.fingerprint(unit, how, _settings(how, len(unit), seed), package_version)}.npy"


def _stored(path: Path, count: int) -> np.ndarray | None:
    """Read a map from a file; return None where the file is missing or damaged."""
    try:
        with open(path, "rb") as file:
            points = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        return None
    fits = points.shape == (count, 2) and points.dtype == np.float32 and bool(np.isfinite(points).all())
    return points if fits else None


def _compute(unit: np.ndarray, how: str, seed: int) -> np.ndarray:
    if how == "pca":
        centred = unit.astype(np.float64)
        centred -= centred.mean(0)
        axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, :-3:-1]  # those of the two largest eigenvalues
        axes *= np.sign(np.take_along_axis(axes, abs(axes).argmax(0)[None], 0))
        return centred @ axes
    settings = _settings(how, len(unit), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unconnected parts and threads; the user need not react to them
        if how == "tsne":
            from sklearn.manifold import TSNE

            return TSNE(n_jobs=1, **settings).fit_transform(unit)
        from umap import UMAP

        if len(unit) <= 10:  # too few points for the spectral initialisation
            settings["init"] = "random"
        return UMAP(n_jobs=1, **settings).fit_transform(unit)
