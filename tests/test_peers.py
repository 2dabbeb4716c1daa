"""Peer groups and students with a bank of their own: what a step shows, what banks contain, how they resume."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_training import Interrupted, distill, know_small_architectures, same, stop_at

from ickd_lib import data, metrics, models, runtime, training
from ickd_lib.memory import MemoryBank
from ickd_lib.methods import ICKD, Combined, Method, create
from ickd_lib.runtime import Diverged, InputError
from ickd_lib.training import Recipe, Student
from ickd_lib.training.records import RunRecord

pytestmark = pytest.mark.usefixtures("untouched_generator")
RECIPE = Recipe(epochs=2, lr=0.05, schedule="cosine", batch_size=25)  # steps of 25, 25 and 10 images
ONLINE = "ickd_online(positives=3, negatives=5, warmup=0.2, momentum=0.5)"
SELF = "ickd_self(positives=3, negatives=5, warmup=0.2, momentum=0.5)"


@pytest.fixture(scope="module", autouse=True)
def small_architectures():
    with pytest.MonkeyPatch.context() as patch:
        know_small_architectures(patch)
        yield


@pytest.fixture(scope="module")
def few():
    """60 digits to learn from, 40 to be tested on."""
    splits = data.load("digits", labels=60)
    return splits._replace(test=splits.test.few(40))


def train(students, splits, **options):
    return distill(students, splits, None, **{"recipe": RECIPE} | options)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def ranked(query, own, memory):
    """All rows of a bank {data-set row: (label, features, logits)} but a query's own: (cosine, row), nearest first."""
    rows = sorted(row for row in memory if row != own)
    if not rows:
        return []
    keys = F.normalize(torch.stack([memory[row][1] for row in rows]), dim=1).double()
    cosines = keys @ F.normalize(query, dim=0).double()
    return sorted(zip(cosines.tolist(), rows, strict=True), key=lambda pair: -pair[0])


# -------------------------------------------------------------------------------------------- by hand


def entropy(z, labels):
    return -z.log_softmax(1)[torch.arange(len(z)), labels].mean()


def apart(target, z, temperature):
    """τ² KL of each row, or of one."""
    p, q = ((x / temperature).softmax(-1) for x in (target, z))
    return temperature**2 * (p * (p / q).log()).sum(-1)


def in_context(z, batch, features, memory, answers=None):
    """PICD and NICD; NICD is anchored at the answers, or at the aggregate of the positives."""
    picd = nicd = 0 * z.sum()
    for i, (own, label) in enumerate(zip(batch.index.tolist(), batch.labels.tolist(), strict=True)):
        found = ranked(features[i], own, memory)
        near = [(cosine, memory[row][2]) for cosine, row in found if memory[row][0] == label][:3]
        others = [memory[row][2] for _, row in found if memory[row][0] != label][:5]
        anchor = answers[i] if answers is not None else None
        if near:
            weights = (torch.tensor([cosine for cosine, _ in near]) / 0.05).softmax(0)
            together = sum(weight * logits for weight, (_, logits) in zip(weights, near, strict=True))
            picd = picd + apart(together, z[i], 2) / len(z)
            anchor = together if answers is None else anchor
        if others and anchor is not None:
            scores = F.cosine_similarity(z[i], torch.stack([anchor, *others]), dim=1) / 0.1
            nicd = nicd - scores.log_softmax(0)[0] / len(z)
    return picd, nicd


def mutual(me, z, batch, said, memories, progress):
    each = [apart(logits, z, 3).mean() for i, (_, logits) in enumerate(said) if i != me]
    return {"ce": entropy(z, batch.labels), "kd": sum(each)}


def least(me, z, batch, said, memories, progress):
    shifted = [logits - logits[torch.arange(len(z)), batch.labels][:, None] for _, logits in said]
    together = torch.minimum(torch.minimum(*shifted[:2]), shifted[2])
    return {"ce": entropy(z, batch.labels), "kd": apart(together, z, 2).mean()}


