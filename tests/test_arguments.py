"""Arguments of any value: each is accepted, or refused in one line, wherever arguments are given."""

import contextlib
import dataclasses
import inspect
import io
import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ickd_lib import __main__ as cli
from ickd_lib import data, explore, export, methods, models, notebook, options, runs, training
from ickd_lib.runtime import InputError
from ickd_lib.runtime.calls import parse_call
from ickd_lib.training import Recipe, Student

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 0.5, 1e300, -1e300, 1e999, -1e999, math.nan, 10**400, 2**63, 1e-320, True, False]),
    st.integers(),
    st.floats(),
)
VALUES = st.one_of(NUMBERS, st.none(), st.text(max_size=8), st.sampled_from(["a\0b", "\ud800", "x" * 5000]))
VALUES = st.one_of(VALUES, st.lists(VALUES, max_size=3), st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2))
quick = settings(max_examples=30, deadline=None, database=None, derandomize=True)


def one_line(error, *parts):
    text = str(error)
    assert "\n" not in text and len(text) < 1000 and all(part in text for part in parts), text


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.defaults(type(methods.create(name)))])
def test_methods_accept_a_value_or_refuse_it_in_one_line(name):
    known = methods.defaults(type(methods.create(name)))

    @quick
    @given(st.data())
    def check(drawn):
        chosen = drawn.draw(st.sampled_from(sorted(known)))
        value = drawn.draw(VALUES)
        try:
            method = methods.create(name, **{chosen: value})
        except InputError as error:
            one_line(error)
            return
        assert method.config[chosen] is value
        values = value if isinstance(value, (list, tuple)) else [value]
        assert all(abs(one) <= 1e30 for one in values if isinstance(one, (int, float)))
        assert value is None or isinstance(value, type(known[chosen])) or isinstance(known[chosen], float) or value == 0

    check()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "x", "ckd(temperature='x'): expected a finite number above 0"),
        ("temperature", 0, "ckd(temperature=0): expected a finite number above 0"),
        ("temperature", 1e300, "ckd(temperature=1e+300): expected a finite number above 0"),
        ("ce", None, "ckd(ce=None): expected a finite number of 0 or more"),
        ("ce", True, "ckd(ce=True): expected a finite number of 0 or more"),
    ],
)
def test_a_refused_value_is_named_with_its_range(name, value, message):
    for make in (lambda **given: methods.create("ckd", **given), methods.logits.CKD):
        with pytest.raises(ValueError) as caught:
            make(**{name: value})
        assert str(caught.value).startswith(message) and str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    "text",
    [
        "ickd(nicd=1)(kd=2)",
        "ickd(positives=0.5)",
        "ickd(positives=1e999)",
        "ickd(kappa=None)",
        "ickd(temperature=1e300)",
        "ickd(**{'kd': 1})",
        "kd(temperature={[]: 1})",
        "kd(temperature=" + "(" * 3000 + ")" * 3000 + ")",
        "kd(temperature=" + "9" * 5000 + ")",
        "kd(temperature='\0')",
        "kd\0",
        "kd(temperature=\ud800)",
    ],
)
def test_names_that_are_no_method(text):
    with pytest.raises(InputError) as caught:
        methods.create(text)
    one_line(caught.value)


@quick
@given(st.text(st.sampled_from("kdce(){}[]=+*,.'\"\\ 019-\0\n:") | st.characters(), max_size=20))
def test_any_text_is_a_method_or_refused_in_one_line(text):
    for read in (lambda: methods.create(text), lambda: parse_call(f"kd({text})", "method", "kd()")):
        try:
            found = read()
        except InputError as error:
            one_line(error)
        else:
            assert isinstance(found, (methods.Method, tuple))


@settings(quick, max_examples=200)
@given(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]), VALUES)
def test_recipes_accept_a_value_or_refuse_it_in_one_line(name, value):
    try:
        recipe = Recipe(**{name: value})
    except InputError as error:
        one_line(error, name)
    else:
        assert math.isfinite(recipe.lr_at(0)) and recipe.phases((0.5,))


@settings(quick, max_examples=200)
@given(st.sampled_from(sorted(notebook.PARAMETERS)), VALUES)
def test_parameters_of_notebooks_too(name, value):
    try:
        assert notebook.check_parameters({name: value}, name)[name] == value
    except InputError as error:
        one_line(error, name)


