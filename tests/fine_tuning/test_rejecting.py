"""`predict` with `rejection`: against plain predictions, on one rank and on two."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from constrained_diffusion.batch import Seeds
from constrained_diffusion.callbacks import Certificate
from constrained_diffusion.diffusion.rejection import InfeasibleError, Rejection, RejectionResult, attempt_seed
from constrained_diffusion.objectives import Constraint, StepRecord

PROGRAM = Path(__file__).with_name("reject_ranks.py")
SMALL = runpy.run_path(str(PROGRAM))
SEEDS, module, predict = SMALL["SEEDS"], SMALL["module"], SMALL["predict"]


def samples_of(folder: Path) -> dict[int, Tensor]:
    """All ranks' samples by seed."""
    files = [load_file(path) for path in sorted((folder / "samples").glob("*.safetensors"))]
    return {int(s): x for file in files for s, x in zip(file["seeds"], file["samples"], strict=True)}


def certificate_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "samples" / "certificate.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    predict(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, run_program: Any) -> tuple[Path, list[dict[str, str]], str]:
    """The folder of two ranks' predictions, what each rank said, and what was printed."""
    folder = tmp_path_factory.mktemp("two")
    printed = run_program(PROGRAM, folder)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], printed


def test_every_sample_is_the_first_feasible_one_of_its_seed(alone: Path) -> None:
    fresh, draws = module(), certificate_of(alone)["draws_per_seed"]
    assert max(draws) > 3
    for (seed, sample), count in zip(samples_of(alone).items(), draws, strict=True):
        brightness = fresh.sample([attempt_seed(seed, k) for k in range(count)]).flatten(1).mean(1)
        assert (brightness <= 0.5).tolist() == [False] * (count - 1) + [True]
        torch.testing.assert_close(sample, fresh.sample([attempt_seed(seed, count - 1)])[0])


def test_the_certificate_counts_what_lies_there(alone: Path) -> None:
    certificate = certificate_of(alone)
    samples = torch.stack(list(samples_of(alone).values()))
    assert (certificate["n"], certificate["seeds"]) == (SEEDS, list(range(SEEDS)))
    assert certificate["draws"] == sum(certificate["draws_per_seed"]) > SEEDS
    assert certificate["judge"]["violations"] == int((samples[:, :, :4].flatten(1).mean(1) > 0.5).sum()) > 0
    assert certificate["judge"]["by"] == "TopBrightness"
    assert certificate["constraints"] == [{"name": "BrightnessAtMost", "tolerance": 0.0}]
    assert certificate["weights_sha256"] == module().networks.weights_sha256()["after"]
    assert len(list((alone / "samples").glob("seed-00000[0-8].png"))) == SEEDS


def test_where_nothing_is_rejected_the_samples_are_the_plain_ones(tmp_path: Path) -> None:
    rejected, plain = predict(tmp_path / "a", limit=2.0), predict(tmp_path / "b", rejection=None)
    assert all(isinstance(batch, RejectionResult) for batch in rejected)
    assert all(torch.equal(a.samples, b) for a, b in zip(rejected, plain, strict=True))
    assert certificate_of(tmp_path / "a")["draws"] == SEEDS
    assert not (tmp_path / "b" / "samples" / "certificate.json").exists()


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_batches_do_not_matter(alone: Path, tmp_path: Path, batch: int) -> None:
    predict(tmp_path, batch=batch)
    torch.testing.assert_close(samples_of(tmp_path), samples_of(alone))
    assert certificate_of(tmp_path) == certificate_of(alone)


def test_two_ranks_give_the_samples_and_the_certificate_of_one(alone: Path, two: Any) -> None:
    folder, said, printed = two
    assert [rank["certified"] for rank in said] == ["", ""]
    assert len(load_file(folder / "certified" / "samples" / "samples-rank1.safetensors")["seeds"]) == SEEDS // 2
    found = samples_of(folder / "certified")
    torch.testing.assert_close({seed: found[seed] for seed in sorted(found)}, samples_of(alone))
    assert certificate_of(folder / "certified") == certificate_of(alone)
    assert printed.count(certificate_of(alone)["sentence"]) == 1


