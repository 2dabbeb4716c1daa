"""One student in training: its network, method and optimiser, and the run folder that records them."""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ickd_lib import methods, metrics, models, runtime
from ickd_lib.data import Splits
from ickd_lib.memory import MemoryBank, source_of
from ickd_lib.methods import Guide
from ickd_lib.models import Network, Output
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training.recipe import Recipe
from ickd_lib.training.records import History, Progress, Student, Supply

DRIFT_ROWS = 2000  # rows of a bank in training that are compared with rebuilt ones


class Learner:
    """A student with all that its training needs; `distill` drives it."""

    def __init__(
        self,
        student: Student,
        splits: Splits,
        teacher: Network | None,
        bank: MemoryBank | None,
        recipe: Recipe,
        data_seed: int,
        evaluate_every: int,
        where: torch.device,
    ) -> None:
        train = splits.train
        self.student, self.recipe, self.data_seed = student, recipe, data_seed
        given = student.method
        self.method = methods.create(given) if isinstance(given, str) else copy.deepcopy(given)
        if isinstance(student.network, str):
            with runtime.seeded(student.seed, "network"):
                network = models.create(student.network, **train.spec)
            origin: dict[str, Any] = {"network": network.name, **train.spec}
        else:
            network = student.network
            origin = {"network": network.name, "initial": network.identity}
        if network.num_classes != len(train.classes):
            raise InputError(f"{network.name} has {network.num_classes} classes, {train.name} {len(train.classes)}")
        if network.classes != train.classes[: len(network.classes)]:
            raise InputError(
                f"{network.name} knows the classes {', '.join(network.classes[:5])}, … but {train.name} begins with "
                f"{', '.join(train.classes[:5])}; give a network whose classes come first"
            )
        self.common = self._common_classes(teacher, train.classes)
        for one in (network, teacher) if "maps" in self.method.needs else ():
            if one is not None and not one.stages:
                raise InputError(
                    f"method {self.method.config['name']!r} compares maps, but {one.name} names no stages; "
                    "wrap it with maps=(...)"
                )
        network.classes = train.classes
        with runtime.seeded(student.seed, "method"):
            self.method.setup(
                network.features_dim, teacher.features_dim if teacher else 0, network.num_classes, len(train)
            )
        if self.common:
            self.common = self.common[0].to(where), self.common[1].to(where)
        self.network = network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method = self.method.to(where)
        classifier = {id(p) for p in last_layer(self.network).parameters()}
        embedding = [p for p in self.network.parameters() if id(p) not in classifier]
        others = [p for p in self.network.parameters() if id(p) in classifier]
        # Tensors, so that a recorded step reads what they hold when it is replayed.
        self.rates, self._lr = torch.full((2,), recipe.lr, device=where).unbind(), (recipe.lr, recipe.lr)
        self.optimizer = torch.optim.SGD(
            [{"params": embedding}, {"params": [*others, *self.method.parameters()]}],
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._use_rates()
        self.at, self.finished = Progress(), False
        self.phases = recipe.phases(self.method.restarts)
        self.settings: dict[str, Any] = {
            "student": origin,
            "method": self.method.config,
            "seed": student.seed,
            "data": {
                "name": train.name,
                "fingerprint": train.fingerprint,
                "images": len(train),
                "classes": list(train.classes),
                "augment": train.augment,
            },
            "data_seed": data_seed,
            "recipe": asdict(recipe),
            "evaluate_every": evaluate_every,
            "teacher": teacher and {"name": teacher.name, "fingerprint": teacher.identity},
            "teacher_saw": teacher and teacher.trained_on,
        }
        if bank and self.method.needs_bank and bank.source != source_of(train, teacher):
            self.settings["bank"] = runtime.fingerprint(bank.features, bank.logits, bank.index)
        self.records: list[dict[str, Any]] = []
        self.run: runtime.Run | None = None
        self.checkpoint: Path | None = None  # its circle's
        self.memory: MemoryBank | None = None  # its own, where one is kept

    def _use_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    @property
    def who(self) -> dict[str, Any]:
        """What a peer's run says of this student."""
        return {key: self.settings[key] for key in ("student", "method", "seed")}

    @property
    def name(self) -> str:
        """Of the run folder."""
        mark = runtime.fingerprint(self.settings)[:6]
        label = f"{self.network.name}-{methods.describe(self.method)}-seed{self.student.seed}-{mark}"
        return re.sub(r"[^\w.=+-]+", "-", self.student.name or label).strip("-")

    def _common_classes(self, teacher: Network | None, ours: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
        """Positions of the common classes in the student's and the teacher's logits; None where all are the same.

        Raises:
            InputError: the method needs a teacher and there is none, or classes that this one does not share.
        """
        name, method = self.method.config["name"], self.method
        if teacher is None:
            if method.needs_teacher:
                raise InputError(f"method {name!r} needs a teacher ({', '.join(sorted(method.needs))}); name one")
            return None
        theirs = teacher.classes
        if ours == theirs or (not theirs and teacher.num_classes == len(ours)):
            return None
        common = [c for c in ours if c in theirs]
        enough = {"same": False, "shared": len(common) > 1, "any": True}[method.label_space]
        if method.needs_teacher and not enough:
            known = ", ".join(theirs[:3]) + (", …" if len(theirs) > 3 else "") if theirs else "of unknown names"
            raise InputError(
                f"method {name!r} compares logits class by class, but the teacher's {teacher.num_classes} classes "
                f"({known}) share {len(common)} with the student's {len(ours)}; use one that compares features, such "
                "as refilled, rkd, pkt or crd" + (", or kd, which acts on the shared ones" if len(common) > 1 else "")
            )
        return torch.tensor([ours.index(c) for c in common]), torch.tensor([theirs.index(c) for c in common])

    # ------------------------------------------------------------------------------------------- training

    def forward(self, supply: Supply) -> Output:
        """Its output for the batch, with gradient. What is random in it is a function of (seed, epoch, step)."""
        runtime.reseed(supply.draws, self.student.seed, self.at.epoch, self.at.step)
        self.network.train()
        with runtime.autocast(supply.batch.labels.device, supply.precision):
            return in_full(self.network(supply.batch.images, maps="maps" in self.method.needs))

    def ready(self, steps: int) -> tuple[int, bool]:
        """Set the learning rates of the coming one of an epoch's `steps`.

        Returns:
            What else decides which work the step is: its phase, and whether it is given in-context samples.
        """
        since, self.phase, lr = self._schedule(self.at.step, steps)
        if since == 0:
            self.optimizer.state.clear()  # a phase starts without the momentum of the one before
        relative = self.method.embedding_rates
        asked = relative[min(self.phase, len(relative) - 1)] * lr, lr
        if asked != self._lr:  # each is a launch on a GPU
            self._lr = asked
            for rate, value in zip(self.rates, asked, strict=True):
                rate.fill_(value)
        spec, done = self.method.retrieval, self.at.epoch + self.at.step / steps
        self.retrieves = bool(spec and spec.source == "teacher" and spec.start * self.recipe.epochs <= done)
        return self.phase, self.retrieves

    def _schedule(self, step: int, steps: int) -> tuple[float, int, float]:
        """Of a step of the current epoch: epochs since its phase began, the phase, and the learning rate."""
        done = self.at.epoch + step / steps
        start, phase, recipe = [found for found in self.phases if found[0] <= self.at.epoch][-1]
        return done - start, phase, recipe.lr_at(done - start)

    def step(self, supply: Supply, output: Output, peers: tuple[Guide, ...], earlier: Guide | None) -> None:
        """One step of gradient descent from its output for the batch, and what it may see beside it."""
        at, needs, batch = self.at, self.method.needs, supply.batch
        runtime.reseed(supply.draws, self.student.seed, at.epoch, at.step, "method")
        partner = None
        if supply.partner is not None and "partner" in needs:
            with torch.no_grad(), runtime.autocast(batch.labels.device, supply.precision):
                partner = in_full(self.network(supply.partner.images))
        near, far = None, None
        if self.retrieves and self.method.retrieval:
            near, far = supply.retrieved[self.method.retrieval]
        terms = self.method(
            methods.Context(
                batch,
                output,
                supply.teacher if "teacher" in needs else None,
                near,
                far,
                supply.bank if "bank" in needs else None,
                partner,
                peers if "peers" in needs else (),
                earlier if "earlier" in needs else None,
                self.common,
                self.phase,
                supply.progress,
            )
        )
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        fresh = at.step == 0 and at.terms != list(terms)
        if fresh or at.losses is None or at.correct is None or at.agreed is None:
            at.terms = list(terms)
            at.losses = torch.zeros(supply.steps, len(terms), device=loss.device)
            at.correct = torch.zeros((), dtype=torch.long, device=loss.device)
            at.agreed = torch.zeros((), dtype=torch.double, device=loss.device)
        at.losses.index_copy_(0, supply.step, torch.stack([term.detach() for term in terms.values()])[None])
        predicted = output.logits.detach().argmax(1)
        at.correct += (predicted == batch.labels).sum()
        for peer in peers:
            at.agreed += (predicted == peer.output.logits.argmax(1)).sum() / len(peers)

    def check_finite(self) -> None:
        """Raise Diverged, naming term and step, when a loss of this epoch is NaN or infinite."""
        at = self.at
        if at.losses is None or bool(at.losses[: at.step].isfinite().all()):
            return
        step, term = (~at.losses[: at.step].isfinite()).nonzero()[0].tolist()
        kept = f"; its last good checkpoint is in {self.checkpoint.parent}" if self.checkpoint else ""
        raise Diverged(
            f"{self.name}: loss term {at.terms[term]!r} became {at.losses[step, term].item()} at epoch "
            f"{at.epoch + 1}, step {step + 1}; lower the learning rate or raise the warm-up{kept}"
        )

    def end_epoch(self, splits: Splits, precision: str, evaluate: bool) -> None:
        """Record the epoch that was just trained."""
        at = self.at
        assert at.losses is not None and at.correct is not None and at.agreed is not None
        terms = at.losses.mean(0).tolist()
        record = {
            "epoch": at.epoch + 1,
            "lr": self._schedule(at.step - 1, at.step)[2],
            "loss": sum(terms),
            "terms": dict(zip(at.terms, terms, strict=True)),
            "train_accuracy": at.correct.item() / len(splits.train),
        }
        if "peers" in self.settings:
            record["peer_agreement"] = at.agreed.item() / len(splits.train)
        if self.memory:
            record |= metrics.freshness(self.memory, step=(at.epoch + 1) * at.step - 1)
        if evaluate:
            if self.memory:
                some = splits.train.subset(
                    torch.randperm(len(splits.train), generator=runtime.generator(0))[:DRIFT_ROWS]
                )
                record |= metrics.drift(self.memory, MemoryBank.build(self.network, some, precision=precision))
            for name, split in (("val", splits.val), ("test", splits.test)):
                if len(split):
                    logits = models.predict(self.network, split, precision=precision).logits
                    record[f"{name}_accuracy"] = metrics.accuracy(logits, split.labels)
        record["seconds"] = round(at.seconds, 3)
        self.records.append(record)
        if self.run:
            self.run.log(record)
        for kept in (at.losses, at.correct, at.agreed):
            kept.zero_()  # where it is: a recorded step writes there
        at.epoch, at.step = at.epoch + 1, 0

    def finish(self, splits: Splits, precision: str, teacher_logits: Tensor | None, group: int) -> None:
        """The last numbers, the weights and the summary."""
        from safetensors.torch import save_file

        self.network.eval()
        test = splits.test
        numbers = metrics.classification(
            models.predict(self.network, test, precision=precision).logits,
            test.labels,
            None if self.common else teacher_logits,
        )
        evaluated = [r for r in self.records if "test_accuracy" in r]
        best = max(evaluated, key=lambda r: r["test_accuracy"])
        seen = self.recipe.epochs * len(splits.train)
        settings = self.settings
        self.summary = {
            "name": self.name,
            "network": settings["student"]["network"],
            "method": methods.describe(self.method),
            "seed": settings["seed"],
            "data_seed": self.data_seed,
            "dataset": settings["data"]["name"].split("/")[0],
            "train_images": len(splits.train),
            "augment": splits.train.augment,
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size,
            "lr": self.recipe.lr,
            "schedule": self.recipe.schedule,
            "teacher": settings["teacher"] and settings["teacher"]["name"],
            "teacher_saw": settings["teacher_saw"],
            "best_accuracy": best["test_accuracy"],
            "best_epoch": best["epoch"],
            **numbers,
        }
        if len(splits.val):
            self.summary["val_accuracy"] = evaluated[-1]["val_accuracy"]
        self.summary |= {
            "seconds": round(self.at.seconds, 3),
            "images_per_second": round(seen / max(self.at.seconds, 1e-9), 1),
            "trained_together": group,
        }
        if "peers" in settings:
            self.summary["peers"] = [peer["student"]["network"] for peer in settings["peers"]]
            self.summary["circle"] = settings["circle"]
        if self.run:
            with runtime.replacing(self.run.folder / "student.safetensors") as part:
                save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, part)
            runtime.write_json(self.run.folder / "summary.json", self.summary)

    def history(self) -> History:
        self.network.trained_on = {"data": self.settings["data"]["name"], "labels": self.settings["data"]["images"]}
        folder = self.run.folder if self.run else None
        return History(self.network, self.method, self.records, self.summary, folder)

    # ---------------------------------------------------------------------------------------- on disk

    def open(self, folder: Path, resume: bool) -> None:
        """Find this student's run in `folder`: new, to be resumed, or finished."""
        self.run = runtime.Run.open(folder / self.name, self.settings, resume=resume)
        if self.run.exists() and self.run.config["environment"].get("code") != runtime.code():
            warnings.warn(
                f"{self.run.folder} was trained by another version of ickd_lib; remove it to train anew", stacklevel=4
            )
        summary = self.run.summary if self.run.exists() else None
        if summary:
            models.load_weights(self.network, self.run.folder / "student.safetensors")
            self.network.eval()
            self.summary, self.records, self.finished = summary, self.run.metrics, True
            self.at = Progress(self.recipe.epochs)

    @property
    def state(self) -> dict[str, Any]:
        """What `checkpoint.pt` holds of it.

        Raises:
            Diverged: it has a loss that is not finite, and no business in a checkpoint.
        """
        self.check_finite()
        return {
            "progress": vars(self.at),
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory.tensors if self.memory else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.at = Progress(**state["progress"])
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._use_rates()
        if self.memory:
            self.memory.restore(state["memory"])


def last_layer(network: Network) -> nn.Module:
    """The linear layer or convolution of a network that is defined last: of a classifier, the one of its logits."""
    return [nn.Identity(), *(m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))][-1]


def in_full(output: Output) -> Output:
    """The output in float32, whatever the precision in which it was computed."""
    return Output(output.logits.float(), output.features.float(), tuple(m.float() for m in output.maps))


def without_gradient(network: nn.Module, where: torch.device) -> Any:
    """A copy of the teacher on `where`, frozen and in evaluation mode; the caller's own is left alone."""
    frozen = copy.deepcopy(network).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return frozen.eval().requires_grad_(False)
