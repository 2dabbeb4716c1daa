"""Seeds, devices, precision, files that are never half written, and run folders with their records."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class InputError(ValueError):
    """Something the caller gave cannot work. The message is one line: given, expected, what to do."""


class Diverged(ArithmeticError):
    """A loss term became NaN or infinite. The message names the term and the step."""


# ---------------------------------------------------------------------------------------------- names


def choose(name: str, options: Iterable[str], what: str) -> str:
    """The option called `name` in any case; InputError naming the nearest one when there is none."""
    known = list(options)
    folded = {option.lower(): option for option in known}
    if isinstance(name, str) and name.lower() in folded:
        return folded[name.lower()]
    near = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    listed = ", ".join(known) if len(known) <= 40 else f"{len(known)} names, such as {', '.join(known[:5])}"
    raise InputError(f"unknown {what} {name!r}; {hint}(known: {listed})")


# Every parameter a notebook may have: its type, and the bound that a number must respect.
_POSITIVE, _NOT_NEGATIVE = (lambda v: v > 0, "above 0"), (lambda v: v >= 0, "0 or more")
PARAMETERS: dict[str, tuple[type, tuple[Callable[[Any], bool], str] | None]] = {
    "dataset": (str, (lambda v: bool(v), "digits, cifar100 or folder:PATH")),
    "data_root": (str, None),
    "download": (bool, None),
    "image_size": (int, _NOT_NEGATIVE),
    "teacher": (str, (lambda v: bool(v), "a model's name")),
    "teacher_weights": (str, None),
    "teacher_epochs": (int, _POSITIVE),
    "student": (str, (lambda v: bool(v), "a model's name")),
    "methods": (list, (lambda v: len(v) > 0, "at least one method")),
    "baselines": (list, (lambda v: len(v) > 0, "at least one method")),
    "offline": (list, (lambda v: len(v) > 0, "at least one method")),
    "peers": (list, (lambda v: len(v) > 0, "at least one model's name")),
    "labels": (int, _NOT_NEGATIVE),
    "augment": (str, (lambda v: bool(v), "crop, randaugment, mixup or cutmix")),
    "shots": (list, (lambda v: all(isinstance(n, int) and n > 0 for n in v) and len(v) > 0, "numbers above 0")),
    "exemplars": (list, (lambda v: all(isinstance(n, int) and n >= 0 for n in v) and len(v) > 0, "numbers from 0 on")),
    "steps": (int, _POSITIVE),
    "epochs": (int, _POSITIVE),
    "batch_size": (int, _POSITIVE),
    "lr": (float, _POSITIVE),
    "schedule": (str, None),
    "seeds": (int, _POSITIVE),
    "seed": (int, _NOT_NEGATIVE),
    "positives": (int, _POSITIVE),
    "negatives": (int, _POSITIVE),
    "queries": (int, _POSITIVE),
    "points": (int, _POSITIVE),
    "samples": (int, _POSITIVE),
    "alpha": (float, (lambda v: 0 < v <= 1, "above 0 and at most 1")),
    "temperature": (float, _POSITIVE),
    "evaluate_every": (int, _POSITIVE),
    "device": (str, None),
    "precision": (str, (lambda v: v in ("auto", "fp32", "bf16"), "auto, fp32 or bf16")),
    "runs": (str, (lambda v: bool(v), "a folder")),
    "output": (str, (lambda v: bool(v), "a folder")),
}


def check_parameters(namespace: dict[str, Any], names: str) -> dict[str, Any]:
    """A notebook's parameters, checked: call it with `globals()` in the cell after the parameters.

    papermill only warns of a parameter that a notebook does not have; here it is an error.

    Args:
        namespace: the notebook's `globals()`.
        names: the notebook's parameters, separated by spaces.
    Returns:
        The parameters and their values.
    Raises:
        InputError: a parameter is unknown, missing, of another type or out of its range.
    """
    declared = names.split()
    shell = {"In", "Out", "exit", "quit", "open", "get_ipython"}
    literal = (str, int, float, list, dict, tuple, type(None))
    for name, value in namespace.items():
        if not name.startswith("_") and name not in shell and isinstance(value, literal):
            if name not in declared:
                choose(name, declared, "parameter")
                raise InputError(f"parameter {name!r} is spelt {choose(name, declared, 'parameter')!r}")
    checked = {}
    for name in declared:
        kind, bound = PARAMETERS[name]
        if name not in namespace:
            raise InputError(f"parameter {name!r} is missing from the parameters cell; give it a {kind.__name__}")
        value = namespace[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise InputError(f"parameter {name}={value!r} is a {type(value).__name__}; expected {kind.__name__}")
        if bound and not bound[0](value):
            raise InputError(f"parameter {name}={value!r} is out of range; expected {bound[1]}")
        checked[name] = value
    return checked


# ------------------------------------------------------------------------- devices, precision and seeds


def device(name: str | torch.device = "auto") -> torch.device:
    """ "auto" is the GPU where there is one, else the CPU; asking for a GPU that is not there is an error."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {str(name)!r}; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {str(name)!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA GPUs; "
            "use device='cpu', or install a CUDA build of torch"
        )
    return chosen


