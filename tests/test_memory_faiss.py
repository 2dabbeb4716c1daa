"""Approximate search with faiss: its constraints, recall, settings and place in a run."""

import importlib.util
import json

import pytest
import torch

from ickd_lib import runs, training
from ickd_lib.__main__ import main
from ickd_lib.memory import Faiss, MemoryBank, approximate
from ickd_lib.runtime import InputError, errors

CLASSES = tuple("abcdef")
needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs faiss-cpu (the extra faiss)")
FEW = Faiss(lists=40, probes=10)
METHOD = "ickd(positives=2, negatives=7)"


def made(n=3000, dim=16, half=False):
    """A bank whose classes are clusters, so that the nearest rows of a row have its own class."""
    g = torch.Generator().manual_seed(3)
    labels = torch.multinomial(torch.arange(1.0, 7), n, True, generator=g)
    features = 2 * torch.randn(6, dim, generator=g)[labels] + torch.randn(n, dim, generator=g)
    bank = MemoryBank(features, torch.zeros(n, 6), labels, torch.arange(n) * 3, CLASSES)
    if not half:
        return bank
    return MemoryBank(bank.features.half(), bank.logits.half(), labels, bank.index, CLASSES, norms=bank.norms)


@needs_faiss
@pytest.mark.parametrize("half", [False, True])
def test_negatives_have_another_class_and_most_of_the_nearest_are_found(half, capsys, monkeypatch):
    monkeypatch.setattr(errors, "_noticed", set())
    bank = made(half=half)
    near, far = bank.table(positives=5, negatives=20)
    same, found = bank.table(positives=5, negatives=20, search=FEW)
    assert torch.equal(near.rows, same.rows) and torch.equal(near.similarity, same.similarity)
    assert found.mask.all() and (bank.labels[found.rows] != bank.labels[:, None]).all()
    assert all(len(set(row)) == 20 for row in found.rows.tolist())
    assert (found.similarity.diff(dim=1) <= 0).all()
    cosine = (bank.features.double()[:, None] * bank.features.double()[found.rows]).sum(2)
    # A half-precision row as a query is scaled to unit length, which its rounded values are not quite.
    assert torch.allclose(found.similarity.double(), cosine, atol=1e-3 if half else 1e-6)
    shares = [len({*a} & {*b}) / 20 for a, b in zip(found.rows.tolist(), far.rows.tolist(), strict=True)]
    assert bank.recall[20] == pytest.approx(sum(shares) / len(shares), abs=0.03) and bank.recall[20] > 0.8
    said = capsys.readouterr().err
    assert f"found {bank.recall[20]:.2%} of the 20 nearest negatives of 256 queries" in said and said.count("\n") == 1
    assert bank.table(positives=5, negatives=20, search=FEW)[1] is found
    some = torch.arange(0, 3000, 7)
    part = bank.table(positives=5, negatives=20, rows=some, search=FEW)[1]
    assert torch.equal(part.rows, found.rows[some]) and torch.equal(part.similarity, found.similarity[some])


@needs_faiss
def test_all_lists_are_an_exact_search():
    bank = made(800)
    bank.written[torch.rand(800, generator=torch.Generator().manual_seed(1)) > 0.8] = -1
    asked = dict(positives=3, negatives=50, allow_missing=True)
    exact, found = bank.table(**asked), bank.table(**asked, search=Faiss(lists=9, probes=9))
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.similarity, theirs.similarity)
        assert torch.equal(ours.mask, theirs.mask)
    assert bank.recall[50] == 1


@needs_faiss
def test_more_lists_are_probed_where_a_query_has_too_few_rows_of_other_classes():
    bank = made(1000)
    _, found = bank.table(positives=1, negatives=300, search=Faiss(lists=15, probes=1))
    assert found.mask.all() and (bank.labels[found.rows] != bank.labels[:, None]).all()
    largest = int(torch.bincount(bank.labels).max())
    _, found = bank.table(positives=1, negatives=1000 - largest + 9, search=Faiss(15, 1), allow_missing=True)
    sizes = torch.bincount(bank.labels)[bank.labels]
    assert torch.equal(found.mask.sum(1), (1000 - sizes).clamp(max=1000 - largest + 9))
    assert found.rows.max() < 1000 and found.similarity.isfinite().all()


