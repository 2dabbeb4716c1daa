import contextlib
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import runtime
from ickd_lib.memory import MemoryBank, retrieval, search
from ickd_lib.runtime import InputError

CLASSES = tuple("abcde")


def made(n=300, dim=16, seed=0, ties=False):
    """A random bank whose index has gaps; with ties, every feature occurs several times."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=g)
    if ties:
        features = features[torch.arange(n) // 6]
    labels = torch.randint(len(CLASSES), (n,), generator=g)
    return MemoryBank(features, torch.randn(n, len(CLASSES), generator=g), labels, torch.arange(n) * 2 + 1, CLASSES)


def brute_force(bank, features, label, own, k, same, per_class=False):
    """(data-set row, similarity) of the k nearest allowed rows, one by one, in double precision."""
    query = F.normalize(features.float(), dim=0).double()
    scored = []
    for row in range(len(bank)):
        index = int(bank.index[row])
        if bank.filled[row] and index != own and (int(bank.labels[row]) == label) == same:
            scored.append(((query * bank.features[row].double()).sum().item(), index, int(bank.labels[row])))
    scored.sort(key=lambda s: (-s[0], s[1]))
    if per_class:
        scored = [next(s for s in scored if s[2] == c) for c in {s[2] for s in scored}]
        scored.sort(key=lambda s: (-s[0], s[2]))
    return [(index, similarity) for similarity, index, _ in scored[:k]]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_retrieval_equals_brute_force(ties, per_class, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    bank = made(ties=ties)
    rows = torch.arange(0, 300, 11)
    k = 4 if per_class else 9
    near, far = bank.retrieve(
        5 * bank.features[rows], bank.labels[rows], bank.index[rows], positives=6, negatives=k, per_class=per_class
    )
    for i, row in enumerate(rows.tolist()):
        label, own = int(bank.labels[row]), int(bank.index[row])
        for found, count, same in ((near, 6, True), (far, k, False)):
            expected = brute_force(bank, bank.features[row], label, own, count, same, per_class and not same)
            assert found.index[i].tolist() == [index for index, _ in expected]
            assert found.similarity[i].tolist() == pytest.approx([s for _, s in expected], abs=1e-6)
    assert near.mask.all() and far.mask.all()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("filled", [1.0, 0.9])
def test_a_large_bank_whose_columns_are_compared_in_blocks_is_searched_exactly(ties, filled):
    bank = made(6000, dim=8, ties=ties)
    bank.written[torch.rand(6000, generator=torch.Generator().manual_seed(1)) > filled] = -1
    asked = bank.filled.nonzero().squeeze(1)[:600]  # more than are searched at once, and in no order of classes
    near, far = bank.retrieve(bank.features[asked], bank.labels[asked], bank.index[asked], positives=5, negatives=7)
    scores = bank.features[asked].double() @ bank.features.double().T
    same = bank.labels[asked, None] == bank.labels
    own = bank.index[asked, None] == bank.index
    for found, allowed in ((near, same & ~own), (far, ~same)):
        order = scores.masked_fill(~allowed | ~bank.filled, -torch.inf).round(decimals=12)
        places = order.argsort(dim=1, descending=True, stable=True)[:, : found.index.shape[1]]
        assert torch.equal(found.index, bank.index[places])
        assert torch.allclose(found.similarity.double(), scores.gather(1, places), atol=1e-6)


def test_positives_share_the_label_negatives_do_not_and_no_query_meets_itself(bank, digits):
    near, far = bank.retrieve(bank.features, bank.labels, bank.index, positives=8, negatives=32)
    label = dict(zip(bank.index.tolist(), bank.labels.tolist(), strict=True))
    for row, (own, c) in enumerate(zip(bank.index.tolist(), bank.labels.tolist(), strict=True)):
        assert {label[i] for i in near.index[row].tolist()} == {c} and c not in {
            label[i] for i in far.index[row].tolist()
        }
        assert own not in near.index[row].tolist()
    for found in (near, far):
        assert found.logits.isfinite().all() and found.features.isfinite().all()
        assert torch.allclose(found.features.norm(dim=-1), torch.ones(()), atol=1e-5)
        assert torch.equal(found.logits, bank.logits[bank.rows(found.index)])


def test_a_query_from_outside_is_not_excluded():
    bank = made()
    near, _ = bank.retrieve(bank.features[:5], bank.labels[:5], None, positives=3)
    assert torch.equal(near.index[:, 0], bank.index[:5])


def test_the_table_is_what_retrieve_finds():
    bank = made()
    table = bank.table(positives=5, negatives=12)
    live = bank.retrieve(bank.features, bank.labels, bank.index, positives=5, negatives=12)
    for stored, found in zip(table, live, strict=True):
        gathered = bank.gather(stored[torch.tensor([4, 250])])
        for name in ("index", "similarity", "logits", "features", "mask"):
            assert torch.equal(getattr(gathered, name), getattr(found, name)[[4, 250]])
    assert bank.table(positives=5, negatives=12) is table


def test_random_neighbours_keep_the_constraints():
    bank = made()
    near, far = bank.random_table(positives=5, negatives=12, seed=1)
    own = torch.arange(len(bank))[:, None]
    assert (bank.labels[near.rows] == bank.labels[:, None]).all() and (near.rows != own).all()
    assert (bank.labels[far.rows] != bank.labels[:, None]).all()
    assert all(len(set(row)) == 5 for row in near.rows.tolist())
    assert torch.equal(near.rows, bank.random_table(positives=5, negatives=12, seed=1)[0].rows)
    assert near.similarity.mean() < bank.table(positives=5, negatives=12)[0].similarity.mean() - 0.1


@pytest.mark.parametrize("k", [1, 5, 30])
def test_random_neighbours_are_drawn_uniformly_and_by_seed(k):
    """Over many seeds every allowed row is drawn about equally often, also where nearly all of them are."""
    bank = made(n=60)
    row = 7
    smallest = int(torch.bincount(bank.labels).min())
    positives = min(k, smallest - 1)
    near, far = torch.zeros(60), torch.zeros(60)
    for seed in range(400):
        drawn = bank.random_table(positives=positives, negatives=k, seed=seed)
        near[drawn[0].rows[row]] += 1
        far[drawn[1].rows[row]] += 1
    same = bank.labels == bank.labels[row]
    same[row] = False
    other = bank.labels != bank.labels[row]
    for count, pool, size in ((near, same, positives), (far, other, k)):
        assert count[~pool].sum() == 0 and count.sum() == 400 * size
        share = size / int(pool.sum())
        spread = (400 * share * (1 - share)) ** 0.5  # of a binomial count
        assert (count[pool] - 400 * share).abs().max() <= 4.5 * spread + 1e-6
    one, again, other_seed = (bank.random_table(positives=1, negatives=k, seed=s)[1].rows for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other_seed)


def test_random_rows_are_written_ones_as_many_as_the_nearest():
    """Empty rows are not drawn, and do not reduce the number of those that are."""
    bank = made(n=60)
    bank.written[torch.randperm(60, generator=torch.Generator().manual_seed(0))[:30]] = -1
    counts = {"positives": 4, "negatives": 25, "allow_missing": True}
    for rows in (None, torch.arange(5, 40)):
        own = torch.arange(60) if rows is None else rows
        for drawn, found, same in zip(
            bank.random_table(**counts, rows=rows), bank.table(**counts, rows=rows), (True, False), strict=True
        ):
            assert torch.equal(drawn.mask.sum(1), found.mask.sum(1))
            assert bool((bank.filled[drawn.rows] | ~drawn.mask).all())
            assert bool((((bank.labels[drawn.rows] == bank.labels[own, None]) == same) | ~drawn.mask).all())
            assert not bool(((drawn.rows == own[:, None]) & drawn.mask).any())
            of_each = (row[mask].tolist() for row, mask in zip(drawn.rows, drawn.mask, strict=True))
            assert all(len(set(some)) == len(some) for some in of_each)
    bank.written[:] = -1
    assert not any(bool(one.mask.any()) for one in bank.random_table(**counts))


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_is_one_line(label):
    bank = made(n=60)
    labels = bank.labels[:300].clone()
    labels[3] = label
    with pytest.raises(InputError, match=f"a query has the label {label}; labels"):
        bank.retrieve(bank.features, labels, positives=1, negatives=2)


def test_class_means_leave_the_query_out():
    bank = made(n=50)
    index, labels = bank.index[::7], bank.labels[::7]
    near, far = bank.class_samples(index, labels)
    assert near.logits.shape == (len(index), 1, 5) and far.logits.shape == (len(index), 5, 5)
    for i, (key, label) in enumerate(zip(index.tolist(), labels.tolist(), strict=True)):
        rest = (bank.labels == label) & (bank.index != key)
        assert torch.allclose(near.logits[i, 0], bank.logits[rest].mean(0), atol=1e-5)
        mean = F.normalize(bank.features[rest].mean(0), dim=0)
        assert torch.allclose(near.features[i, 0], mean, atol=1e-5)
        query = bank.features[bank.rows(torch.tensor([key]))[0]]
        assert near.similarity[i, 0].item() == pytest.approx((mean @ query).item(), abs=1e-5)
        assert far.mask[i].tolist() == [c != label for c in range(5)]
        for c in range(5):
            assert torch.allclose(far.logits[i, c], bank.logits[bank.labels == c].mean(0), atol=1e-5)
    assert (near.index == -1).all() and (far.index == -1).all()
    outside, _ = bank.class_samples(torch.tensor([10**6]), torch.tensor([2]))
    assert torch.allclose(outside.logits[0, 0], bank.logits[bank.labels == 2].mean(0), atol=1e-5)


@pytest.mark.parametrize("columns", [3, 7])
def test_class_means_of_a_teacher_with_other_classes(columns):
    bank = made(n=50)
    logits = torch.randn(50, columns)
    bank = MemoryBank(bank.features, logits, bank.labels, bank.index, CLASSES)
    near, far = bank.class_samples(bank.index, bank.labels)
    assert near.features.shape == (50, 1, bank.features.shape[1])
    for c in range(5):
        assert torch.allclose(far.logits[0, c], logits[bank.labels == c].mean(0), atol=1e-5)


def test_class_means_are_those_of_the_written_rows_alone():
    """Rows whose labels are predicted with less than a threshold are left empty; they are in no mean."""
    bank = made(n=50)
    empty = torch.arange(50) % 3 == 0
    empty[bank.labels == 4] = True
    written = torch.where(empty, -1, 0)
    bank = MemoryBank(bank.features, bank.logits, bank.labels, bank.index, CLASSES, written=written)
    near, far = bank.class_samples(bank.index, bank.labels)
    for i in range(50):
        rest = (bank.labels == bank.labels[i]) & ~empty & (torch.arange(50) != i)
        assert near.mask[i, 0] == rest.any() and far.mask[i].tolist() == [
            c not in (4, bank.labels[i]) for c in range(5)
        ]
        if rest.any():
            mean = F.normalize(bank.features[rest].mean(0), dim=0)
            assert torch.allclose(near.logits[i, 0], bank.logits[rest].mean(0), atol=1e-5)
            assert torch.allclose(near.features[i, 0], mean, atol=1e-5)
            cosine = 0.0 if empty[i] else (mean @ bank.features[i]).item()
            assert near.similarity[i, 0].item() == pytest.approx(cosine, abs=1e-5)
    for c in range(4):
        rows = (bank.labels == c) & ~empty
        assert torch.allclose(far.logits[0, c], bank.logits[rows].mean(0), atol=1e-5)
        original = (bank.features * bank.norms[:, None])[rows].mean(0)
        assert torch.allclose(bank.class_means()[c], F.normalize(original, dim=0), atol=1e-5)
    assert not bank.class_means()[4].any()


def test_equal_features_are_settled_for_all_queries_at_once():
    """A network that outputs nearly the same features for every image; ties go to the lower key."""
    bank = MemoryBank(torch.ones(400, 4), torch.zeros(400, 2), torch.arange(400) % 2, torch.arange(400), ("a", "b"))
    near, far = bank.table(positives=3, negatives=5)
    assert near.rows[0].tolist() == [2, 4, 6] and near.rows[399].tolist() == [1, 3, 5]
    assert far.rows[0].tolist() == [1, 3, 5, 7, 9] and far.rows[399].tolist() == [0, 2, 4, 6, 8]


def test_features_of_in_context_samples_are_gathered_where_they_are_requested():
    bank = made()
    near, _ = bank.table(positives=2, negatives=2)
    assert bank.gather(near).features.shape == (300, 2, 16)
    assert bank.gather(near, features=False).features.shape == (300, 2, 0)


@pytest.mark.parametrize("missing", [0, 2, 10**9, -1])
def test_a_key_that_the_bank_does_not_have_is_named(missing):
    bank = made()
    keys = torch.tensor([1, missing, 3])
    assert bank.rows(keys).tolist() == [0, -1, 1] and bank.rows(keys[::2], required=True).tolist() == [0, 1]
    query = bank.features[:3], bank.labels[:3], keys
    for call in (lambda: bank.rows(keys, required=True), lambda: bank.retrieve(*query, positives=2, negatives=2)):
        with pytest.raises(InputError, match=f"key {missing} is not in this bank"):
            call()
    found = bank.retrieve(*query, positives=2, negatives=2, allow_missing=True)
    assert all(one.mask.all() for one in found)


def test_nearest_ignores_labels():
    bank = made()
    found = bank.nearest(bank.features[:3], bank.index[:3], k=4)
    scores = (bank.features[:3].double() @ bank.features.double().T).fill_diagonal_(-2)
    assert torch.equal(found.index, bank.index[scores.topk(4).indices])


def test_too_many_neighbours_name_the_class_and_its_size():
    bank = made(40)
    size = int((bank.labels == 2).sum())
    which = (bank.labels == 2).nonzero()[0]
    with pytest.raises(
        InputError, match=rf"{size} positives were requested for .* class 'c', but the bank has only {size - 1}"
    ):
        bank.retrieve(bank.features[which], bank.labels[which], bank.index[which], positives=size, negatives=2)
    with pytest.raises(InputError, match="negatives were requested for"):
        bank.require(positives=1, negatives=40)
    with pytest.raises(InputError, match="classes of negatives"):
        bank.require(positives=1, negatives=5, per_class=True)
    near, far = bank.retrieve(
        bank.features[which],
        bank.labels[which],
        bank.index[which],
        positives=size + 3,
        negatives=60,
        allow_missing=True,
    )
    assert near.mask[0].tolist() == [True] * (size - 1) + [False] * 4
    assert far.mask.sum() == 40 - size
    assert near.logits.isfinite().all() and near.similarity.isfinite().all()


def test_update_writes_rows_and_unfilled_rows_are_never_returned(digits):
    bank = MemoryBank.empty(digits.train, 6)
    images, g = digits.train, torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="no other row of class"):
        bank.retrieve(torch.ones(1, 6), images.labels[:1], images.index[:1], positives=1, negatives=1)
    seen = images.index[::2]
    features, logits = torch.randn(len(seen), 6, generator=g), torch.randn(len(seen), 10, generator=g)
    features.requires_grad_()
    bank.update(seen, features, logits)
    rows = bank.rows(seen)
    assert (
        torch.allclose(bank.features[rows], F.normalize(features.detach(), dim=1)) and not bank.features.requires_grad
    )
    assert torch.equal(bank.logits[rows], logits)
    near, far = bank.retrieve(
        torch.randn(len(images), 6, generator=g),
        images.labels,
        images.index,
        positives=9,
        negatives=80,
        allow_missing=True,
    )
    for found in (near, far):
        assert set(found.index[found.mask].tolist()) <= set(seen.tolist())
    table = bank.table(positives=1, negatives=1, allow_missing=True)
    bank.update(seen[:4], -features[:4], logits[:4])
    assert bank.table(positives=1, negatives=1, allow_missing=True) is not table
    with pytest.raises(InputError, match="is not in this bank"):
        bank.update(torch.tensor([10**6]), torch.ones(1, 6), torch.ones(1, 10))


def test_momentum_mixes_what_a_row_held_with_what_is_new(digits):
    bank = MemoryBank.empty(digits.train, 2)
    one, other = bank.index[[3, 5]].tolist()
    assert (bank.written == -1).all() and not bank.filled.any()

    def write(rows, features, logit, **options):
        logits = F.one_hot(torch.zeros(len(rows)).long(), 10) * logit
        bank.update(torch.tensor(rows), torch.tensor(features), logits, **options)

    write([one], [[3.0, 4.0]], 8.0, momentum=0.75, step=2)  # the first time it is the new value, whole
    assert bank.features[3].tolist() == pytest.approx([0.6, 0.8]) and bank.norms[3].item() == pytest.approx(5)
    assert bank.logits[3, 0] == 8 and bank.written[[3, 5]].tolist() == [2, -1] and bank.filled.sum() == 1
    # 3/4 of (3, 4), not of (0.6, 0.8), and 1/4 of (-5, 12) are (1, 6).
    write([other, one], [[0.0, 2.0], [-5.0, 12.0]], -4.0, momentum=0.75, step=6)
    length = 37**0.5
    assert bank.features[[3, 5]].flatten().tolist() == pytest.approx([1 / length, 6 / length, 0, 1])
    assert bank.norms[[3, 5]].tolist() == pytest.approx([length, 2])
    assert bank.logits[[3, 5], 0].tolist() == [5, -4] and bank.written[[3, 5]].tolist() == [6, 6]
    write([one], [[0.0, 2.0]], 1.0, step=7)
    assert bank.features[3].tolist() == [0, 1] and bank.norms[3] == 2 and bank.logits[3, 0] == 1
    assert bank.filled.tolist() == [row in (3, 5) for row in range(len(bank))]


def test_a_restored_bank_is_the_bank(digits):
    banks = [MemoryBank.empty(digits.train, 6) for _ in range(2)]
    g = torch.Generator().manual_seed(0)
    for step, momentum in enumerate((0.5, 0.5, 0.9)):
        seen = digits.train.index[torch.randperm(120, generator=g)[:50]]
        output = torch.randn(50, 6, generator=g), torch.randn(50, 10, generator=g)
        banks[0].update(seen, *output, momentum=momentum, step=step)
    asked = torch.randn(120, 6, generator=g), digits.train.labels, digits.train.index
    empty = banks[1].table(positives=2, negatives=2, allow_missing=True)
    assert not empty[0].mask.any() and not banks[1].class_means().any()
    banks[1].restore({name: tensor.clone() for name, tensor in banks[0].tensors.items()})
    assert all(torch.equal(tensor, banks[1].tensors[name]) for name, tensor in banks[0].tensors.items())
    ours, theirs = (bank.retrieve(*asked, positives=3, negatives=9, allow_missing=True) for bank in banks)
    assert all(
        torch.equal(getattr(a, n), getattr(b, n)) for a, b in zip(ours, theirs, strict=True) for n in search.FIELDS
    )
    assert torch.equal(banks[1].class_means(), banks[0].class_means())
    assert banks[1].table(positives=2, negatives=2, allow_missing=True)[0].mask.any()


def test_random_samples_of_a_bank_in_training_keep_the_constraints(digits):
    bank, images, g = MemoryBank.empty(digits.train, 6), digits.train, torch.Generator().manual_seed(0)
    asked = torch.randn(120, 6, generator=g), images.labels, images.index
    assert not any(found.mask.any() for found in bank.random(*asked, positives=2, negatives=2))
    written = images.index[::2]
    bank.update(written, torch.randn(60, 6, generator=g), torch.randn(60, 10, generator=g))
    label = dict(zip(images.index.tolist(), images.labels.tolist(), strict=True))

    def draw(seed):
        return bank.random(*asked, positives=4, negatives=70, generator=torch.Generator().manual_seed(seed))

    near, far = draw(1)
    for i, (own, c) in enumerate(zip(images.index.tolist(), images.labels.tolist(), strict=True)):
        pools = [
            {row for row in written.tolist() if row != own and (label[row] == c) == same} for same in (True, False)
        ]
        for found, pool, k in ((near, pools[0], 4), (far, pools[1], 60)):
            drawn = found.index[i][found.mask[i]].tolist()
            assert len(set(drawn)) == len(drawn) == min(k, len(pool)) and set(drawn) <= pool
    cosine = F.cosine_similarity(asked[0][:, None], near.features, dim=2)
    assert torch.allclose(near.similarity[near.mask], cosine[near.mask], atol=1e-6)
    assert torch.equal(near.logits, bank.logits[bank.rows(near.index)])
    again, other = draw(1)[0], draw(2)[0]
    assert torch.equal(near.index, again.index) and not torch.equal(near.index, other.index)
    # Every row of the pool is drawn about equally often.
    count = torch.zeros(120)
    for seed in range(100):
        near, _ = draw(seed)
        count.index_add_(0, bank.rows(near.index[near.mask]), torch.ones(int(near.mask.sum())))
    c = 4
    pool = bank.rows(written[images.labels[::2] == c])
    assert count[pool].max() < 1.25 * count[pool].min() and len(pool) > 4


def test_building_leaves_the_teacher_as_it_was(teacher, digits):
    network = copy.deepcopy(teacher).train()
    before = copy.deepcopy(network.state_dict())
    built = MemoryBank.build(network, digits.train.subset(torch.randperm(120, generator=torch.Generator())))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(built.index, digits.train.index)
    output = teacher(digits.train.pixels(slice(5, 6)))
    assert torch.allclose(built.logits[5], output.logits[0], atol=1e-4)
    assert torch.allclose(built.features[5], F.normalize(output.features, dim=1)[0], atol=1e-5)


def test_saved_and_loaded_it_retrieves_the_same(bank, teacher, digits, tmp_path):
    path = tmp_path / "digits.bank.safetensors"
    bank.save(path)
    loaded = MemoryBank.load(path, images=digits.train, teacher=teacher)
    assert loaded.classes == bank.classes and loaded.filled.all()
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in bank.tensors.items())
    for ours, theirs in zip(bank.table(negatives=9), loaded.table(negatives=9), strict=True):
        assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.similarity, theirs.similarity)


def test_a_bank_of_probabilities_is_refused():
    bank = made()
    rows = bank.features, bank.logits.softmax(1), bank.labels, bank.index, bank.classes
    with pytest.raises(InputError, match="the logits of a bank are probabilities, not logits"):
        MemoryBank(*rows)
    assert len(MemoryBank(rows[0], rows[1].log(), *rows[2:])) == len(bank)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": torch.zeros(4, 15)}, r"tensor \[number of queries, 16\], like those of the rows, not \[4, 15\]"),
        ({"features": torch.zeros(3, 16)}, r"labels of 3 queries must be a tensor \[3\], not \[4\]"),
        ({"labels": None}, r"labels of 4 queries must be a tensor \[4\], not None"),
        ({"key": torch.zeros(2, dtype=torch.long)}, r"key of 4 queries must be a tensor \[4\], not \[2\]"),
        ({"positives": 1.5}, "positives=1.5: expected a whole number of 0 or more"),
        ({"negatives": -1}, "negatives=-1: expected a whole number of 0 or more"),
    ],
)
def test_queries_of_other_shapes_and_other_numbers_are_named(given, message):
    bank = made()
    arguments = {"features": bank.features[:4], "labels": bank.labels[:4], "key": bank.index[:4]} | given
    with pytest.raises(InputError, match=message):
        bank.retrieve(**arguments)
    if "labels" not in given:
        counts = {"k" if name in ("positives", "negatives") else name: value for name, value in given.items()}
        with contextlib.suppress(InputError):  # and no other error
            bank.nearest(**{"features": bank.features[:4], "key": bank.index[:4]} | counts)
    if {"positives", "negatives"} & set(given):
        for table in (bank.table, bank.random_table):
            with pytest.raises(InputError, match=message):
                table(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": "resnet8"}, "teacher='resnet8': expected Network"),
        ({"images": "digits"}, "str is no split of a data set; give one, such as splits.train"),
        ({"labels": [1, 2]}, r"labels=\[1, 2\]: expected a text or Tensor"),
        ({"half": True, "path": True}, "path=True: expected a text, a path or None"),
        ({"task": "segmentation"}, "task='segmentation': expected Task or None"),
    ],
)
def test_wrong_arguments_of_build_are_named(given, message, teacher, digits):
    with pytest.raises(InputError, match=message):
        MemoryBank.build(**{"teacher": teacher, "images": digits.train} | given)


def test_a_wrong_device_of_a_bank_is_named(bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        MemoryBank.load(tmp_path / "bank.safetensors", device="gpu")


def test_a_bank_of_other_data_another_teacher_or_a_damaged_one_is_refused(bank, teacher, digits, tmp_path):
    path = tmp_path / "b.safetensors"
    bank.save(path)
    with pytest.raises(InputError, match="built with data"):
        MemoryBank.load(path, images=replace(digits.train, labels=digits.train.labels.roll(1)))
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(InputError, match="built with teacher"):
        MemoryBank.load(path, teacher=other)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="is not a memory bank, or is damaged"):
        MemoryBank.load(path)
    with pytest.raises(InputError, match="no bank at"):
        MemoryBank.load(tmp_path / "none")


@pytest.mark.parametrize("columns", [1600, 1605, 90])
def test_the_largest_are_found_through_their_blocks(columns):
    scores = torch.randn(7, columns, generator=runtime.generator("top")).round(decimals=1)  # with ties
    scores[3, :-4] = -torch.inf
    scores[4, -3:] = 9.0
    values, places = search._top(scores, 5)
    assert (values.sort(dim=1, descending=True).values == scores.topk(5, dim=1).values).all()
    assert (scores.gather(1, places) == values).all()
    assert all(len(set(row)) == 5 for row in places.tolist())


def test_random_rows_that_a_class_does_not_have_are_masked():
    labels = torch.tensor([0] * 3 + [1] * 9)
    bank = MemoryBank(torch.randn(12, 4), torch.randn(12, 2), labels, torch.arange(12), ("few", "many"))
    with pytest.raises(InputError, match="5 positives were requested"):
        bank.random_table(positives=5, negatives=6)
    near, far = bank.random_table(positives=5, negatives=6, allow_missing=True, seed=3)
    assert near.mask.sum(1).tolist() == [2] * 3 + [5] * 9 and far.mask.sum(1).tolist() == [6] * 3 + [3] * 9
    for row in range(12):
        own, other = near.rows[row][near.mask[row]].tolist(), far.rows[row][far.mask[row]].tolist()
        assert len({*own}) == len(own) and row not in own and all(labels[i] == labels[row] for i in own)
        assert len({*other}) == len(other) and all(labels[i] != labels[row] for i in other)
    alone = bank.subset(torch.arange(2, 12))
    assert not alone.random_table(positives=2, negatives=1, allow_missing=True)[0].mask[0].any()
    enough = bank.random_table(positives=2, negatives=3, seed=3)
    again = bank.random_table(positives=2, negatives=3, seed=3, allow_missing=True)
    assert all(
        torch.equal(a.rows, b.rows) and a.mask.all() and b.mask.all() for a, b in zip(enough, again, strict=True)
    )
