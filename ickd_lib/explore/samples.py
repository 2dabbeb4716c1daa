"""The samples that an explorer shows: their labels, keys, thumbnails, and the outputs of networks for them.

The task determines what a sample is; the explorers address samples by position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ickd_lib.data import Images
from ickd_lib.data.split import positions_of
from ickd_lib.memory import MemoryBank
from ickd_lib.models import Network, Output
from ickd_lib.runtime import InputError
from ickd_lib.tasks import Classification, Task


@dataclass(frozen=True)
class SampleSet:
    """The N samples of one split, each addressed by its position, 0 to N - 1.

    Args:
        images: the images of the split.
        task: which samples an image has; with classification, each image is one sample.
        numbered: whether the images have data-set rows. Images from elsewhere are addressed by their files.
    Raises:
        InputError: the images do not have the annotations that the task needs.
    """

    images: Images
    task: Task = field(default_factory=Classification)
    numbered: bool = True

    def __post_init__(self) -> None:
        self.task.check(self.images)

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> SampleSet:
        """Return these samples; raise InputError if some of them have no label."""
        if count := int((self.labels < 0).sum()):
            raise InputError(
                f"{count} of the {len(self)} images of {self.name} have no label; give the labelled ones, "
                "images.subset((images.labels >= 0).nonzero().squeeze(1)), and a bank of these"
            )
        return self

    @property
    def name(self) -> str:
        """Data set and split, such as "cifar100/train"."""
        return self.images.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes, which are the columns of the logits; in detection the first one is the background."""
        return self.task.outputs(self.images.classes)

    @property
    def superclasses(self) -> tuple[str, ...]:
        """Names of the coarser classes; empty where there are none."""
        return self.images.superclasses

    @property
    def superclass_of(self) -> tuple[int, ...]:
        """Position of each class's superclass in `superclasses`; empty where there are none."""
        return self.images.superclass_of

    @property
    def labels(self) -> Tensor:
        """Class of each sample, shape [N]."""
        return self._keys_and_labels[1]

    @property
    def keys(self) -> Tensor:
        """Key of each sample, shape [N]: the number under which a memory bank stores it."""
        return self._keys_and_labels[0]

    @cached_property
    def _keys_and_labels(self) -> tuple[Tensor, Tensor]:
        return self.task.keys(self.images)

    @cached_property
    def rows(self) -> Tensor:
        """Data-set row of the image of each sample, shape [N]."""
        return self.task.rows(self.images, self.keys)

    def address(self, at: int) -> tuple[str, ...]:
        """Return texts that identify the sample at a position: the row of its image, and its key if that is another."""
        if not self.numbered:
            return (self.file(at),)
        row, key = int(self.rows[at]), int(self.keys[at])
        one, _ = self.task.sample
        return (f"row {row}",) if one == "image" else (f"row {row}", f"{one} {key}")

    def file(self, at: int) -> str:
        """Return the path of the file of a sample's image in the folder of its split; "" where it has none."""
        return self.images.file(int(self.rows[at]))

    def positions(self, keys: Tensor) -> Tensor:
        """Return the positions of the samples with these keys.

        Args:
            keys: keys of samples of this set, shape [n] or [].
        Returns:
            The same shape.
        """
        return self._position_of_key[keys]

    @cached_property
    def _position_of_key(self) -> Tensor:
        return positions_of(self.keys)

    def outputs(self, network: Network, at: Tensor | None = None, *, precision: str = "auto") -> Output:
        """Compute a network's outputs for some samples, without augmentation, in evaluation mode.

        Args:
            network: a network on the device of the images.
            at: positions of the samples, shape [n]; None for all N.
            precision: "auto", "fp32" or "bf16".
        Returns:
            Logits [n, C] and features [n, D].
        """
        keys = None if at is None else self.keys[at.to(self.keys.device)]
        samples = self.task.bank_samples(network, self.images, keys=keys, precision=precision)
        return Output(samples.logits, samples.features)

    def stored_outputs(self, bank: MemoryBank, at: Tensor | None = None) -> Output:
        """Return the teacher's outputs that a bank stores for some samples: logits [n, C] and features [n, D].

        Args:
            bank: a bank with a row for each of these samples.
            at: positions of the samples, shape [n]; None for all N.
        """
        rows = bank.rows(self.keys if at is None else self.keys[at])
        return Output(bank.logits[rows].float(), bank.features[rows].float())

    def thumbnails(self, at: Tensor) -> Tensor:
        """Return the pictures of some samples, uint8, shape [n, 3, h, w].

        Args:
            at: positions of the samples, shape [n].
        """
        return self.task.pictures(self.images, self.keys[at.to(self.keys.device)])

    def whole_image(self, at: int) -> Tensor | None:
        """Return a picture of the image of a sample that shows where the sample is, uint8, shape [3, h, w].

        None where a sample is a whole image.

        Args:
            at: position of the sample.
        """
        return self.task.whole_image(self.images, int(self.keys[at]))

    def pictured(self, at: Tensor) -> Images:
        """Return thumbnails, labels and keys of some samples in the form that `plots.neighbours` draws.

        Args:
            at: positions of the samples, shape [n].
        """
        at = at.to(self.labels.device)
        return Images(
            self.thumbnails(at),
            self.labels[at],
            self.keys[at],
            self.classes,
            self.images.mean,
            self.images.std,
            pad=0,
            flip=False,
            name=self.name,
            superclasses=self.superclasses,
            superclass_of=self.superclass_of,
        )
