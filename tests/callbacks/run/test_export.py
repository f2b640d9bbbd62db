"""Which weights a finished fit leaves in `export/`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from constrained_diffusion.callbacks import BestFeasible, Export, LastCheckpoint
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")  # of the part before, in a resumed fit
GOOD, BAD = 0.1, 0.9


def exported(run: Path, name: str = "export") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_ema_weights(tiny_denoiser: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), optimizer=partial(torch.optim.SGD, lr=0.1))
    fit(module, tiny_data(), [Export("weights")])
    assert same(exported(tmp_path, "weights"), module.networks.ema.state_dict())
    assert not same(exported(tmp_path, "weights"), module.denoiser.network.state_dict())


@pytest.mark.parametrize(
    ("script", "epoch"),
    [([(1.0, GOOD), (2.0, GOOD), (3.0, BAD)], 0), ([(2.0, GOOD), (1.0, GOOD)], 1), ([(1.0, BAD), (2.0, BAD)], 1)],
)
def test_the_best_feasible_weights_where_there_are_some(
    scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path, script: list[tuple[float, float]], epoch: int
) -> None:
    callbacks = [Export(), BestFeasible()]
    fit(scripted(script), tiny_data(), callbacks, max_epochs=len(script), enable_checkpointing=True)
    until = scripted(script)
    fit(until, tiny_data(), max_epochs=epoch + 1, default_root_dir=tmp_path / "other")
    assert same(exported(tmp_path), until.networks.ema.state_dict())


def test_a_resumed_fit_exports_anew(scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    script, last = [(1.0, BAD), (1.0, BAD)], str(tmp_path / "checkpoints" / "last.ckpt")
    fit(
        scripted(script),
        tiny_data(),
        [Export(), LastCheckpoint(every_n_seconds=0)],
        max_epochs=1,
        enable_checkpointing=True,
    )
    before = exported(tmp_path)
    module = scripted(script)
    fit(
        module,
        tiny_data(),
        [Export(), LastCheckpoint(every_n_seconds=0)],
        last,
        max_epochs=2,
        enable_checkpointing=True,
    )
    assert not same(exported(tmp_path), before)
    assert same(exported(tmp_path), module.networks.ema.state_dict())


def test_what_the_data_has_to_say_lies_beside_them(
    tiny_denoiser: Any, tiny_data: Any, fit: Any, tmp_path: Path
) -> None:
    data = tiny_data()
    data.export = lambda folder: (folder / "units.txt").write_text("mm")
    fit(ConstrainedDiffusion(tiny_denoiser()), data, [Export()])
    assert (tmp_path / "export" / "units.txt").read_text() == "mm"
    assert exported(tmp_path)


@pytest.mark.parametrize("folder", ["", ".", "..", "../../outside", "/outside", "a/b", "a/../../../../outside"])
def test_an_export_replaces_nothing_outside_of_the_run(folder: str) -> None:
    with pytest.raises(ValueError, match="Export expects the name of a folder inside the run"):
        Export(folder)
