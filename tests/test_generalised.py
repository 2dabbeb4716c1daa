"""Teachers of other classes: label spaces, the methods that fit, and a step of new classes."""

import math

import pytest
import torch

from ickd_lib import data, methods, models, runtime, training
from ickd_lib.methods.overview import by_teacher, method_table
from ickd_lib.training import generalised, students

MADE = {name: methods.create(name) for name in ("ce", "kd", "dkd", "rkd", "dml")}


@pytest.mark.parametrize("count", [4, 10, 11, 100])
def test_label_spaces_are_equal_overlapping_and_disjoint(count):
    spaces = generalised.label_spaces(count)
    student = set(range(count // 2, count))
    assert set(spaces["same"]) == student
    assert len(student & set(spaces["overlapping"])) == count // 4
    assert not student & set(spaces["disjoint"])
    assert len(spaces["overlapping"]) == len(spaces["disjoint"]) == count // 2
    assert set().union(*spaces.values()) <= set(range(count))


def test_too_few_classes_have_no_label_spaces():
    with pytest.raises(runtime.InputError, match="3 classes"):
        generalised.label_spaces(3)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ([5, 6, 7], ["ce", "kd", "dkd", "rkd", "dml"]),
        ([4, 5, 6], ["ce", "kd", "rkd", "dml"]),
        ([3, 4, 5], ["ce", "rkd", "dml"]),
        ([0, 1, 2], ["ce", "rkd", "dml"]),
    ],
)
def test_methods_fit_by_their_label_space(teacher, expected):
    assert generalised.applicable(MADE, [5, 6, 7], teacher) == expected


@pytest.mark.parametrize("classes", [[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]])
def test_what_does_not_fit_is_what_training_refuses(classes, digits):
    few, known = (data.load("digits", classes=chosen, labels=40) for chosen in ([5, 6, 7, 8, 9], classes))
    with runtime.seeded(0):
        teacher = models.create("resnet8", **known.train.spec)
    teacher.classes = known.train.classes
    able = generalised.applicable(MADE, few.train.classes, teacher.classes)
    for name in ("kd", "dkd", "rkd"):
        arguments = [training.Student("resnet8", name)], few._replace(test=few.test.few(20))
        options = {"teacher": teacher, "recipe": training.Recipe(epochs=1), "device": "cpu", "progress": False}
        if name in able:
            training.distill(*arguments, **options)
        else:
            with pytest.raises(runtime.InputError, match="compares logits class by class"):
                training.distill(*arguments, **options)


def test_a_teacher_that_lacks_some_classes_of_the_student_is_reported(capfd):
    few = data.load("digits", classes=[5, 6, 7], labels=30)
    teacher = models.create("resnet8", **data.load("digits", classes=[5, 6, 8]).train.spec)
    teacher.classes = ("5", "6", "8")
    options = {"teacher": teacher, "recipe": training.Recipe(epochs=1), "device": "cpu", "progress": False}
    training.distill([training.Student("resnet8", "kd")], few._replace(test=few.test.few(20)), **options)
    note = "the teacher does not have 1 of the student's 3 classes (7); kd matches the logits of the other classes"
    assert note in capfd.readouterr().err


def test_lwf_refuses_mixed_images_before_training(teacher, tmp_path):
    few = data.load("digits", classes=[5, 6, 7, 8, 9], labels=40, augment="randaugment+mixup")
    options = {"recipe": training.Recipe(epochs=1), "device": "cpu", "progress": False, "runs": tmp_path}
    other = models.create("resnet8", **data.load("digits", classes=[0, 1, 2, 5, 6]).train.spec)
    other.classes = ("0", "1", "2", "5", "6")
    for method in ("lwf", "kd+lwf"):
        with pytest.raises(runtime.InputError, match="needs images of one class each, and augment=randaugment"):
            training.distill([training.Student("resnet8", method)], few, teacher=other, **options)
    assert not list(tmp_path.iterdir())
    for method in ("lwf", "kd+lwf"):
        students.check_one_class(methods.create(method), "crop")
    students.check_one_class(methods.create("lwf(separate=False)"), "mixup")


def test_a_step_of_new_classes_trains_on_the_new_images_and_the_exemplars():
    splits = data.load("digits")
    splits = splits._replace(test=splits.test.few(100))
    recipe = training.Recipe(epochs=1, batch_size=20, lr=0.01, schedule="cosine")
    old = data.load("digits", classes=[0, 1, 2, 3, 4], labels=50)
    options = {"recipe": recipe, "device": "cpu", "precision": "fp32", "progress": False}
    (history,) = training.distill([training.Student("resnet8", "ce")], old, **options).values()
    arguments = ["ce", "lwf(kd=1.2)"], splits, history.network
    found = generalised.learn_new_classes(*arguments, labels=20, exemplars=2, seeds=2, **options)
    assert list(found) == ["ce", "lwf(kd=1.2)"]
    for parts in found.values():
        assert list(parts) == ["old", "new", "all"]
        for accuracies in zip(*parts.values(), strict=True):
            assert all(0 <= a <= 1 for a in accuracies)
            sizes = [int((splits.test.labels < 5).sum()), int((splits.test.labels >= 5).sum())]
            mean = (accuracies[0] * sizes[0] + accuracies[1] * sizes[1]) / 100
            assert math.isclose(accuracies[2], mean, abs_tol=1e-9)
    again = generalised.learn_new_classes(*arguments, labels=20, exemplars=2, seeds=2, **options)
    assert again == found


@pytest.mark.parametrize("exemplars", [0, 3])
def test_the_images_of_a_step_are_those_of_a_few_labels(exemplars):
    train = data.load("digits", labels=500).train  # rows of the data set that are not positions in the split
    chosen = generalised._selected(train, range(5), range(5, 10), labels=25, exemplars=exemplars)
    counts = torch.bincount(chosen.labels, minlength=10)
    assert counts[5:].sum() == 25 and counts[5:].min() >= 4
    assert counts[:5].tolist() == [exemplars] * 5
    assert set(chosen.index.tolist()) <= set(train.index.tolist())


def test_methods_are_listed_with_what_they_need():
    table = method_table({"ce": methods.create("ce"), "ickd+dist": methods.create("ickd+dist")})
    heading, _, alone, both = table.splitlines()
    assert heading.count("|") == alone.count("|") == both.count("|") == 5
    assert alone.endswith("|  |  |")
    first, second = (type(methods.create(name)).__doc__.partition("\n")[0].rstrip(".") for name in ("ickd", "dist"))
    assert f"| {first}; {second} |" in both
    assert both.endswith("| retrieval, teacher | same |")


def test_methods_are_grouped_by_their_teacher():
    assert by_teacher(MADE) == {"no teacher": ["ce"], "peers": ["dml"], "pretrained teacher": ["kd", "dkd", "rkd"]}
    assert by_teacher({"kd": MADE["kd"]}) == {"pretrained teacher": ["kd"]}
