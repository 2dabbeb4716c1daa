"""The image files of a split as a few arrays, so that a million of them need little memory in each process."""

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ickd_lib import runtime
from ickd_lib.data.headers import header_of
from ickd_lib.data.pillow import walked
from ickd_lib.runtime import InputError

AT_ONCE = 256  # number of files whose headers one thread reads before it reports
UNREADABLE, PILLOW, JPEG = 0, 1, 2  # kinds of files: see `Files.kind`


@dataclass(frozen=True, eq=False)
class Files:
    """M files below one folder.

    Python objects for each file would be copied into every worker process as soon as it counts their references;
    arrays stay shared.

    root: the folder.
    names: the paths relative to the folder, one after another in UTF-8, uint8.
    ends: the end of each path in `names`, int64, shape [M].
    bytes: size of each file, int64, shape [M].
    modified: time of its last change in nanoseconds, int64, shape [M].
    sizes: height and width of each image, int32, shape [M, 2]; 0 until `scanned`.
    kind: whether a file is UNREADABLE, read by PILLOW, or a JPEG that torchvision reads too, uint8, shape [M].
    """

    root: str
    names: np.ndarray
    ends: np.ndarray
    bytes: np.ndarray
    modified: np.ndarray
    sizes: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, i: int) -> str:
        """Return the path of a file relative to the folder."""
        return self.names[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes().decode("utf-8", "surrogateescape")

    def path(self, i: int) -> Path:
        """Return the path of a file."""
        return Path(self.root, self.name(i))


def listed(root: Path, folders: Sequence[str]) -> tuple[Files, list[int]]:
    """List the image files below some folders, without opening them. Hidden files are left out.

    Args:
        root: the folder that contains the folders.
        folders: their names. Their files come in this order, and the files of one folder are sorted.
    Returns:
        The files, and their number in each folder.
    """
    from PIL import Image

    extensions = frozenset(Image.registered_extensions())
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda folder: _in_folder(root, folder, extensions), folders))
    names, lengths, bytes_of, modified = (b"".join(one[part] for one in found) for part in range(4))
    count = len(lengths) // 8
    return Files(
        str(root),
        np.frombuffer(names, np.uint8),
        np.frombuffer(lengths, np.int64).cumsum(),
        np.frombuffer(bytes_of, np.int64),
        np.frombuffer(modified, np.int64),
        np.zeros((count, 2), np.int32),
        np.zeros(count, np.uint8),
    ), [len(one) // 8 for _, one, _, _ in found]


def _in_folder(root: Path, folder: str, extensions: frozenset[str]) -> tuple[bytes, bytes, bytes, bytes]:
    """Return names, lengths of the names, sizes and times of the image files in a folder, as bytes of arrays."""
    found: list[tuple[list[str], int, int]] = []
    for below, entries in walked(os.path.join(root, folder)):
        start = "/".join(filter(None, (folder, below)))
        for entry in entries:
            name = f"{start}/{entry.name}"
            if os.path.splitext(name)[1].lower() in extensions:
                try:
                    about = entry.stat()
                    found.append((name.split("/"), about.st_size, about.st_mtime_ns))
                except OSError:  # a link to a missing file, which the scan reports
                    found.append((name.split("/"), -1, 0))
    found.sort()  # part by part, as paths are sorted
    names = ["/".join(parts).encode("utf-8", "surrogateescape") for parts, _, _ in found]
    numbers = ([len(name) for name in names], [size for _, size, _ in found], [time for _, _, time in found])
    return b"".join(names), *(np.array(values, np.int64).tobytes() for values in numbers)  # type: ignore[return-value]


def scanned(files: Files, what: str) -> Files:
    """Return the files with the size and kind of each image, from their headers, which are read in threads.

    The result is kept in `cache_folder()`; only files that are new or have changed are opened again.

    Args:
        files: files that `listed` returned.
        what: what the progress bar calls them.
    """
    kept = cache_folder() / f"scan-{runtime.fingerprint(os.path.abspath(files.root))}.npz"
    sizes, kind = files.sizes.copy(), files.kind.copy()
    known = _known(files, kept, sizes, kind)
    waiting = (~known).nonzero()[0]

    def read(some: np.ndarray) -> np.ndarray:
        for i in some.tolist():
            try:
                height, width, jpeg = header_of(files.path(i))
                sizes[i], kind[i] = (height, width), JPEG if jpeg else PILLOW
            except InputError:
                kind[i] = UNREADABLE
        return some

    parts = np.split(waiting, range(AT_ONCE, len(waiting), AT_ONCE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about large images, which are unreadable here
        for_all(read, parts, f"scanning {what}", len(waiting), len)
    result = replace(files, sizes=sizes, kind=kind)
    if len(waiting):
        _keep(result, kept)
    return result


def for_all(
    function: Callable[[np.ndarray], np.ndarray],
    parts: Iterable[np.ndarray],
    what: str,
    total: int,
    count: Callable[[np.ndarray], int],
) -> None:
    """Call a function of each part in threads, with a progress bar. The first error ends all threads."""
    pool = ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1)))  # they mostly wait for the disk
    try:
        hidden = {} if total else {"disable": True}  # where it is not given, tqdm reads TQDM_DISABLE
        with tqdm(None, what, total, leave=False, unit="image", file=runtime.stream(), **hidden) as bar:
            for done in pool.map(function, parts):
                bar.update(count(done))
    finally:
        pool.shutdown(cancel_futures=True)


def cache_folder() -> Path:
    """Return the folder of scans and statistics of data sets: ICKD_CACHE, else `ickd` in the user's cache folder."""
    given = os.environ.get("ICKD_CACHE", "")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ickd"


def remembered(name: str, kinds: dict[str, type], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a JSON file in `cache_folder()`, which is made and written if it is not there.

    Args:
        name: name of the file.
        kinds: the type of each value in it; a file with other content is made again.
        make: returns the content.
    """
    path = cache_folder() / name
    try:
        found = runtime.read_json(path)
        if isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
            return found
    except (InputError, OSError):
        pass
    found = make()
    with contextlib.suppress(OSError):  # the scan has printed a note of it
        runtime.write_json(path, found)
    return found


def _known(files: Files, kept: Path, sizes: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Copy what an earlier scan found of files that did not change since, and return which these are, bool [M]."""
    known = np.zeros(len(files), bool)
    try:
        with np.load(kept) as content:
            old = Files(files.root, *(content[name] for name in FIELDS))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # there is none, or it is damaged
        return known
    if len(old) == len(files) and np.array_equal(old.ends, files.ends) and np.array_equal(old.names, files.names):
        at = np.arange(len(files))
    else:
        place = {old.name(i): i for i in range(len(old))}
        at = np.array([place.get(files.name(i), -1) for i in range(len(files))], np.int64)
    if len(old):
        known = (at >= 0) & (old.bytes[at] == files.bytes) & (old.modified[at] == files.modified)
        known &= old.kind[at] != UNREADABLE
        sizes[known], kind[known] = old.sizes[at[known]], old.kind[at[known]]
    return known


FIELDS = ("names", "ends", "bytes", "modified", "sizes", "kind")


def _keep(files: Files, path: Path) -> None:
    """Write what a scan found; a note is printed if that is not possible."""
    try:
        with runtime.replacing(path) as part, open(part, "wb") as file:
            np.savez(file, **{name: getattr(files, name) for name in FIELDS})
    except OSError as error:
        runtime.notice(
            f"the headers of the images are read again at each start, because {path} cannot be written: {error}"
        )
