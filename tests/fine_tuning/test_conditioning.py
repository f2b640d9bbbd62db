"""The posterior over a bank of samples, against Gaussians and against sums written out by hand."""

from __future__ import annotations

import torch

from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.conditioning import condition_on_feasible

SCHEDULE = VariancePreserving(torch.linspace(0.99, 0.01, 50))


def bank(n=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 3, 3, generator=generator) * 2 - 1, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


def test_against_bayes_by_hand():
    samples, feasible = bank()
    torch.manual_seed(0)
    noisy, timesteps = torch.randn(4, 1, 3, 3), torch.tensor([0, 20, 40, 49])
    shift, probability = condition_on_feasible(noisy, timesteps, SCHEDULE, samples, feasible)
    for b in range(4):
        abar = float(SCHEDULE.alphas_cumprod[timesteps[b]])
        density = torch.distributions.Normal(abar**0.5 * samples.double(), (1 - abar) ** 0.5)
        joint = density.log_prob(noisy[b].double()).flatten(1).sum(1).softmax(0)
        everyone = (joint[:, None, None, None] * samples).sum(0)
        kept = (joint * feasible)[:, None, None, None]
        torch.testing.assert_close(probability[b].double(), kept.sum(), rtol=1e-4, atol=1e-6)
        expected = (kept * samples).sum(0) / kept.sum() - everyone
        torch.testing.assert_close(shift[b].double(), expected, rtol=1e-3, atol=1e-5)


def test_autocast_rounds_nothing():
    samples, feasible = bank()
    noisy, timesteps = torch.randn(4, 1, 3, 3), torch.tensor([0, 20, 40, 49])
    expected = condition_on_feasible(noisy, timesteps, SCHEDULE, samples, feasible)
    with torch.autocast("cpu", torch.bfloat16):
        found = condition_on_feasible(noisy, timesteps, SCHEDULE, samples, feasible)
    assert torch.equal(found.shift, expected.shift)
    assert torch.equal(found.weight, expected.weight)


def test_nothing_to_leave_out_is_no_shift():
    samples, _ = bank()
    shift, probability = condition_on_feasible(
        torch.randn(2, 1, 3, 3), torch.tensor([10, 40]), SCHEDULE, samples, torch.ones(6)
    )
    torch.testing.assert_close(shift, torch.zeros_like(shift), atol=1e-6, rtol=0)
    torch.testing.assert_close(probability, torch.ones(2))


def test_where_all_is_open_a_row_is_judged_by_the_others_and_counts_fully():
    samples, feasible = bank()
    timesteps, rows = torch.tensor([29, 30, 49]), torch.tensor([2, 1, 4])
    noisy = SCHEDULE.add_noise(samples[rows], torch.randn(3, 1, 3, 3), timesteps)
    shift, weight = condition_on_feasible(noisy, timesteps, SCHEDULE, samples, feasible, rows, open_from=30)
    for b, row in enumerate(rows.tolist()):
        others = [i for i in range(6) if i != row or b == 0]
        one = (noisy[b : b + 1], timesteps[b : b + 1], SCHEDULE)
        alone = condition_on_feasible(*one, samples[others], feasible[others])
        torch.testing.assert_close(shift[b : b + 1], alone.shift)
        torch.testing.assert_close(weight[b : b + 1], alone.weight if b == 0 else torch.ones(1))


def test_a_bank_of_one_gives_finite_numbers():
    samples, _ = bank(1)
    one = (torch.randn(1, 1, 3, 3), torch.tensor([40]), SCHEDULE, samples)
    shift, weight = condition_on_feasible(*one, torch.ones(1), torch.zeros(1, dtype=torch.long), open_from=0)
    assert bool(shift.isfinite().all() and weight.isfinite().all())


def test_at_low_noise_a_row_is_judged_by_itself():
    samples, feasible = bank()
    noisy = SCHEDULE.add_noise(samples, torch.zeros_like(samples), torch.zeros(6, dtype=torch.long))
    shift, probability = condition_on_feasible(noisy, torch.zeros(6, dtype=torch.long), SCHEDULE, samples, feasible)
    torch.testing.assert_close(probability, feasible, atol=1e-4, rtol=0)
    torch.testing.assert_close(shift[feasible.bool()], torch.zeros(4, 1, 3, 3), atol=1e-4, rtol=0)


def test_from_clean_inverts_to_clean():
    noisy, output, timesteps = torch.randn(3, 1, 3, 3), torch.randn(3, 1, 3, 3), torch.tensor([5, 20, 40])
    for kind in ("epsilon", "sample", "v_prediction"):
        schedule = VariancePreserving(SCHEDULE.alphas_cumprod, kind)
        clean = schedule.to_clean(output, noisy, timesteps)
        torch.testing.assert_close(schedule.from_clean(clean, noisy, timesteps), output, rtol=1e-4, atol=1e-4)
