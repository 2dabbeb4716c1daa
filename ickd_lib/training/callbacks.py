"""Hooks into training, which are called at the start, after each step, after each epoch, and at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tqdm import tqdm

from ickd_lib import runtime
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Count, check

if TYPE_CHECKING:
    from ickd_lib.training.loop import Loop


class Callback:
    """A hook into training. A subclass overrides the methods that it needs.

    Each method receives the `Loop`. Its attributes are `epoch` and `step` (the numbers done so far), `steps` (in an
    epoch), `recipe`, `splits`, `states` (a TrainingState for each student that is still trained, with `learner`,
    `optimizer` and `meters`) and `records` (the RunRecord of each state, with the records so far in `epochs`).

    Attributes:
        needs_eager: whether every step must run eagerly, because the callback observes the inside of a step (with
            forward hooks, for example). A captured step replays its kernels without running the Python code of networks
            and methods. The callback's `step` is called after every step in both cases.
    """

    needs_eager = False

    def start(self, training: Loop) -> None:
        """Run once, before the first step."""

    def step(self, training: Loop) -> None:
        """Run after each step. On a GPU, reading a loss here waits for the step to end."""

    def epoch(self, training: Loop) -> None:
        """Run after each epoch, when its records are complete; `ended` contains the states of its students."""

    def end(self, training: Loop) -> None:
        """Run once, at the end, also when training stops early or fails."""


class ProgressBar(Callback):
    """A progress bar with the epoch, the losses, the latest primary test metric and the training speed.

    If images are streamed, it also shows the share of the time in which steps waited for them.

    Args:
        who: what is trained, such as "teacher resnet20"; by default the number of students.
    """

    def __init__(self, who: str = "") -> None:
        self.who = who

    def start(self, training: Loop) -> None:
        done = training.epoch * training.steps + training.step
        total = training.recipe.epochs * training.steps
        self.bar = tqdm(total=total, initial=done, mininterval=0.5, file=runtime.stream())
        self.shown = 0.0

    def step(self, training: Loop) -> None:
        self.bar.update()
        if (now := time.perf_counter()) - self.shown >= 0.5:
            self.shown = now
            self._show(training)

    def epoch(self, training: Loop) -> None:
        self._show(training)

    def end(self, training: Loop) -> None:
        self.bar.close()

    def _show(self, training: Loop) -> None:
        count, epochs = len(training.states), training.recipe.epochs
        who = self.who or f"{count} student{'s' * (count > 1)}"
        self.bar.set_description(f"{who}, epoch {min(training.epoch + 1, epochs)}/{epochs}")
        shown = _losses(training)
        key = f"test_{training.task.primary}"
        latest = [next((r[key] for r in training.records[s].epochs[::-1] if key in r), None) for s in training.states]
        known = sorted(value for value in latest if value is not None)
        if known:
            shown["test"] = f"{known[0]:.1%}" if len(known) == 1 else f"{known[0]:.1%}–{known[-1]:.1%}"
        if rate := self.bar.format_dict["rate"]:
            shown["images/s"] = f"{rate * training.recipe.batch_size * len(training.states):.0f}"
        if training.states and training.splits.train.streamed:
            state = training.states[0]
            shown["waits for data"] = f"{state.waited / max(state.seconds, 1e-9):.0%}"
        self.bar.set_postfix(shown, refresh=False)


class KeepWeights(Callback):
    """Keep the weights of every `every`-th epoch, as `weights/epoch-0005.safetensors` in the run folder.

    `explore.Attributor` reads them. A network of 78,000 parameters takes 0.3 MB for each.

    Args:
        every: number of epochs between the weights that are kept, which are those that would be evaluated.
    """

    def __init__(self, every: int = 5) -> None:
        check("every", every, Count)
        self.every = every

    def start(self, training: Loop) -> None:
        if any(training.records[state].run is None for state in training.states):
            raise InputError("KeepWeights writes into run folders; give distill runs=FOLDER")

    def epoch(self, training: Loop) -> None:
        for state in training.ended:
            run = training.records[state].run
            if run and state.epoch % self.every == 0 and runtime.rank() == 0:
                path = run.folder / "weights" / f"epoch-{state.epoch:04d}.safetensors"
                path.parent.mkdir(exist_ok=True)
                runtime.save_tensors(path, state.network.state_dict())


def _losses(training: Loop) -> dict[str, str]:
    """Return each loss term of a single student, or the range of the losses of several students.

    They are means over the epoch so far. On a GPU, where values are not read within an epoch, they are those of the
    previous epoch.
    """
    means: list[dict[str, float]] = []
    for state in training.states:
        losses = state.meters.losses
        if losses.device.type == "cpu" and state.step:
            means.append(dict(zip(state.meters.terms, losses[: state.step].mean(0).tolist(), strict=True)))
        else:
            means += [record["terms"] for record in training.records[state].epochs[-1:]]
    if len(training.states) == 1:
        return {term: f"{value:.3f}" for term, value in (means[0] if means else {}).items()}
    sums = [sum(terms.values()) for terms in means]
    return {"loss": f"{min(sums):.3f}–{max(sums):.3f}"} if sums else {}
