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
        compiled: have torch.compile's version of the teacher forward whole batches.
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
        compiled: bool = False,
        recorder: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.train, self.teacher, self.bank, self.tables, self.precision = train, teacher, bank, tables, precision
        self.batch_size, self.count = batch_size, train.steps(batch_size)
        needs = frozenset().union(*(learner.method.needs for circle in circles for learner in circle.learners))
        self.needs_features = "features" in needs or any(spec.query == "view" for spec in tables)
        self.needs_teacher = "teacher" in needs or any(spec.query == "view" for spec in tables)
        self.needs_maps, self.needs_partner = "maps" in needs, "partner" in needs
        self.memo: Memo | None = None
        self.compiled: Any = None
        if compiled and teacher is not None and not self.needs_maps:
            self.compiled = torch.compile(teacher, dynamic=False)
        where = train.labels.device
        self.order, self.view = torch.zeros(2, len(train), dtype=torch.long, device=where)
        self.step = torch.zeros(1, dtype=torch.long, device=where)  # in the epoch
        self.before = torch.zeros((), dtype=torch.long, device=where)  # steps of earlier epochs
        self.total = epochs * self.count
        self.streams = [torch.cuda.Stream(where) for _ in circles] if where.type == "cuda" and len(circles) > 1 else []
        self.recorder = recorder if train.augment == "crop" and not self.needs_partner else None
        self._kind: object = None  # of step that was last taken
        self._taken = 0  # how often in a row
        self._replay: Callable[[], None] | None = None
        self._unfit: set[object] = set()

    def begin(self, data_seed: int, epoch: int, first: int) -> None:
        """Go to step `first` of an epoch."""
        for ours, planned in zip(
            (self.order, self.view), self.train.plan(data_seed=data_seed, epoch=epoch), strict=True
        ):
            ours.copy_(planned)
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
        kind = tuple((learner.name, *learner.ready(self.count)) for learner in learners)
        size = len(self.planned(step)[0])
        if kind != self._kind:
            self._kind, self._taken, self._replay = kind, 0, None
        if self.recorder is None or size != self.batch_size or kind in self._unfit:
            self._work(circles, size, step)
        elif self._taken < WARM:
            self._taken += 1
            with _Watch() if self._taken == WARM else contextlib.nullcontext() as watch:
                self._work(circles, size, step)
            if watch and watch.found:
                self._unfit.add(kind)
        else:
            if self._replay is None:
                self._record(circles, size, step)
            # A recording takes what it draws at random from where the generator is.
            runtime.reseed(self.train.labels.device, *self.keys, step)
            if self._replay is not None:
                self._replay()
            else:
                self._work(circles, size, step)
        for learner in learners:
            learner.at.step += 1

    def _record(self, circles: Sequence[Circle], size: int, step: int) -> None:
        assert self.recorder is not None
        try:
            self._replay = self.recorder(lambda: self._work(circles, size, step))
        except RuntimeError as error:
            self._unfit.add(self._kind)
            why = str(error).splitlines()[0]
            warnings.warn(f"a step could not be recorded for the GPU ({why}); each is launched anew", stacklevel=6)

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
            batch, *self._teaching(batch), self.bank, partner, self.precision, self.count, self.step, progress
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
                if self.compiled is not None and len(batch.labels) == self.batch_size:
                    output = in_full(self.compiled(batch.images))
                else:
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
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError:
        torch.cuda.set_stream(stream)  # which a recording that ends badly does not give back
        raise
    return graph.replay


class _Watch(TorchDispatchMode):
    """Notes the operations, if any, that need the host to know a tensor's values, or a device to get some of its."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        given = [a for x in args for a in (x if isinstance(x, (list, tuple)) else [x]) if isinstance(a, Tensor)]
        name = func.overloadpacket.__name__
        indexed = name in ("index", "index_put", "index_put_")
        asks = any(t.dtype == torch.bool for t in given[1:]) if indexed else tags
        out = func(*args, **(kwargs or {}))
        copies = name in ("_to_copy", "copy_")  # other operations take a scalar of the host with the launch
        moved = isinstance(out, Tensor) and any((t.ndim or copies) and t.device != out.device for t in given)
        if asks or moved:
            self.found.add(str(func))
        return out
