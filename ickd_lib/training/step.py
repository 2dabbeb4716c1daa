"""The training step. Everything else in this package prepares its inputs or wraps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ickd_lib import runtime
from ickd_lib.data import Batch
from ickd_lib.methods import Context, InContextPair, Retrieval, StrongView, TargetSource
from ickd_lib.models import Network
from ickd_lib.runtime import Diverged
from ickd_lib.runtime.distributed import gather
from ickd_lib.tasks import Samples, Task
from ickd_lib.training.data_parallel import gathered, whole_loss
from ickd_lib.training.first_step import first_terms
from ickd_lib.training.in_context import TeacherBank
from ickd_lib.training.peers import PeerGroup
from ickd_lib.training.state import TrainingState, not_finite
from ickd_lib.training.teacher_source import TeacherSource


@dataclass(frozen=True)
class Targets:
    """The teacher's outputs for a batch, and the in-context samples from its bank.

    teacher: the teacher's samples; None if no student needs them.
    retrieved: for each student, the in-context samples from the teacher's bank that it requested.
    strong: the teacher's samples of the strong view; None if no student needs them.
    """

    teacher: Samples | None
    retrieved: Mapping[TrainingState, Mapping[Retrieval, InContextPair]] = field(default_factory=dict)
    strong: Samples | None = None


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a step that all students share.

    task: defines the samples of an image.
    batch: the augmented images; with several processes, this process's part of them.
    strong: a second, strongly augmented view of the images; None if no method needs it.
    partner: random images of the same classes; None if no method needs them.
    images: number of images in the whole batch, which `batch` is a part of with several processes.
    whole: whether the samples of the whole batch are gathered, because a method compares samples of a batch.
    teacher: computes the teacher's samples of the batch (at the places of a student's samples, if the task needs that);
        None if no method needs them.
    bank: the teacher's memory bank with the in-context samples of each student; None if no method needs it.
    precision: precision of the networks, "fp32" or "bf16".
    step: number of the step in the epoch, shape [1], on the device.
    progress: share of the training that is done, a scalar on the device.
    epoch: number of the epoch, from 0, a scalar on the device.
    rng_device: the device whose generator is reseeded for each student.
    """

    task: Task
    batch: Batch
    strong: Batch | None
    partner: Batch | None
    images: int
    whole: bool
    teacher: TeacherSource | None
    bank: TeacherBank | None
    precision: str
    step: Tensor
    progress: Tensor
    epoch: Tensor
    rng_device: torch.device

    @property
    def scale(self) -> float:
        """The factor of a loss that is computed from the own part of the batch; see `training.data_parallel`."""
        return 1.0 if self.whole else len(self.batch.index) * runtime.world() / self.images


@dataclass(frozen=True)
class StudentOutputs:
    """What the loss of a student is computed from in a step.

    samples, supervised: the student's samples and supervised loss, of the whole batch if a method needs that.
    peers, earlier: what the method may use of the peers, and of the student's own earlier outputs.
    logits: the student's logits in this process's part of the batch.
    targets: the teacher's outputs.
    """

    samples: Samples
    supervised: Tensor
    peers: tuple[TargetSource, ...]
    earlier: TargetSource | None
    logits: Tensor
    targets: Targets


def train_step(group: PeerGroup, inputs: StepInputs, shared: Targets | None) -> None:
    """Train the students of a peer group on one batch. Most groups have one student and no peers.

    Args:
        group: the students.
        inputs: the batch and everything else that the step needs.
        shared: `teacher_targets` of the batch if they are the same for all students; None if they depend on the
            student's samples.
    """
    for state in group.states:
        state.optimizer.clear()
    losses = group.losses(lambda: step_losses(group, inputs, shared))
    torch.stack(losses).sum().backward()  # no loss has a gradient to the weights of another student
    for state in group.states:
        state.optimizer.step()
        if state.average:
            state.average.update(inputs.epoch * state.steps + inputs.step[0])


