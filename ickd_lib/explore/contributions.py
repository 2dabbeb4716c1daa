"""Which training samples taught a prediction: contributions from last-layer gradients at kept weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ickd_lib import memory, methods, models, runtime
from ickd_lib.data import Images
from ickd_lib.explore.gradients import ROLES, Retrieved, Shares, limit_scale, require_attributable, term_gradients
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import Method
from ickd_lib.methods.incontext import ICKD
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Positive, check
from ickd_lib.tasks import Classification

BATCH = 256  # images of which the statistics of batch normalisation are computed at once
WEIGHTS = "weights"  # folder of a run that contains the weights of some epochs


@dataclass(frozen=True)
class Attribution:
    """The contributions of training samples to one prediction of a student.

    A contribution estimates how far one sample's loss has raised, over the training, the margin log p / (1 - p), where
    p is the probability of the class `label`. A positive one raised the margin. Only signs, ranks and ratios have a
    meaning: momentum, weight decay and the other layers are left out.

    Args:
        label: the class whose margin is explained; by default the predicted one.
        margin: the margin at the last kept weights.
        keys: keys of the N training samples.
        terms: contribution of each training sample through each of its own loss terms, [N] each.
        rows: keys of the R rows of the teacher's bank; empty if the method uses none.
        roles: contribution of each row as an in-context sample of training samples, [R] each: as a "positive" (in PICD
            and, if these use positives, in other forms of NICD), as a "negative", and as the anchor of NICD for its
            "own" sample. They divide the PICD and NICD terms, so that the sums over all roles and over both terms are
            equal.
    """

    label: int
    margin: float
    keys: Tensor
    terms: dict[str, Tensor]
    rows: Tensor
    roles: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """Contribution of each training sample through its own loss, the sum of the terms, shape [N]."""
        return torch.stack(list(self.terms.values())).sum(0)

    def with_roles(self) -> Tensor:
        """Return `total` plus what each training sample contributes as an in-context sample of others, shape [N]."""
        if not len(self.rows):
            return self.total
        at = torch.searchsorted(self.rows, self.keys)
        return self.total + self.roles["positive"][at] + self.roles["negative"][at]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {float(one.sum()):+.3g}" for name, one in {**self.terms, **self.roles}.items())
        return f"Attribution(class {self.label}, margin {self.margin:.3g}; {len(self.keys):,} samples: {parts})"


@dataclass(frozen=True)
class Step:
    """What contributions are computed from at one of the kept weights.

    rate: sum of the learning rates since the weights before, one for each epoch, divided by the batch size.
    features: the student's features of the training samples and a 1 for the bias, times the inverse matrix P where it
        is used, shape [N, D + 1].
    gradients: for each loss term the gradient of each sample's loss with respect to its logits, [N, C] each.
    shares: the parts that in-context samples have in these gradients, one for each in-context method.
    """

    rate: float
    features: Tensor
    gradients: dict[str, Tensor]
    shares: tuple[Shares, ...]


class Attributor:
    """Compute the contribution of each training sample of a run to predictions of its student.

    The contribution of sample i is -Σ_t η_t <∂m/∂(W, b), ∂L_i/∂(W, b)> over the kept weights t. Here (W, b) is the last
    layer, m the margin of the query, L_i the loss of the sample, and η_t the learning rate of the epochs since the
    weights before, divided by the batch size. The inner product is (∂m/∂z · ∂L_i/∂z_i) (x · x_i), with logits z and
    x = (f, 1) for features f. By default it is (∂m/∂z · ∂L_i/∂z_i) x P x_i, with P = (M / s + λ I)^-1, where M is the
    mean of x_i x_iᵀ over the training samples and s the mean of its diagonal: what many samples have in common counts
    less. Images are not augmented. Batch normalisation uses the statistics of the training images, which are
    computed again for all weights but the final ones: in training they lag behind the weights, so that early logits in
    evaluation mode are far from those that the losses were computed of.

    Source: TracIn, Pruthi et al. 2020, arXiv 2002.08484, of the last layer and of the method's own loss. P is a factor
    of the curvature in influence functions, Grosse et al. 2023, arXiv 2308.03296. docs/attribution.md shows how well
    contributions predict a training without some samples.

    The cost is one pass over the training samples for each of T kept weights, and then about T N (D + C) operations for
    each loss term of a query. In memory there are T N (D + C × terms + negatives × 4) numbers.

    Args:
        run: folder of the run, with the weights that `training.KeepWeights` has written there.
        student: the trained network (`training.load(run)`); it is not changed.
        images: all training images of the run, on the network's device.
        bank: the teacher's bank that the run used (by default, that of the training images); needed if the method needs
            a teacher. The teacher's logits of a training image are those of its row.
        checkpoints: "kept" uses the weights that the run keeps. "last" uses the final weights alone, for a run that
            keeps none; the samples that were learned early then have small gradients.
        damping: λ; None leaves P out, as in TracIn.
        precision: precision of the network: "auto", "fp32" or "bf16".
    Raises:
        InputError: the run keeps no weights, was trained with other images, or by another teacher; or its method
            compares more than a sample's logits with its own targets and retrieved samples.
    """

    def __init__(
        self,
        run: str | Path,
        student: Network,
        images: Images,
        *,
        bank: MemoryBank | None = None,
        checkpoints: Literal["kept", "last"] = "kept",
        damping: float | None = 0.1,
        precision: str = "fp32",
    ) -> None:
        Classification().check(images)
        check("damping", damping, Positive | None)
        folder = Path(run).absolute()  # its weights are read again when the kernel may have changed its folder
        with runtime.complete(folder):
            settings, metrics = runtime.Run(folder).settings, runtime.Run(folder).metrics
            self.method, epochs = _method(settings, images, bank), settings["recipe"]["epochs"]
            if settings.get("task", "classification") != "classification":
                raise InputError(f"{folder} is a run of {settings['task']}; contributions are those of whole images")
            _require_run(folder, settings, images, bank, self.method)
            kept = _kept(folder, epochs) if checkpoints == "kept" else {}
            kept[epochs] = folder / "student.safetensors"
            rates = [record["lr"] / settings["recipe"]["batch_size"] for record in metrics]
            if len(rates) < epochs:
                raise InputError(f"{folder}/metrics.jsonl has {len(rates)} of {epochs} epochs; restore the file")
            seed = settings["seed"]
        self.images, self.bank, self.damping, self.precision = images, bank, damping, precision
        self.network, self.paths = copy.deepcopy(student).eval(), [kept[epoch] for epoch in sorted(kept)]
        self._statistics: list[dict[str, Tensor]] = []  # of batch normalisation, for each of the kept weights
        retrieved = {}
        if bank is not None:
            specs = self.method.retrievals
            retrieved = {spec: Retrieved.of(bank, spec, images.index, seed) for spec in specs}
        self.steps, last = list[Step](), 0
        for epoch, output in zip(sorted(kept), self.outputs(images), strict=True):
            rate, last = sum(rates[last:epoch]), epoch
            started = {spec: one for spec, one in retrieved.items() if epoch > spec.start * epochs}
            features, z = compared(output.features, damping), output.logits
            self.steps.append(Step(rate, features, *_gradients(self.method, z, images, bank, started, epoch, epochs)))

    def outputs(self, images: Images) -> list[Output]:
        """Return logits [B, C] and features [B, D] of images at each of the kept weights, without augmentation."""
        found = []
        for at in range(len(self.paths)):
            self.load(at)
            found.append(models.predict(self.network, images, precision=self.precision))
        return found

    def load(self, at: int) -> Network:
        """Return the network with the kept weights at a position, and with their statistics of batch normalisation."""
        models.load_weights(self.network, self.paths[at])
        if at == len(self._statistics) < len(self.paths) - 1:
            self._statistics.append(_statistics(self.network, self.images))
        if at < len(self._statistics):
            self.network.load_state_dict(self._statistics[at], strict=False)
        return self.network

    def attribute(self, outputs: Sequence[Output], at: int = 0, *, label: int | None = None) -> Attribution:
        """Return the contributions of all training samples to one prediction.

        Args:
            outputs: what `outputs` returned for some images.
            at: position of the query among these images.
            label: the class whose margin is explained; None for the predicted one.
        """
        logits = [output.logits[at] for output in outputs]
        label = int(logits[-1].argmax()) if label is None else label
        if not 0 <= label < len(logits[-1]):
            raise InputError(f"label={label} is not one of the {len(logits[-1])} classes, which are counted from 0")
        names = list(dict.fromkeys(name for step in self.steps for name in step.gradients))
        terms = {name: torch.zeros_like(self.steps[-1].features[:, 0]) for name in names}
        rows = self.images.index[:0] if self.bank is None or not self.steps[-1].shares else self.bank.index
        roles = {role: terms[names[0]].new_zeros(len(rows)) for role in ROLES} if len(rows) else {}
        for step, z, output in zip(self.steps, logits, outputs, strict=True):
            direction = _margin_gradient(z, label)
            weight = -step.rate * (step.features[:, :-1] @ output.features[at] + step.features[:, -1])
            for name, gradient in step.gradients.items():
                terms[name] += weight * (gradient @ direction)
            for shares in step.shares:
                retrieved = shares.retrieved
                places = {"positive": retrieved.near, "negative": retrieved.far}
                for role, inner in shares.along(direction).items():
                    index = places[role].rows if role in places else retrieved.own[:, None]
                    roles[role].index_add_(0, index.flatten(), (weight[:, None] * inner).flatten())
        margin = float(logits[-1][label] - _others(logits[-1], label).logsumexp(0))
        return Attribution(label, margin, self.images.index, terms, rows, roles)

    def __repr__(self) -> str:
        method = methods.describe(self.method)
        return f"Attributor({self.network.name}, {method}, {len(self.images):,} samples, {len(self.paths)} weights)"


def attribution(
    run: str | Path,
    student: Network,
    images: Images,
    query: Images,
    *,
    bank: MemoryBank | None = None,
    label: int | None = None,
    checkpoints: Literal["kept", "last"] = "kept",
    damping: float | None = 0.1,
) -> Attribution:
    """Return the contributions of all training samples to the student's prediction for one image.

    For more predictions of one run, use an `Attributor`, which this function creates.

    Args:
        run, student, images, bank, checkpoints, damping: as for `Attributor`.
        query: one image, such as `splits.test.subset(torch.tensor([3]))`.
        label: the class whose margin is explained; None for the predicted one.
    Raises:
        InputError: as for `Attributor`, or `query` does not contain one image.
    """
    if len(query) != 1:
        raise InputError(f"query has {len(query)} images; give one, as in splits.test.subset(torch.tensor([3]))")
    attributor = Attributor(run, student, images, bank=bank, checkpoints=checkpoints, damping=damping)
    return attributor.attribute(attributor.outputs(query), label=label)


@torch.no_grad()
def _statistics(network: Network, images: Images) -> dict[str, Tensor]:
    """Return the statistics of batch normalisation over some images, without augmentation, by their names."""
    layers = {name: part for name, part in network.named_modules() if isinstance(part, _BatchNorm)}
    momenta = {name: part.momentum for name, part in layers.items()}
    for part in layers.values():
        part.reset_running_stats()
        part.momentum = None  # the mean over all batches
        part.train()
    for rows in torch.arange(len(images), device=images.labels.device).split(BATCH) if layers else ():
        if len(rows) > 1:
            network(images.shown(rows).float() / 255)
    for name, part in layers.items():
        part.momentum = momenta[name]
        part.eval()
    return {f"{name}.{key}": one.clone() for name, part in layers.items() for key, one in part.named_buffers()}


def compared(features: Tensor, damping: float | None) -> Tensor:
    """Return (f, 1) of each training sample, times the matrix P of `Attributor`.

    Args:
        features: shape [N, D].
        damping: λ; None leaves P out.
    Returns:
        Shape [N, D + 1].
    """
    x = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    if damping is None:
        return x
    moments = (x.T @ x / len(x)).double()
    scaled = moments / moments.diagonal().mean() + damping * torch.eye(len(moments), device=x.device)
    return torch.linalg.solve(scaled, x.T.double()).T.to(x)


def _gradients(
    method: Method,
    logits: Tensor,
    images: Images,
    bank: MemoryBank | None,
    retrieved: dict[methods.Retrieval, Retrieved],
    epoch: int,
    epochs: int,
) -> tuple[dict[str, Tensor], tuple[Shares, ...]]:
    """Return the gradients of the loss terms at some weights, and the shares of in-context samples in these."""
    samples, teacher, shares = {}, None, []
    if bank is not None:
        samples = {spec: one.samples(bank, logits) for spec, one in retrieved.items()}
        if "teacher" in method.needs:
            teacher = bank.logits[bank.rows(images.index)].to(logits)
        for part in method.modules():
            if isinstance(part, ICKD) and (part.picd or part.nicd) and part.retrieval in retrieved:
                given = (part, logits, images.labels, teacher, samples)
                scale = limit_scale(*given, epoch=epoch, epochs=epochs)
                shares.append(Shares(part, bank, retrieved[part.retrieval], logits, images.labels, scale))
    gradients = term_gradients(method, logits, images.labels, teacher, samples, epoch=epoch, epochs=epochs)
    return gradients, tuple(shares)


def _others(logits: Tensor, label: int) -> Tensor:
    """Return the logits [C] of one sample with that of a class replaced by -inf."""
    return logits.index_fill(0, torch.tensor([label], device=logits.device), -torch.inf)


def _margin_gradient(logits: Tensor, label: int) -> Tensor:
    """Return the gradient of the margin z_c - log Σ_{c' ≠ c} exp z_c' with respect to the logits, shape [C]."""
    gradient = -_others(logits, label).softmax(0)
    gradient[label] = 1
    return gradient


def _method(settings: dict[str, Any], images: Images, bank: MemoryBank | None) -> Method:
    """Create the method of a run from its settings."""
    method = methods.recorded(settings["method"])
    require_attributable(method)
    labels = bank.labels[bank.filled] if bank else images.labels
    method.describe_bank(labels, larger=bool(bank), few_allowed=False, trained=images.labels)
    method.setup(0, 0, len(images.classes), len(images))
    return method


def _require_run(
    folder: Path, settings: dict[str, Any], images: Images, bank: MemoryBank | None, method: Method
) -> None:
    """Raise InputError if a run was trained with other images or another teacher."""
    if settings["data"]["fingerprint"] != images.fingerprint:
        raise InputError(
            f"{folder} was trained with other images than {images.name} with {len(images):,} images; give the training "
            "images of the run, with the same labels and classes"
        )
    if not method.needs_teacher:
        return
    if bank is None:
        raise InputError(f"{methods.describe(method)} needs a teacher; give bank=MemoryBank.build(teacher, images)")
    memory.require_fit(bank, images)
    teacher = settings["teacher"] or {}
    if bank.source.get("teacher", teacher.get("fingerprint")) != teacher.get("fingerprint"):
        raise InputError(f"the bank is not of {teacher.get('name')}, the teacher of {folder}; build it with that one")


def _kept(folder: Path, epochs: int) -> dict[int, Path]:
    """Return the files of kept weights by the number of epochs that were done.

    Raises:
        InputError: there is none.
    """
    found = {int(path.stem.rpartition("-")[2]): path for path in sorted((folder / WEIGHTS).glob("epoch-*.safetensors"))}
    found = {epoch: path for epoch, path in found.items() if epoch <= epochs}
    if not found:
        raise InputError(
            f"{folder} keeps no weights of earlier epochs; train it with ickd train --keep-weights 5, or with "
            "callbacks=[training.KeepWeights(5)], or give checkpoints='last' for the final weights alone"
        )
    return found
