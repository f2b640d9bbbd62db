import jsonargparse
import pytest
import torch

from constrained_diffusion.domains.images.jpeg import JPEGCompressibility
from constrained_diffusion.domains.images.pixels import Brightness, Ink
from constrained_diffusion.objectives import Reward, RewardAtLeast
from constrained_diffusion.objectives.converters import WeightedSum


class Length(Reward):
    """The length of the prompt."""

    needs_prompts = True

    def forward(self, clean, prompts=None):
        return torch.tensor([float(len(prompt)) for prompt in prompts])


CLEAN = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MEANS = CLEAN.mean(dim=(1, 2, 3))


def test_adds_with_weights():
    reward = WeightedSum([Brightness(), Ink(target=0.5)], [2.0, -3.0])
    torch.testing.assert_close(reward(CLEAN), 2 * MEANS + 3 * (MEANS - 0.5) ** 2)


def test_prompts_reach_those_that_need_them():
    reward = WeightedSum([Brightness(), Length()], [1.0, 0.5])
    assert reward.needs_prompts
    torch.testing.assert_close(reward(CLEAN, ["", "ab", "abcd"]), MEANS + torch.tensor([0.0, 1.0, 2.0]))
    assert not WeightedSum([Brightness()], [1.0]).needs_prompts


def test_has_a_gradient_where_all_have_one():
    assert WeightedSum([Brightness(), Ink()], [1.0, 1.0]).differentiable
    assert not WeightedSum([Brightness(), JPEGCompressibility()], [1.0, 1.0]).differentiable


def test_sums_can_be_summed():
    inner = WeightedSum([Brightness(), Length()], [1.0, 1.0])
    prompts = ["a", "b", "c"]
    torch.testing.assert_close(WeightedSum([inner], [2.0])(CLEAN, prompts), 2 * inner(CLEAN, prompts))


@pytest.mark.parametrize(("rewards", "weights"), [([], []), ([Brightness()], [1.0, 2.0]), ([Brightness()], [])])
def test_one_weight_for_each(rewards, weights):
    with pytest.raises(ValueError, match=f"got {len(rewards)} rewards and {len(weights)} weights"):
        WeightedSum(rewards, weights)


def test_a_threshold_of_a_reward_with_prompts_is_refused():
    with pytest.raises(ValueError, match="reward of the clean sample alone, but WeightedSum needs a prompt"):
        RewardAtLeast(WeightedSum([Length()], [1.0]), threshold=3.0)


def test_the_yaml_of_the_docstring_builds_it():
    text = WeightedSum.__doc__.partition("In YAML:")[2].partition("Args:")[0]
    indented = "\n".join(f"  {line}" for line in text.splitlines())
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--reward", type=Reward)
    reward = parser.instantiate(parser.parse_string(f"reward:\n{indented}")).reward
    assert isinstance(reward, WeightedSum)
    assert [type(part) for part in reward.rewards] == [Brightness, JPEGCompressibility]
    assert reward.weights == [1.0, 0.05]
    assert reward.rewards[1].quality == 80
