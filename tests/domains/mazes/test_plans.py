from __future__ import annotations

import pytest
import torch

from constrained_diffusion.domains.mazes.plans import as_plans, check_plans, points


def test_a_plan_holds_its_path_between_two_standing_tokens() -> None:
    path = torch.randn(3, 20, 6)
    plans = as_plans(path, 5)
    assert plans.shape == (3, 6, 5, 6)
    assert torch.equal(plans[:, 1:-1].flatten(1, 2), path)
    assert torch.equal(points(plans)[:, :5], path[:, :1, :2].expand(-1, 5, -1))
    assert torch.equal(points(plans)[:, -5:], path[:, -1:, :2].expand(-1, 5, -1))
    assert not plans[:, [0, -1], :, 2:].any()


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plans of shape \(B, tokens, frames, channels\).*got \(2, 1, 28, 28\)"):
        points(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match="ForbiddenZones expects plans of shape"):
        check_plans((1, 28, 28), "ForbiddenZones")
    check_plans((42, 10, 2), "anything")
