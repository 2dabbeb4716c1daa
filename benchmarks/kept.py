"""Packs what the next call of `cifar100.py` needs into a few small files, and unpacks them on another machine.

    python benchmarks/kept.py pack RUNS FOLDER [--megabytes 15]
    python benchmarks/kept.py unpack FOLDER RUNS

Some machines are lent for minutes, keep no files, and return small files only. What is packed from the folder --runs of
`cifar100.py` are the trained teachers, the unfinished runs with their checkpoints, and the JSON files of finished runs,
but not the teacher cache, which is computed again.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

PART = "kept.{:02d}"


def needed(runs: Path) -> list[Path]:
    """Return the files that the next call needs."""
    files = sorted(runs.rglob("json/**/*.json"))
    for folder in sorted(path.parent for path in runs.rglob("config.json")):
        finished = (folder / "summary.json").exists()
        if not finished or folder.parent.name == "teachers":
            files += [path for path in sorted(folder.iterdir()) if not (finished and path.name == "checkpoint.pt")]
    return files


def pack(runs: Path, folder: Path, megabytes: float) -> list[Path]:
    """Write the parts of a tar file into `folder`, each of at most so many megabytes, and return their paths."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in needed(runs):
            archive.add(path, path.relative_to(runs))
    folder.mkdir(parents=True, exist_ok=True)
    size, whole, parts = int(megabytes * 1e6), content.getvalue(), []
    for number, start in enumerate(range(0, len(whole), size)):
        parts.append(folder / PART.format(number))
        parts[-1].write_bytes(whole[start : start + size])
    return parts


def unpack(folder: Path, runs: Path) -> None:
    """Restore the files from the parts in `folder`; those that `runs` has already are overwritten."""
    parts = sorted(folder.glob(PART.format(0)[:-2] + "*"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        archive.extractall(runs, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--megabytes", type=float, default=15.0, help="largest size of a part")
    given = parser.parse_args()
    if given.way == "unpack":
        unpack(given.source, given.target)
        return
    for part in pack(given.source, given.target, given.megabytes):
        print(f"{part}: {part.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
