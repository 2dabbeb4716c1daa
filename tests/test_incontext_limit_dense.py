"""The limit on the gradient of NICD where a student has several samples in an image: in segmentation and detection."""

import copy

import pytest
import scenes
import test_models_dense_one_stage as one_stage
import torch
from torch import nn

from ickd_lib import methods, models
from ickd_lib.data import Sampler
from ickd_lib.tasks import Detection, Segmentation
from ickd_lib.training import Student

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")
pytestmark = pytest.mark.usefixtures("seeded")


def strided():
    """A network for segmentation whose maps have another stride than those that the task compares."""
    layers = [nn.Conv2d(3, 8, 3, 8, 1), nn.Tanh(), nn.Conv2d(8, 11, 1)]
    return models.wrap_segmentation(nn.Sequential(*layers), num_classes=11)


NETWORKS = {
    "segmentation": (Segmentation, lambda: models.create("resnet8-fcn", num_classes=11)),
    "segmentation, another stride": (Segmentation, strided),
    "detection, two stages": (Detection, lambda: models.create("resnet8-fpn", num_classes=10)),
    "detection, RetinaNet": (Detection, lambda: one_stage.small("RetinaNet", 10)),
    "detection, FCOS": (Detection, lambda: one_stage.small("FCOS", 10)),
}


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_losses_of_a_task_depend_on_the_shared_logits(case, precision):
    task, network = NETWORKS[case]
    batch = next(Sampler(scenes.small(task.name).train).batches(8, data_seed=0, epoch=0))
    samples, supervised = task().samples(network().train(), batch, precision=precision)
    for loss in (supervised, samples.known.logits.square().sum(), samples.finest.logits.square().sum()):
        (slope,) = torch.autograd.grad(loss, samples.known.shared_logits, retain_graph=True)
        assert slope.norm() > 0


@pytest.mark.parametrize("case", NETWORKS)
def test_the_limit_changes_the_training(case):
    task, network = NETWORKS[case][0].name, NETWORKS[case][1]()
    splits, teacher = scenes.small(task), NETWORKS[case][1]()

    def trained(limit):
        method = methods.create("ickd(kd=0, picd=0, negatives=3)", limit=limit)
        return scenes.distill(task, [Student(copy.deepcopy(network), method, name="student")], splits, teacher)[
            "student"
        ]

    free = trained(None)
    assert scenes.same_weights(free, trained(1e6)) and not scenes.same_weights(free, trained(1e-6))
