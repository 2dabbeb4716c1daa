"""Run folders: the settings, records, checkpoint, weights and summary of one student."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ickd_lib.runtime.errors import InputError, shown
from ickd_lib.runtime.files import fingerprint, flush, read_json, remove_parts, replacing, write_error, write_json
from ickd_lib.runtime.locks import LOCK

LONGEST = 150  # largest number of bytes in a name; file systems allow 255
RESERVED = ("jobs", "teachers")  # folders in the folder of all runs that contain other things


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries, with their keys joined by dots."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found


def run_name(given: str) -> str:
    """Check the name that a caller gives to a run folder.

    Raises:
        InputError: the name is not one path component of letters, digits and . _ = + -, is too long, does not begin
            with a letter or a digit, or is that of a folder with other content.
    """
    if not re.fullmatch(r"[^\W_][\w.=+-]*", given) or len(given.encode()) > LONGEST:
        raise InputError(
            f"name={given!r} cannot be the name of a run folder; use up to {LONGEST} bytes of letters, digits and "
            ". _ = + -, beginning with a letter or digit"
        )
    if given.lower() in RESERVED:
        raise InputError(
            f"name={given!r} cannot be the name of a run folder, as {given}/ has other content; use another"
        )
    return given


def runs_folder(given: str | Path | None) -> None:
    """Check the folder of all runs that a caller gives; None is accepted.

    Raises:
        InputError: it has the name of a folder inside such a folder, so that its students would count as teachers.
    """
    if given is not None and (name := Path(given).resolve().name).lower() in RESERVED:
        raise InputError(
            f"{given} cannot be the folder of all runs, as {name}/ in such a folder has other content; use another"
        )


def default_name(label: str, settings: dict[str, Any]) -> str:
    """Return `label`, with hyphens for characters that are not allowed, followed by a fingerprint of `settings`."""
    cleaned = re.sub(r"[^\w.=+-]+", "-", label).strip("-.=+_") or "run"
    return f"{_cut(cleaned, LONGEST - 7)}-{fingerprint(settings)[:6]}"


def shortened(name: str, longest: int = LONGEST) -> str:
    """Return a name of at most `longest` bytes; a longer one is cut and ends with a fingerprint of the whole name."""
    return name if len(name.encode()) <= longest else f"{_cut(name, longest - 7)}-{fingerprint(name)[:6]}"


def _cut(name: str, longest: int) -> str:
    return name.encode()[:longest].decode(errors="ignore")


@contextlib.contextmanager
def complete(run: str | Path) -> Iterator[None]:
    """Raise the errors that the files of a damaged run lead to, such as a missing key, as an InputError in one line."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, OSError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{run} is not a complete run ({text}); restore or remove it") from None


