from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from constrained_diffusion.runtime import cpu_precision


def config(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"precision": "bf16-mixed", "accelerator": "cpu", "plugins": None, **settings})


@pytest.mark.parametrize("able", [True, False])
def test_the_trainer_keeps_the_name_and_computes_in_what_the_cpu_can(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_precision, "computes_in_bfloat16", lambda: able)
    own = {"precision": "bf16-mixed", "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(**{**own, **cpu_precision.plugins(config())})
    assert trainer.precision == "bf16-mixed"
    with trainer.precision_plugin.forward_context():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if able else torch.float32)
        assert torch.is_autocast_enabled("cpu") is able


def test_another_precision_or_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_precision, "computes_in_bfloat16", lambda: False)
    assert cpu_precision.plugins(config(precision="32-true")) == {}
    assert cpu_precision.plugins(config(accelerator="gpu")) == {}
    kept = cpu_precision.plugins(config(plugins=["another"]))["plugins"]
    assert kept[0] == "another"
    assert isinstance(kept[1], cpu_precision.SinglePrecisionStandIn)


def test_gradients_flow_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_precision, "computes_in_bfloat16", lambda: False)

    class Line(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.weight * batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, enable_model_summary=False, **quiet, **cpu_precision.plugins(config())
    )
    line = Line()
    trainer.fit(line, torch.utils.data.DataLoader(torch.ones(1, 1)))
    assert float(line.weight.detach()) == pytest.approx(0.9)