def mean(me, z, batch, said, memories, progress):
    return {"ce": entropy(z, batch.labels), "kd": apart(sum(logits for _, logits in said) / 3, z, 2).mean()}


def progressive(me, z, batch, said, memories, progress):
    seen_first = (None, None, None)
    earlier = [memories[me].get(row, seen_first)[2] for row in batch.index.tolist()]
    earlier = torch.stack([now if before is None else before for now, before in zip(said[me][1], earlier, strict=True)])
    soft = -(earlier.softmax(1) * z.log_softmax(1)).sum(1).mean()
    epoch = int(4 * progress + 1e-6)  # of four, all steps of which have the same weight
    alpha = 0.8 * (epoch + 1) / 4 if epoch else 0
    return {"ce": (1 - alpha) * entropy(z, batch.labels), "earlier": alpha * soft}


def online(me, z, batch, said, memories, progress):
    each = []
    for features, logits, memory in [(*said[i], memories[i]) for i in range(len(said)) if i != me]:
        each.append(torch.stack([apart(logits, z, 2).mean(), *in_context(z, batch, features, memory, logits)]))
    kd, picd, nicd = sum(each) / len(each)
    return {"ce": entropy(z, batch.labels), "kd": kd, "picd": 0.3 * picd, "nicd": 0.2 * nicd}


def lonely(me, z, batch, said, memories, progress):
    picd, nicd = in_context(z, batch, said[me][0], memories[me])
    return {"ce": entropy(z, batch.labels), "picd": 0.3 * picd, "nicd": 0.2 * nicd}


def late(teach, warmup):
    """Before the warm-up is over, the banks look empty."""
    return lambda me, z, batch, said, memories, progress: teach(
        me, z, batch, said, memories if progress >= warmup else [{} for _ in memories], progress
    )


def by_hand(members, splits, recipe, teach, momentum):
    """A plain loop over students (kind, seed): all speak, then learn, then write. Their networks and mean terms."""
    networks = []
    for kind, seed in members:
        with runtime.seeded(seed, "network"):
            networks.append(models.create(kind, **splits.train.spec).train())
    optimizers = [torch.optim.SGD(n.parameters(), recipe.lr, 0.9, weight_decay=5e-4) for n in networks]
    memories: list[dict] = [{} for _ in networks]
    records, steps = [[] for _ in networks], data.Sampler(splits.train).steps(recipe.batch_size)
    for epoch in range(recipe.epochs):
        terms = [[] for _ in networks]
        for step, batch in enumerate(data.Sampler(splits.train).batches(recipe.batch_size, data_seed=0, epoch=epoch)):
            outputs = [network(batch.images) for network in networks]
            said = [(output.features.detach(), output.logits.detach()) for output in outputs]
            done = epoch + step / steps
            for me, optimizer in enumerate(optimizers):
                found = teach(me, outputs[me].logits, batch, said, memories, done / recipe.epochs)
                optimizer.param_groups[0]["lr"] = recipe.lr_at(done)
                optimizer.zero_grad()
                sum(found.values()).backward()
                optimizer.step()
                terms[me].append({name: value.item() for name, value in found.items()})
            for memory, (features, logits) in zip(memories, said, strict=True):
                for row, *new in zip(batch.index.tolist(), batch.labels.tolist(), features, logits, strict=True):
                    mixed = (
                        momentum * old + (1 - momentum) * x for old, x in zip(memory.get(row, new), new, strict=True)
                    )
                    memory[row] = tuple(mixed)
        for record, each in zip(records, terms, strict=True):
            record.append({name: sum(found[name] for found in each) / steps for name in each[0]})
    return networks, records


THREE, CHOICES = (
    [("plain", 0), ("slim", 1), ("plain", 2)],
    "picd=0.3, nicd=0.2, temperature=2, positives=3, negatives=5",
)


