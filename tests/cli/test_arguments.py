"""The words of a command: configs, words that are no options, own modules, and the command that comes next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from constrained_diffusion.cli import arguments, runs


def test_configs_are_found_in_either_spelling_and_others_stay() -> None:
    words = arguments.read(["fit", "--config=mnist.yaml", "-c", "cluster/ddp", "--trainer.max_epochs", "2", "--lr=-1"])
    shipped = runs.shipped_configs()
    assert words.configs == [shipped / "mnist.yaml", shipped / "cluster" / "ddp.yaml"]
    assert words.argv[1:5] == ["--config", str(words.configs[0]), "-c", str(words.configs[1])]
    assert words.argv[5:] == ["--trainer.max_epochs", "2", "--lr=-1"]
    assert words.name == "mnist"
    assert arguments.read(["--help"]).name == "run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "mnist.yaml"], r"'mnist.yaml' stands without an option: name a config by `fit --config mnist.yaml`"),
        (["test", "mnist"], r"`test --config mnist`"),
        (["fit", "--config", "mnist.yaml", "own.yaml"], r"`fit --config own.yaml`"),
        (["fit", "--recompute", "own.yaml"], r"`fit --config own.yaml`"),
        (["fit", "quickly"], r"'quickly' stands without an option: a setting is given as --name=value"),
        (["fit", "-config", "mnist.yaml"], r"'-config' has one dash: options begin with two, as in --config\."),
        (
            ["fit", "--trainer.max_epochs=2", "--config", "mnist"],
            "'--trainer.max_epochs=2' stands before a --config, which may overwrite it: name the configs first",
        ),
        (["fit", "-trainer.max_epochs=2"], r"as in --trainer.max_epochs=2\."),
    ],
)
def test_a_word_that_is_no_option(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        arguments.read(words)


def test_a_negative_number_is_a_value() -> None:
    assert arguments.read(["fit", "--a", "-1e-3", "--b", "-.5"]).argv == ["fit", "--a", "-1e-3", "--b", "-.5"]


def test_the_next_command_keeps_configs_and_settings_but_not_the_checkpoint() -> None:
    given = ["fit", "--config", "a b.yaml", "--ckpt_path", "last", "--model.init_args.seed=1", "--ckpt_path=x"]
    words = arguments.Words([], [], "", given)
    assert words.next_command("test") == "lightning test --config 'a b.yaml' --model.init_args.seed=1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:\n  class_path: A\n  label: 4\n", "model: label stands beside class_path: put the settings of A below"),
        (
            "trainer:\n  callbacks:\n  - class_path: B\n    init_args: {a: 1}\n    b: 2\n    c: 3\n",
            "trainer.callbacks: b, c stand beside class_path: put the settings of B below `init_args:`.",
        ),
        ("model: {class_path: A, init_args: {x: {class_path: C, y: 1}}}", "model.init_args.x: y stands beside"),
    ],
)
def test_a_forgotten_init_args(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        arguments.read(["fit", "--config", str(tmp_path / "own.yaml")])


def test_settings_that_are_called_like_a_class_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: {class_path: A, init_args: {x: 1}, dict_kwargs: {y: 2}}\nother: [1]\n")
    assert arguments.read(["fit", "--config", str(tmp_path / "own.yaml")]).name == "own"


PROJECT = """
from constrained_diffusion import Constraint

class Bright(Constraint):
    def forward(self, clean):
        return clean.flatten(1).mean(1) - 0.4
"""


def test_a_class_beside_its_config_is_found_without_pythonpath(tmp_path: Path, tiny_config: str) -> None:
    """In a process of its own: this one's `sys.path` holds whatever pytest put there."""
    start, end = tiny_config.index("    constraints:"), tiny_config.index("    evaluation:")
    after = tiny_config.index("    sampler:")
    own = tiny_config[:start] + "    constraints: {class_path: my_project.Bright}\n" + tiny_config[after:]
    assert end < after
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.yaml").write_text(own)
    (tmp_path / "sub" / "my_project.py").write_text(PROJECT)
    (tmp_path / "sub" / "csv.py").write_text("raise ImportError('shadowed')\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CONSTRAINED_DIFFUSION_CACHE": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    root = str(Path(arguments.__file__).parents[2])
    code = f"import sys; sys.path[0] = {root!r}; from constrained_diffusion.cli import main; main()"
    words = ["fit", "--config", "sub/own.yaml", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "own" / "latest" / "status.json").is_file()


def test_the_path_is_restored_and_nothing_of_it_moves_back(tmp_path: Path) -> None:
    before = list(sys.path)
    with arguments.restored_path():
        arguments.find_modules_beside([tmp_path / "own.yaml"])
        assert sys.path[: len(before)] == before
        assert str(tmp_path.resolve()) in sys.path[len(before) :]
    assert sys.path == before
