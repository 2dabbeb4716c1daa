"""Methods that compare the outputs at every pixel of a map, for segmentation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_lib import losses, runtime
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.queues import ClassQueues, some_of_each
from ickd_lib.methods.registry import register
from ickd_lib.models import projectors
from ickd_lib.runtime.arguments import Count, Natural, NotNegative, Positive
from ickd_lib.tasks import Samples
from ickd_lib.tasks.base import Pixels


@register("cirkd")
class CIRKD(WithLabels):
    """Cross-image relational distillation: the similarities of pixels across images are matched, Yang et al. 2022.

    Source: arXiv 2204.06986. Four terms are added to the labels' loss: KD of the logits of every pixel; the
    similarities between the pixels of the images of a batch (`losses.pixel_similarity`); and the similarities of pixels
    to a memory of the teacher's pixels and to one of its regions (`losses.queue_similarity`). The term of the batch
    uses the student's features as they are. For the memories, they are projected to as many features as the teacher
    has, by two trained 1x1 convolutions with batch norm and ReLU between them.

    Each memory consists of a queue for each class. In each step the teacher's features of random pixels of each region,
    and the mean of each region, are written; then rows are drawn. Two points differ from the authors' code: it writes
    the first pixels of an image into the queue of every class in the image, and it also draws rows that were never
    written. As there, the mean of a region is that of features of unit length. KD and the terms of the memories leave
    out pixels that belong to no region; the authors' KD includes them. The term of the batch includes all pixels.

    The queues take C · (pixel_memory + region_memory) · D' · 4 bytes in memory and in each checkpoint, where D' is the
    number of the teacher's features: 0.43 GB for 19 classes and 256 features. A queue has at most as many rows as one
    epoch can write, so that queues are small for small data sets; if this makes them smaller, a note is printed.

    kd, batch, pixel, region: weights of the four terms, in the order above.
    temperature: divides the cosines.
    kd_temperature: temperature of KD.
    pixel_memory, region_memory: numbers of rows of the queues of each class.
    pixel_contrast, region_contrast: total numbers of rows that are drawn in a step; each class has an equal share,
        rounded as in the authors' code (number // C + 1).
    pixels_per_image: largest number of pixels of each class in an image that are written in a step.
    pooling: side of the squares of pixels over which features are averaged before the pixels of the batch are compared,
        as with an option of the authors' code. The time for that term is proportional to 1 / pooling^4. (The authors'
        batches have 2 images on each GPU, and maps of stride 8: as many pixels as pooling=2 leaves of maps of stride 4.
        Without pooling, crops of 512x512 pixels have 16,384 pixels, which take about 1 GB for each pair of images.)
    anchors: number of pixels of the batch, drawn at random in each step, that are compared with the memories; 0 for all
        of them, as in the authors' code. On a CPU, a step with 16 images of 96x96 pixels takes about 7 s with the
        defaults and 1 s with pooling=4, anchors=1024.
    """

    needs = frozenset({"teacher", "features", "pixels"})
    paper = "Yang et al. 2022, arXiv 2204.06986"
    code = "winycg/CIRKD"

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        kd: NotNegative = 1.0,
        batch: NotNegative = 1.0,
        pixel: NotNegative = 0.1,
        region: NotNegative = 0.1,
        temperature: Positive = 0.1,
        kd_temperature: Positive = 1.0,
        pixel_memory: Count = 20000,
        region_memory: Count = 2000,
        pixel_contrast: Count = 4096,
        region_contrast: Count = 1024,
        pixels_per_image: Count = 16,
        pooling: Count = 1,
        anchors: Natural = 0,
    ) -> None:
        super().__init__(ce=ce)
        self.anchors = anchors
        self.pooling = pooling
        self.kd, self.batch, self.pixel, self.region = kd, batch, pixel, region
        self.temperature = temperature
        self.kd_temperature = kd_temperature
        self.pixel_memory = pixel_memory
        self.region_memory = region_memory
        self.pixel_contrast = pixel_contrast
        self.region_contrast = region_contrast
        self.pixels_per_image = pixels_per_image

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        self.projector = nn.Sequential(
            nn.Conv2d(student_dim, teacher_dim, 1, bias=False),
            projectors.BatchNorm(teacher_dim),
            nn.ReLU(),
            nn.Conv2d(teacher_dim, teacher_dim, 1, bias=False),
        )
        pixels, regions = min(self.pixel_memory, self.pixels_per_image * rows), min(self.region_memory, rows)
        if (pixels, regions) != (self.pixel_memory, self.region_memory):
            runtime.notice(
                f"cirkd has queues of {pixels} pixels and {regions} regions a class instead of {self.pixel_memory} and "
                f"{self.region_memory}: the training data have {rows} regions"
            )
        self.pixel_queues = ClassQueues(num_classes, pixels, teacher_dim)
        self.region_queues = ClassQueues(num_classes, regions, teacher_dim)
        self.drawn = tuple(number // num_classes + 1 for number in (self.pixel_contrast, self.region_contrast))

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        student, teacher = pixels(context.student), pixels(context.teacher)
        at = (student.labels >= 0).nonzero(as_tuple=True)
        mine, theirs = (one.logits.movedim(1, -1)[at] for one in (student, teacher))
        # A mean over no pixels would not be finite.
        soft = losses.kd(mine, theirs, temperature=self.kd_temperature) if len(mine) else mine.sum()
        pooled = (F.avg_pool2d(one.features, self.pooling) for one in (student, teacher))
        near = losses.pixel_similarity(*pooled, temperature=self.temperature)

        embedding = self.projector(student.features).movedim(1, -1)[at]
        target = F.normalize(teacher.features.detach(), dim=1).movedim(1, -1)[at]
        self._write(target, student.labels[at], at[0], student.region[at], context.student.labels)
        if self.anchors:
            some = torch.randperm(len(target), device=target.device)[: self.anchors]
            embedding, target = embedding[some], target[some]
        far = [
            losses.queue_similarity(embedding, target, *queues.draw(number), temperature=self.temperature)
            for queues, number in zip((self.pixel_queues, self.region_queues), self.drawn, strict=True)
        ]
        terms = {"kd": soft, "batch": near, "pixel": far[0], "region": far[1]}
        return {name: getattr(self, name) * term for name, term in terms.items()}

    @torch.no_grad()
    def _write(self, embedding: Tensor, labels: Tensor, image: Tensor, region: Tensor, classes: Tensor) -> None:
        """Write into the queues.

        Args:
            embedding: unit-length features of the pixels, [N, D].
            labels, image, region: class, image and region of each pixel, [N] each.
            classes: class of each region, [S].
        """
        some = some_of_each(image * len(self.pixel_queues.rows) + labels, self.pixels_per_image)
        self.pixel_queues.push(embedding[some], labels[some])
        # The queue scales rows to unit length, so the sum over a region can be written in place of its mean. A small
        # region may have no pixel here, if other classes cover more of each.
        total = embedding.new_zeros(len(classes), embedding.shape[1]).index_add_(0, region, embedding)
        covered = torch.bincount(region, minlength=len(classes)) > 0
        self.region_queues.push(total[covered], classes[covered])


@register("cwd")
class CWD(WithLabels):
    """Channel-wise distillation: each channel's distribution over the positions is matched, Shu et al. 2021.

    Source: arXiv 2011.13256; see `losses.channel_wise`. It was built from the paper and the authors' code, and is
    tested against naive loops. Pixels that belong to no region are included, as in that code.

    cwd: weight of the term. The default was published for the logits; CIRKD's authors use 50 for the features, in their
        comparison of methods.
    temperature: temperature of the softmax over the positions.
    on: "logits" or "features", whose channels are compared. If student and teacher have unequal numbers of features, a
        trained 1x1 convolution brings the student's to the teacher's number. (The authors add batch norm and ReLU.)
    """

    needs = frozenset({"teacher", "features", "pixels"})
    paper = "Shu et al. 2021, arXiv 2011.13256"
    code = "irfanICMLL/TorchDistiller"

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        cwd: NotNegative = 3.0,
        temperature: Positive = 4.0,
        on: Literal["logits", "features"] = "logits",
    ) -> None:
        super().__init__(ce=ce)
        self.cwd, self.temperature = cwd, temperature
        self.on = on
        self.label_space = "any" if on == "features" else "same"

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        differ = self.on == "features" and student_dim != teacher_dim
        self.projector = nn.Conv2d(student_dim, teacher_dim, 1, bias=False) if differ else nn.Identity()

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        student, teacher = (getattr(pixels(one), self.on) for one in (context.student, context.teacher))
        term = losses.channel_wise(self.projector(student), teacher, temperature=self.temperature)
        return {"cwd": self.cwd * term}


def pixels(samples: Samples) -> Pixels:
    """Return the pixels of samples of segmentation."""
    assert samples.pixels is not None
    return samples.pixels