@pytest.mark.parametrize("function", [training.distill, training.compare, data.load])
def test_arguments_of_functions_too(function, digits):
    first = {
        training.distill: [[Student("resnet8")], digits],
        training.compare: [["ce"], digits],
        data.load: ["digits"],
    }
    wrong = {"checkpoint_seconds", "teacher_cache_gigabytes", "evaluate_every", "val", "seeds", "retries"}
    for name in wrong & set(inspect.signature(function).parameters):
        for value in (math.nan, -1, "x"):
            with pytest.raises(InputError, match=f"^{name}=.*: expected ") as caught:
                function(*first[function], **{name: value})
            one_line(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher_cache": True}, "teacher_cache=True: expected a text, a path or None"),
        ({"runs": 3}, "runs=3: expected a text, a path or None"),
        ({"splits": "digits"}, "splits='digits': expected Splits"),
        ({"students": ["resnet8"]}, "students=['resnet8']: expected a list of Student"),
        ({"recipe": {"epochs": 1}}, "recipe={'epochs': 1}: expected Recipe or None"),
        ({"bank": "bank.safetensors"}, "bank='bank.safetensors': expected MemoryBank or None"),
        ({"callbacks": [print]}, "callbacks=[<built-in function print>]: expected a list of Callback"),
        ({"teacher": "resnet20"}, "teacher='resnet20': expected Network or None"),
    ],
)
def test_an_argument_of_another_class_is_named(given, message, digits):
    arguments = {"students": [Student("resnet8")], "splits": digits} | given
    with pytest.raises(InputError) as caught:
        training.distill(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda digits: Student("resnet8", "ce", "a"), "Student(seed='a'): expected a whole number"),
        (lambda digits: Student("resnet8", None), "Student(method=None): expected a text or Method"),
        (lambda digits: training.pretrain(None, digits), "name=None: expected a text"),
        (
            lambda digits: training.pretrain("resnet8", digits, teacher_cache=3),
            "teacher_cache=3: expected a text, a path",
        ),
        (lambda digits: training.compare(["ce"], digits.train), "expected Splits or a function"),
        (lambda digits: training.compare(["ce"], digits, recipe={}), "recipe={}: expected Recipe or None"),
        (lambda digits: training.teach("resnet8", digits, lr="high"), "lr='high': expected a finite number above 0"),
        (
            lambda digits: training.teach("resnet8", digits, linear_probe=True, precision="fp8"),
            "unknown precision 'fp8'",
        ),
        (
            lambda digits: training.compare(["ce"], digits, chekpoint_seconds=3),
            "unknown argument 'chekpoint_seconds' of compare; did you mean 'checkpoint_seconds'",
        ),
        (lambda digits: training.teach("resnet8", digits, students=[]), "unknown argument 'students' of teach"),
        (lambda digits: training.step_seconds(["ce"], digits, rounds=0), "rounds=0: expected a whole number of 1 or"),
        (lambda digits: training.Processes(1.5), "jobs=1.5: expected a whole number of 1 or more"),
        (lambda digits: training.evaluate(models.create("resnet8", 10), digits), "Splits is no split of a data set"),
        (lambda digits: data.load("digits", device="gpu"), "unknown device 'gpu'"),
        (lambda digits: data.write_folder(digits.train, "images"), "expected Splits"),
        (lambda digits: models.load_weights(models.create("resnet8", 10), 3), "path=3: expected a text or a path"),
        (lambda digits: models.from_file(None, num_classes=10), "text=None: expected a text"),
        (lambda digits: explore.embed(None), "logits=None: expected Tensor"),
        (lambda digits: export.open_model(None), "path=None: expected a text or a path"),
        (lambda digits: export.finished_run(True), "folder=True: expected a text or a path"),
        (lambda digits: export.write("run", "file", digits.test, format="onnx"), "expected Splits"),
        (lambda digits: runs.overview(3), "folder=3: expected a text or a path"),
        (lambda digits: runs.progress(3), "folder=3: expected a text or a path"),
        (lambda digits: runs.diff("run", None), "second=None: expected a text or a path"),
    ],
)
def test_wrong_arguments_of_other_functions_are_named(call, message, digits):
    with pytest.raises(InputError) as caught:
        call(digits)
    one_line(caught.value, message)


TEXTS = st.one_of(
    st.sampled_from([*"nan inf -inf 1e30 1e999 -1 0 0.5 1e-320 None True x".split(), "", "9" * 5000, "±", "a\0b"]),
    st.text(string.printable, max_size=6),
)
TRAINERS = ("train", "compare")


@settings(quick, max_examples=60)
@given(st.data())
def test_no_option_gives_a_traceback(drawn):
    """The commands are parsed and not run, except for what stops before any training."""
    command = drawn.draw(st.sampled_from(TRAINERS))
    actions = options.parser([command])._subparsers._group_actions[0].choices[command]._actions
    action = drawn.draw(st.sampled_from([a for a in actions if a.option_strings and a.dest != "help"]))
    value = drawn.draw(TEXTS)
    status, err = called([command, f"{action.option_strings[0]}={value}", "--dataset", "none"])
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (action.dest, value, err)


def called(arguments):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(arguments)
    return status, err.getvalue()


@pytest.mark.parametrize(
    "line",
    [
        "train --checkpoint-seconds nan",
        "train --teacher-cache-gigabytes nan",
        "train --lr inf",
        "train --batch-size 1e30",
        "train --batch-size 1000000000000000000000000000000",
        "train --labels -1",
        "train --nesterov --momentum 0",
        "train --device meta --method ce",
        "train --device mps --method ce",
        "train --device xpu --method ce",
        "train --device cuda:-1 --method ce",
        "train --seed 99999999999999999999999999999",
        "train --runs a\0b",
        "train --val 1.5",
        "train --workers -1",
        "compare --jobs -1",
        "bank --teacher x --k 0",
        "train --epochs",
        "nothing",
    ],
)
def test_wrong_options_are_one_line(line):
    status, err = called(line.split(" "))
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err


def test_a_console_of_ascii_shows_the_table(monkeypatch, tmp_path):
    """± is not in ASCII; the table must not end in a UnicodeEncodeError."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(cli, "status", lambda given: print("90.0 ± 1.0"))
    assert cli.main(["status"]) == 0
    cli.sys.stdout.flush()
    assert raw.getvalue() == b"90.0 ? 1.0\n"