@pytest.mark.parametrize(
    ("method", "members", "teach", "momentum"),
    [
        ("dml(temperature=3)", THREE, mutual, 0),
        ("kdcl(temperature=2)", THREE, least, 0),
        ("kdcl(temperature=2, ensemble='mean')", THREE, mean, 0),
        ("pskd(alpha=0.8)", THREE[:1], progressive, 0),
        (f"ickd_online({CHOICES}, warmup=0, momentum=0)", THREE[:2], online, 0),
        (f"ickd_online({CHOICES}, warmup=0.4, momentum=0.7)", THREE[1:], late(online, 0.4), 0.7),
        (f"ickd_self({CHOICES}, warmup=0, momentum=0)", THREE[:1], lonely, 0),
        (f"ickd_self({CHOICES}, warmup=0.4, momentum=0.7)", THREE[1:2], late(lonely, 0.4), 0.7),
    ],
)
def test_training_equals_a_loop_by_hand(method, members, teach, momentum, few):
    recipe = Recipe(epochs=4, lr=0.02, schedule="cosine", batch_size=25)
    students = [Student(kind, method, seed, f"student{seed}") for kind, seed in members]
    networks, records = by_hand(members, few, recipe, teach, momentum)
    found = train(students, few, recipe=recipe).values()
    close = 5e-3 if "ickd" in method else 1e-4  # by rounding, two rows almost equally near may change places
    for history, network, record in zip(found, networks, records, strict=True):
        for epoch, expected in zip(history.epochs, record, strict=True):
            assert epoch["terms"] == {name: pytest.approx(term, rel=close, abs=1e-6) for name, term in expected.items()}
        ours, theirs = history.network.state_dict(), network.state_dict()
        assert all(torch.allclose(ours[name], theirs[name], rtol=close, atol=0.1 * close) for name in theirs)


def timeless(history):
    """Its summary and records, without what the clock says."""
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for record in (history.summary, *history.epochs)]


# ----------------------------------------------------------------------------------- what a step shows and writes


class Watching(ICKD):
    """IC-KD that keeps what it was shown; `seen` holds the contexts of all steps."""

    def __init__(self, **choices):
        super().__init__(**choices)
        self.seen = []

    def forward(self, context):
        self.seen.append(context)
        return super().forward(context)


def watched(source, splits, students="ab", **options):
    """The contexts of some students that dropout makes say something else in each step, by name."""
    choices = {"positives": 3, "negatives": 5, "source": source} | options.pop("choices", {})
    given = [Student("dropping", Watching(**choices), seed, name) for seed, name in enumerate(students)]
    return {name: history.method.seen for name, history in train(given, splits, **options).items()}


def spoken(contexts):
    """Before each step, the rows that a student's earlier outputs wrote: {data-set row: (label, features, logits)}."""
    memory = {}
    for context in contexts:
        yield dict(memory)
        output = context.student.features.detach(), context.student.logits.detach()
        words = zip(context.batch.index.tolist(), context.batch.labels.tolist(), *output, strict=True)
        memory |= {row: word for row, *word in words}


def test_a_row_holds_what_its_last_visit_said(few, tmp_path):
    for name, contexts in watched("peers", few, runs=tmp_path).items():
        last = {int(row): step for step, context in enumerate(contexts) for row in context.batch.index}
        *_, memory = spoken([*contexts, contexts[0]])  # after all steps
        labels, features, logits = zip(*(memory[row] for row in sorted(memory)), strict=True)
        bank = checkpoint(tmp_path / "a")[name]["memory"]
        assert bank["index"].tolist() == sorted(few.train.index.tolist()) == sorted(last)
        assert bank["labels"].tolist() == list(labels)
        assert bank["written"].tolist() == [last[row] for row in sorted(last)] and len(contexts) == 6
        assert torch.equal(bank["logits"], torch.stack(logits))
        assert torch.allclose(bank["features"] * bank["norms"][:, None], torch.stack(features), atol=1e-6)
        assert torch.allclose(bank["features"].norm(dim=1), (bank["norms"] > 0).float(), atol=1e-6)


