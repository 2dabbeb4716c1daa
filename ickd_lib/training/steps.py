"""The work of a training step on the device; on a GPU it is recorded once and replayed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ickd_lib import methods, runtime
from ickd_lib.data import Batch, Images
from ickd_lib.memory import MemoryBank, Neighbours
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError
from ickd_lib.training.circle import Circle
from ickd_lib.training.learner import in_full
from ickd_lib.training.memo import Memo
from ickd_lib.training.records import Retrieved, Supply

Tables = dict[methods.Retrieval, tuple[Neighbours, Neighbours] | None]
WARM = 3  # steps before one is recorded: buffers are made, libraries choose their kernels


class Steps:
    """Batch, teacher, in-context samples and a step of each circle.

    What differs between the steps of an epoch lies on the device: its plan, and how far it is. So a GPU records a step
    as a CUDA graph, which launches all its kernels at once, and runs the branches of different circles beside each
    other. A step that asks the device for a number, or sends it one, cannot be recorded; it is run as it is written.

    Args:
        circles: whose steps.  train: the images.  teacher, bank, tables: what they learn from.
        batch_size: of all batches but the last.
        precision: in which networks compute, "fp32" or "bf16".
        epochs: of the training.
        recorder: makes a recording of work that another call of what it returns does again; None records nothing.
    """

    def __init__(
        self,
        circles: Sequence[Circle],
        train: Images,
        teacher: Network | None,
        bank: MemoryBank | None,
        tables: Tables,
        *,
        batch_size: int,
        precision: str,
        epochs: int,
        recorder: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.train, self.teacher, self.bank, self.tables, self.precision = train, teacher, bank, tables, precision
        self.batch_size, self.count = batch_size, train.steps(batch_size)
        needs = frozenset().union(*(learner.method.needs for circle in circles for learner in circle.learners))
        self.needs_features = "features" in needs or any(spec.query == "view" for spec in tables)
        self.needs_teacher = "teacher" in needs or any(spec.query == "view" for spec in tables)
        self.needs_maps, self.needs_partner = "maps" in needs, "partner" in needs
        self.memo: Memo | None = None
        where = train.labels.device
        self.order, self.view = torch.zeros(2, len(train), dtype=torch.long, device=where)
        self.step = torch.zeros(1, dtype=torch.long, device=where)  # in the epoch
        self.before = torch.zeros((), dtype=torch.long, device=where)  # steps of earlier epochs
        self.total = epochs * self.count
        self.streams = [torch.cuda.Stream(where) for _ in circles] if where.type == "cuda" and len(circles) > 1 else []
        self.recorder = recorder if train.augment == "crop" and not self.needs_partner else None
        self.draws = torch.device("cpu") if self.recorder else where
        if bank is not None:
            bank.class_means()  # made here, once: students side by side must not make it at the same time
        self._kind: object = None  # of step that was last taken
        self._taken = 0  # how often in a row
        self._replay: Callable[[], None] | None = None
        self._unfit: set[object] = set()

    def begin(self, data_seed: int, epoch: int, first: int) -> None:
        """Go to step `first` of an epoch."""
        order, view = self.train.plan(data_seed=data_seed, epoch=epoch)
        self.order.copy_(order)
        self.view.copy_(view)
        self.keys = data_seed, epoch
        self.step.fill_(first)
        self.before.fill_(epoch * self.count)

    def planned(self, step: int, steps: int = 1) -> tuple[Tensor, Tensor]:
        """The positions and views of the images of so many steps from `step` on (all that are left, at the end)."""
        end = (step + steps) * self.batch_size if step + steps < self.count else len(self.train)
        return self.order[step * self.batch_size : end], self.view[step * self.batch_size : end]

    def take(self, circles: Sequence[Circle], step: int) -> None:
        """The step `step` of the epoch, of all these circles."""
        learners = [learner for circle in circles for learner in circle.learners]
        kind = tuple((id(learner), *learner.ready(self.count)) for learner in learners)
        if kind != self._kind:
            self._kind, self._taken, self._replay = kind, 0, None
        size = self.batch_size if step + 1 < self.count else len(self.train) - step * self.batch_size
        recorded = self.recorder is not None and size == self.batch_size and kind not in self._unfit
        if self.recorder is not None:
            seeds = [learner.student.seed for learner in learners]
            runtime.reseed(self.train.labels.device, *self.keys, step, seeds)
        if recorded and self._taken == WARM:
            if self._replay is None:
                self._replay = self._recording(circles, step)
            self._replay()
        elif recorded:
            self._taken += 1
            with _Watch() if self._taken == WARM else contextlib.nullcontext() as watch:
                self._work(circles, size, step)
            if watch and watch.found:
                self._unfit.add(kind)
                names = ", ".join(sorted({learner.method.config["name"] for learner in learners}))
                why = f"{names}: its step asks the device for a number ({', '.join(sorted(watch.found))})"
                warnings.warn(f"{why}, so it is not recorded but launched anew each time, slower", stacklevel=5)
        else:
            self._work(circles, size, step)
        for learner in learners:
            learner.at.step += 1

    def _recording(self, circles: Sequence[Circle], step: int) -> Callable[[], None]:
        assert self.recorder is not None
        try:
            return self.recorder(lambda: self._work(circles, self.batch_size, step))
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise InputError(f"a step cannot be recorded for the GPU ({why}); train with record=False") from error

    def _work(self, circles: Sequence[Circle], size: int, step: int) -> None:
        """All that the device does, from what lies there alone (`step` is for what cannot be recorded)."""
        places = self.step * self.batch_size + torch.arange(size, device=self.step.device)
        batch = self.train.batch(self.order[places], self.view[places], *self.keys, step)
        partner = None
        if self.needs_partner:
            data_seed, epoch = self.keys
            partner = self.train.partners(batch, data_seed=data_seed, epoch=epoch, step=step)
        progress = (self.before + self.step[0]) / self.total
        supply = Supply(
            batch,
            *self._teaching(batch),
            self.bank,
            partner,
            self.precision,
            self.count,
            self.step,
            progress,
            self.draws,
        )
        if self.streams:
            here = torch.cuda.current_stream()
            for stream, circle in zip(self.streams, circles, strict=False):
                stream.wait_stream(here)
                with torch.cuda.stream(stream):
                    circle.step(supply)
            for stream in self.streams[: len(circles)]:
                here.wait_stream(stream)
        else:
            for circle in circles:
                circle.step(supply)
        self.step += 1

    @torch.no_grad()
    def _teaching(self, batch: Batch) -> tuple[Output | None, Retrieved]:
        """The teacher's view of the batch and the in-context samples, each once for all students."""
        output = None
        if self.memo:
            output = self.memo.take(batch.index, batch.view)
        elif self.needs_teacher and self.teacher is not None:
            with runtime.autocast(batch.labels.device, self.precision):
                output = in_full(self.teacher(batch.images, maps=self.needs_maps))
        retrieved: Retrieved = {}
        for spec, table in self.tables.items():
            assert self.bank is not None
            if table is not None:
                rows = self.bank.rows(batch.index)
                retrieved[spec] = self.bank.gather(table[0][rows]), self.bank.gather(table[1][rows])
            else:
                assert output is not None
                retrieved[spec] = self.bank.retrieve(
                    output.features,
                    batch.labels,
                    batch.index,
                    positives=spec.positives,
                    negatives=spec.negatives,
                    per_class=spec.per_class,
                )
        return output, retrieved


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """Record what `work` gives to the GPU, without doing it, as a CUDA graph; calling what comes back does it.

    Every tensor that it reads must stay where it is.

    Raises:
        RuntimeError: it does something that a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # its own would be of the GPU that recorded first
        work()
    return graph.replay


class _Watch(TorchDispatchMode):
    """Notes the operations, if any, that need the host to know a tensor's values, or a device to get some of its."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_"):
            asks = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        else:
            asks = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
        if isinstance(out, Tensor):
            given = [a for x in args for a in (x if isinstance(x, (list, tuple)) else [x]) if isinstance(a, Tensor)]
            made = name == "lift_fresh" and out.device.type != "cpu"  # torch.tensor of numbers of the host
            asks = asks or made or any(t.device != out.device for t in given)
        if asks:
            self.found.add(name)
        return out