def precision(name: str, where: torch.device, image_size: int) -> str:
    """ "auto": bf16 where the hardware multiplies it natively and images have 16 pixels or more, or fp32."""
    if name not in ("auto", "fp32", "bf16"):
        raise InputError(f"unknown precision {name!r}; use auto, fp32 or bf16")
    if name != "auto":
        return name
    if where.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(
            getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("amx_tile", "avx512_bf16")
        )
    return "bf16" if native and image_size >= 16 else "fp32"


def autocast(where: torch.device, chosen: str) -> torch.autocast:
    """The context in which networks compute under the precision `chosen` ("fp32" or "bf16")."""
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=chosen == "bf16")


def seed_of(*keys: object) -> int:
    """A seed that is a function of `keys`."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:7], "little")


def generator(*keys: object) -> torch.Generator:
    """A CPU generator that is a function of `keys` alone: generator(data_seed, "order", epoch)."""
    return torch.Generator().manual_seed(seed_of(*keys))


def reseed(where: torch.device, *keys: object) -> None:
    """Make torch's global generators, of the CPU and of `where`, a function of `keys`.

    torch.manual_seed does the same for every backend there might be, 200 times as slowly.
    """
    torch.default_generator.manual_seed(seed_of(*keys))
    if where.type == "cuda":
        torch.cuda.manual_seed_all(seed_of(*keys))


@contextlib.contextmanager
def seeded(*keys: object) -> Iterator[None]:
    """Inside, torch's global generators are a function of `keys`; outside, they are as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(*keys))
        yield


# --------------------------------------------------------------------------------- files and fingerprints


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the path this yields; it takes `path`'s place when all is written, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"no space left while writing {path}; free some and run again") from None
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; InputError naming the file when it is not there or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is not there; is this a run folder?") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); restore or remove it") from None


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that change with any tensor's values, shape or type and with any plain value."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, dict) and any(isinstance(v, Tensor) for v in part.values()):
            digest.update(fingerprint(*(x for key in sorted(part) for x in (key, part[key]))).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def code() -> str:
    """A fingerprint of the source that determines a run's result: another one may give another result."""
    here = Path(__file__).resolve().parent
    parts = ("runtime", "data", "models", "memory", "losses", "methods", "metrics", "training")
    files = [path for part in parts for path in (here / f"{part}.py", *(here / part).glob("*.py")) if path.is_file()]
    return fingerprint(*(path.read_text() for path in sorted(files)))


def environment(where: torch.device) -> dict[str, Any]:
    """What a result depends on beside its settings: versions, commit, device, threads."""
    try:
        here = Path(__file__).resolve().parent
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
        revision = commit.stdout.strip() + ("-modified" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    return {
        "commit": revision,
        "code": code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(where),
        "device_name": name,
    }


# -------------------------------------------------------------------------------------------- run folders


class Run:
    """A run folder: one student's settings, its metrics by epoch, its checkpoint, weights and summary.

    config.json holds `settings` (what was asked, which identifies the run), `path` (the numerical path taken:
    device, precision, threads; a resumed run takes it again), `environment` and `group`.

    Args:
        folder: where the run lives.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | Path, settings: dict[str, Any], *, resume: bool = True) -> Run:
        """The run in `folder`, new or to be resumed; `create` writes a new one's config.

        Raises:
            InputError: the folder holds a run of other settings, or any run while `resume` is False, or
                other files.
        """
        run = cls(folder)
        if not run.exists():
            if run.folder.is_dir() and any(p for p in run.folder.iterdir() if not p.name.endswith(".part")):
                raise InputError(f"{folder} holds files but no run; name another folder")
            return run
        if not resume:
            raise InputError(f"{folder} already holds a run; name another folder, or resume it")
        there, asked = run.config["settings"], json.loads(json.dumps(settings))
        if there != asked:
            changed = sorted(k for k in {*there, *asked} if there.get(k) != asked.get(k))
            first = changed[0]
            raise InputError(
                f"{folder} holds a run with {first}={there.get(first)!r}, not {asked.get(first)!r} "
                f"(differing: {', '.join(changed)}); name another folder, or remove that one"
            )
        return run

    def create(self, settings: dict[str, Any], path: dict[str, Any], group: str, where: torch.device) -> None:
        """Write config.json."""
        config = {"settings": settings, "path": path, "group": group, "environment": environment(where)}
        write_json(self.folder / "config.json", config)

    def exists(self) -> bool:
        return (self.folder / "config.json").is_file()

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The finished run's summary.json, or None while it is not finished."""
        path = self.folder / "summary.json"
        return read_json(path) if path.is_file() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one an epoch; a last line that a kill cut short is left out."""
        path = self.folder / "metrics.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def keep_metrics(self, epochs: int) -> None:
        """Drop the records of epochs beyond the first `epochs`, which a resumed run makes again."""
        records = [r for r in self.metrics if r["epoch"] <= epochs]
        with replacing(self.folder / "metrics.jsonl") as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in records))

    def log(self, record: dict[str, Any]) -> None:
        """Append one epoch's record to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")


def runs(folder: str | Path) -> list[Run]:
    """Every run at or below `folder`, sorted by path; InputError when there is none."""
    found = [Run(p.parent) for p in sorted(Path(folder).rglob("config.json"))]
    if not found:
        raise InputError(f"no runs (folders with a config.json) below {folder}")
    return found