@pytest.mark.parametrize("source", ["peers", "self"])
@pytest.mark.parametrize("order", ["nearest", "random"])
def test_samples_are_what_a_bank_held_before_the_step(source, order, few):
    seen = watched(source, few, choices={"order": order})
    found = 0
    for me, whose in (("a", "b"), ("b", "a")) if source == "peers" else (("a", "a"), ("b", "b")):
        for context, asked, memory in zip(seen[me], seen[whose], spoken(seen[whose]), strict=True):
            (guide,) = context.sources(source)
            assert (context.earlier is None, len(context.peers)) == ((True, 1) if source == "peers" else (False, 0))
            for part in (guide.output, guide.positives, guide.negatives):
                assert not any(getattr(value, "requires_grad", False) for value in vars(part).values())
            images = zip(context.batch.index.tolist(), context.batch.labels.tolist(), strict=True)
            for i, (own, label) in enumerate(images):
                now = label, asked.student.features[i], asked.student.logits[i]
                _, features, logits = memory.get(own, now) if source == "self" else now
                assert torch.equal(guide.output.logits[i], logits)
                assert torch.allclose(guide.output.features[i], features, atol=1e-6)
                every = ranked(asked.student.features[i].detach(), own, memory)
                for samples, same_class, k in ((guide.positives, True, 3), (guide.negatives, False, 5)):
                    near = {row: cosine for cosine, row in every if (memory[row][0] == label) == same_class}
                    mask = samples.mask[i]
                    rows = samples.index[i][mask].tolist()
                    assert len(set(rows)) == len(rows) == min(k, len(near)) and set(rows) <= set(near)
                    expected = list(near.values())[:k] if order == "nearest" else [near[row] for row in rows]
                    assert samples.similarity[i][mask].tolist() == pytest.approx(expected, abs=1e-5)
                    for row, held, unit in zip(rows, samples.logits[i][mask], samples.features[i][mask], strict=True):
                        assert torch.equal(held, memory[row][2])
                        assert torch.allclose(unit, F.normalize(memory[row][1], dim=0), atol=1e-6)
                    found += len(rows)
    assert found > 1000


@pytest.mark.parametrize(
    ("one", "other"), [("pskd", "ickd(positives=2, negatives=4)"), ("pskd", ONLINE), ("dml", SELF), ("dml", ONLINE)]
)
def test_of_two_methods_at_once_only_one_is_shown_samples(one, other, few):
    """Whoever speaks for the other one has none."""
    seen = []

    class Listening(Combined):
        def forward(self, context):
            seen.append(context)
            return super().forward(context)

    with runtime.seeded(0):
        teacher = models.create("resnet8", **few.train.spec)
    both = Listening(parts=[create(one), create(other)])
    distill([Student("dropping", both, i, peer_group="one") for i in range(2)], few, teacher, recipe=RECIPE)
    assert len(seen) > 2
    for context in seen[-2:]:
        guides = {"teacher": [context], "peers": context.peers, "self": filter(None, [context.earlier])}
        assert {who for who, those in guides.items() if any(x.retrieved for x in those)} == {both.retrievals[0].source}


def test_random_samples_are_drawn_anew_in_each_step_and_alike_in_each_run(few):
    def drawn(order="random"):
        seen = watched("self", few, choices={"order": order})
        return [[context.earlier.negatives.index for context in contexts] for contexts in seen.values()]

    first, again, nearest = drawn(), drawn(), drawn("nearest")
    assert all(torch.equal(x, y) for a, b in zip(first, again, strict=True) for x, y in zip(a, b, strict=True))
    for ours, others in ((first[0], first[1]), (first[0], nearest[0])):
        assert not any(torch.equal(x, y) for x, y in list(zip(ours, others, strict=True))[1:])
    one, next_one = first[0][3:5]  # the bank is full
    assert (one[:, :, None] == next_one[:, None]).any(2).float().mean() < 0.3


