"""The steps of an epoch on the device: the shared inputs of all students, then the step of each peer group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Images, LabelledImages, Loader, Sampler
from ickd_lib.data.loader import Loaded
from ickd_lib.runtime.distributed import share
from ickd_lib.runtime.memory import out_of_memory
from ickd_lib.tasks import Task
from ickd_lib.training.capture import Capture, CapturedSteps, works_on_host
from ickd_lib.training.in_context import TeacherBank
from ickd_lib.training.peers import PeerGroup
from ickd_lib.training.state import not_finite
from ickd_lib.training.step import StepInputs, Targets, fault, teacher_targets, train_step
from ickd_lib.training.teacher_source import TeacherSource


class Stepper:
    """Takes the steps of an epoch, in order, for all peer groups.

    Everything that differs between the steps of an epoch is on the device: the order of the images, their views, and
    the number of the step. A step can therefore be captured as a CUDA graph, with each group on a stream of its own.

    Args:
        groups: the peer groups.
        train: the training images.
        task: defines the samples of an image.
        teacher: computes the teacher's samples; None if no method needs them.
        bank: the teacher's bank; None if no method needs it.
        batch_size: size of all batches but the last.
        precision: precision of the networks, "fp32" or "bf16".
        epochs: number of epochs of the training.
        capture: captures a step (`capture.CudaGraphs`); None runs every step eagerly.
    """

    def __init__(
        self,
        groups: Sequence[PeerGroup],
        train: Images,
        task: Task,
        teacher: TeacherSource | None,
        bank: TeacherBank | None,
        *,
        batch_size: int,
        precision: str,
        epochs: int,
        capture: Capture | None = None,
    ) -> None:
        self.sampler, self.task, self.teacher, self.bank = Sampler(train), task, teacher, bank
        self.train = train
        self.batch_size, self.precision, self.images = batch_size, precision, len(train)
        self.steps = self.sampler.steps(batch_size)
        methods = [state.learner.method for group in groups for state in group.states]
        needs = frozenset().union(*(method.needs for method in methods))
        self.pairs, self.two_views = "partner" in needs, "strong" in needs
        # Where random numbers are drawn for a batch and not for an image, each of several processes makes the whole
        # batch and cuts it, so that the numbers do not depend on how many processes there are.
        by_batch = isinstance(train, LabelledImages) and (self.pairs or self.two_views or train.augment != "crop")
        self.cut = runtime.world() > 1 and by_batch
        device = train.index.device
        self.order, self.view = torch.zeros(2, len(train), dtype=torch.long, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)  # number of the step in the epoch
        self.before = torch.zeros((), dtype=torch.long, device=device)  # number of steps of earlier epochs
        self.total = epochs * self.steps
        # Where an image has several samples, or some have no label, parts of a batch have different numbers of them.
        uneven = not task.cacheable or bool(train.unlabelled)
        self.whole = runtime.world() > 1 and (uneven or any(group.compares for group in groups))
        self.loader = Loader(train) if train.streamed else None  # type: ignore[arg-type]
        self.loaded: Iterator[Loaded] = iter(())
        # Only where steps can be captured are the groups on streams of their own, which capture makes worthwhile. In
        # the other tasks, what the groups share is computed when the first of them needs it.
        several = device.type == "cuda" and task.capturable and len(groups) > 1 and runtime.world() == 1
        self.streams = [torch.cuda.Stream(device) for _ in groups] if several else []
        self.captured = CapturedSteps(None if works_on_host(methods, train.augment) else capture)
        # If steps are captured, the GPU's generator is reseeded before each step, once for all students.
        self.rng_device = torch.device("cpu") if self.captured.capture else device

    def begin(self, data_seed: int, epoch: int, first: int) -> None:
        """Go to step `first` of an epoch."""
        order, view = self.sampler.plan(data_seed=data_seed, epoch=epoch)
        self.order.copy_(order)
        self.view.copy_(view)
        self.keys = {"data_seed": data_seed, "epoch": epoch}
        self.step.fill_(first)
        self.before.fill_(epoch * self.steps)
        if self.loader:
            # Planned on the CPU, where the worker processes are.
            order, view = order.cpu(), view.cpu()
            planned = ((step, *self._own(*self._part(order, view, step))) for step in range(first, self.steps))
            self.loaded = self.loader.steps(planned, **self.keys, strong=self.two_views, partner=self.pairs)
        if self.bank:
            self.bank.begin_epoch(epoch)

    def planned(self, step: int, steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return positions and views of the images of up to `steps` steps, from `step` on."""
        return self._part(self.order, self.view, step, steps)

    def _part(self, order: Tensor, view: Tensor, step: int, steps: int = 1) -> tuple[Tensor, Tensor]:
        end = (step + steps) * self.batch_size if step + steps < self.steps else self.images
        return order[step * self.batch_size : end], view[step * self.batch_size : end]

    def _own(self, rows: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions and views of a batch that this process makes."""
        part = slice(None) if self.cut else share(len(rows))
        return rows[part], view[part]

    def take(self, groups: Sequence[PeerGroup], step: int) -> None:
        """Take one step of the epoch for these groups."""
        states = [state for group in groups for state in group.states]
        kind = tuple((id(state), *state.prepare()) for state in states)
        size = self.batch_size if step + 1 < self.steps else self.images - step * self.batch_size
        if self.captured.capture:
            runtime.reseed(self.order.device, *self.keys.values(), step, [state.learner.seed for state in states])
        names = [state.learner.method.config["name"] for state in states]
        waited = self.loader.waited if self.loader else 0.0
        self.captured.run(kind, lambda: self._work(groups, size, step), names, size == self.batch_size)
        for state in states:
            state.step += 1
            if self.loader:
                state.waited += self.loader.waited - waited
                state.replaced = len(self.loader.replaced)

    def _work(self, groups: Sequence[PeerGroup], size: int, step: int) -> None:
        """Compute a step from values on the device alone; only steps that run eagerly use the number `step`."""
        data = self._data(size, step) if self.loader is None else next(d for d in self.loaded if d.step == step)
        if self.cut:
            data = data.part(share(size))
        inputs = StepInputs(
            task=self.task,
            batch=data.batch,
            strong=data.strong,
            partner=data.partner,
            images=size,
            whole=self.whole,
            teacher=self.teacher,
            bank=self.bank,
            precision=self.precision,
            step=self.step,
            progress=(self.before + self.step[0]) / self.total,
            epoch=self.before // self.steps,
            rng_device=self.rng_device,
        )
        shared = None
        if self.task.shares_teacher:
            shared = teacher_targets(inputs, [state for group in groups for state in group.states], None)
        if self.streams:
            main = torch.cuda.current_stream()
            for stream, group in zip(self.streams, groups, strict=False):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    self._train(group, inputs, shared)
            for stream in self.streams[: len(groups)]:
                main.wait_stream(stream)
        else:
            for group in groups:
                self._train(group, inputs, shared)
        self.step += 1

    def _train(self, group: PeerGroup, inputs: StepInputs, shared: Targets | None) -> None:
        """Train a group on the batch. If its outputs are not finite, an error becomes its `fault`, and is not raised.

        Some functions, such as a decomposition of a matrix, raise errors for such values.
        """
        try:
            train_step(group, inputs, shared)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            if runtime.world() == 1 and not self.captured.capture and not out_of_memory(error):
                group.fault = fault(group, inputs)
            if group.fault is None:
                raise

    @torch.no_grad()
    def teacher_is_finite(self, step: int) -> bool:
        """Return whether the teacher's outputs for the images of a step of this epoch are finite.

        They are computed again, without augmentation. With several processes, of which each may ask for another step,
        and without a teacher's network, the result is True.
        """
        network = self.teacher.teacher if self.teacher else None
        if network is None or runtime.world() > 1:
            return True
        images = self.train.subset(self.planned(step)[0])
        found = self.task.bank_samples(network, images, precision=self.precision)
        return not not_finite({"logits": found.logits, "features": found.features})

    def _data(self, size: int, step: int) -> Loaded:
        """Return the data of a step from images that the device holds."""
        places = self.step * self.batch_size + torch.arange(size, device=self.step.device)
        rows, view = self._own(self.order[places], self.view[places])
        keys: dict[str, Any] = {**self.keys, "step": step}
        batch = self.sampler.batch(rows, view, *keys.values())
        strong = self.sampler.strong_view(rows, **keys) if self.two_views else None
        partner = self.sampler.partners(batch, **keys) if self.pairs else None
        return Loaded(step, batch, strong, partner)