@needs_faiss
def test_the_result_is_a_function_of_the_seed(untouched_generator):
    tables = [made().table(negatives=9, search=Faiss(probes=1, seed=seed))[1].rows for seed in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


@needs_faiss
def test_faiss_and_torch_use_as_many_threads():
    import faiss

    before = torch.get_num_threads()
    made(300).table(negatives=3, search="faiss")
    assert torch.get_num_threads() == before == faiss.omp_get_max_threads()


def test_settings_follow_from_the_number_of_rows():
    assert Faiss().resolved(1_280_000) == Faiss(4525, 64)
    assert Faiss().resolved(3000) == Faiss(75, 64) and Faiss().resolved(50) == Faiss(1, 1)
    assert Faiss(100, 500).resolved(10_000) == Faiss(100, 100)
    with pytest.raises(InputError, match="lists=-1 and probes=0 must be 0 or more"):
        Faiss(lists=-1)


def test_bad_input_is_one_line(bank, monkeypatch):
    with pytest.raises(InputError, match="unknown search 'fais'; did you mean 'faiss'"):
        bank.table(search="fais")
    monkeypatch.setattr(approximate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: run pip install faiss-cpu"):
        bank.table(search="faiss")


@needs_faiss
def test_one_row_per_class_is_found_exactly_only(bank):
    with pytest.raises(InputError, match="faiss does not find one row per class"):
        bank.table(positives=1, negatives=3, per_class=True, search="faiss")


@needs_faiss
def test_the_search_is_a_setting_of_the_run(teacher, digits, tmp_path):
    recipe = training.Recipe(epochs=1, batch_size=30)
    options = dict(teacher=teacher, recipe=recipe, device="cpu", progress=False, runs=tmp_path)

    def trained(*methods, **more):
        students = [training.Student("resnet8", method, 1) for method in methods]
        return list(training.distill(students, digits, **options, **more).values())

    (usual,), (exact,) = trained(METHOD), trained(METHOD, search="exact")
    assert usual.folder == exact.folder
    settings = json.loads((usual.folder / "config.json").read_text())["settings"]
    assert "search" not in settings and "recall@7" not in usual.summary
    found, other = trained(METHOD, "kd", search=Faiss(probes=1, lists=1))
    settings = json.loads((found.folder / "config.json").read_text())["settings"]
    assert settings["search"] == {"name": "faiss", "lists": 1, "probes": 1, "seed": 0}
    assert found.folder != usual.folder and found.summary["recall@7"] == 1 and found.summary["search"] == "faiss"
    assert "search" not in json.loads((other.folder / "config.json").read_text())["settings"]
    # With one list the search is exact, so that the training is the same.
    assert [r["weights"] for r in found.epochs] == [r["weights"] for r in usual.epochs]
    rows = runs.table([found.summary, usual.summary])
    assert "with negatives by faiss | 1 |" in rows and f"| {usual.summary['method']} | 1 |" in rows
    with pytest.raises(InputError, match="is for a method with nearest negatives"):
        trained("kd", search="faiss")
    with pytest.raises(InputError, match="is for a method with nearest negatives"):
        trained(METHOD.replace(")", ", negatives_order='random')"), search="faiss")


def test_the_command_line_has_the_option(capsys, tmp_path, monkeypatch):
    arguments = ["train", "--teacher", "resnet8", "--runs", str(tmp_path), "--labels", "60", "--epochs", "1"]
    assert main([*arguments, "--search", "fast"]) == 2
    assert "unknown search 'fast'" in capsys.readouterr().err
    if importlib.util.find_spec("faiss") is None:
        pytest.skip("needs faiss-cpu (the extra faiss)")
    assert main([*arguments, "--method", METHOD, "--search", "faiss", "--device", "cpu"]) == 0
    assert '"recall@7": 1.0' in capsys.readouterr().out
