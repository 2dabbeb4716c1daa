"""Basics that every other package uses: errors, devices, seeds, files and run folders."""

from ickd_lib.runtime.calls import parse_call
from ickd_lib.runtime.devices import autocast, device, precision
from ickd_lib.runtime.distributed import broadcast, from_main, processes, rank, world
from ickd_lib.runtime.errors import Diverged, InputError, NotFinite, choose, notice, shown
from ickd_lib.runtime.files import fingerprint, read_json, replacing, write_json
from ickd_lib.runtime.folders import Run, run_name, runs
from ickd_lib.runtime.locks import locked, owner
from ickd_lib.runtime.seeds import generator, reseed, seed_of, seeded
from ickd_lib.runtime.threads import dealt_threads, free_threads, same_threads
from ickd_lib.runtime.versions import code, environment, environment_differences

__all__ = [
    "Diverged",
    "InputError",
    "NotFinite",
    "Run",
    "autocast",
    "broadcast",
    "choose",
    "code",
    "dealt_threads",
    "device",
    "environment",
    "environment_differences",
    "fingerprint",
    "free_threads",
    "from_main",
    "generator",
    "locked",
    "notice",
    "owner",
    "parse_call",
    "precision",
    "processes",
    "rank",
    "read_json",
    "replacing",
    "reseed",
    "run_name",
    "runs",
    "same_threads",
    "seed_of",
    "seeded",
    "shown",
    "world",
    "write_json",
]