def step_losses(group: PeerGroup, inputs: StepInputs, shared: Targets | None) -> list[Tensor]:
    """Return the loss of each student, and write the meters and the banks; the arguments are those of `train_step`."""
    outputs = [student_samples(state, inputs) for state in group.states]
    targets = [
        shared or teacher_targets(inputs, [state], own) for state, (own, _) in zip(group.states, outputs, strict=True)
    ]
    logits = [own.shared_logits for own, _ in outputs]  # those of this process's part of the batch
    if inputs.whole:
        outputs = [whole_batch(inputs, *output) for output in outputs]
    samples = [one for one, _ in outputs]
    exchanged = group.exchange(samples)
    losses = [
        student_loss(state, inputs, StudentOutputs(*output, *others, own, target))
        for state, output, others, own, target in zip(group.states, outputs, exchanged, logits, targets, strict=True)
    ]
    group.write_banks(samples)
    if inputs.bank:
        for state, target in zip(group.states, targets, strict=True):
            inputs.bank.write(state, target.teacher)
    return losses


def student_loss(state: TrainingState, inputs: StepInputs, outputs: StudentOutputs) -> Tensor:
    """Return the loss of a student, and write its meters."""
    learner, samples = state.learner, outputs.samples
    runtime.reseed(inputs.rng_device, learner.seed, state.epoch, state.step, "method")
    context = method_context(state, inputs, outputs)
    if runtime.world() > 1:  # the passes of the context have drawn another number of values in each process
        runtime.reseed(inputs.rng_device, learner.seed, state.epoch, state.step, "method")
    if state.checked:
        terms = learner.method(context)
    else:
        terms = first_terms(learner.method, context, state.optimizer.parameters)
    state.checked = True
    if not len(samples.known.key):  # no region, or no proposal on an object: a mean over no samples is NaN
        terms = {name: torch.where(term.isnan(), 0, term) for name, term in terms.items()}
    if samples.fixed is not None:
        terms["boxes"] = samples.fixed
    if inputs.scale != 1:
        terms = {name: term * inputs.scale for name, term in terms.items()}
    state.meters.add(
        terms,
        samples,
        [peer.output for peer in outputs.peers],
        inputs.step,
        state.steps,
        state.step == 0,
        part=not inputs.whole,
        unlabelled="unlabelled" in learner.settings["data"],
    )
    return torch.stack(list(terms.values())).sum()


def method_context(state: TrainingState, inputs: StepInputs, outputs: StudentOutputs) -> Context:
    """Return what the method of a student may use of the step: only what it declared in its `needs`."""
    learner, needs, targets = state.learner, state.learner.method.needs, outputs.targets
    context = Context(
        inputs.batch,
        outputs.samples,
        outputs.supervised,
        teacher=targets.teacher if "teacher" in needs else None,
        retrieved=targets.retrieved.get(state, {}),
        strong=strong_view(state, inputs, targets) if "strong" in needs else None,
        classifiers=learner.classifiers if "classifiers" in needs else None,
        bank=inputs.bank.own if inputs.bank and "bank" in needs else None,
        partner=partner_samples(learner.network, inputs) if "partner" in needs else None,
        peers=outputs.peers if "peers" in needs else (),
        earlier=outputs.earlier,
        common=learner.common,
        phase=state.phase,
        progress=inputs.progress,
        epoch=inputs.epoch,
        epochs=state.recipe.epochs,
        scale=inputs.scale,
        logits=outputs.logits,
    )
    return context.seen_by(learner.method)


def strong_view(state: TrainingState, inputs: StepInputs, targets: Targets) -> StrongView:
    """Return the strong view of the batch with the student's samples of it, which a second pass computes."""
    assert inputs.strong is not None
    maps = "maps" in state.learner.method.needs
    samples, loss = inputs.task.samples(state.learner.network, inputs.strong, maps=maps, precision=inputs.precision)
    assert loss is not None
    teacher = targets.strong
    if teacher is None and inputs.teacher:  # the places of the samples depend on the student
        teacher = teacher_samples(inputs, inputs.strong, samples.detach())
    samples, loss = whole_batch(inputs, samples, loss)
    return StrongView(inputs.strong, samples, loss, teacher)


