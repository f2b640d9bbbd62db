import pytest
import torch
from torch import nn

from constrained_diffusion.domains.images.class_probability import ClassProbability
from constrained_diffusion.domains.images.log_odds import LogOdds, log_odds


def smooth_classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3))


def test_two_classes_are_a_difference_of_logits():
    logits = torch.tensor([[0.3, -1.2], [2.0, 2.0]])
    torch.testing.assert_close(log_odds(logits, 1), torch.tensor([-1.5, 0.0]))


@pytest.mark.parametrize("label", [0, 1, 2])
def test_is_the_log_odds_of_the_probability(label):
    classifier, clean = smooth_classifier(), torch.rand(5, 1, 2, 2, dtype=torch.float64)
    p = ClassProbability(classifier, label, threshold=0.0).double()(clean)
    torch.testing.assert_close(LogOdds(classifier, label).double()(clean), p.logit())


def test_does_not_saturate():
    logits = torch.tensor([[500.0, 0.0, 0.0], [-500.0, 0.0, 0.0]], requires_grad=True)
    values = log_odds(logits, 0)
    torch.testing.assert_close(values, torch.tensor([500.0, -500.0]) - torch.tensor(2.0).log())
    values.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5], [1.0, -0.5, -0.5]]))


def test_half_precision_logits_are_widened():
    value = log_odds(torch.tensor([[0.0, 9.0, 9.0]], dtype=torch.bfloat16), 1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, -torch.tensor([-9.0]).exp().log1p())


def test_the_classifier_is_a_frozen_copy_behind_its_preprocessing():
    classifier, clean = smooth_classifier(), torch.rand(3, 1, 2, 2)
    reward = LogOdds(classifier, 2, preprocess=nn.Hardtanh(0.2, 0.6)).train()
    assert classifier.training
    assert all(p.requires_grad for p in classifier.parameters())
    assert not any(m.training for m in reward.classifier.modules())
    assert not any(p.requires_grad for p in reward.parameters())
    torch.testing.assert_close(reward(clean), LogOdds(classifier, 2)(clean.clamp(0.2, 0.6)))


def test_errors_name_the_reward():
    with pytest.raises(ValueError, match="LogOdds expects a label counted from 0, got -1"):
        LogOdds(smooth_classifier(), label=-1)
    with pytest.raises(ValueError, match="LogOdds was asked for label 7, but Sequential has 3 classes, 0 to 2"):
        LogOdds(smooth_classifier(), label=7).check_data((1, 2, 2))
    with pytest.raises(
        ValueError, match=r"classifier Sequential of LogOdds cannot take samples of shape \(3, 32, 32\)"
    ):
        LogOdds(smooth_classifier(), label=1).check_data((3, 32, 32))
