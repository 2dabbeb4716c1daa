"""Banks in half precision and in mapped files, and tables that are computed in parts or by several processes."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ickd_lib import runtime, training
from ickd_lib.memory import DynamicBank, MemoryBank, approximate, building, retrieval, rows, search
from ickd_lib.runtime import InputError, errors

CLASSES = tuple("abcdef")


def made(n=700, dim=12, ties=False, half=False):
    """A random bank whose classes differ in size; with ties, every feature occurs several times."""
    g = torch.Generator().manual_seed(3)
    features = torch.randn(n, dim, generator=g)
    features = features[torch.arange(n) // 5] if ties else features
    labels = torch.multinomial(torch.arange(1.0, 7), n, True, generator=g)
    bank = MemoryBank(features, 3 * torch.randn(n, 6, generator=g), labels, torch.arange(n) * 2 + 1, CLASSES)
    if not half:
        return bank
    return MemoryBank(
        bank.features.half(), bank.logits.half(), labels, bank.index, CLASSES, norms=bank.norms, source={"data": "x"}
    )


def equal(one, other):
    assert torch.equal(one.mask, other.mask) and torch.equal(one.rows[one.mask], other.rows[other.mask])
    assert torch.equal(one.similarity[one.mask], other.similarity[other.mask])


@pytest.fixture
def small_parts(monkeypatch):
    """Everything is divided into several parts."""
    for module, name, size in (
        (rows, "SUMMED", 64),
        (retrieval, "PART", 64),
        (search, "CHUNK", 90),
        (retrieval, "GROUP", 300),
        (building, "PART", 32),
    ):
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("filled", [1.0, 0.7])
def test_a_search_in_parts_finds_the_same(ties, filled, small_parts, monkeypatch):
    bank = made(ties=ties)
    bank.written[torch.rand(len(bank), generator=torch.Generator().manual_seed(1)) > filled] = -1
    asked = dict(positives=7, negatives=20, allow_missing=True)
    whole, free = bank.table(**asked), bank.nearest(bank.features, bank.index, k=9)
    some = bank.retrieve(bank.features[:40], bank.labels[:40], bank.index[:40], **asked)
    each = bank.table(positives=2, negatives=4, per_class=True)
    bank._tables.clear()
    monkeypatch.setattr(retrieval, "WHOLE", 0)
    for found, expected in zip(bank.table(**asked), whole, strict=True):
        equal(found, expected)
    for found, expected in zip(bank.table(positives=2, negatives=4, per_class=True), each, strict=True):
        equal(found, expected)
    again = bank.nearest(bank.features, bank.index, k=9)
    assert torch.equal(again.index, free.index) and torch.equal(again.similarity, free.similarity)
    for found, expected in zip(
        bank.retrieve(bank.features[:40], bank.labels[:40], bank.index[:40], **asked), some, strict=True
    ):
        assert torch.equal(found.index, expected.index) and torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_bank_in_half_precision_is_searched_as_its_rows_in_float32(per_class, small_parts):
    bank = made(half=True)
    single = MemoryBank(bank.features, bank.logits, bank.labels, bank.index, CLASSES)
    single.features, single.norms = bank.features.float(), bank.norms  # without normalising them again
    assert bank.features.dtype == bank.logits.dtype == torch.half and single.logits.dtype == torch.float32
    asked = dict(positives=5, negatives=4, per_class=per_class)
    for one, other in zip(bank.table(**asked), single.table(**asked), strict=True):
        equal(one, other)
        ours, theirs = bank.gather(one, unit=True), single.gather(one, unit=True)
        for name in search.FIELDS:
            assert torch.allclose(getattr(ours, name), getattr(theirs, name))
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    for one, other in zip(bank.class_samples(*query(bank)), single.class_samples(*query(bank)), strict=True):
        assert torch.allclose(one.logits, other.logits, atol=1e-5) and torch.equal(one.mask, other.mask)
    assert torch.allclose(bank.class_means(), single.class_means(), atol=1e-5)
    for one, other in zip(bank.random_table(), single.random_table(), strict=True):
        assert torch.equal(one.rows, other.rows) and torch.allclose(one.similarity, other.similarity)
    assert "half precision" in repr(bank)
    part = bank.subset(torch.arange(0, 700, 3))
    assert part.stored and torch.equal(part.features, bank.features[::3])


def query(bank):
    return bank.index[:30], bank.labels[:30]


@pytest.mark.parametrize("labels", ["given", "teacher", "keys"])
def test_a_bank_is_built_in_parts_in_memory_or_in_a_file(labels, teacher, digits, small_parts, tmp_path):
    shuffled = digits.train.subset(torch.randperm(120, generator=torch.Generator().manual_seed(0)))
    labels = digits.train.index[:50] if labels == "keys" else labels
    options = dict(labels=labels, precision="fp32")
    single = MemoryBank.build(teacher, shuffled, **options)
    path = tmp_path / "half.bank.safetensors"
    for half in (
        MemoryBank.build(teacher, shuffled, half=True, **options),
        MemoryBank.build(teacher, shuffled, half=True, path=path, **options),
        MemoryBank.load(path, images=shuffled, teacher=teacher),
        MemoryBank.load(path, images=shuffled, teacher=teacher, mapped=True),
    ):
        assert half.features.dtype == half.logits.dtype == torch.half and half.stored
        assert torch.allclose(half.features.float(), single.features, atol=1e-3)
        assert torch.allclose(half.logits.float(), single.logits, rtol=1e-3, atol=1e-2)
        assert torch.allclose(half.norms, single.norms, rtol=1e-4)
        for name in ("labels", "index", "written"):
            assert torch.equal(getattr(half, name), getattr(single, name))
        assert half.source == single.source | {"precision": "half"} and half.classes == single.classes
    assert "mapped" in repr(half) and not list(tmp_path.glob(".*"))
    half.release()
    near, _ = half.table(positives=3, negatives=9, allow_missing=True)
    assert half.gather(near).logits.dtype == torch.float32


def test_a_mapped_bank_in_single_precision_is_the_bank(bank, tmp_path):
    bank.save(tmp_path / "b")
    mapped = MemoryBank.load(tmp_path / "b", mapped=True)
    for found, expected in zip(mapped.table(negatives=9), bank.table(negatives=9), strict=True):
        equal(found, expected)
    mapped.save(tmp_path / "c")
    again = MemoryBank.load(tmp_path / "c")
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in bank.tensors.items())


def test_a_mapped_bank_is_pickled_as_the_path_of_its_file(bank, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank.save("b")
    mapped = MemoryBank.load("b", mapped=True)
    asked = dict(positives=3, negatives=9)
    expected = mapped.table(**asked)
    runtime.save_object(tmp_path / "inputs", mapped)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sent = torch.load(tmp_path / "inputs", mmap=True, weights_only=False)
    assert "mapped" in repr(sent) and sent.precision == mapped.precision
    assert all(torch.equal(tensor, sent.tensors[name]) for name, tensor in bank.tensors.items())
    for found, known in zip(sent.table(**asked), expected, strict=True):
        equal(found, known)
    rows = 50_000
    long = MemoryBank(torch.randn(rows, 64), torch.randn(rows, 6), torch.arange(rows) % 6, torch.arange(rows), CLASSES)
    long.save(tmp_path / "long")
    content = pickle.dumps(MemoryBank.load(tmp_path / "long", mapped=True))
    assert len(content) < (tmp_path / "long").stat().st_size / 6
    made().save(tmp_path / "long")
    with pytest.raises(InputError, match="contains another bank than when it was opened"):
        pickle.loads(content)
    (tmp_path / "long").unlink()
    with pytest.raises(InputError, match="no bank at"):
        pickle.loads(content)


def test_a_truncated_file_and_rows_that_are_not_written_are_refused(bank, tmp_path):
    path = tmp_path / "b.safetensors"
    bank.save(path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"is truncated: it has {length:,} of {len(whole):,} bytes"):
            MemoryBank.load(path, mapped=True)
    for content in (whole[:100], b"x", b"", b"\0" * 50):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a memory bank, or is damaged"):
            MemoryBank.load(path, mapped=True)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="keeps the bank in a file, not on cuda"):
        MemoryBank.load(path, mapped=True, device="cuda")
    mapped = MemoryBank.load(path, mapped=True)
    with pytest.raises(InputError, match="are not written in training"):
        mapped.update(bank.index[:1], bank.features[:1], bank.logits[:1])
    with pytest.raises(InputError, match="are not written in training"):
        DynamicBank(mapped, features=False)


def test_a_path_is_for_half_precision(teacher, digits, tmp_path):
    with pytest.raises(InputError, match="path is for a bank in half precision"):
        MemoryBank.build(teacher, digits.train, path=tmp_path / "b")


def test_a_student_is_trained_with_a_mapped_bank_and_its_run_differs(teacher, digits, tmp_path):
    path = tmp_path / "half.bank.safetensors"
    MemoryBank.build(teacher, digits.train, half=True, path=path)
    recipe = training.Recipe(epochs=1, batch_size=30)
    found = {}
    for name, bank in (("single", None), ("half", MemoryBank.load(path, mapped=True))):
        for method in ("ickd(positives=2, negatives=3)", "crd"):
            student = training.Student("resnet8", method, 1)
            options = dict(teacher=teacher, bank=bank, recipe=recipe, device="cpu", progress=False, runs=tmp_path)
            (history,) = training.distill([student], digits, **options).values()
            found[name, method] = history
    for method in ("ickd(positives=2, negatives=3)", "crd"):
        single, half = found["single", method], found["half", method]
        assert single.summary["name"] != half.summary["name"]
        assert single.epochs[0]["loss"] == pytest.approx(half.epochs[0]["loss"], rel=0.02)
    with pytest.raises(InputError, match="are not written in training"):
        training.distill(
            [training.Student("resnet8", "ickd(positives=2, negatives=3, dynamic=True)")], digits, **options
        )


PROGRAM = """
import sys, torch
from ickd_lib import runtime
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError, distributed
torch.set_num_threads(1)
out, faiss = sys.argv[1], sys.argv[2:]
with distributed.processes("cpu"):
    bank = MemoryBank.load(out + "/bank")
    searches = ["exact", *faiss]
    tables = [bank.table(positives=3, negatives=9, search=search) for search in searches]
    tables.append(bank.table(positives=3, negatives=9, rows=torch.arange(0, 301, 2)))
    try:
        bank.table(positives=len(bank), negatives=1)
        error = ""
    except InputError as found:
        error = str(found)
    content = [[getattr(one, name) for one in table for name in ("rows", "similarity", "mask")] for table in tables]
    torch.save((content, error), f"{out}/{distributed.rank()}.pt")