class Run:
    """A run folder: the settings of one student, its metrics by epoch, its checkpoint, weights and summary.

    config.json contains `settings` (everything that identifies the run), `numerics` (device, precision, threads and
    everything else that changes rounding; a resumed run uses them again), `environment` (versions and commit), `group`
    (an identifier that is shared by students that were trained together), `evaluation_crop` (see `ImageSplit`),
    `held_out`, the number of images held out of train, `evaluated_on`, the fingerprints of the images "val" and "test"
    (None for an empty split). If parts of it are the user's own, it also contains `wrapped`, the normalisation, size of
    the images and layers of the network, and `sources`, fingerprints of the source of their classes (None where that is
    not available). Runs of earlier versions lack the last four.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | Path, settings: dict[str, Any], *, resume: bool = True) -> Run:
        """Return the run in `folder`, which is either new or to be resumed. `create` writes the files of a new run.

        Raises:
            InputError: the folder contains a run with other settings, any run while `resume` is False, or other files.
        """
        run = cls(folder)
        if not run.exists():
            if run.folder.exists() and not run.folder.is_dir():
                raise InputError(f"{folder} is a file, not a folder; name another folder")
            if run.folder.is_dir() and any(p for p in run.folder.iterdir() if p.name != LOCK and p.suffix != ".part"):
                raise InputError(f"{folder} contains files but no run; name another folder")
            return run
        if not resume:
            raise InputError(f"{folder} already contains a run; name another folder, or resume it")
        there, given = run.settings, json.loads(json.dumps(settings))
        if there != given:
            one, other = flat(there), flat(given)
            changed = sorted(k for k in {*one, *other} if one.get(k) != other.get(k))
            first = changed[0]
            few = changed if len(changed) <= 5 else sorted({key.partition(".")[0] for key in changed})
            raise InputError(
                f"{folder} contains a run with {first}={shown(one.get(first))}, not {shown(other.get(first))} "
                f"(differing: {', '.join(few)}); name another folder, or remove it"
            )
        return run

    def create(
        self,
        settings: dict[str, Any],
        numerics: dict[str, Any],
        group: str,
        environment: dict[str, Any],
        evaluation_crop: dict[str, Any] | None = None,
        held_out: int = 0,
        evaluated_on: dict[str, str | None] | None = None,
        **recorded: Any,
    ) -> None:
        """Write config.json; `recorded` are further entries."""
        config = {"settings": settings, "numerics": numerics, "group": group, "environment": environment}
        others = {"evaluation_crop": evaluation_crop or {}, "held_out": held_out, "evaluated_on": evaluated_on or {}}
        write_json(self.folder / "config.json", {**config, **others, **recorded})

    def clean(self) -> None:
        """Remove what killed processes left of the run's files. The run must be locked."""
        if self.folder.is_dir():
            remove_parts(self.folder, ended=False)

    @property
    def role(self) -> str:
        """ "teacher" for a run in a folder named teachers, however its path is written; otherwise "student"."""
        return "teacher" if "teachers" in (self.folder.parent.name, self.folder.resolve().parent.name) else "student"

    def exists(self) -> bool:
        """Whether the folder contains a config.json."""
        return (self.folder / "config.json").is_file()

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json. In runs of earlier versions, the numerics have the key "path".

        Raises:
            InputError: the file is missing, or is not the configuration of a run.
        """
        config = read_json(self.folder / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise InputError(f"{self.folder}/config.json is not the configuration of a run; name another folder")
        if "path" in config:
            config["numerics"] = config.pop("path")
        return config

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in config.json."""
        return self.config["settings"]

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None for a run that is not finished."""
        path = self.folder / "summary.json"
        return read_json(path) if path.is_file() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one per epoch; a last line that is incomplete after a crash is left out."""
        path = self.folder / "metrics.jsonl"
        records = []
        for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                break
        return records

    def readable_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Return the records of the first `epochs` epochs, up to the first one that is damaged."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(KeyError, TypeError, ValueError):
            for record in self.metrics:
                if record["epoch"] != len(found) + 1 or len(found) == epochs:
                    break
                found.append(record)
        return found

    def keep_metrics(self, records: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew with some records; those of later epochs are written again by a resumed run."""
        self.require()
        with replacing(self.folder / "metrics.jsonl") as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        """Append the record of one epoch to metrics.jsonl.

        Raises:
            InputError: the run was removed.
            OSError: the file cannot be written.
        """
        self.require()
        path = self.folder / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise write_error(error, path) from None

    def flush_metrics(self) -> None:
        """Wait until metrics.jsonl is on the disk, before a file is written from which the training is resumed."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            flush(path)

    def require(self) -> None:
        """Raise InputError if the run was removed while it was trained, so that no part of it is written anew."""
        if not self.exists():
            raise InputError(f"{self.folder} was removed while it was trained; start again to train anew")

    def require_finished(self) -> None:
        """Raise InputError if the run is not finished."""
        if self.summary is None:
            epochs = self.settings["recipe"]["epochs"]
            done = f"{len(self.readable_metrics(epochs))} of {epochs} epochs are done"
            raise InputError(f"{self.folder} is not finished ({done}); resume it with the command that started it")


def runs(folder: str | Path) -> list[Run]:
    """Return every run at or below `folder`, sorted by path.

    Raises:
        InputError: there is no run.
    """
    found = [Run(path) for path in sorted(path for path, files in below(folder) if "config.json" in files)]
    if not found:
        raise InputError(f"no runs (folders with a config.json) below {folder}")
    return found


def below(folder: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and each one below it, with the names of its files; what several links lead to, only once."""
    seen = set()
    # Unlike rglob, walk goes on when a folder is removed meanwhile.
    for path, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(path), files
