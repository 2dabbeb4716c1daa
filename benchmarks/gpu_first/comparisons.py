"""Trainings that must end at the same weights: captured and eager, together and alone, with a cache, resumed."""

from __future__ import annotations

from typing import Any

import cifar100
from setting import Problem, Setting, Trained, check, difference

from ickd_lib.training import Callback
from ickd_lib.training.loop import stop_training

EQUAL = 1e-4  # largest difference of the weights of two trainings that compute the same
NEAR = 1e-3  # the same where rounding differs: in bf16, and with outputs of a cache, which are in half precision


def captured_fp32(setting: Setting) -> dict[str, Any]:
    """`kd` in fp32: captured steps train as eager ones do, also with a small last batch, and were captured."""
    return _captured(setting, "kd", "fp32", EQUAL)


def captured_bf16(setting: Setting) -> dict[str, Any]:
    """The same in bf16, with a folded teacher."""
    return _captured(setting, "kd", "bf16", NEAR)


def phases(setting: Setting) -> dict[str, Any]:
    """`refilled`, which trains in two phases, is captured once for each."""
    return _captured(setting, "refilled", "fp32", 10 * EQUAL, epochs=4, captures=2)


def decomposition(setting: Setting) -> dict[str, Any]:
    """`skd`, whose loss decomposes a matrix, is captured."""
    return _captured(setting, "skd", "fp32", 10 * EQUAL)


def adamw(setting: Setting) -> dict[str, Any]:
    """`kd` with AdamW is captured."""
    return _captured(setting, "kd", "fp32", 10 * EQUAL, optimizer="adamw")


def _captured(
    setting: Setting,
    method: str,
    precision: str,
    tolerance: float,
    epochs: int = 3,
    captures: int = 1,
    optimizer: str = "sgd",
) -> dict[str, Any]:
    given: dict[str, Any] = {"epochs": epochs, "precision": precision, "optimizer": optimizer}
    (eager,) = setting.train(method, capture=False, **given)
    (again,) = setting.train(method, capture=False, **given)
    (captured,) = setting.train(method, **given)
    measured = {
        "eager_twice": difference(eager, again),
        "captured_against_eager": difference(eager, captured),
        "captures": captured.captures,
        "replays": captured.replays,
        "losses": captured.losses,
    }
    return check(
        measured,
        (measured["captured_against_eager"] <= max(tolerance, 2 * measured["eager_twice"]), "the weights differ"),
        *_were_captured(setting, captured, captures),
    )


def _were_captured(setting: Setting, trained: Trained, captures: int) -> list[tuple[bool, str]]:
    """Return the requirements that steps were captured on a GPU, and that none were on a CPU."""
    expected = captures if setting.cuda else 0
    return [
        (trained.captures == expected, f"{trained.captures} steps were captured instead of {expected}"),
        (bool(trained.replays) == setting.cuda, f"{trained.replays} steps were replayed"),
    ]


def one_pass(setting: Setting) -> dict[str, Any]:
    """The methods of the table train in one pass as each does alone."""
    names = cifar100.of_stage("table", cifar100.PLANS["published"], ("resnet32x4", "resnet8x4"))
    together = setting.train(*names, epochs=4)
    found: dict[str, float] = {}
    captured: dict[str, int] = {}
    for name, one in zip(names, together, strict=True):
        try:
            (alone,) = setting.train(name, epochs=4)
        except Exception as error:
            raise Problem(f"{name}: {type(error).__name__}: {error}", differences=found) from error
        found[name], captured[name] = difference(one, alone), alone.replays
    wrong = [name for name, value in found.items() if not value <= 10 * EQUAL]
    eager = [name for name, replays in captured.items() if bool(replays) != setting.cuda]
    return check(
        {"differences": found, "replays_alone": captured, "replays_together": together[0].replays},
        (not wrong, f"the weights of {', '.join(wrong)} differ"),
        (not eager, f"wrongly captured or not captured: {', '.join(eager)}"),
        (bool(together[0].replays) == setting.cuda, f"{together[0].replays} steps of all were replayed"),
    )


def cache(setting: Setting) -> dict[str, Any]:
    """A teacher cache, also one that is too small for all outputs, gives the targets that the teacher does."""
    (without,) = setting.train("kd")
    folder = setting.scratch / "cache"
    (full,) = setting.train("kd", teacher_cache=folder)
    (read,) = setting.train("kd", teacher_cache=folder)
    (little,) = setting.train("kd", teacher_cache=setting.scratch / "little", teacher_cache_gigabytes=2e-5)
    measured = {
        "cache_against_teacher": difference(without, full),
        "read_again": difference(full, read),
        "over_capacity": difference(full, little),
        "replays": [one.replays for one in (without, full, read, little)],
    }
    return check(
        measured,
        (measured["cache_against_teacher"] <= NEAR, "a training with a cache differs"),
        (measured["read_again"] <= EQUAL, "a training with the same cache differs"),
        # Other batches of the teacher are rounded otherwise on a GPU.
        (
            measured["over_capacity"] <= (NEAR if setting.cuda else EQUAL),
            "a cache over its capacity makes a difference",
        ),
        *_were_captured(setting, full, 1),
    )


class Stop(Callback):
    """Stops a training in its second epoch."""

    def step(self, training: Any) -> None:
        if (training.epoch, training.step) == (1, 2):
            stop_training()


def resume(setting: Setting) -> dict[str, Any]:
    """A training with a cache that is stopped in the middle of an epoch goes on as if it had not been."""
    given: dict[str, Any] = {"teacher_cache": setting.scratch / "resumed-cache"}
    (whole,) = setting.train("ickd", **given)
    given["runs"] = setting.scratch / "resumed"
    try:
        setting.train("ickd", stop=Stop(), **given)
    except KeyboardInterrupt:
        (resumed,) = setting.train("ickd", **given)
    else:
        raise Problem("the training was not stopped")
    found = difference(whole, resumed)
    return check({"resumed_against_whole": found}, (found <= EQUAL, "the resumed training differs"))
