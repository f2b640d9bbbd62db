"""Properties of everything that parses: arbitrary text and bytes are either read as something valid, or refused with a
documented error. `fuzz.py` goes on from files that are nearly right."""

from __future__ import annotations

import contextlib
import json
import math
import string
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from constrained_diffusion.callbacks.run.continue_log import rows
from constrained_diffusion.cli import command, config_errors
from constrained_diffusion.datamodules import PromptsDataModule
from constrained_diffusion.denoisers.config import build
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.reports.noise_rows import read_results, summary
from constrained_diffusion.reports.run_report import read_json, read_metrics
from constrained_diffusion.runtime import cards, untrusted

# One scratch file per test serves all of its examples.
EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
REFUSALS = (ValueError, TypeError, FileNotFoundError)


def objects(**known: Any) -> Any:
    """Objects with some of the known keys, mostly of the right kind."""
    return st.fixed_dictionaries({}, optional={key: st.one_of(kind, VALUES) for key, kind in known.items()})


SEED = st.integers(-2, 5) | st.integers()
PROMPT = objects(prompt=st.text(max_size=5), seed=SEED, seeds=st.lists(SEED, max_size=3))
LINES = st.lists(st.one_of(st.text(max_size=30), st.one_of(VALUES, PROMPT).map(json.dumps)), max_size=4).map("\n".join)


@EXAMPLES
@given(content=st.one_of(st.binary(max_size=80), LINES.map(lambda text: text.encode(errors="surrogatepass"))))
def test_prompt_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with contextlib.suppress(ValueError):
        jobs = PromptsDataModule(prompt_file=str(tmp_path / "p.jsonl")).jobs
        assert jobs
        assert len({job.key for job in jobs}) == len(jobs)
        for job in jobs:
            assert set(job.key) <= set(string.digits + "-")
            assert len(job.key) < 60
            assert isinstance(job.prompt, str)
            assert job.prompt.encode()
            assert job.seed >= 0


CELL = st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=6), st.just(""))
TABLE = st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=5).map(
    lambda lines: "\n".join(["epoch,loss,step", *lines, ""])
)


@EXAMPLES
@given(text=st.one_of(st.text(), TABLE))
def test_logs(tmp_path: Path, text: str) -> None:
    with contextlib.suppress(ValueError):
        for step, values in rows(text):
            assert type(step) is int
            assert all(isinstance(name, str) and type(value) in (int, float) for name, value in values.items())
    (tmp_path / "metrics.csv").write_text(text, errors="replace")
    for points in read_metrics(tmp_path / "metrics.csv").values():
        assert all(type(number) in (int, float) for point in points for number in point)


NUMBER = st.integers() | st.floats()
ROW = objects(
    key=st.text(max_size=5),
    **dict.fromkeys(("reward_before", "reward", "probability_before", "probability", "best_step", "steps"), NUMBER),
    **dict.fromkeys(("rewards", "log_probabilities"), st.lists(NUMBER, min_size=1, max_size=3)),
)


@EXAMPLES
@given(lines=st.lists(st.one_of(ROW.map(json.dumps), VALUES.map(json.dumps), st.text(max_size=30)), max_size=4))
def test_result_rows(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "results.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    found = read_results(tmp_path)
    assert isinstance(summary(found), str)
    for row in found:
        assert all(math.isfinite(value) for value in [row["reward"], *row["rewards"], *row["log_probabilities"]])


@EXAMPLES
@given(
    content=st.one_of(
        st.binary(max_size=60),
        VALUES.map(lambda value: json.dumps(value).encode()),
        objects(sha256=VALUES).map(lambda value: json.dumps(value).encode()),
    )
)
def test_cards_and_other_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / cards.CARD).write_bytes(content)
    for read in (untrusted.read_json, read_json):
        with contextlib.suppress(ValueError):
            assert isinstance(read(tmp_path / cards.CARD), dict)
    with contextlib.suppress(ValueError):
        assert isinstance(cards.read(tmp_path)["sha256"], dict)
        assert cards.mismatches(tmp_path) == sorted(cards.read(tmp_path)["sha256"])


SCHEDULE = objects(
    num_train_timesteps=st.integers(0, 20),
    beta_schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "none"]),
    beta_start=st.floats(),
    beta_end=st.floats(),
    trained_betas=st.lists(st.floats(), max_size=3),
    prediction_type=st.sampled_from(["epsilon", "v_prediction", "flow"]),
    _class_name=st.sampled_from(["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"]),
    alphas_cumprod=st.lists(st.floats(), max_size=3),
)


