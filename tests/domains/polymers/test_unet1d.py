from __future__ import annotations

import copy
import pickle
import re
import sys

import pytest
import torch

pytest.importorskip("denoising_diffusion_pytorch", reason="the extra `polymer` is not installed")

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.export import export
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.domains.polymers.unet1d import Unet1D
from constrained_diffusion.runtime.distribution import install_hint


@pytest.fixture
def network() -> Unet1D:
    torch.manual_seed(0)
    return Unet1D(channels=4, dim=8, dim_mults=(1, 2)).eval()


def test_it_is_the_library_s(network: Unet1D) -> None:
    import denoising_diffusion_pytorch

    theirs = denoising_diffusion_pytorch.Unet1D(dim=8, dim_mults=(1, 2), channels=4)
    theirs.load_state_dict({name.removeprefix("unet."): value for name, value in network.state_dict().items()})
    sample, timestep = torch.randn(3, 4, 6), torch.tensor([0, 500, 999])
    assert torch.equal(network(sample, timestep), theirs(sample, timestep))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(network: Unet1D, kind: torch.dtype) -> None:
    sample, timestep = torch.randn(3, 4, 6), torch.tensor([0, 500, 999])
    expected = network(sample, timestep)
    found = network.to(kind)(sample.to(kind), timestep)
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1)


def test_copies_and_pickles_work(network: Unet1D) -> None:
    sample, timestep = torch.randn(2, 4, 6), torch.tensor([3, 700])
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(sample, timestep), network(sample, timestep))


def test_its_config_travels_with_its_weights(network: Unet1D, tmp_path) -> None:
    denoiser = Denoiser(network, DiffusersSchedule({"prediction_type": "sample"}), sample_shape=(4, 6))
    again = PretrainedDenoiser(str(export(denoiser, tmp_path / "saved")))
    assert isinstance(again.network, Unet1D)
    sample, timestep = torch.randn(2, 4, 6), torch.tensor([3, 700])
    torch.testing.assert_close(again.predict(sample, timestep), denoiser.predict(sample, timestep))


def test_a_length_that_cannot_be_halved_is_refused(network: Unet1D) -> None:
    with pytest.raises(ValueError, match="halves the length 1 times: expected a multiple of 2, got 7; pad"):
        network(torch.randn(1, 4, 7), torch.tensor([0]))


def test_without_the_library_the_pip_command_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("polymer"))):
        Unet1D()
