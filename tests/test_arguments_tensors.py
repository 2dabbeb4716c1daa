"""Tensors and files of weights that cannot be used are refused in one line."""

import pytest
import torch

from ickd_lib import __main__ as cli
from ickd_lib import data, models
from ickd_lib.memory import MemoryBank
from ickd_lib.runtime import InputError

N, D, C = 4, 3, 2
GOOD = {
    "features": torch.rand(N, D),
    "logits": torch.rand(N, C),
    "labels": torch.tensor([0, 1, 0, 1]),
    "index": torch.arange(N),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", torch.rand(N - 1, C), "logits"),
        ("logits", torch.rand(N), "logits"),
        ("logits", torch.full((N, C), torch.nan), "logits .* not finite"),
        ("labels", torch.rand(N), "labels"),
        ("labels", torch.tensor([0, 1, 0, 2]), "labels"),
        ("labels", torch.tensor([0, 1, 0, -1]), "labels"),
        ("index", torch.rand(N).sort().values, "index"),
        ("index", torch.tensor([0, 1, 2, 10**12]), "index"),
        ("index", torch.tensor([-1, 1, 2, 3]), "index"),
        ("features", torch.full((N, D), torch.nan), "features .* not finite"),
        ("features", torch.rand(N, D).to_sparse(), "features"),
        ("features", torch.rand(N, D, device="meta"), "features"),
        ("features", [[0.0]], "features"),
    ],
)
def test_banks_of_impossible_tensors(name, value, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        MemoryBank(**GOOD | {name: value}, classes=("a", "b"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        {1: torch.rand(2), 2: torch.rand(3)},
        {"bn1.weight": torch.rand(2), 2: torch.rand(3)},
        {"model": {(1, 2): torch.rand(2)}},
        "sparse",
        "meta",
        "complex",
    ],
)
def test_weights_that_are_none(value, tmp_path, capsys):
    network = models.create("resnet8", num_classes=10)
    if isinstance(value, str):
        state = network.state_dict()
        change = {"sparse": torch.Tensor.to_sparse, "meta": lambda t: t.to("meta"), "complex": lambda t: t * 1j}[value]
        value = {key: change(tensor) if tensor.ndim == 2 else tensor for key, tensor in state.items()}
    torch.save(value, tmp_path / "odd.pth")
    with pytest.raises(InputError) as caught:
        models.load_weights(network, tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", torch.rand(2, 3, 8, 8)),
        ("images", torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="meta")),
        ("images", torch.zeros(2, 8, 8, dtype=torch.uint8)),
        ("labels", torch.rand(2)),
        ("labels", torch.zeros(3, dtype=torch.long)),
        ("index", torch.rand(2)),
    ],
)
def test_images_of_impossible_tensors(name, value):
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    given = {"images": images, "labels": labels, "index": torch.arange(2), name: value}
    with pytest.raises(InputError, match=f"^{name} "):
        data.Images(**given, classes=("a",), mean=(0.5,) * 3, std=(1.0,) * 3, pad=0, flip=False, name="mine/train")


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "train", lambda given: torch.empty(2**60))
    assert cli.main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: there is not enough memory") and err.count("\n") == 1
