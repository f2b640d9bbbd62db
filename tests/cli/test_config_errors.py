"""jsonargparse's reports, boiled down; real reports come from the command line in test_cli.py."""

from __future__ import annotations

import pytest
from torch import nn

from constrained_diffusion.cli.config_errors import arguments, problems, summarize
from constrained_diffusion.diffusion.sampler import Sampler

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'constrained_diffusion.ConstrainedDiffusion':
        Parser key "constraints":

          - Expected a path but 4 either not accessible or invalid
          - Does not validate against any of the Union subtypes
          Errors:
            - Problem with given class_path 'constrained_diffusion.ClassProbability':
                Parser key "label":
                  Expected a <class 'int'>. Got value: four
            - Expected a <class 'list'>
          Given value type: <class 'dict'>
          Given value: {'class_path': 'ClassProbability'}
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'ConstrainedDiffusion', 'init_args': {}}
"""


def test_the_deepest_problem_is_told() -> None:
    assert summarize(NESTED) == "model.init_args.constraints.init_args.label: expected int, got 'four'."


def test_all_problems_are_found_with_their_places_and_values() -> None:
    found = [(problem.place, problem.value) for problem in problems(NESTED)]
    assert found == [
        ("model.init_args.constraints.init_args.label", "four"),
        ("model.init_args.constraints", "{'class_path': 'ClassProbability'}"),
        ("model", "{'class_path': 'ConstrainedDiffusion', 'init_args': {}}"),
    ]


def test_types_of_a_union_are_joined_and_long_values_cut() -> None:
    report = "\n".join(
        [
            'Parser key "trainer.max_epochs":',
            "  Does not validate against any of the Union subtypes",
            "  Errors:",
            "    - Expected a <class 'int'>",
            "    - Expected a <class 'NoneType'>",
            "  Given value: " + 100 * "x",
        ]
    )
    assert summarize(report) == f"trainer.max_epochs: expected int or null, got '{80 * 'x'} ...'."


def test_a_message_that_is_no_report_stays_as_it_is() -> None:
    assert summarize("expected samples >= 1,\n  got 0") == "expected samples >= 1, got 0"


def test_what_an_option_might_have_meant_is_read_from_the_class() -> None:
    path = "constrained_diffusion.diffusion.sampler.Sampler"
    report = f"Problem with given class_path '{path}':\n  Option 'xyz' is not accepted"
    assert summarize("Does not validate\n" + report).endswith(
        f"Sampler has no option 'xyz'; it has {', '.join(FIELDS)}."
    )
    assert summarize("Does not validate\n" + report.replace("xyz", "etta")).endswith("did you mean 'eta'?")


FIELDS = [
    *("steps", "eta", "spacing", "steps_offset", "set_alpha_to_one", "clip_sample", "renoise", "start", "clip_range"),
]


class Base:
    def __init__(self, first: int, **kwargs: int) -> None: ...


class Handing(Base):
    def __init__(self, second: int, **kwargs: int) -> None: ...


class Keeping(Base):
    def __init__(self, third: int) -> None: ...


@pytest.mark.parametrize(
    ("cls", "names"),
    [(Sampler, FIELDS), (Handing, ["second", "first"]), (Keeping, ["third"]), (nn.ReLU, ["inplace"]), (None, [])],
)
def test_arguments(cls: type | None, names: list[str]) -> None:
    assert arguments(cls) == names


class Fixing(Base):
    """Takes what its base takes, but sets one of it."""

    def __init__(self, **kwargs: int) -> None:
        super().__init__(first=1, **kwargs)


def test_an_option_that_a_class_sets_itself_is_not_proposed_in_its_own_place() -> None:
    report = f"Does not validate\nProblem with given class_path '{__name__}.Fixing':\n  Option 'first' is not accepted"
    assert summarize(report) == (
        "Fixing sets 'first' itself in its __init__; change it there, or make it an argument of Fixing."
    )


@pytest.mark.parametrize("text", ["'Mine' object has no attribute 'limit'", "No module named 'elsewhere'"])
def test_a_class_that_cannot_be_built_is_told_from_one_that_cannot_be_imported(text: str) -> None:
    def said(path: str) -> str:
        return summarize(f"Does not validate\nProblem with given class_path '{path}':\n  {text}")

    assert said(f"{__name__}.Keeping") == (
        f"Keeping cannot be built ({text}); mend its __init__, or what is given to it."
    )
    for path in (f"{__name__}.Nothing", "elsewhere.Thing"):
        assert said(path).startswith(f"'{path}' cannot be imported ({text})")
