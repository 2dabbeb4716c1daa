"""Classification: an image is one sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import losses, metrics, models, runtime
from ickd_lib.data import Batch, Images, LabelledImages
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.tasks.base import Column, Samples, Task, positions, register


@register("classification")
class Classification(Task):
    """Classification: an image is one sample, and its key is its row in the data set.

    The supervised loss is cross-entropy, and the primary metric is accuracy.
    """

    primary = "accuracy"
    columns = (
        Column("last, %", "accuracy"),
        Column("best, %", "best_accuracy"),
        Column("NLL", "nll", 1, ".3f"),
        Column("ECE, %", "ece"),
        Column("agrees with teacher, %", "agreement"),
    )
    cacheable = True
    unsupported = frozenset({"pixels"})

    def check(self, images: Images) -> None:
        super().check(images)
        if not isinstance(images, LabelledImages):
            raise InputError(
                f"classification needs images with one label each, but {images.name} has masks or boxes; choose the "
                "task segmentation or detection"
            )

    def samples(
        self,
        network: Network,
        batch: Batch,
        *,
        like: Samples | None = None,
        maps: bool = False,
        precision: str = "fp32",
    ) -> tuple[Samples, Tensor | None]:
        with runtime.autocast(batch.labels.device, precision):
            output = network(batch.images, maps=maps)
        samples = Samples(
            output.logits.float(),
            output.features.float(),
            batch.labels,
            batch.index,
            torch.arange(len(batch.labels), device=batch.labels.device),
            tuple(one.float() for one in output.maps),
            batch.soft,
            tuple(one.float() for one in output.preactivations),
            None if output.unpooled is None else output.unpooled.float(),
        )
        return samples, losses.cross_entropy(samples.logits, samples.targets) if network.training else None

    def weight(self, batch: Batch) -> Tensor:
        return (batch.labels >= 0).sum()

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.index, batch.labels

    def keys(self, images: Images) -> tuple[Tensor, Tensor]:
        return images.index, images.labels

    def bank_samples(
        self, network: Network, images: Images, *, keys: Tensor | None = None, precision: str = "auto"
    ) -> Samples:
        images = images if keys is None else images.subset(positions(images, keys))
        output = models.predict(network, images, precision=precision)
        every = torch.arange(len(images), device=images.labels.device)
        return Samples(output.logits, output.features, images.labels, images.index, every)

    def metrics(
        self, network: Network, images: Images, *, teacher: Samples | None = None, precision: str = "auto"
    ) -> dict[str, float]:
        logits = models.predict(network, images, precision=precision).logits
        return metrics.classification(logits, images.labels, teacher.logits if teacher else None)

    def pictures(self, images: Images, keys: Tensor) -> Tensor:
        return images.shown(positions(images, keys))
