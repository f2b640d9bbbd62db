"""A mistake in a config or on the command line, as one sentence that names the place, the problem and the way out.

jsonargparse reports every type that a value might have had, nested and over many lines, with the whole config at the
end. `summarize` finds the innermost problem in that and leaves the rest away.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple, get_type_hints

from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import nn

from constrained_diffusion import objectives

TOP = ("config", "seed_everything", "trainer", "model", "data", "ckpt_path", "optimizer", "lr_scheduler")

LONGEST = 2000  #: characters; a message may quote a name from a damaged file

_REPORT = re.compile(r"Parser key |Does not validate|Subcommand '|unrecognized arguments|arguments are required")
_FRAME = re.compile(  # lines that only surround a problem
    r"Does not validate|Subtypes:|Errors:|Given value|Expected a path but|Not a valid subclass|Subclass types expect|"
    r"a class path \(str\)|a dict with"
)
_WEAK = re.compile(r"Expected an? ")  # what is said of every type that the value is not
_NOT_TAKEN = re.compile(r"(?:Subcommand '\w+' does not accept option '|unrecognized arguments: -*)([^\s='-][^\s=']*)")
_NO_GPU = re.compile(r"No supported gpu backend found|(?:CUDA|MPS)Accelerator` can not run on your system")
_CALLABLE = re.compile(r"Type typing\.Callable\[.*\] expects a function or a callable class: ")


class Problem(NamedTuple):
    """One problem of a message."""

    keys: tuple[str, ...]  #: where it is: keys of the config, from the outermost
    owner: str  #: import path of the class whose arguments are wrong, or ""
    text: str
    value: str  #: what was given, or ""

    @property
    def place(self) -> str:
        """The key as it is written on the command line."""
        return ".init_args.".join(self.keys)


def summarize(message: str) -> str:
    """Return the innermost problem of a message of jsonargparse, in one sentence; other messages on one line, cut."""
    found = problems(message) if _REPORT.search(message) else []
    if not found and _NO_GPU.search(message):
        return (
            "trainer.accelerator asks for a GPU, but torch finds none here: leave it out, or say auto or cpu, or "
            "install a torch that is built for your GPU (`nvidia-smi` shows whether its driver works)."
        )
    if not found:
        line = " ".join(message.split())
        return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
    # The deepest one; among equals one that says more than "this is no int", else the first.
    problem = max(found, key=lambda p: (len(p.keys), bool(p.owner), not _WEAK.match(p.text)))
    said = _reworded(problem, found)
    return f"{problem.place}: {said}" if problem.keys else said


def problems(message: str) -> list[Problem]:
    """Return every problem that the lines of `message` tell of, in their order.

    >>> problems('Parser key "trainer.max_epochs":' + chr(10) + "  Expected a <class 'int'>. Got value: two")[0].place
    'trainer.max_epochs'
    """
    found: list[Problem] = []
    stack: list[tuple[int, str, str]] = []  # indentation, key, class
    for line in filter(str.strip, message.splitlines()):
        text = _CALLABLE.sub("", line.lstrip(" -"))
        indent = len(line) - len(line.lstrip(" -"))
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if match := re.match(r'Parser key "(.+)":$', text):
            stack.append((indent, match[1], ""))
        elif match := re.match(r"Problem with given class_path '(.+)':$", text):
            stack.append((indent, "", match[1]))
        elif text.startswith("Given value: "):
            value = text.removeprefix("Given value: ").partition(". Got value: ")[0]
            found = [problem if problem.value else problem._replace(value=value) for problem in found]
        elif not _FRAME.match(text):
            given = re.search(r"\. Got value: (.*)$", text)
            named = re.search(r"class_path='([\w.]+)'", given[1]) if given else None  # of an optimiser, for example
            owner = named[1] if named else stack[-1][2] if stack else ""
            keys = tuple(key for _, key, _ in stack if key)
            found.append(Problem(keys, owner, text[: given.start()] if given else text, given[1] if given else ""))
    return found


def _reworded(problem: Problem, found: Sequence[Problem]) -> str:
    text, name = problem.text, problem.owner.rpartition(".")[2]
    if match := re.match(r"Option '(.+?)' is not accepted", text):
        return _no_option(name, match[1], arguments(_imported(problem.owner)))
    if match := re.match(r"Group '(.+?)' does not accept option '(.+?)'", text):
        return _no_option(match[1], match[2], arguments(_hint(_imported(problem.owner), match[1])))
    if match := _NOT_TAKEN.match(text):
        return _no_option("the command", match[1], [*TOP, *(f"trainer.{name}" for name in arguments(Trainer))])
    if match := re.match(r"Expected a dot import path string: (.+)", text):
        return _no_class(match[1], constraint=problem.place.endswith("constraints"))
    if match := re.match(r"the following arguments are required: (.+)", text):
        needed = re.sub(r"\b(fit|validate|test|predict)\.", "", match[1])
        return f"{name or 'the command'} needs {needed}; give it in the config (--config mnist.yaml) or as an option."
    if _WEAK.match(text) and problem.keys[-1:] in (("trainer.callbacks",), ("trainer.logger",)):
        given = re.search(r"[A-Za-z_][\w.]*", problem.value.replace("class_path", ""))
        if given and given[0] not in _own_classes():
            return _no_class(given[0], constraint=False)
    if _WEAK.match(text):
        types = [_type(p.text) for p in found if p.keys == problem.keys and _WEAK.match(p.text)]
        types = [name for name in types if not name.startswith("dot import")]
        return f"expected {' or '.join(dict.fromkeys(types))}, got {_value(problem.value)}."
    if "No module named" in text or "has no attribute" in text:
        if _exists(problem.owner):
            return f"{name} cannot be built ({text}); mend its __init__, or what is given to it."
        return f"'{problem.owner}' cannot be imported ({text}); check the name, and that its package is installed."
    return text if text.endswith((".", ")")) else f"{text}."


def _no_option(owner: str, given: str, known: Sequence[str]) -> str:
    if given in known and owner != "the command":  # a base has it, but the class sets it
        return f"{owner} sets '{given}' itself in its __init__; change it there, or make it an argument of {owner}."
    close = get_close_matches(given, known, n=1) or get_close_matches(given.split(".")[0], known, n=1)
    if close:
        return f"{owner} has no option '{given}'; did you mean '{close[0]}'?"
    shown = [name for name in known if not name.startswith("trainer.")]  # which are too many to read
    listed = f"; it has {', '.join(shown)}" if shown else ""
    return f"{owner} has no option '{given}'{listed}."


def _no_class(given: str, constraint: bool) -> str:
    if constraint:
        names = ", ".join(objectives.available(objectives.Constraint))
        return (
            f"'{given}' is no registered constraint; there are {names}, or give the full path of your own, as in "
            "class_path: my_project.MyConstraint."
        )
    close = get_close_matches(given, sorted(_own_classes()), n=1)
    hint = f"did you mean '{close[0]}'?" if close else "give its full path, as in class_path: my_project.MyClass."
    return f"'{given}' is no known class; {hint}"


def arguments(cls: Any) -> list[str]:
    """Return the names of what the constructor of `cls` takes, those that it hands on to its bases included.

    >>> arguments(nn.Identity), arguments(None)
    ([], [])
    """
    names: list[str] = []
    for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
        if "__init__" not in vars(base) or base is object:
            continue
        given = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names += [p.name for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if all(p.kind != p.VAR_KEYWORD for p in given):
            break
    return names


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name, None) if module else None


def _exists(path: str) -> bool:
    try:
        return _imported(path) is not None
    except ImportError:
        return False


def _hint(cls: Any, argument: str) -> Any:
    return get_type_hints(cls.__init__).get(argument) if cls is not None else None


def _own_classes() -> set[str]:
    def below(cls: type) -> Iterator[type]:
        children: list[type] = cls.__subclasses__()
        for child in children:
            yield child
            yield from below(child)

    bases: tuple[type, ...] = (nn.Module, Callback, LightningDataModule)
    known = [cls for base in bases for cls in below(base)]
    return {cls.__name__ for cls in known if cls.__module__.startswith("constrained_diffusion.")}


def _type(text: str) -> str:
    """Return the type in words.

    >>> _type("Expected a <class 'NoneType'>"), _type("Expected a typing.Literal['fit', 'batch']")
    ('null', "'fit' or 'batch'")
    """
    name = _WEAK.sub("", text)
    if match := re.match(r"typing\.Literal\[(.+)\]", name):
        return match[1].replace(", ", " or ")
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name)
    return "null" if name == "NoneType" else name


def _value(value: str, longest: int = 80) -> str:
    nested = re.match(r"NestedArg\(key='.*', val='?(.*?)'?\)", value)
    short = nested[1] if nested else value
    return f"'{short}'" if len(short) <= longest else f"'{short[:longest]} ...'"
