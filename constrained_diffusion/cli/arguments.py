"""The words of a command before LightningCLI reads them: which configs they name, and what is no option at all."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from constrained_diffusion.cli import runs
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.prompt_file import rows_of

COMMANDS = ("fit", "validate", "test", "predict")
CONFIG = ("--config", "-c")
SETTINGS = ("--model", "--data", "--trainer")
FLAGS = ("--recompute", "--print_config", "--help", "-h")  # options without a value of their own
ONE_DASH = re.compile(r"-[A-Za-z]{2,}|-[A-Za-z][.=]")  # and a number, as in `--lr -1e-3`, is no such word


class Words(NamedTuple):
    """What was asked for."""

    argv: list[str]  #: as LightningCLI takes them, every config as the path of a file
    configs: list[Path]
    name: str  #: of the first config, under which its runs are kept
    given: list[str]  #: as the user wrote them

    def next_command(self, command: str) -> str:
        """Return what to type to go on with `command`: the same configs and settings, but not the checkpoint.

        >>> Words([], [], "", ["fit", "--config", "mnist.yaml", "--ckpt_path=last"]).next_command("test")
        'lightning test --config mnist.yaml'
        """
        words = _split(self.given, ("--ckpt_path",))
        kept = [w for i, w in enumerate(words) if w != "--ckpt_path" and (i == 0 or words[i - 1] != "--ckpt_path")]
        program = Path(sys.argv[0]).name
        program = program if program == "constrained-diffusion" else "lightning"
        return shlex.join([program, *(command if word in COMMANDS else word for word in kept)])


def read(argv: Sequence[str]) -> Words:
    """Find and check the configs that a command names.

    Raises:
        ValueError: a word is no option, or a config's name is none for a folder.
        FileNotFoundError: there is no such config.
    """
    words = _split(argv, CONFIG)
    _check(words)
    values = [i + 1 for i, word in enumerate(words) if word in CONFIG and i + 1 < len(words)]
    files = [runs.find_config(words[i]) for i in values]
    for i, file in zip(values, files, strict=True):
        untrusted.check_config(file)
        _check_classes(file)
        words[i] = str(file)
    return Words(words, files, runs.config_name(files[0]) if files else "run", list(argv))


def find_modules_beside(configs: Sequence[Path]) -> None:
    """Let class paths name modules that are beside a config or in the current folder; nothing installed is shadowed."""
    folders = dict.fromkeys(str(folder.resolve()) for folder in (*(file.parent for file in configs), Path()))
    sys.path += [folder for folder in folders if folder not in sys.path]


@contextlib.contextmanager
def restored_path() -> Iterator[None]:
    """Leave `sys.path` as it was, for a program that runs commands by `main`."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


def _split(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the words with `--option=value` in two, for these options."""
    found: list[str] = []
    for word in argv:
        option, equals, value = word.partition("=")
        found += [option, value] if equals and option in options else [word]
    return found


def _check(words: Sequence[str]) -> None:
    before = ""  # an option that waits for its value
    for i, word in enumerate(words):
        if ONE_DASH.match(word):
            raise ValueError(f"'{word}' has one dash: options begin with two, as in -{word}.")
        if word.startswith(SETTINGS) and any(later in CONFIG for later in words[i:]):
            raise ValueError(f"'{word}' stands before a --config, which may overwrite it: name the configs first.")
        if word.startswith("-"):
            before = "" if "=" in word or word in FLAGS else word
        elif not before and i > 0 and words[0] in COMMANDS:
            raise ValueError(_stray(words[0], word))
        else:
            before = ""


def _stray(command: str, word: str) -> str:
    try:
        runs.find_config(word)
    except FileNotFoundError:
        looks = word.endswith((".yaml", ".yml"))
    else:
        looks = True
    if looks:
        return f"'{word}' stands without an option: name a config by `{command} --config {word}`."
    return f"'{word}' stands without an option: a setting is given as --name=value, a config as --config mnist.yaml."


def _check_classes(config: Path) -> None:
    """Raise ValueError where settings of a class stand beside its `class_path`, not below `init_args`."""
    import yaml

    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError:  # reported by whoever parses it
        return
    for place, values in _mappings(content, ""):
        stray = [str(key) for key in values if key not in ("class_path", "init_args", "dict_kwargs")]
        if stray and isinstance(values.get("class_path"), str):
            raise ValueError(
                f"in '{config}', {place}: {', '.join(stray)} stand{'s' * (len(stray) == 1)} beside class_path: put the "
                f"settings of {values['class_path']} below `init_args:`."
            )


def _mappings(content: Any, place: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield every mapping in a config, with its place."""
    if isinstance(content, dict):
        yield place, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _mappings(value, f"{place}.{key}" if place and isinstance(content, dict) else place or str(key))


def check_prompt_files(data: Any) -> None:
    """Raise what is wrong with a file of prompts that `data`, the config of a data module, names, before work."""
    settings = (data or {}).get("init_args") or {}
    for chosen in (data, settings.get("conditions")):
        if chosen and chosen.class_path.rpartition(".")[2] in ("Prompts", "PromptsDataModule"):
            own = chosen.get("init_args") or {}
            rows_of(own.get("prompts"), own.get("prompt_file"), [0])
