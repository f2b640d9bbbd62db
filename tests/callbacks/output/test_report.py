"""The callback reads what Lightning logged; what the page shows of it is tested in tests/reports."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from constrained_diffusion.callbacks import Report
from constrained_diffusion.reports.run_report import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]


class Logging(LightningModule):
    """Logs what a fine-tuning logs, at known values."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        self.log("penalty/Rule", 10.0**-self.global_step)
        self.log("penalty_coefficient/Rule", float(self.global_step))
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/violation_rate": 0.1 / (1 + self.current_epoch), "val/fid": float("nan")})

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_report_reads_what_lightning_logged(tmp_path, capsys):
    loader = DataLoader(TensorDataset(torch.ones(3, 1)))
    run = tmp_path / "tiny" / "1"
    trainer = Trainer(
        max_epochs=2, logger=CSVLogger(run, name="", version=""), log_every_n_steps=1, callbacks=[Report()],
        default_root_dir=run, accelerator="cpu", num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Logging()
    trainer.fit(model, loader, loader)
    metrics = read_metrics(run / "metrics.csv")
    assert [(p.step, p.value) for p in metrics["penalty_coefficient/Rule"]] == [(i, i) for i in range(6)]
    assert [(p.epoch, round(p.value, 6)) for p in metrics["val/violation_rate"]] == [(0, 0.1), (1, 0.05)]
    assert "val/fid" not in metrics  # not a number, so nothing to draw
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    after_fit = (run / "report.html").read_text()
    assert "By the judge, of violations: 5.0 % in the last validation, of epoch 1." in after_fit
    assert "penalty P, raw, in units of g squared" in after_fit

    side = {"violation_rate": 0.002, "n": 2000, "metrics": {}}
    (run / "results.json").write_text(json.dumps({"before": side, "after": side, "subject": "fours"}))
    trainer.test(model, loader, verbose=False)
    assert "fours stayed at 0.2 %" in (run / "report.html").read_text()
    assert capsys.readouterr().out.count("report: ") == 1


def test_half_a_results_file_ends_a_fit_before_it_trains(tmp_path):
    (tmp_path / "results.json").write_text('{"status": ')
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[Report()], default_root_dir=tmp_path, accelerator="cpu", **quiet)
    with pytest.raises(ValueError, match=r"complete JSON object in '.*results.json'"):
        trainer.fit(Logging(), DataLoader(TensorDataset(torch.ones(3, 1))))
    assert trainer.global_step == 0
