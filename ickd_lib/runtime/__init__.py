"""Basics that every other package uses: errors, devices, seeds, files and run folders."""

from ickd_lib.runtime.calls import parse_call
from ickd_lib.runtime.devices import autocast, device, precision
from ickd_lib.runtime.distributed import broadcast, from_main, processes, rank, world
from ickd_lib.runtime.errors import Diverged, InputError, NotFinite, choose, notice, shown, stream
from ickd_lib.runtime.files import fingerprint, read_json, replacing, require_writable, write_json
from ickd_lib.runtime.folders import Run, below, complete, flat, run_name, runs, runs_folder, shortened
from ickd_lib.runtime.locks import locked, owner, remove_leftover
from ickd_lib.runtime.seeds import generator, kept_generators, reseed, seed_of, seeded
from ickd_lib.runtime.stops import between_blocks, stopping_between_blocks
from ickd_lib.runtime.tensors import (
    KINDS,
    check_object,
    check_tensors,
    not_read,
    reason,
    save_object,
    save_tensors,
    writing_tensors,
)
from ickd_lib.runtime.threads import dealt_threads, free_threads, own_cores, same_threads
from ickd_lib.runtime.versions import code, environment, environment_differences, own_source

__all__ = [
    "KINDS",
    "Diverged",
    "InputError",
    "NotFinite",
    "Run",
    "autocast",
    "below",
    "between_blocks",
    "broadcast",
    "check_object",
    "check_tensors",
    "choose",
    "code",
    "complete",
    "dealt_threads",
    "device",
    "environment",
    "environment_differences",
    "fingerprint",
    "flat",
    "free_threads",
    "from_main",
    "generator",
    "kept_generators",
    "locked",
    "not_read",
    "notice",
    "own_cores",
    "own_source",
    "owner",
    "parse_call",
    "precision",
    "processes",
    "rank",
    "read_json",
    "reason",
    "remove_leftover",
    "replacing",
    "require_writable",
    "reseed",
    "run_name",
    "runs",
    "runs_folder",
    "same_threads",
    "save_object",
    "save_tensors",
    "seed_of",
    "seeded",
    "shortened",
    "shown",
    "stopping_between_blocks",
    "stream",
    "world",
    "write_json",
    "writing_tensors",
]
