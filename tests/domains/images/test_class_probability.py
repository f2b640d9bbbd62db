from types import SimpleNamespace

import pytest
import torch
from torch import nn

from constrained_diffusion import objectives
from constrained_diffusion.domains.images.class_probability import ClassProbability, class_probability


def smooth_classifier(inputs: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, classes))


def test_two_classes_are_a_sigmoid():
    logits = torch.tensor([[0.3, -1.2], [2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(class_probability(logits, 1), torch.sigmoid(logits[:, 1] - logits[:, 0]))


def test_softmax_of_half_precision_logits_runs_in_float32():
    logits = torch.tensor([[0.0, 9.0]], dtype=torch.bfloat16)
    probability = class_probability(logits, 1)
    assert probability.dtype == torch.float32
    assert 0.999 < probability.item() < 1  # bfloat16 has no number between 0.996 and 1


def test_positive_exactly_where_the_class_is_likelier_than_the_threshold():
    constraint = ClassProbability(nn.Identity(), label=2, threshold=0.25)
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    torch.testing.assert_close(constraint(probabilities.log()), torch.tensor([-0.05, 0.45]))


def test_gradient_with_respect_to_the_sample():
    torch.manual_seed(0)
    constraint = ClassProbability(smooth_classifier(), label=1).double()
    clean = torch.rand(3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(constraint, clean)


def test_classifier_is_frozen_and_in_eval_mode_whatever_train_is_called():
    given = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    constraint = ClassProbability(given, label=1, preprocess=nn.Dropout(0.5))
    for mode in (True, False):
        constraint.train(mode)
        assert constraint.training is mode
        assert not any(m.training for m in [*constraint.classifier.modules(), constraint.preprocess])
    assert not any(p.requires_grad for p in constraint.parameters())
    clean = torch.rand(5, 1, 2, 2)
    statistics = constraint.classifier[2].running_mean.clone()
    constraint.train()
    torch.testing.assert_close(constraint(clean), torch.cat([constraint(row[None]) for row in clean]))
    torch.testing.assert_close(constraint.classifier[2].running_mean, statistics, rtol=0, atol=0)


def test_the_callers_classifier_is_left_as_it_was():
    given = smooth_classifier()
    ClassProbability(given, label=1)
    assert given.training
    assert all(p.requires_grad for p in given.parameters())


class Centre(nn.Module):
    def forward(self, clean):
        return (clean - 0.5) / 0.25


def test_preprocessing_stands_before_the_classifier():
    classifier, clean = smooth_classifier(), torch.rand(2, 1, 2, 2)
    with_preprocess = ClassProbability(classifier, label=0, preprocess=Centre())
    torch.testing.assert_close(with_preprocess(clean), ClassProbability(classifier, label=0)((clean - 0.5) / 0.25))


class Answer(nn.Module):
    def forward(self, clean):
        return SimpleNamespace(logits=clean.flatten(1))


def test_takes_classifiers_that_answer_with_an_object():
    clean = torch.rand(2, 1, 1, 3)
    torch.testing.assert_close(ClassProbability(Answer(), label=0)(clean), clean[:, 0, 0].softmax(1)[:, 0] - 0.1)


def test_checking_data_passes_what_fits():
    ClassProbability(smooth_classifier(), label=2).check_data((1, 2, 2))
    ClassProbability(smooth_classifier().double(), label=2).check_data((1, 2, 2))


@pytest.mark.parametrize(
    ("classifier", "label", "shape", "message"),
    [
        (smooth_classifier(), 7, (1, 2, 2), "label 7, but Sequential has 3 classes, 0 to 2; choose one"),
        (smooth_classifier(), 3, (1, 2, 2), "label 3, but Sequential has 3 classes"),
        (smooth_classifier(), 1, (3, 32, 32), r"cannot take samples of shape \(3, 32, 32\).*give a preprocess"),
        (nn.Conv2d(1, 3, 1), 1, (1, 2, 2), r"expects logits of shape \(B, number of classes\).*\(1, 3, 2, 2\)"),
    ],
)
def test_checking_data_says_what_does_not_fit(classifier, label, shape, message):
    with pytest.raises(ValueError, match=message):
        ClassProbability(classifier, label).check_data(shape)


def test_a_margin_is_aimed_at_and_leaves_the_verdict_as_it_is():
    logits = torch.tensor([[0.03, 0.97], [0.08, 0.92], [0.12, 0.88]], dtype=torch.float64).log()  # p of class 0
    plain = ClassProbability(nn.Identity(), label=0, threshold=0.1)
    careful = ClassProbability(nn.Identity(), label=0, threshold=0.1, margin=0.05)
    assert (plain(logits) > 0).tolist() == [False, False, True]
    assert (careful(logits) > 0).tolist() == [False, True, True]  # what the penalty sees
    assert careful.holds(logits).tolist() == plain.holds(logits).tolist() == [True, True, False]
    torch.testing.assert_close(careful(logits), plain(logits) + 0.05)


@pytest.mark.parametrize("margin", [-0.01, 0.2])
def test_margin_outside_its_range(margin):
    with pytest.raises(ValueError, match=r"margin in \[0, threshold\], \[0, 0.1\], got"):
        ClassProbability(smooth_classifier(), label=0, threshold=0.1, margin=margin)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_threshold_outside_its_range(threshold):
    with pytest.raises(ValueError, match=r"threshold in \[0, 1\), got"):
        ClassProbability(smooth_classifier(), label=0, threshold=threshold)


def test_negative_label():
    with pytest.raises(ValueError, match="label counted from 0, got -1"):
        ClassProbability(smooth_classifier(), label=-1)


def test_is_registered():
    assert objectives.get("ClassProbability") is ClassProbability