def student_samples(state: TrainingState, inputs: StepInputs) -> tuple[Samples, Tensor]:
    """Return the student's samples of the batch and its supervised loss, with gradient.

    Random operations in the network are a function of (seed, epoch, step), and of the process if there are several.
    """
    learner = state.learner
    process = ("process", runtime.rank()) if runtime.rank() else ()
    runtime.reseed(inputs.rng_device, learner.seed, state.epoch, state.step, *process)
    learner.network.train()
    maps = "maps" in learner.method.needs
    samples, loss = inputs.task.samples(learner.network, inputs.batch, maps=maps, precision=inputs.precision)
    assert loss is not None
    return samples, loss


@torch.no_grad()
def fault(group: PeerGroup, inputs: StepInputs) -> Diverged | None:
    """Return why a step of the group raised an error, if a student's weights or outputs are not finite; else None."""
    for state in group.states:
        learner = state.learner
        what = not_finite(learner.network.state_dict(), "weight")
        if not what:
            samples = student_samples(state, inputs)[0]
            what = not_finite({"logits": samples.logits, "features": samples.features})
        if what:
            where = f"at epoch {state.epoch + 1}, step {state.step + 1}"
            return Diverged(f"{learner.name}: {what} has values that are not finite {where}")
    return None


@torch.no_grad()
def partner_samples(network: Network, inputs: StepInputs) -> Samples:
    """Return the student's samples of the partner images, without gradient."""
    assert inputs.partner is not None
    samples = inputs.task.samples(network, inputs.partner, precision=inputs.precision)[0]
    return gathered(samples, inputs.images) if inputs.whole else samples


@torch.no_grad()
def teacher_samples(inputs: StepInputs, batch: Batch, like: Samples | None) -> Samples:
    """Return the teacher's samples of a batch, at the places of the samples `like` if these depend on the student."""
    assert inputs.teacher is not None
    samples = inputs.teacher(batch, like)
    return gathered(samples, inputs.images) if inputs.whole else samples


def whole_batch(inputs: StepInputs, samples: Samples, supervised: Tensor) -> tuple[Samples, Tensor]:
    """Return samples and supervised loss of the whole batch if a method needs them, else those of the own part."""
    if not inputs.whole:
        return samples, supervised
    whole = gathered(samples, inputs.images)
    if samples.fixed is not None:
        images = torch.tensor(len(inputs.batch.index), device=samples.labels.device)
        whole = replace(whole, fixed=whole_loss(samples.fixed, images))
    return whole, whole_loss(supervised, inputs.task.weight(inputs.batch))


@torch.no_grad()
def teacher_targets(inputs: StepInputs, states: list[TrainingState], like: Samples | None) -> Targets:
    """Return the teacher's samples of the batch, and the in-context samples from its bank for each student.

    Args:
        inputs: the batch, the teacher and its bank.
        states: the students that need in-context samples.
        like: the samples of a student in the own part of the batch, at the places of which the teacher is evaluated;
            None if the places are the same for all students.
    """
    teacher = teacher_samples(inputs, inputs.batch, like) if inputs.teacher else None
    strong = None
    if inputs.teacher and inputs.strong and like is None:
        strong = teacher_samples(inputs, inputs.strong, None)
    if inputs.bank is None:
        return Targets(teacher, strong=strong)
    keys, labels = (like.known.key, like.known.labels) if like else inputs.task.places(inputs.batch)
    if inputs.whole:
        keys, labels = gather(keys), gather(labels)
    return Targets(teacher, inputs.bank.retrieve(states, keys, labels, teacher and teacher.known), strong)