def test_the_warm_up_shows_outputs_but_no_samples(few):
    seen = watched("peers", few, choices={"warmup": 0.5})  # of six steps
    for contexts in seen.values():
        assert [context.peers[0].positives is None for context in contexts] == 3 * [True] + 3 * [False]
        assert [context.peers[0].negatives is None for context in contexts] == 3 * [True] + 3 * [False]
        assert contexts[3].peers[0].positives.mask.any(), "the bank was written all along"
        assert all(context.peers[0].output.logits.shape == context.student.logits.shape for context in contexts)


class Deaf(Method):
    """Students that have peers and do not listen."""

    needs = frozenset({"peers"})

    def forward(self, context):
        assert len(context.peers) == 3
        return {"ce": context.supervised}


def test_nobody_learns_from_a_peer_unless_its_method_does(few):
    """Each has the weights that it would have alone, whatever its peers compute from its outputs."""
    methods = {"a": Deaf(), "b": ONLINE, "c": Deaf(), "d": "dml"}
    found = train([Student("dropping", method, 0, name) for name, method in methods.items()], few)
    (alone,) = train([Student("dropping", "ce", 0)], few).values()
    assert [same(history.network, alone.network) for history in found.values()] == [True, False, True, False]
    assert [r["loss"] for r in found["a"].epochs] == [r["loss"] for r in alone.epochs]


def test_the_order_in_which_students_are_given_does_not_matter(few):
    students = [*(Student("dropping", ONLINE, seed) for seed in (3, 1, 2)), Student("slim", SELF)]
    found, other = (train(given, few) for given in (students, students[::-1]))
    assert list(found) == list(other)[::-1] and len(found) == 4, "nor for their names"
    assert all(same(history.network, other[name].network) for name, history in found.items())


def test_circles_do_not_see_each_other(few):
    circles = [training.peer_group("dropping", method, 5, ["slim"]) for method in (ONLINE, "dml")]
    alone = [Student("dropping", SELF, 5), Student("dropping", "pskd", 5)]
    together = train([*circles[0], alone[0], *circles[1], alone[1]], few)
    for part in (*circles, alone[:1], alone[1:]):
        for name, history in train(part, few).items():
            assert same(history.network, together[name].network)
            assert timeless(history)[1:] == timeless(together[name])[1:]


# ---------------------------------------------------------------------------------------------- resumed


def resumable():
    """A pair and two that learn alone: four learn in each of six steps."""
    pair = [Student("dropping", ONLINE, 3, "a"), Student("slim", ONLINE, 4, "b")]
    return [*pair, Student("dropping", SELF, 5, "c"), Student("dropping", "pskd", 6, "d")]


