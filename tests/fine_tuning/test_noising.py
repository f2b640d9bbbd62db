"""What is drawn for a batch, and what it depends on."""

from __future__ import annotations

from typing import Any

import torch

from constrained_diffusion.batch import Batch
from constrained_diffusion.fine_tuning.noising import draw_held_out, seed_networks


def test_held_out_rows_without_numbers_have_levels_by_their_place(tiny_denoiser: Any) -> None:
    clean = torch.rand(4, 1, 8, 8)
    numbered, unnumbered = (
        draw_held_out(Batch(clean, rows=numbers), tiny_denoiser(), 3) for numbers in (torch.arange(4), None)
    )
    assert torch.equal(unnumbered.timesteps, numbered.timesteps)
    assert torch.equal(unnumbered.noise, numbered.noise)
    assert len(set(unnumbered.timesteps.tolist())) == 4


def test_each_rank_and_step_draws_its_own_dropout() -> None:
    found = []
    for seed, number, rank in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        seed_networks((seed, number), rank)
        found.append(float(torch.rand(())))
    assert found[0] == found[-1]
    assert len(set(found)) == 4
