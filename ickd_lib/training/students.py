"""What a student is: its network, its method, and the settings that identify its run."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from ickd_lib import methods, models, runtime
from ickd_lib.data import Images
from ickd_lib.memory import Faiss, MemoryBank, requested, source_of
from ickd_lib.models import Network
from ickd_lib.models.registered import REGISTRY
from ickd_lib.runtime import InputError, arguments
from ickd_lib.runtime.folders import default_name
from ickd_lib.tasks import Task
from ickd_lib.training.predictions import Predictions
from ickd_lib.training.recipe import Recipe


@dataclass(frozen=True)
class Student:
    """A request to train one student.

    network: a model's name, initialised from `seed`; or a network, which is trained in place. A further training goes
        on from its trained weights, and a note is printed if that is on the same data; so to compare methods, give each
        a copy. If its training fails, or is stopped and has a run folder, the network gets back the weights that it
        had; the same call then continues from the checkpoint in the run folder.
    method: a name that `methods.create` accepts, or a Method.
    seed: seed of the initialisation and of the method's random draws. The order of the data has its own seed.
    name: name of the run folder; by default network, method, seed and a fingerprint of all settings, so that other
        settings have another run folder.
    peer_group: students with the same peer group are each other's peers. Students with the default "" form one group if
        their methods need peers.
    """

    network: str | Network
    method: str | methods.Method = "ce"
    seed: int = 0
    name: str = ""
    peer_group: str = ""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Student).items():
            arguments.check(name, getattr(self, name), kind, "Student")


@dataclass(frozen=True)
class Learner:
    """One student, ready to be trained.

    name: name of its run folder.
    position: position in the list of students that was given.
    group: equal for the students of one peer group.
    seed: see `Student`.
    network, method: network and method on the training device.
    common: positions in the student's and the teacher's logits of the classes that both have, shape [K] each; None if
        their classes are the same.
    classifiers: the layers that compute the logits of the student and of the teacher (None without a teacher); None if
        the method does not use them.
    settings: everything that identifies the run.
    recorded: further entries of config.json, which do not identify the run: "wrapped" (`wrapping`), of an own network;
        "sources" (`runtime.own_source`), of "method", "network" and "teacher" if their classes are the user's own.
    """

    name: str
    position: int
    group: Hashable
    seed: int
    network: Network
    method: methods.Method
    common: tuple[Tensor, Tensor] | None
    classifiers: tuple[nn.Module, nn.Module | None] | None
    settings: dict[str, Any]
    recorded: dict[str, Any]

    def __repr__(self) -> str:
        return f"Learner({self.name})"


def learners(
    students: Sequence[Student],
    train: Images,
    *,
    task: Task,
    teacher: Network | None,
    bank: MemoryBank | None,
    recipe: Recipe,
    data_seed: int,
    evaluate_every: int,
    device: torch.device,
    sync_batchnorm: bool = False,
    search: str | Faiss = "exact",
) -> list[Learner]:
    """Create the students, in the order given; a student without peers is a group of its own.

    Raises:
        InputError: a network or method does not fit the data or the teacher, a method needs peers and has none, or two
            students have the same name.
    """
    networks = [student.network for student in students if not isinstance(student.network, str)]
    for network in networks:
        models.require_network(network)
    given = list(map(id, networks))
    if len(set(given)) < len(given):
        raise InputError("two students have the same network object, which both would train; give each its own copy")
    unlabelled = train.unlabelled
    shared = {
        "data": {
            "name": train.name,
            "fingerprint": train.fingerprint,
            "images": len(train) - unlabelled,
            "classes": list(train.classes),
            "augment": train.augment,
            **train.recorded_crop,
            **({"unlabelled": unlabelled, "unlabelled_share": train.unlabelled_share} if unlabelled else {}),
        },
        "data_seed": data_seed,
        "recipe": asdict(recipe),
        "evaluate_every": evaluate_every,
        "teacher": teacher and {"name": teacher.name, "fingerprint": teacher.identity},
        "teacher_saw": teacher and teacher.trained_on,
        **({} if task.name == "classification" else {"task": task.name}),
        **({"sync_batchnorm": True} if sync_batchnorm else {}),
    }
    approximate = requested(search)
    made = [
        _learner(i, student, train, task, teacher, bank, shared, device, approximate)
        for i, student in enumerate(students)
    ]
    if approximate and not any("search" in learner.settings for learner in made):
        raise InputError("search='faiss' is for a method with nearest negatives from the teacher's bank, such as ickd")
    alike = [
        (one.group, students[one.position].network, methods.describe(one.method), one.seed)
        for one in made
        if isinstance(students[one.position].network, str)
    ]
    if len(set(alike)) < len(alike):
        runtime.notice("two peers have the same network, method and seed, so they stay equal; change one seed")
    named = [_named(one, [peer for peer in made if peer.group == one.group], students[one.position]) for one in made]
    names = [learner.name for learner in named]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two students are named {name!r}; give each a different name")
    return named


def _architecture(network: Network) -> dict[str, Any]:
    """Return what differs between architectures of one name or class."""
    shapes = {name: list(getattr(value, "shape", ())) for name, value in network.state_dict().items()}
    count = sum(parameter.numel() for parameter in network.parameters())
    return {"shapes": runtime.fingerprint(shapes), "parameters": count}


def _learner(
    position: int,
    student: Student,
    train: Images,
    task: Task,
    teacher: Network | None,
    bank: MemoryBank | None,
    shared: dict[str, Any],
    device: torch.device,
    search: Faiss | None,
) -> Learner:
    """Create a student that does not have its name yet, because the default name depends on the peers."""
    given = student.method
    method = methods.create(given) if isinstance(given, str) else copy.deepcopy(given)
    methods.require_initialised(method)
    origin: dict[str, Any]
    recorded: dict[str, Any] = {}
    if isinstance(student.network, str):
        with runtime.seeded(student.seed, "network"):
            network = models.create(student.network, **train.spec)
        origin = {"network": network.name, **train.spec}
        if network.name.partition("(")[0] in REGISTRY:
            origin |= _architecture(network)
    else:
        network = student.network
        origin = {"network": network.name, "initial": network.identity, **_architecture(network)}
        recorded["wrapped"] = models.wrapping(network)
        if network.trained_on.get("data") == train.name:
            runtime.notice(
                f"the network {network.name} given to Student has been trained on {train.name} before, and goes on "
                "from its present weights; to compare methods, give each a copy.deepcopy(network) that was made before "
                "the first training"
            )
    _check(network, method, train, task, teacher)
    common = _common_classes(method, teacher, train.classes, task)
    if common:
        check_one_class(method, train.augment)
    network.classes = train.classes
    labels = task.keys(train)[1]
    rows = len(labels)
    rows_labels = bank.labels[bank.filled] if bank else labels
    method.describe_bank(rows_labels, larger=bool(bank), few_allowed=task.allow_missing, trained=labels)
    with runtime.seeded(student.seed, "method"):
        network = method.adapt(network, teacher, train.size)
        if network.added:
            origin = {**origin, **network.added}
        outputs = len(task.outputs(train.classes))
        method.setup(network.features_dim, teacher.features_dim if teacher else 0, outputs, rows)
    settings = {"student": origin, "method": method.config, "seed": student.seed, **shared}
    if asked := [{k: getattr(spec, k) for k in ("positives", "negatives")} for spec in method.retrievals]:
        settings["in_context"] = asked[0] if len(asked) == 1 else asked
    if bank and method.needs_bank and bank.source != source_of(train, teacher):
        settings["bank"] = _described(bank)
    if search and any(spec.approximable for spec in method.retrievals):
        settings["search"] = {"name": "faiss", **asdict(search.resolved(len(bank) if bank else rows))}
    parts = {"method": method, "network": network, "teacher": teacher}
    sources = {name: runtime.own_source(part) for name, part in parts.items() if part is not None}
    if sources := {name: mark for name, mark in sources.items() if mark != ""}:
        recorded["sources"] = sources
    if student.name:
        runtime.run_name(student.name)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    method = method.to(device)
    if "sync_batchnorm" in shared:
        network, method = models.synchronised(network), models.synchronised(method)
    return Learner(
        student.name,
        position,
        student.peer_group or ("peers" in method.needs) or (position,),
        student.seed,
        network,
        method,
        common and (common[0].to(device), common[1].to(device)),
        _classifiers(network, teacher, train.size) if "classifiers" in method.needs else None,
        settings,
        recorded,
    )


@contextlib.contextmanager
def restored_on_error(students: Iterable[Student], *, saved: bool) -> Iterator[set[int]]:
    """If the context ends with an exception, give each given network the weights and classes that it had before.

    The same call then finds the same run folders. The weights that a checkpoint has are not lost.

    Args:
        students: the students, whose networks may be trained in the context.
        saved: whether checkpoints are written. If not, training that is stopped (KeyboardInterrupt) leaves the trained
            weights in the networks, because they are nowhere else.
    Yields:
        A set to which the positions of the students can be added whose networks keep their trained weights.
    """
    networks = {i: one.network for i, one in enumerate(students) if isinstance(one.network, Network)}
    before = {i: (copy.deepcopy(network.state_dict()), network.classes) for i, network in networks.items()}
    trained: set[int] = set()
    try:
        yield trained
    except BaseException as error:
        if saved or not isinstance(error, KeyboardInterrupt):
            for i in networks.keys() - trained:
                weights, networks[i].classes = before[i]
                networks[i].load_state_dict(weights, strict=False)  # a method's `adapt` may have added parameters
        raise


def _described(bank: MemoryBank) -> dict[str, Any]:
    """Return what identifies a bank that is not simply the teacher's bank of the training samples.

    A bank whose source is known is identified by it, because its values depend on rounding when it is built again.
    """
    found = {"rows": len(bank), "index": runtime.fingerprint(bank.index)}
    if {"data", "teacher"} <= bank.source.keys():
        return found | bank.source
    return found | {"content": runtime.fingerprint(bank.features, bank.logits, bank.labels)}


def _classifiers(
    network: Network, teacher: Network | None, size: tuple[int, int]
) -> tuple[nn.Module, nn.Module | None]:
    """Return the layers that compute the logits of the student and of the teacher, if there is one."""
    return models.classifier(network, size=size)[1], models.classifier(teacher, size=size)[1] if teacher else None


def _named(learner: Learner, group: Sequence[Learner], student: Student) -> Learner:
    """Return the student with its peers in its settings, and with its name."""
    settings = dict(learner.settings)
    if len(group) > 1:
        described = [{key: one.settings[key] for key in ("student", "method", "seed")} for one in group]
        mark = runtime.fingerprint(sorted(described, key=str))[:6]
        own = next(i for i, one in enumerate(group) if one is learner)
        others = sorted(described[:own] + described[own + 1 :], key=str)
        settings |= {"peers": others, "peer_group": student.peer_group or mark}
    elif "peers" in learner.method.needs:
        raise InputError(
            f"method {learner.method.config['name']!r} needs peers, and there are none; train two or more students of "
            "one peer group together"
        )
    label = f"{learner.network.name}-{methods.describe(learner.method)}-seed{learner.seed}"
    name = learner.name or default_name(label, settings)
    return replace(learner, name=name, settings=settings)


def _check(network: Network, method: methods.Method, train: Images, task: Task, teacher: Network | None) -> None:
    """Raise InputError if network and data, method and task, or method and teacher do not fit."""
    name = method.config["name"]
    task.check_network(network, train)
    if network.num_classes != len(train.classes):
        raise InputError(f"{network.name} has {network.num_classes} classes, but {train.name} has {len(train.classes)}")
    if network.classes != train.classes[: len(network.classes)]:
        raise InputError(
            f"{network.name} has the classes {', '.join(network.classes[:5])}, … but {train.name} begins with "
            f"{', '.join(train.classes[:5])}; give a network whose classes come first"
        )
    needs = method.needs | ({"bank"} if method.needs_bank else set())
    if missing := needs & task.unsupported:
        raise InputError(f"method {name!r} needs {', '.join(sorted(missing))}, which {task.name} does not have")
    if runtime.world() > 1 and (missing := needs & task.unsupported_in_parts):
        raise InputError(
            f"method {name!r} needs {', '.join(sorted(missing))}, which {task.name} does not have with several "
            "processes; train with one process"
        )
    if (
        teacher
        and not teacher.features_dim
        and (missing := needs & {"bank", "features", "pooled features", "classifiers"})
    ):
        raise InputError(
            f"method {name!r} needs {', '.join(sorted(missing))} of the teacher, but {teacher.name} has logits alone; "
            "use one that needs its logits alone, such as kd, dkd or ckd, or a teacher that returns its features too"
        )
    if train.unlabelled:
        _check_unlabelled(method, train, teacher)
    if isinstance(teacher, Predictions):
        teacher.require(train)
    compared = teacher if "teacher" in method.needs else None  # a method may use the maps of the student alone
    if "maps" in method.needs:
        for used in (network, compared):
            if used is not None and not used.stages:
                raise InputError(f"method {name!r} uses maps, but {used.name} names no stages; wrap it with maps=(...)")


def _check_unlabelled(method: methods.Method, train: Images, teacher: Network | None) -> None:
    """Raise InputError if a method cannot use images without labels."""
    if teacher is None:
        raise InputError(
            f"{train.name} has {train.unlabelled} unlabelled images, which only a teacher can use; name one"
        )
    if not method.unlabelled:
        able = ", ".join(name for name in methods.names() if methods.create(name).unlabelled)
        raise InputError(f"method {method.config['name']!r} needs a label for each image; without some, use {able}")
    if train.augment.endswith(("mixup", "cutmix")):
        raise InputError(f"augment={train.augment} mixes labels, which some images do not have; give another one")


def check_one_class(method: methods.Method, augment: str) -> None:
    """Raise InputError if a method whose teacher has other classes cannot use an augmentation that mixes images."""
    if method.one_class and augment.endswith(("mixup", "cutmix")):
        raise InputError(
            f"method {method.config['name']!r} needs images of one class each, and augment={augment} mixes them; give "
            "another one"
        )


def _common_classes(
    method: methods.Method, teacher: Network | None, classes: tuple[str, ...], task: Task
) -> tuple[Tensor, Tensor] | None:
    """Return positions of the common classes in the student's and the teacher's logits; None if all are the same.

    Raises:
        InputError: the method needs a teacher and there is none, or it needs classes that the teacher does not have.
    """
    name = method.config["name"]
    if teacher is None:
        if method.needs_teacher:
            raise InputError(f"method {name!r} needs a teacher ({', '.join(sorted(method.needs))}); name one")
        return None
    others = teacher.classes
    if classes == others or (not others and teacher.num_classes == len(classes)):
        return None
    common = [c for c in classes if c in others]
    enough = {"same": False, "shared": len(common) > 1, "any": True}[method.label_space]
    if method.needs_teacher and not enough:
        known = ", ".join(others[:3]) + (", …" if len(others) > 3 else "") if others else "of unknown names"
        raise InputError(
            f"method {name!r} compares logits class by class, but the teacher's {teacher.num_classes} classes "
            f"({known}) share {len(common)} with the student's {len(classes)}; use one that compares features, such "
            "as refilled, rkd, pkt or crd" + (", or kd, which acts on the shared ones" if len(common) > 1 else "")
        )
    if method.needs_teacher and method.label_space == "shared" and len(common) < len(classes):
        missing = [c for c in classes if c not in others]
        some = ", ".join(missing[:5]) + ", …" * (len(missing) > 5)
        runtime.notice(
            f"the teacher does not have {len(missing)} of the student's {len(classes)} classes ({some}); {name} "
            "matches the logits of the other classes"
        )
    own, of_teacher, both = (task.outputs(names) for names in (classes, others, tuple(common)))
    return torch.tensor([own.index(c) for c in both]), torch.tensor([of_teacher.index(c) for c in both])