@pytest.mark.parametrize("case", ["one seed fails", "all fail"])
def test_ranks_fail_together_and_write_nothing(alone: Path, two: Any, case: str) -> None:
    folder, said, _ = two
    assert said[0][case] == said[1][case]
    assert said[0][case].startswith("InfeasibleError: no feasible sample in max_draws=")
    draws = certificate_of(alone)["draws_per_seed"]
    slow = [seed for seed, count in enumerate(draws) if count > 5]
    assert len(slow) == 1
    assert slow[0] % 2 == 0
    expected = f"draws of seed {slow[0]} (" if case == "one seed fails" else "draws of seed 0, 1, 2 and 1 more ("
    assert expected in said[0][case]
    assert not (folder / case).exists()


def test_a_rank_without_seeds_waits_for_the_others(two: Any) -> None:
    folder, said, _ = two
    assert [rank["few seeds"] for rank in said] == ["", ""]
    assert certificate_of(folder / "few seeds")["seeds"] == [0]


def test_an_infeasible_model_ends_at_once_and_leaves_earlier_samples(tmp_path: Path) -> None:
    predict(tmp_path, seeds=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InfeasibleError, match=r"max_draws=4 draws of seed 0, 1 \(0 feasible among 8 drawn so far\)"):
        predict(tmp_path, limit=-1.0, rejection=Rejection(4))  # of five batches the first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_certificate_keeps_the_first(tmp_path: Path) -> None:
    predict(tmp_path, seeds=3)
    predict(tmp_path, seeds=2)
    kept = [json.loads((tmp_path / name / "certificate.json").read_text())["n"] for name in ("samples-1", "samples")]
    assert kept == [3, 2]


def test_one_certificate_for_a_module_that_is_predicted_twice(tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    model, data = module(formulation="penalty"), tiny_data(predict_samples=3)
    certificate = Certificate()
    trainer = fit(model, data, [certificate], max_steps=1)
    for _ in range(2):
        trainer.predict(model, datamodule=data)
    assert [callback for callback in trainer.callbacks if isinstance(callback, Certificate)] == [certificate]
    assert certificate.certificate["n"] == certificate.certificate["judge"]["n"] == 3  # and not validation's too
    model.rejection = None
    trainer.predict(model, datamodule=data)
    assert certificate.certificate == {}
    assert {path.name for path in tmp_path.glob("samples/*")} == {"certificate.json", "certificate-1.json"}


class FinePrint(Constraint):
    """Feasible in full precision alone: bfloat16 cannot hold a third."""

    def forward(self, clean: Tensor) -> Tensor:
        third = torch.nn.functional.linear(torch.ones(len(clean), 1), torch.tensor([[1 / 3]]))
        return (third.flatten().float() - 1 / 3).abs() - 1e-5


def test_g_counts_in_full_precision() -> None:
    model = module()
    model.steering.constraints[0] = FinePrint()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = FinePrint()(torch.zeros(2, 1, 8, 8))
        assert bool((rounded > 0).all())  # what a verdict in half precision would be
        assert model.steering.feasible(torch.zeros(2, 1, 8, 8)).tolist() == [1, 1]
        assert model.predict_step(Seeds(torch.arange(2)), 0).draws.tolist() == [1, 1]


class OfSteps(Constraint):
    needs_step_record = True

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
        return record.noise.flatten(1).mean(1)


def test_what_cannot_be_rejected_is_refused(tiny_denoiser: Any) -> None:
    from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

    with pytest.raises(ValueError, match="the model has none"):
        ConstrainedDiffusion(tiny_denoiser(), rejection=Rejection())
    with pytest.raises(ValueError, match="OfSteps judges none"):
        ConstrainedDiffusion(tiny_denoiser(), OfSteps(), rejection=Rejection())
    with pytest.raises(ValueError, match="max_draws must be at least 1, .* got 0"):
        Rejection(0)
