"""Maps and regions of the logit space: what they are by hand, what is kept, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ickd_lib import metrics
from ickd_lib.explore import space
from ickd_lib.runtime import InputError


def drawn(count=120, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return 3 * torch.eye(classes)[labels] + torch.randn(count, classes, generator=generator), labels


def test_pca_is_an_svd_by_hand_up_to_sign():
    logits, _ = drawn()
    unit = F.normalize(logits, dim=1).double().numpy()
    centred = unit - unit.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected, found = left[:, :2] * values[:2], space.embed(7 * logits, "PCA")
    for axis in range(2):
        sign = np.sign((expected[:, axis] * found[:, axis]).sum())
        np.testing.assert_allclose(found[:, axis], sign * expected[:, axis], atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("count", [5, 40])
def test_tsne_is_a_function_of_the_seed_also_of_few_points(count):
    logits, _ = drawn(count)
    first, again = (space.embed(logits, "tsne", seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (count, 2) and np.isfinite(first).all()


def test_umap_is_asked_for_angles_with_fewer_neighbours_of_few_points(monkeypatch):
    import sys
    import types

    asked = {}

    class UMAP:
        def __init__(self, **settings):
            asked.update(settings)

        def fit_transform(self, unit):
            asked["norms"] = np.linalg.norm(unit, axis=1)
            return np.zeros((len(unit), 2))

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    space.embed(drawn(12)[0], "umap", seed=3)
    assert asked["n_neighbors"] == 11 and asked["random_state"] == 3 and asked["metric"] == "cosine"
    np.testing.assert_allclose(asked["norms"], 1, atol=1e-6)


def test_a_map_is_made_once(tmp_path, monkeypatch):
    logits, _ = drawn()
    made = []
    make = space._make
    monkeypatch.setattr(space, "_make", lambda *given: made.append(1) or make(*given))
    first = space.embed(logits, "pca", cache=tmp_path)
    assert len(made) == 1
    np.testing.assert_array_equal(space.embed(2 * logits, "pca", cache=tmp_path), first)  # of the same angles
    assert len(made) == 1
    space.embed(logits + 0.01 * torch.eye(120, 5), "pca", cache=tmp_path)
    for seed in (0, 1, 0):
        space.embed(logits, "tsne", seed=seed, cache=tmp_path)
    assert len(made) == 4 and len(list(tmp_path.iterdir())) == 4
    assert all(path.name.startswith(("pca-", "tsne-")) for path in tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "shape", "pickle"])
def test_a_damaged_map_is_made_anew(tmp_path, damage, monkeypatch):
    logits, _ = drawn()
    first = space.embed(logits, "pca", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage in ("cut", "empty", "noise"):
        path.write_bytes({"cut": whole[:-9], "empty": b"", "noise": b"PK\x03\x04" + whole}[damage])
    else:
        wrong = np.zeros((119, 2), np.float32) if damage == "shape" else np.array([{}], dtype=object)
        np.save(path, wrong, allow_pickle=True)
    made, make = [], space._make
    monkeypatch.setattr(space, "_make", lambda *given: made.append(1) or make(*given))
    np.testing.assert_array_equal(space.embed(logits, "pca", cache=tmp_path), first)
    assert path.read_bytes() == whole and len(made) == 1


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("")
    logits, _ = drawn()
    with pytest.warns(UserWarning, match="not kept"):
        found = space.embed(logits, "pca", cache=tmp_path / "file")
    np.testing.assert_array_equal(found, space.embed(logits, "pca"))


@pytest.mark.parametrize(
    ("logits", "how", "told"),
    [
        (torch.zeros(9), "pca", "takes"),
        (torch.rand(4, 3), "pca", "too few"),
        (torch.rand(9, 1), "pca", "two classes"),
        (torch.full((9, 3), torch.nan), "pca", "nan"),
        (torch.ones(9, 3), "tsne", "same way"),
        (torch.rand(9, 3), "umpa", "did you mean 'umap'"),
    ],
)
def test_what_has_no_map(logits, how, told):
    with pytest.raises(InputError, match=told) as error:
        space.embed(logits, how)
    assert "\n" not in str(error.value)


def test_who_waits_is_told_how_long(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "umap", raising=False)
    assert space.waiting("pca", 50_000) == "" and "minutes" in space.waiting("tsne", 50_000)
    first = space.waiting("umap", 1000)
    assert "compiles itself" in first and "20 seconds" in first
    monkeypatch.setitem(sys.modules, "umap", object())
    assert "compiles" not in space.waiting("umap", 1000)


def test_who_waits_is_told_before_and_not_where_the_map_was_kept(tmp_path, monkeypatch):
    logits, _ = drawn()
    happened = []
    monkeypatch.setattr(space, "_make", lambda unit, *_: happened.append("made") or unit[:, :2])
    for _ in range(2):
        space.embed(logits, "tsne", cache=tmp_path, told=happened.append)
    assert happened[0].startswith("t-SNE maps 120 points") and happened[1:] == ["made"]


def test_region_equals_a_loop():
    logits, labels = drawn()
    members = torch.randperm(120, generator=torch.Generator().manual_seed(1))[:30]
    found = space.region(logits, labels, members, neighbours=7)
    unit = [row / row.norm() for row in logits.double()]
    mean = sum(unit[m] for m in members.tolist()) / 30
    outside = [n for n in range(120) if n not in members.tolist()]
    cosine = {n: float(unit[n] @ mean / mean.norm()) for n in outside}
    nearest = sorted(outside, key=cosine.__getitem__, reverse=True)[:7]
    assert found.nearest.tolist() == nearest
    assert found.cosine.tolist() == pytest.approx([cosine[n] for n in nearest], abs=1e-6)
    counts = [sum(int(labels[m]) == c for m in members.tolist()) for c in range(5)]
    assert found.counts.tolist() == counts and found.purity == max(counts) / 30
    right = [int(logits[m].argmax()) == int(labels[m]) for m in members.tolist()]
    assert found.accuracy == pytest.approx(sum(right) / 30)
    assert found.cohesion == pytest.approx(float(sum(unit[m] @ mean for m in members.tolist()) / 30 / mean.norm()))
    means = [sum(u for u, y in zip(unit, labels, strict=True) if y == c) / int((labels == c).sum()) for c in range(5)]
    own = [float((unit[m] - means[labels[m]]).norm()) for m in members.tolist()]
    other = [min(float((unit[m] - means[c]).norm()) for c in range(5) if c != labels[m]) for m in members.tolist()]
    margin = [there - here for here, there in zip(own, other, strict=True)]
    assert (found.within, found.margin) == pytest.approx((sum(own) / 30, sum(margin) / 30), abs=1e-6)
    assert found.negative_margin == pytest.approx(sum(m < 0 for m in margin) / 30)
    assert found.separation == pytest.approx(metrics.separation(logits[members], labels[members]), rel=1e-5)


def test_separation_is_none_where_it_is_not_defined():
    logits, labels = drawn()
    own = (labels == 2).nonzero().squeeze(1)
    assert space.region(logits, labels, own).separation is None
    assert space.region(logits, labels, torch.cat([own, torch.tensor([0])])).separation is None
    assert space.region(logits, labels, torch.tensor([0])).separation is None
    assert space.region(torch.eye(5)[labels], labels, torch.arange(120)).separation is None  # within is 0


def test_rare_strays_do_not_fall_out_of_the_silhouettes_sample():
    logits, _ = drawn(2000)
    labels = torch.zeros(2000, dtype=torch.long)
    labels[[5, 900, 1500]] = 1
    found = space.region(logits, labels, torch.arange(2000), samples=50)
    assert found.separation is not None and all(np.isfinite(v) for v in found.separation.values())


def test_a_region_of_all_has_nothing_next_to_it():
    logits, labels = drawn()
    assert len(space.region(logits, labels, torch.arange(120)).nearest) == 0
    assert len(space.region(logits, labels, torch.arange(118)).nearest) == 2


@pytest.mark.parametrize(
    ("members", "told"), [([], "one or more"), ([3, 3], "once"), ([120], "0 to 119"), ([-1], "0 to")]
)
def test_what_is_no_region(members, told):
    logits, labels = drawn()
    with pytest.raises(InputError, match=told):
        space.region(logits, labels, torch.tensor(members, dtype=torch.long))
    with pytest.raises(InputError, match=r"\[N, C\]"):
        space.region(logits, labels[:-1], torch.tensor([0]))


def test_rows_are_read_as_people_write_them():
    rows = torch.tensor([2, 3, 7, 11, 20, 30])
    assert space.positions("3 7, 10-20", rows, "digits").tolist() == [1, 2, 3, 4]
    assert space.positions("7 7 7-7", rows, "digits").tolist() == [2]
    assert space.positions(" ", rows, "digits").tolist() == []
    for text, told in (("3 x", "'x' is no row"), ("4", "no row 4"), ("20-10", "no row"), ("-3", "no row")):
        with pytest.raises(InputError, match=told):
            space.positions(text, rows, "digits")
