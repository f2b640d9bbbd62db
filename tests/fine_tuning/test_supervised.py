import json

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from constrained_diffusion.batch import Batch
from constrained_diffusion.domains.images.classifiers import DigitCNN, PretrainedClassifier
from constrained_diffusion.fine_tuning.supervised import Supervised
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows


class Blobs(DiffusionDataModule):
    """Two classes of points, one on either side of the line x + y = 0."""

    def build(self) -> tuple[TensorRows, TensorRows]:
        points = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
        points = points + 0.5 * points.sum(1, keepdim=True).sign()
        labels = (points.sum(1) > 0).long()
        return TensorRows(points[:64], target=labels[:64]), TensorRows(points[64:], target=labels[64:])


class Jitter(nn.Module):
    """Moves every row by numbers that follow from its key, and records how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[tuple[int, ...]] = []
        self.autocast: set[bool] = set()

    def forward(self, clean: Tensor, keys: list[tuple[int, ...]]) -> Tensor:
        self.keys += keys
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        return clean + 0.1 * torch.tensor([[float(hash(key) % 7), 0.0] for key in keys])


def module(**kwargs) -> Supervised:
    torch.manual_seed(0)
    metrics = {"accuracy": MulticlassAccuracy(num_classes=2, average="micro")}
    settings = {"metrics": metrics, "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.1), **kwargs}
    return Supervised(nn.Linear(2, 2), **settings)


def trainer(**kwargs) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **{**quiet, **kwargs})


def test_learns_a_separable_problem_and_logs_its_figures():
    supervised, data = module(), Blobs(batch_size=16)
    fit = trainer(max_epochs=20)
    fit.fit(supervised, data)
    points, labels = data.data[1].clean, data.data[1].target
    odds = points.double() @ (supervised.network.weight[1] - supervised.network.weight[0]).double()
    odds = odds + (supervised.network.bias[1] - supervised.network.bias[0]).double()
    loss = nn.functional.softplus(-(2 * labels - 1) * odds).mean()  # two-class cross-entropy in closed form
    assert fit.callback_metrics["val/accuracy"] == ((odds > 0) == labels).double().mean()
    assert fit.callback_metrics["val/accuracy"] > 0.95
    assert fit.callback_metrics["val/loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert "loss/supervised" in fit.callback_metrics


def test_metrics_start_again_at_every_validation():
    supervised, data = module(), Blobs()
    first = trainer().validate(supervised, data, verbose=False)
    supervised.network.weight.data.neg_()
    supervised.network.bias.data.neg_()
    second = trainer().validate(supervised, data, verbose=False)
    assert first[0]["val/accuracy"] + second[0]["val/accuracy"] == pytest.approx(1)


def test_loss_says_what_the_target_means():
    data = Blobs(batch_size=16)
    rows = data.data[0]
    rows.target = rows.clean @ torch.tensor([[2.0], [-1.0]]) + 0.5
    supervised = Supervised(nn.Linear(2, 1), loss=nn.MSELoss(), optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    trainer(max_epochs=60, limit_val_batches=0).fit(supervised, data)
    torch.testing.assert_close(supervised.network.weight.detach(), torch.tensor([[2.0, -1.0]]), rtol=0, atol=0.01)


def test_label_smoothing_is_the_losss_own_setting():
    batch = Batch(torch.tensor([[1.0, 0.0]]), target=torch.tensor([0]))
    supervised = Supervised(nn.Identity(), loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    logits = batch.clean.log_softmax(1)[0]
    expected = -(0.9 * logits[0] + 0.1 * logits[1])
    torch.testing.assert_close(supervised.loss(supervised(batch.clean), batch.target), expected)


def test_augmentation_is_keyed_by_seed_step_and_row_and_left_out_of_validation():
    jitter = Jitter()
    supervised = module(augment=jitter, seed=9)
    trainer(max_steps=3).fit(supervised, Blobs(batch_size=16))
    assert [(key[0], key[2], key[3]) for key in jitter.keys] == [(9, s, row) for s in range(3) for row in range(16)]


def test_augmentation_runs_in_full_precision():
    jitter = Jitter()
    trainer(max_steps=1, precision="bf16-mixed").fit(module(augment=jitter), Blobs(batch_size=16))
    assert jitter.autocast == {False}


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch"
)  # our sampler resumes
def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole, first, second = (module(augment=Jitter()) for _ in range(3))
    trainer(max_steps=7).fit(whole, Blobs(batch_size=16))
    stopped = trainer(max_steps=3)
    stopped.fit(first, Blobs(batch_size=16))
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    trainer(max_steps=7).fit(second, Blobs(batch_size=16), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert second.augment.keys == whole.augment.keys[3 * 16 :]
    assert second.seconds > first.seconds
    torch.testing.assert_close(second.network.weight, whole.network.weight, rtol=0, atol=0)


def test_a_checkpoint_of_another_kind_of_module():
    with pytest.raises(ValueError, match="the checkpoint is not of a Supervised module"):
        module().on_load_checkpoint({"state_dict": {}, "batches_seen": 3})


def test_output_in_half_precision_is_widened_for_the_loss():
    assert Supervised(nn.Linear(2, 2).bfloat16())(torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert Supervised(nn.Linear(2, 2).double())(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_data_without_labels():
    with pytest.raises(TypeError, match="set with_labels: true"):
        module().training_step(Batch(torch.zeros(2, 2)), 0)


def test_loader_of_seeds():
    with pytest.raises(TypeError, match="expects a Batch with labels as its target, but the loader gave a Seeds"):
        trainer().test(module(), Blobs(test_samples=4))


def test_testing_on_labelled_batches():
    data = Blobs()
    result = trainer().test(module(), data.val_dataloader()[0], verbose=False)
    assert set(result[0]) == {"test/loss", "test/accuracy"}


def test_export_is_read_back(tmp_path):
    supervised = Supervised(DigitCNN(width=2), seed=4)
    supervised.export(tmp_path / "export")
    images = torch.rand(2, 1, 28, 28)
    again = PretrainedClassifier(str(tmp_path / "export"))
    torch.testing.assert_close(again(images), supervised.eval()(images), rtol=0, atol=0)
    assert json.loads((tmp_path / "export" / "training.json").read_text())["seed"] == 4


def test_export_refuses_what_it_cannot_read_back(tmp_path):
    with pytest.raises(TypeError, match="save_network expects one of DigitCNN, DigitResNet.*got Linear"):
        module().export(tmp_path)
