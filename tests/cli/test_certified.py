"""`predict` with `rejection` through the command line: what it prints, writes, keeps and refuses."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from constrained_diffusion.cli import command
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier

LIMIT, COUNT = 0.1, 20
PREDICT = ("predict", "--config", "tiny.yaml", f"--data.init_args.predict_samples={COUNT}")
REJECT = "--model.init_args.rejection.max_draws=100"
QUIET = "--trainer.enable_progress_bar=false"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config: str) -> Iterator[Path]:
    """The run of a short fit, with a plain and then a certified prediction."""
    root = tmp_path_factory.mktemp("certified")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(root / "cache"))
        patch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
        Path("tiny.yaml").write_text(tiny_config.replace("label: 8", "label: 2"))  # which it draws now and then
        command.main(["fit", "--config", "tiny.yaml", "--trainer.max_epochs=1", QUIET])
        command.main([*PREDICT, QUIET])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command.main([*PREDICT, REJECT, QUIET])
        (root / "printed").write_text(printed.getvalue())
        yield root / "runs" / "tiny" / "1"


def probability_of_two(folder: Path) -> tuple[Tensor, Tensor]:
    """The samples that lie there, by seed, and the classifier's p(2 | x)."""
    found = load_file(folder / "samples-rank0.safetensors")
    assert found["seeds"].tolist() == list(range(COUNT))
    with torch.no_grad():
        return found["samples"], PretrainedClassifier("mnist_classifier")(found["samples"]).softmax(1)[:, 2]


def test_the_samples_obey_and_are_the_plain_ones_where_those_did(run: Path) -> None:
    plain, before = probability_of_two(run / "samples-1")
    samples, after = probability_of_two(run / "samples")
    assert 0 < int((before > LIMIT).sum()) < COUNT
    assert float(after.max()) <= LIMIT
    assert [torch.equal(a, b) for a, b in zip(plain, samples, strict=True)] == (before <= LIMIT).tolist()
    assert len(list((run / "samples").glob("seed-0000[01][0-9].png"))) == COUNT


def test_the_certificate_is_written_and_printed(run: Path) -> None:
    _, before = probability_of_two(run / "samples-1")
    certificate = json.loads((run / "samples" / "certificate.json").read_text())
    assert [draws > 1 for draws in certificate["draws_per_seed"]] == (before > LIMIT).tolist()
    assert certificate["judge"]["by"] == "ClassEvaluation"
    assert certificate["judge"]["n"] == certificate["n"] == COUNT
    assert certificate["judge"]["violations"] == 0  # it is the constraint's own classifier here, at one half
    assert certificate["judge"]["violation_upper_95"] == pytest.approx(1 - 0.05 ** (1 / COUNT))
    printed = (run.parents[2] / "printed").read_text().splitlines()
    assert printed[-1] == certificate["sentence"]
    assert printed[-1].startswith(
        f"{COUNT} of {COUNT} samples satisfy ClassProbability (g <= 0) by their own g; accepted"
    )
    assert not (run / "samples-1" / "certificate.json").exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ["constraints.init_args.threshold=0", "rejection.max_draws=2"],
            1,
            "no feasible sample in max_draws=2 draws of seed 0, 1",
        ),
        (["rejection.max_draws=0"], 2, "max_draws must be at least 1, the draw that every seed has anyway; got 0"),
        (["constraints=null"], 2, "`rejection` expects a constraint to reject by, but the model has none"),
    ],
)
def test_what_cannot_be_certified(
    run: Path, words: list[str], status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before: dict[str, Any] = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        command.main([*PREDICT, REJECT, *(f"--model.init_args.{word}" for word in words), QUIET])
    error = capfd.readouterr().err.splitlines()[-1]
    assert stop.value.code == status
    assert error.startswith(f"error: {said}")
    assert {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