# Settings that diffusers deprecates or divides by zero with are warned of; what they make is checked all the same.
@pytest.mark.filterwarnings("ignore")
@EXAMPLES
@given(config=st.one_of(SCHEDULE, VALUES))
def test_schedules(config: Any) -> None:
    with contextlib.suppress(*REFUSALS):
        abar = DiffusersSchedule(config).alphas_cumprod if isinstance(config, dict) else torch.zeros(1)
        assert abar.ndim == 1
        assert bool(((abar >= 0) & (abar <= 1)).all())


@pytest.mark.filterwarnings("ignore")
@EXAMPLES
@given(
    config=st.one_of(
        VALUES,
        objects(
            network=objects(
                **{"class": st.sampled_from(["UNet2DModel", "Transformer2DModel", "os"]), "config": VALUES}
            ),
            noise_schedule=SCHEDULE,
            codec=objects(mean=NUMBER, std=NUMBER, low=NUMBER, high=NUMBER),
            sample_shape=st.lists(st.integers(), max_size=3),
        ),
    ),
    given_network=st.booleans(),
)
def test_denoiser_configs(config: Any, given_network: bool) -> None:
    with contextlib.suppress(*REFUSALS):
        denoiser = build(config, torch.nn.Conv2d(1, 1, 1) if given_network else None)
        assert all(type(side) is int and side > 0 for side in denoiser.sample_shape)
        assert isinstance(denoiser.noise_schedule, NoiseSchedule)


PLAIN = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@EXAMPLES
@given(
    content=st.one_of(st.binary(max_size=100), st.binary(max_size=50).map(lambda data: b"PK\x03\x04" + data), VALUES)
)
def test_checkpoints(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with contextlib.suppress(ValueError):
        read = untrusted.read_checkpoint(file, "state_dict", "global_step")
        assert {"state_dict", "global_step"} <= read.keys()


@EXAMPLES
@given(pickled=st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda data: b"\x80\x02" + data + b".")))
def test_pickles_in_whole_archives(tmp_path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        for name, content in (("x/data.pkl", pickled), ("x/version", b"3\n"), ("x/byteorder", b"little")):
            archive.writestr(name, content)
    with contextlib.suppress(ValueError):
        assert isinstance(untrusted.read_checkpoint(tmp_path / "x.ckpt"), dict)


@EXAMPLES
@given(content=st.one_of(st.binary(max_size=60), objects(w=VALUES, __metadata__=VALUES)))
def test_safetensors(tmp_path: Path, content: Any) -> None:
    if isinstance(content, dict):
        header = json.dumps(content).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "x.safetensors").write_bytes(content)
    with contextlib.suppress(ValueError):
        tensors, metadata = untrusted.read_tensors(tmp_path / "x.safetensors")
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        assert isinstance(metadata, dict)


YAML = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda v: json.dumps(v).encode()),
    st.text(alphabet="a:[]{}&*! -\n'\"", max_size=40).map(str.encode),
)


@EXAMPLES
@given(content=YAML)
def test_configs_before_they_are_parsed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with contextlib.suppress(ValueError):
        untrusted.check_config(tmp_path / "x.yaml")


@EXAMPLES
@given(
    message=st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                [
                    'Parser key "a":',
                    "  Errors:",
                    "    - Expected a <class 'int'>",
                    "Given value: x",
                    "Does not validate",
                    "    - Problem with given class_path 'a.B':",
                    "x",
                ]
            )
        ).map("\n".join),
    )
)
def test_mistakes_are_one_line(message: str) -> None:
    assert len(config_errors.summarize(message).splitlines()) <= 1


WORD = st.sampled_from(
    [
        *("trainer.max_epochs", "trainer.callbacks", "model.init_args.max_timestep", "data.init_args.samples"),
        *("model.init_args.constraints.init_args.label", "seed_everything", "ckpt_path"),
    ]
)


@settings(EXAMPLES, max_examples=15)  # a third of a second each
@given(
    word=WORD,
    value=st.one_of(
        st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        VALUES.map(json.dumps),
    ),
)
def test_values_on_the_command_line(
    tmp_path: Path, tiny_config: str, word: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command.main(["fit", "--config", str(config), f"--{word}={value}", "--print_config"])
    assert stop.value.code in (0, None, 2)
    assert not stop.value.code or capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
