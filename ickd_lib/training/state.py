"""The state of a student's training: epoch and step, optimiser, meters, and the student's own bank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Images
from ickd_lib.memory import DynamicBank, MemoryBank
from ickd_lib.methods import Retrieval
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged
from ickd_lib.runtime.distributed import total
from ickd_lib.tasks import Samples, Task
from ickd_lib.training.data_parallel import same_buffers
from ickd_lib.training.optimizers import Average, Optimizer
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.students import Learner

EMPTY = torch.empty(0)


@dataclass
class Meters:
    """The losses and counts of an epoch. All tensors are on the device, and no step reads their values on the host.

    Before the first step they are empty.

    terms: names of the loss terms.
    losses: value of each term in each step, shape [steps, terms].
    correct: number of samples for which the label was predicted.
    seen: number of all samples that have a label.
    agreed: number of samples for which a peer predicted the same class, averaged over the peers.
    """

    terms: list[str] = field(default_factory=list)
    losses: Tensor = EMPTY
    correct: Tensor = EMPTY
    seen: Tensor = EMPTY
    agreed: Tensor = EMPTY

    def add(
        self,
        terms: dict[str, Tensor],
        samples: Samples,
        peers: list[Samples],
        step: Tensor,
        steps: int,
        fresh: bool,
        *,
        part: bool = False,
        unlabelled: bool = False,
    ) -> None:
        """Count one step.

        Args:
            terms: the loss terms.
            samples: samples of the student.
            peers: samples of its peers.
            step: number of the step in the epoch, shape [1], on the device.
            steps: number of steps of an epoch.
            fresh: whether it is the first step of the epoch, in which new terms may begin.
            part: whether terms and samples are those of this process's part of the batch.
            unlabelled: whether some samples have no label.
        """
        device = samples.logits.device
        if not self.terms or (fresh and self.terms != list(terms)):
            self.terms = list(terms)
            self.losses = torch.zeros(steps, len(terms), device=device)
            self.correct = torch.zeros((), dtype=torch.long, device=device)
            self.seen = torch.zeros((), dtype=torch.long, device=device)
            self.agreed = torch.zeros((), dtype=torch.double, device=device)
        losses = torch.stack([term.detach() for term in terms.values()])
        predicted = samples.logits.detach().argmax(1)
        counts = [(predicted == samples.labels).sum(), *((predicted == peer.logits.argmax(1)).sum() for peer in peers)]
        seen: int | Tensor = (samples.labels >= 0).sum() if unlabelled else len(predicted)
        if part and runtime.world() > 1:
            own = torch.stack([*losses.double() / runtime.world(), *counts, torch.as_tensor(seen, device=device)])
            every = total(own)
            losses, (*counts, seen) = every[: len(terms)].to(losses.dtype), every[len(terms) :].long()
        self.losses.index_copy_(0, step, losses[None])
        self.correct += counts[0]
        self.seen += seen
        for count in counts[1:]:
            self.agreed += count / len(peers)

    def clear(self) -> None:
        """Start a new epoch. The tensors keep their addresses, because a captured step writes to these."""
        for kept in (self.losses, self.correct, self.seen, self.agreed):
            kept.zero_()


class TrainingState:
    """The state of one student's training. Only the step function and the loop change it.

    Args:
        learner: the student.
        recipe: the settings of its training.
        steps: number of steps of an epoch.
        size: height and width of the images in pixels.
    Attributes:
        epoch, step: number of epochs that are done, and of steps that are done in the present epoch.
        seconds: time that the training took so far.
        waited: the part of it in which a step waited for streamed images.
        replaced: number of streamed images that could not be decoded and were replaced.
        checked: whether the loss terms of the method have been checked, which the first step does.
        phase: number of the method's restarts that have passed.
        retrieves: the in-context samples from the teacher's bank that the coming step uses.
        memory: the student's own bank if its method or a peer uses one, else None.
        teacher_rows: the student's copy of the teacher's bank if its method requests a dynamic bank, else None.
        average: the moving average of its weights if the recipe has one, else None.
    """

    def __init__(self, learner: Learner, recipe: Recipe, steps: int, size: tuple[int, int]) -> None:
        self.learner, self.recipe, self.steps = learner, recipe, steps
        self.epoch = self.step = self.phase = 0
        self.seconds = self.waited = 0.0
        self.replaced = 0
        self.checked = False
        self.retrieves: tuple[Retrieval, ...] = ()
        self.meters = Meters()
        self.optimizer = Optimizer(learner.network, learner.method, recipe, size)
        self.average = Average(learner.network, recipe.ema) if recipe.ema else None
        self.memory: MemoryBank | None = None
        self.teacher_rows: DynamicBank | None = None
        self._restored_rows: dict[str, Tensor] = {}
        self._phases = recipe.phases(learner.method.restarts)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step."""
        return self.epoch, self.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.recipe.epochs

    @property
    def network(self) -> Network:
        """The network that is evaluated and kept: the average of the weights if there is one."""
        return self.average.network if self.average else self.learner.network

    def keep_bank(self, task: Task, train: Images) -> None:
        """Create the student's own bank, with an empty row for each training sample."""
        self.memory = MemoryBank.empty(train, self.learner.network.features_dim, task=task)

    def keep_teacher_rows(self, bank: MemoryBank, *, features: bool) -> None:
        """Create the student's copy of the teacher's bank, with the content in the checkpoint if there is one.

        Args:
            bank: the teacher's bank.
            features: whether features are written too.
        """
        self.teacher_rows = DynamicBank(bank, features=features)
        self.teacher_rows.restore(self._restored_rows)
        self._restored_rows = {}

    def prepare(self) -> tuple[int, tuple[Retrieval, ...]]:
        """Set the phase and the learning rates of the coming step.

        Returns:
            The phase, and the in-context samples that the step uses. Steps that differ in these do different work.
        """
        method = self.learner.method
        since, self.phase, lr = self._schedule(self.step)
        if since == 0:
            self.optimizer.forget()
        relative = method.embedding_rates
        self.optimizer.set_rates(relative[min(self.phase, len(relative) - 1)] * lr, lr)
        self.retrieves = tuple(
            spec for spec in method.retrievals if spec.source == "teacher" and self.retrieval_started(spec.start)
        )
        return self.phase, self.retrieves

    def lr(self, step: int) -> float:
        """Return the learning rate of a step of the present epoch."""
        return self._schedule(step)[2]

    def _schedule(self, step: int) -> tuple[float, int, float]:
        """Return epochs since the phase began, the phase, and the learning rate of a step of the present epoch."""
        done = self.epoch + step / self.steps
        start, phase, recipe = [found for found in self._phases if found[0] <= self.epoch][-1]
        return done - start, phase, recipe.lr_at(done - start, 1 / self.steps)

    def retrieval_started(self, start: float) -> bool:
        """Return whether the share `start` of the training is done."""
        return self.epoch + self.step / self.steps >= start * self.recipe.epochs

    def share_buffers(self) -> None:
        """Give all processes the buffers of process 0, such as batch-norm statistics."""
        same_buffers(self.learner.network)
        same_buffers(self.network)

    def check_losses(self) -> None:
        """Raise Diverged if a loss of this epoch is NaN or infinite."""
        losses = self.meters.losses[: self.step]
        if bool(losses.isfinite().all()):
            return
        step, term = (~losses.isfinite()).nonzero()[0].tolist()
        what = f"loss term {self.meters.terms[term]!r} became {losses[step, term].item()}"
        raise Diverged(f"{self.learner.name}: {what} at epoch {self.epoch + 1}, step {step + 1}", step=step)

    def check_weights(self, *, others: bool = False) -> None:
        """Raise Diverged if a value of the network is NaN or infinite, or with `others` one of the whole state."""
        state = self.state_dict() if others else {"network": self.learner.network.state_dict()}
        if name := not_finite({key: value for key, value in state.items() if key != "meters"}):
            where = f"at epoch {self.epoch + 1}, step {self.step}"
            raise Diverged(f"{self.learner.name}: {name} has values that are not finite {where}")

    def end_epoch(self) -> None:
        """Go to the next epoch."""
        self.meters.clear()
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to continue the training exactly."""
        learner = self.learner
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "waited": self.waited,
            "meters": vars(self.meters),
            "network": learner.network.state_dict(),
            "method": learner.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.tensors if self.memory else {},
            "teacher_rows": self.teacher_rows.content if self.teacher_rows else {},
            "average": self.average.network.state_dict() if self.average else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.waited = state.get("waited", 0.0)
        self.meters = Meters(**state["meters"])
        self.learner.network.load_state_dict(state["network"])
        self.learner.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.memory:
            self.memory.restore(state["memory"])
        self._restored_rows = state.get("teacher_rows", {})  # until the teacher's bank exists
        if self.average:
            self.average.network.load_state_dict(state["average"])


def not_finite(value: Any, name: str = "") -> str:
    """Return the name of a tensor that contains NaN or infinity, in nested dictionaries and lists; "" if none does."""
    if isinstance(value, Tensor):
        return "" if bool(value.isfinite().all()) else name
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    names = (not_finite(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next(filter(None, names), "")
