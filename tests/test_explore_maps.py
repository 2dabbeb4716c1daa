"""Maps of the logit space: their values, their storage, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ickd_lib.explore import maps
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
    expected, found = left[:, :2] * values[:2], maps.embed(7 * logits, "PCA")
    for axis in range(2):
        sign = np.sign((expected[:, axis] * found[:, axis]).sum())
        np.testing.assert_allclose(found[:, axis], sign * expected[:, axis], atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("count", [5, 40])
def test_tsne_is_a_function_of_the_seed_also_of_few_points(count):
    logits, _ = drawn(count)
    first, again = (maps.embed(logits, "tsne", seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (count, 2) and np.isfinite(first).all()


def test_umap_compares_angles_and_uses_fewer_neighbours_for_few_points(monkeypatch):
    import sys
    import types

    used = {}

    class UMAP:
        def __init__(self, **settings):
            used.update(settings)

        def fit_transform(self, unit):
            used["norms"] = np.linalg.norm(unit, axis=1)
            return np.zeros((len(unit), 2))

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    maps.embed(drawn(12)[0], "umap", seed=3)
    assert used["n_neighbors"] == 11 and used["random_state"] == 3 and used["metric"] == "cosine"
    np.testing.assert_allclose(used["norms"], 1, atol=1e-6)


def test_a_map_is_computed_once(tmp_path, monkeypatch):
    logits, _ = drawn()
    made = []
    make = maps._compute
    monkeypatch.setattr(maps, "_compute", lambda *given: made.append(1) or make(*given))
    first = maps.embed(logits, "pca", cache=tmp_path)
    assert len(made) == 1
    np.testing.assert_array_equal(maps.embed(2 * logits, "pca", cache=tmp_path), first)  # of the same angles
    assert len(made) == 1
    maps.embed(logits + 0.01 * torch.eye(120, 5), "pca", cache=tmp_path)
    for seed in (0, 1, 0):
        maps.embed(logits, "tsne", seed=seed, cache=tmp_path)
    assert len(made) == 4 and len(list(tmp_path.iterdir())) == 4
    assert all(path.name.startswith(("pca-", "tsne-")) for path in tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "shape", "pickle"])
def test_a_damaged_map_is_computed_anew(tmp_path, damage, monkeypatch):
    logits, _ = drawn()
    first = maps.embed(logits, "pca", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage in ("cut", "empty", "noise"):
        path.write_bytes({"cut": whole[:-9], "empty": b"", "noise": b"PK\x03\x04" + whole}[damage])
    else:
        wrong = np.zeros((119, 2), np.float32) if damage == "shape" else np.array([{}], dtype=object)
        np.save(path, wrong, allow_pickle=True)
    made, make = [], maps._compute
    monkeypatch.setattr(maps, "_compute", lambda *given: made.append(1) or make(*given))
    np.testing.assert_array_equal(maps.embed(logits, "pca", cache=tmp_path), first)
    assert path.read_bytes() == whole and len(made) == 1


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("")
    logits, _ = drawn()
    with pytest.warns(UserWarning, match="could not be stored"):
        found = maps.embed(logits, "pca", cache=tmp_path / "file")
    np.testing.assert_array_equal(found, maps.embed(logits, "pca"))


@pytest.mark.parametrize(
    ("logits", "how", "reason"),
    [
        (torch.zeros(9), "pca", "takes"),
        (torch.rand(4, 3), "pca", "too few"),
        (torch.rand(9, 1), "pca", "two classes"),
        (torch.full((9, 3), torch.nan), "pca", "nan"),
        (torch.ones(9, 3), "tsne", "same direction"),
        (torch.rand(9, 3), "umpa", "did you mean 'umap'"),
    ],
)
def test_logits_without_a_map_are_refused(logits, how, reason):
    with pytest.raises(InputError, match=reason) as error:
        maps.embed(logits, how)
    assert "\n" not in str(error.value)


def test_the_message_names_the_waiting_time(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "umap", raising=False)
    assert maps.waiting("pca", 50_000) == "" and "minutes" in maps.waiting("tsne", 50_000)
    first = maps.waiting("umap", 1000)
    assert "compiled once" in first and "20 seconds" in first
    monkeypatch.setitem(sys.modules, "umap", object())
    assert "compiled" not in maps.waiting("umap", 1000)


def test_the_message_comes_before_a_computation_and_not_for_a_stored_map(tmp_path, monkeypatch):
    logits, _ = drawn()
    happened = []
    monkeypatch.setattr(maps, "_compute", lambda unit, *_: happened.append("computed") or unit[:, :2])
    for _ in range(2):
        maps.embed(logits, "tsne", cache=tmp_path, report=happened.append)
    assert happened[0].startswith("t-SNE of 120 points") and happened[1:] == ["computed"]