"""


def test_two_processes_compute_the_table_in_shares(tmp_path):
    bank = made(301)
    bank.save(tmp_path / "bank")
    searches = ["faiss"] if approximate.importlib.util.find_spec("faiss") else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *searches]
    started = [subprocess.Popen(command, env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)]
    assert [one.wait(timeout=120) for one in started] == [0, 0]
    (ours, error), (theirs, other) = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    assert error == other and "positives were requested for" in error
    options = [dict(search=search) for search in ("exact", *searches)] + [dict(rows=torch.arange(0, 301, 2))]
    for table, same, option in zip(ours, theirs, options, strict=True):
        alone = bank.table(positives=3, negatives=9, **option)
        expected = [getattr(one, name) for one in alone for name in ("rows", "similarity", "mask")]
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(table, same, expected, strict=True))


def test_a_notice_compares_the_times_of_both_searches_for_a_large_bank(monkeypatch, capsys):
    monkeypatch.setattr(errors, "_noticed", set())
    bank = made(400)
    bank.table(positives=1, negatives=2)
    assert not capsys.readouterr().err
    monkeypatch.setattr(approximate, "LARGE", 300)
    bank.table(positives=1, negatives=3), bank.table(positives=1, negatives=3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the exact search for 400 rows takes about 0 minutes" in said
    assert "exact is faster" in said
    # With many rows the approximate search is faster, and with few the exact one.
    for count, faster in ((1000, False), (1_280_000, True)):
        assert (approximate.operations(count, count, 128, approximate.Faiss()) < count**2) == faster


def test_parts_cover_all_rows(small_parts):
    bank = made(half=True)
    assert [part.start for part in bank.parts()] == list(range(0, 700, 64)) and bank.release() is None
    assert list(made().parts()) == [slice(0, 700)]
    unit = bank.unit_logits()
    assert unit.dtype == torch.float32 and torch.allclose(unit, F.normalize(bank.logits.float(), dim=1))
