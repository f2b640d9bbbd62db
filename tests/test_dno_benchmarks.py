"""The benchmarks of noise optimisation with the smallest budgets: that they count and compare as they say."""

from __future__ import annotations

import json
import math
import runpy
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`program(name)`: the names that a benchmark defines."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: runpy.run_path(str(BENCHMARKS / f"{name}.py"))


def test_every_way_to_more_ink_spends_the_same_calls(program: Any) -> None:
    ink = program("dno_ink")
    spent: Counter[str] = Counter()

    class Counting(ink["Digits"]):  # type: ignore[misc]
        def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Any:
            backward = torch.is_grad_enabled() and noisy.requires_grad
            spent["calls"] += (1 + backward) * len(noisy)
            return super().predict(noisy, timesteps, condition)

    digits, seeds, steps = Counting(), range(2), 2
    calls = 10 * (2 * steps + 1)

    def costs(ways: Any, count: int) -> list[int]:
        found = []
        for _ in range(count):
            spent.clear()
            _, _, clean = next(ways)
            assert clean.shape == (2, 1, 28, 28)
            found.append(spent["calls"] // len(seeds))
        return found

    assert costs(ink["drawn"](digits, seeds, calls), 2) == [10, calls]
    assert costs(ink["optimised"](digits, seeds, steps), 1) == [calls]
    first = costs(ink["guided"](digits, seeds, calls), len(ink["SCALES"]) + 1)
    assert first == [calls] * len(first)  # one chain of 25 steps, then five of 5


def test_the_most_ink_at_each_share_of_recognised_digits(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ink = program("dno_ink")
    ink_at = ink["ink_at"]
    assert ink_at([0.1, 0.2, 0.4], [0.9, 0.8, 0.4], 0.6) == pytest.approx(0.3)
    assert ink_at([0.1, 0.2], [0.9, 0.8], 0.6) == 0.2  # not pushed hard enough to know
    assert math.isnan(ink_at([0.1], [0.5], 0.6))
    assert ink_at([0.1, 0.2, 0.3, 0.4], [0.9, 0.5, 0.7, 0.5], 0.6) == pytest.approx(0.35)  # the last crossing

    def row(strength: str, value: float, recognised: int) -> dict[str, Any]:
        sure = [i < recognised for i in range(20)]
        return {"method": "a", "strength": strength, "ink": [value] * 20, "recognised": sure}

    ink["compare"]([row("1", 0.1, 18), row("2", 0.3, 10), {**row("", 0.4, 5), "method": "b"}])
    printed = capsys.readouterr().out
    assert "| method | 75% | 70% | 60% | 50% |" in printed
    assert "| a | 0.175 [" in printed
    assert "| b | none | none | none | none |" in printed


def test_digits_are_recognised_and_white_rectangles_are_not(program: Any) -> None:
    ink, (clean, _) = program("dno_ink"), program("guided_digits")["labelled"]()
    rectangles = torch.zeros(36, 1, 28, 28)
    for i in range(36):
        rectangles[i, :, 3 + i // 6 : 25 - i // 6, 3 + i % 6 : 25 - i % 6] = 1
    digits = ink["Digits"]()
    assert ink["recognised"](digits, clean[:100]).float().mean() > 0.8
    assert ink["recognised"](digits, rectangles).float().mean() < 0.2
    assert (digits.classes(rectangles)[1] > 0.9).float().mean() > 0.5  # which is why one classifier will not do


def test_guidance_by_class_is_that_of_two_calls(program: Any) -> None:
    digits = program("guided_digits")
    denoiser = digits["untrained"](3.0)
    noisy, timesteps = torch.randn(2, 1, 28, 28), torch.tensor([900, 100])
    labels, untold = torch.tensor([3, 7]), torch.full((2,), digits["UNTOLD"])
    network = denoiser.network.network.eval()
    with torch.no_grad():
        guided = denoiser(noisy, timesteps, {"class_labels": labels})
        told, alone = (network(noisy, timesteps, class_labels=k).sample for k in (labels, untold))
        torch.testing.assert_close(guided, alone + 3 * (told - alone), rtol=1e-4, atol=1e-4)
        denoiser.network.scale = 1
        torch.testing.assert_close(denoiser(noisy, timesteps, {"class_labels": labels}), told)
    assert (told - alone).abs().max() > 1e-3


def test_noise_is_optimised_until_a_mean_reward(program: Any) -> None:
    classes = program("dno_class")
    given = Namespace(n=2, steps=2, first_seed=0, lr=0.03)
    digits, none = classes["Digits"](), classes["Unregularized"]()
    rewards, kept, log_p = classes["optimise"](digits, None, none, given)
    assert rewards.shape == kept.shape == log_p.shape == (2, 3)
    assert kept[:, 0].tolist() == [1, 1]
    until = float(rewards.mean(0)[1]) - 1e-4
    early, _, _ = classes["optimise"](digits, None, none, given, until=until)
    torch.testing.assert_close(early, rewards[:, :2])


def test_classes_with_one_step_of_everything(run_program: Any, tmp_path: Path) -> None:
    budget = ["--n", "2", "--steps", "1", "--training_steps", "1", "--models", "classes", "--gamma", "0.1"]
    files = ["--weights", tmp_path / "weights.pt", "--json", tmp_path / "found.json"]
    first, again = (run_program(BENCHMARKS / "dno_class.py", *budget, *files) for _ in range(2))
    assert (tmp_path / "weights.pt").is_file()
    assert first == again  # trained, then read
    assert "with classes, guidance 4: brightness, DDIM 10 steps, n = 2, 1 steps, rate 0.03" in first
    found = json.loads((tmp_path / "found.json").read_text())["classes"]
    assert f"| 0.1 | {found['0.1']['level']:.4f} | " in first
