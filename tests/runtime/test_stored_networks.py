"""Networks in folders; damaged folders are tested with classifiers, in constraints/test_classifiers.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.domains.images.classifiers import Classifier, DigitCNN, load_classifier
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN
from constrained_diffusion.runtime import stored_networks
from constrained_diffusion.runtime.stored_networks import load_network, save_network, storable

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "DigitCNN": (lambda: DigitCNN(num_classes=3, width=2), (2, 1, 28, 28)),
    "MeritCNN": (lambda: MeritCNN(["C", "O"], width=4, depth=1, kernel=3), (2, 3, 9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_read_again_computes_the_same(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, samples = make().eval(), torch.rand(shape)
    save_network(network, tmp_path / "new" / "folder")
    again = load_network(tmp_path / "new" / "folder", nn.Module, "network").eval()
    assert type(again) is type(network)
    assert torch.equal(again(samples), network(samples))
    assert again.settings == network.settings
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        stored_networks.CONFIG,
        stored_networks.WEIGHTS,
    }


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_network(NETWORKS["DigitCNN"][0](), tmp_path / "digits")
    with pytest.raises(ValueError, match="names the unknown class 'DigitCNN'; known are MeritCNN.$"):
        load_network(tmp_path / "digits", MeritCNN, "preference model")
    save_network(NETWORKS["MeritCNN"][0](), tmp_path / "merits")
    with pytest.raises(ValueError, match="names the unknown class 'MeritCNN'; known are DigitCNN, DigitResNet.$"):
        load_classifier(tmp_path / "merits")


def test_messages_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a reader's folder holds .* no config.json and no model.safetensors"):
        load_network(tmp_path, Classifier, "reader")  # type: ignore[type-abstract]
    with pytest.raises(ValueError, match="a reader is a zoo name or a folder .* 'nowhere' is neither; the zoo has "):
        load_network("nowhere", Classifier, "reader")  # type: ignore[type-abstract]


def test_settings_that_the_class_does_not_have_are_refused(tmp_path: Path) -> None:
    save_network(NETWORKS["MeritCNN"][0](), tmp_path)
    for settings in ({"tokens": ["C", "O"], "wide": 4}, {"tokens": ["C", "O"], "width": 3}):
        (tmp_path / stored_networks.CONFIG).write_text(json.dumps({"class": "MeritCNN", "init_args": settings}))
        with pytest.raises(ValueError, match=r"does not hold the weights of MeritCNN\(\{'tokens'.* Export both"):
            load_network(tmp_path, MeritCNN, "preference model")


def test_only_stored_classes_are_saved(tmp_path: Path) -> None:
    impostor = type("DigitCNN", (nn.Linear,), {"settings": {}})(2, 2)  # its name alone is not enough
    for module in (nn.Linear(2, 2), impostor):
        with pytest.raises(
            TypeError, match=f"expects one of DigitCNN, DigitResNet, MeritCNN, got .*{type(module).__name__};"
        ):
            save_network(module, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_class_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_networks, "NETWORKS", dict(stored_networks.NETWORKS))

    @storable
    class Scaled(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.settings = {"size": size}
            self.scale = nn.Parameter(torch.arange(float(size * 2)).view(2, size).T)  # not contiguous

        def forward(self, clean: Tensor) -> Tensor:
            return clean @ self.scale

    with pytest.raises(ValueError, match="'Scaled' is registered already, by .*; choose another name"):
        storable(type("Scaled", (nn.Linear,), {"__module__": "elsewhere"}))
    save_network(Scaled(3), tmp_path)
    assert load_network(tmp_path, Scaled, "scale")(torch.eye(3)).tolist() == [[0, 3], [1, 4], [2, 5]]
