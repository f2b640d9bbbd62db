"""`results.json`: what stands in it, against figures counted by hand from the samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from constrained_diffusion.callbacks import FitStatus, Results
from constrained_diffusion.callbacks.output import results as results_module
from constrained_diffusion.callbacks.output.results import versions
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

KEYS = {
    *("before", "after", "status", "cost", "seconds", "config", "sampler", "precision", "seeds"),
    *("versions", "weights_sha256", "figures", "subject", "overlays_legend"),
}


@pytest.fixture
def tested(fit: Any, tmp_path: Path) -> Any:
    """`tested(module, data, name)`: fits one epoch, tests, and returns the file's content."""

    def run(module: Any, data: Any, name: str = "own") -> dict[str, Any]:
        results = Results(name)
        trainer: Trainer = fit(module, data, [FitStatus(), results], max_epochs=1)
        trainer.test(module, datamodule=data, verbose=False)
        content: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
        return content

    return run


@pytest.mark.parametrize("first", [0, 100])
def test_results_of_a_constrained_fit(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, tested: Any, capsys: pytest.CaptureFixture[str], first: int
) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright())
    results = tested(module, tiny_data(test_samples=20, first_eval_seed=first))
    assert results.keys() == KEYS
    seeds = range(first, first + 20)
    drawn = {"before": module.sample(seeds, "pretrained"), "after": module.sample(seeds, "ema")}
    for side, samples in drawn.items():
        bright = samples.flatten(1).mean(1) > 0.4
        assert results[side]["own_violation_rate"] == pytest.approx(float(bright.float().mean()))
        rate = results[side]["constraints"]["TooBright"]
        assert (rate["violation_rate"], rate["n"]) == (results[side]["own_violation_rate"], 20)
        assert results[side]["violation_rate"] is None  # nobody else judges
        assert results[side]["n"] == 20
    assert results["status"] == "infeasible"  # 20 samples cannot bound 1 %
    assert results["cost"].startswith("held-out loss ")
    assert (results["config"], results["seeds"], results["figures"]) == ("own", [first, first + 19], [])
    assert results["sampler"]["steps"] == 20
    assert results["precision"] == "32-true"
    assert 0 < results["seconds"]["test"] < 600
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert results["weights_sha256"]["before"] != results["weights_sha256"]["after"]
    assert "before" in capsys.readouterr().out


def test_a_pretraining_has_no_before(tiny_denoiser: Any, tiny_data: Any, tested: Any) -> None:
    results = tested(ConstrainedDiffusion(tiny_denoiser()), tiny_data())
    assert "before" not in results
    assert results["after"]["n"] == 8
    assert results["status"] == "not fitted"  # by constraints
    assert results["weights_sha256"].keys() == {"after"}


def test_a_package_that_is_not_installed_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_half_a_status_ends_a_test_before_anything_is_sampled(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = ConstrainedDiffusion(tiny_denoiser(), too_bright()), tiny_data(test_samples=20)
    trainer: Trainer = fit(module, data, [FitStatus(), Results("own")], max_epochs=1)
    status = (tmp_path / "status.json").read_bytes()
    (tmp_path / "status.json").write_bytes(status[: len(status) // 2])
    monkeypatch.setattr(module, "test_step", lambda *args: pytest.fail("it samples"))
    with pytest.raises(ValueError, match=r"status.json' is no valid JSON, perhaps truncated"):
        trainer.test(module, datamodule=data, verbose=False)
