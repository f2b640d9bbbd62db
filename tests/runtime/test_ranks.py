"""What ranks tell each other; two of them are in fine_tuning/test_ranks.py."""

from __future__ import annotations

import torch

from constrained_diffusion.runtime.ranks import gather_from_ranks, sum_over_ranks


def test_alone_a_sum_is_the_value_itself_without_gradient() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    total = sum_over_ranks(values)
    assert total.tolist() == [1.0, 2.0]
    assert not total.requires_grad
    assert total.data_ptr() != values.data_ptr()


def test_alone_what_is_gathered_is_one_part() -> None:
    assert gather_from_ranks([1, "a"]) == [[1, "a"]]