def assert_same_runs(whole, found, folder):
    """Weights, records, summaries and banks of the runs in two folders are the same."""
    for name, history in found.items():
        expected = whole[name]
        assert same(history.network, expected.network)
        assert timeless(history) == timeless(expected)
        lines = (history.folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == history.epochs
    for first in ("a", "c", "d"):
        ours, theirs = checkpoint(folder / first), checkpoint(whole[first].folder)
        assert list(ours) == list(theirs) == (["a", "b"] if first == "a" else [first])
        for name in ours:
            banks = ours[name]["memory"], theirs[name]["memory"]
            assert set(banks[0]) == {"features", "logits", "labels", "index", "norms", "written"}
            assert all(torch.equal(banks[0][key], banks[1][key]) for key in banks[1])


@pytest.fixture(scope="module")
def whole_runs(few, small_architectures, tmp_path_factory):
    """What nobody stopped."""
    return train(resumable(), few, runs=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("count", [1, 5, 6, 12, 13, 23])
def test_a_circle_stopped_at_any_step_and_resumed_is_the_same(count, whole_runs, few, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, count)  # 1, 5 and 13: between the two of a circle
        with pytest.raises(Interrupted):
            train(resumable(), few, runs=tmp_path, checkpoint_seconds=0)
    kept = sorted(path.parent.name for path in tmp_path.glob("*/checkpoint.pt"))
    assert kept == (["a", "c", "d"] if count >= 4 else []), "b's is in a's folder"
    assert_same_runs(whole_runs, train(resumable(), few, runs=tmp_path), tmp_path)


@pytest.mark.parametrize("count", [4, 10, 17])
def test_a_kill_between_two_checkpoints_is_caught_up_with(count, whole_runs, few, tmp_path, monkeypatch):
    saved, save = [], torch.save

    def cut(*args):
        if len(saved) == count:
            raise Interrupted
        saved.append(args)
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(Interrupted):
            train(resumable(), few, runs=tmp_path, checkpoint_seconds=0)
    steps = [checkpoint(tmp_path / first)[first]["step"] for first in ("a", "c", "d")]
    assert len(set(steps)) == 2, "the kill left circles at different steps"
    assert_same_runs(whole_runs, train(resumable(), few, runs=tmp_path), tmp_path)


def test_a_kill_while_the_folders_are_made_starts_anew(whole_runs, few, tmp_path, monkeypatch):
    create, made = runtime.Run.create, []

    def cut(run, *args, **more):
        if made:
            raise Interrupted
        made.append(run)
        create(run, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.Run, "create", cut)
        with pytest.raises(Interrupted):
            train(resumable(), few, runs=tmp_path)
    assert_same_runs(whole_runs, train(resumable(), few, runs=tmp_path), tmp_path)


def test_a_kill_while_the_summaries_are_written_loses_nothing(whole_runs, few, tmp_path, monkeypatch):
    finish, finished = RunRecord.finish, []

    def cut(record, *args):
        if finished:
            raise Interrupted
        finished.append(record.learner.name)
        finish(record, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "finish", cut)
        with pytest.raises(Interrupted):
            train(resumable(), few, runs=tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 0)
        found = train(resumable(), few, runs=tmp_path)
        again = train(resumable(), few, runs=tmp_path)
    for name, history in found.items():
        assert same(history.network, whole_runs[name].network) and again[name].summary == history.summary
        assert history.epochs[-1]["loss"] == whole_runs[name].epochs[-1]["loss"]


# ------------------------------------------------------------------------------------------ what goes wrong


def stopped(few, folder, monkeypatch, count=9):
    with monkeypatch.context() as patch:
        stop_at(patch, count)
        with pytest.raises(Interrupted):
            train(resumable()[:2], few, runs=folder, checkpoint_seconds=0)


def refused(message, few, folder, students=None):
    with pytest.raises(InputError, match=message) as caught:
        train(students or resumable()[:2], few, runs=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_circle_of_which_a_folder_was_removed_is_refused(name, finished, few, tmp_path, monkeypatch):
    if finished:
        train(resumable()[:2], few, runs=tmp_path)
    else:
        stopped(few, tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / name)
    refused(r"peers train together, and some of .*/a, .*/b were removed or trained alone; remove all", few, tmp_path)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("damage", ["cut short", "no checkpoint"])
def test_a_damaged_checkpoint_of_a_circle_is_named(damage, few, tmp_path, monkeypatch):
    stopped(few, tmp_path, monkeypatch)
    path = tmp_path / "a" / "checkpoint.pt"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_text("no checkpoint\n")
    refused(r"a/checkpoint\.pt is damaged .*; remove .*/a, .*/b to train anew", few, tmp_path)


def test_a_checkpoint_of_peers_with_other_names_names_those_that_it_holds(few, tmp_path, monkeypatch):
    stopped(few, tmp_path, monkeypatch)
    (tmp_path / "b").rename(tmp_path / "c")
    first, second = resumable()[:2]
    message = r"a/checkpoint\.pt holds the runs a, b, but not c; give the run folders of peers their former names, or"
    refused(message, few, tmp_path, [first, replace(second, name="c")])


def test_a_circle_of_others_is_another_run(few, tmp_path, monkeypatch):
    stopped(few, tmp_path, monkeypatch)
    a, b = resumable()[:2]
    other = Student("slim", ONLINE, 9, "b")
    refused(r"/a contains a run with .*\(differing: peer_group, peers\)", few, tmp_path, [a, other])
    refused(
        r"/a contains a run with .*\(differing: peer_group, peers\)", few, tmp_path, [a, b, replace(other, name="x")]
    )
    named = [replace(student, peer_group="mine") for student in (a, b)]
    refused(r"/a contains a run with peer_group=.*, not 'mine' \(differing: peer_group\)", few, tmp_path, named)
    refused(
        r"/a contains a run with .*\(differing: in_context, method, peer_group, peers\)",
        few,
        tmp_path,
        [replace(a, method="ce")],
    )


@pytest.mark.parametrize("method", ["dml", "kdcl", ONLINE, "kdcl+ickd(source='peers')"])
def test_who_learns_from_peers_needs_some(method, few):
    for students in (
        [Student("dropping", method)],
        [Student("dropping", method, i, peer_group=str(i)) for i in (1, 2)],
    ):
        refused("needs peers, and there are none", few, None, students)


class Breaking(Method):
    """Diverges in the fifth of six steps."""

    needs = frozenset({"peers"})

    def forward(self, context):
        loss = context.supervised
        return {"ce": loss * (float("inf") if context.progress > 0.6 else 1.0)}


def test_one_that_diverges_leaves_the_last_good_checkpoint_of_all_its_circle(few, tmp_path):
    students = [Student("dropping", ONLINE, 0, "a"), Student("dropping", Breaking(), 1, "b")]
    students.append(Student("plain", "ce", 2, "c"))
    message = rf"b: loss term 'ce' became inf at epoch 2, step 2; .* {tmp_path}/a/checkpoint.pt, of epoch 2, step 1$"
    with pytest.raises(Diverged, match=message):
        train(students, few, runs=tmp_path, checkpoint_seconds=0)
    states = checkpoint(tmp_path / "a") | checkpoint(tmp_path / "c")
    reached = {name: (state["epoch"], state["step"]) for name, state in states.items()}
    assert reached == {"a": (1, 1), "b": (1, 1), "c": (2, 0)}, "all other students are trained to the end"
    for state in states.values():
        assert all(tensor.isfinite().all() for part in ("network", "memory") for tensor in state[part].values())


# ------------------------------------------------------------------------------------------------ records


def test_a_record_tells_of_banks_and_peers_where_there_are_some(few):
    bank, peers = {"bank_fill", "bank_age", "bank_age_max"}, {"peer_agreement"}
    expected = {ONLINE: bank | peers, "dml": peers, SELF: bank, "pskd": bank, "ce": set()}
    circles = [training.peer_group("dropping", method) for method in expected]
    circles.append([Student("dropping", method, 1, method, "other") for method in ("ce", "pskd")])
    found = iter(train([student for circle in circles for student in circle], few, evaluate_every=2).values())
    for circle, keys in zip(circles, [*expected.values(), peers], strict=True):
        for student in circle:
            history = next(found)
            told = keys | (bank if student.method == "pskd" else set())
            drifted = {"bank_drift", "bank_agreement", "bank_overlap"} if bank <= told else set()
            for record, named in zip(history.epochs, (told, told | drifted), strict=True):
                assert {key for key in record if key.startswith(("bank", "peer"))} == named
            assert ("peers" in history.summary, "peer_group" in history.summary) == (peers <= told, peers <= told)


def test_the_records_of_a_circle_by_hand(few, tmp_path):
    found = watched("peers", few, "abc", runs=tmp_path)
    for name, contexts in found.items():
        others = [seen for other, seen in found.items() if other != name]
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for epoch, record in enumerate(records):
            # The rows of the epoch's three batches, of 25, 25 and 10 images, are 2, 1 and 0 steps old.
            assert record["bank_fill"] == 1 and record["bank_age_max"] == 2
            assert record["bank_age"] == pytest.approx((2 * 25 + 25) / 60)
            agreed = 0
            for ours, *theirs in list(zip(contexts, *others, strict=True))[3 * epoch : 3 * epoch + 3]:
                predicted = [context.student.logits.argmax(1) for context in (ours, *theirs)]
                agreed += sum((predicted[0] == peers).sum().item() for peers in predicted[1:])
            assert record["peer_agreement"] == pytest.approx(agreed / 2 / 60) and 0 < agreed < 2 * 60
        state = checkpoint(tmp_path / "a")[name]
        network = models.create("dropping")
        network.load_state_dict(state["network"])
        built = MemoryBank.build(network, few.train, precision="fp32")
        bank = MemoryBank(**state["memory"], classes=few.train.classes)
        expected = metrics.drift(bank, built)
        assert {key: records[-1][key] for key in expected} == pytest.approx(expected)
        assert 0.001 < records[-1]["bank_drift"] < 1 and 0 < records[-1]["bank_overlap"] < 1


def test_twins_agree_and_are_named(few, capsys, monkeypatch):
    monkeypatch.setattr(runtime.errors, "_noticed", set())
    twins = train([Student("dropping", "dml", 3, name) for name in "ab"], few)
    assert same(twins["a"].network, twins["b"].network)
    assert [r["peer_agreement"] for r in twins["a"].epochs] == [1, 1]
    assert "two peers have the same network, method and seed, so they stay equal" in capsys.readouterr().err


def test_a_circle_of_students_is_named_and_seeded():
    assert training.peer_group("resnet8", "ickd_self", 4) == [Student("resnet8", "ickd_self", 4)]
    assert training.peer_group("resnet8", "ickd(source='peers')", 4) == [
        Student("resnet8", "ickd(source='peers')", 4 + 1000 * i, peer_group="ickd(source='peers') seed 4")
        for i in (0, 1)
    ]
    found = training.peer_group("resnet8", "kdcl", 2, ["vgg8", "wrn_16_1"])
    assert [(s.network, s.seed) for s in found] == [("resnet8", 2), ("vgg8", 1002), ("wrn_16_1", 2002)]
    assert {(s.method, s.peer_group, s.name) for s in found} == {("kdcl", "kdcl seed 2", "")}


def test_a_comparison_gives_the_student_and_not_its_peers(few, tmp_path):
    options = {"recipe": RECIPE, "device": "cpu", "progress": False, "runs": tmp_path}
    found = training.compare(["pskd", "dml"], few, student="dropping", peers=["slim"], seeds=[4, 6], **options)
    for method, histories in found.items():
        for history, seed in zip(histories, (4, 6), strict=True):
            expected = {"network": "dropping", "method": method, "seed": seed, "data_seed": seed}
            if method == "dml":
                expected |= {"peers": ["slim"], "peer_group": f"dml seed {seed}"}
            assert expected.items() <= history.summary.items() and history.network.features_dim == 12
            assert ("peer_group" in history.summary) == (method == "dml")
    alone = train(training.peer_group("dropping", "dml", 6, ["slim"]), few, data_seed=6)
    name, expected = next(iter(alone.items()))
    assert same(found["dml"][1].network, expected.network) and found["dml"][1].summary["name"] == name
    assert len(list(tmp_path.iterdir())) == 6, "the peers' runs are kept as well"


# ------------------------------------------------------------------------------------------- CIFAR-100


def test_peers_and_one_alone_learn_cifar100(cifar_root, tmp_path):
    splits = data.load("cifar100", cifar_root, labels=200)
    splits = splits._replace(test=splits.test.few(100))
    students = [*training.peer_group("resnet8", ONLINE), Student("resnet8", SELF)]
    found = train(students, splits, recipe=Recipe(epochs=1, batch_size=100), precision="auto", runs=tmp_path)
    for history in found.values():
        (record,) = history.epochs
        assert {"ce", "picd", "nicd"} <= record["terms"].keys() and record["terms"]["picd"] > 0
        assert record["bank_fill"] == 1 and record["bank_age"] == pytest.approx(0.5)
