"""Weights that two ranks share out (FSDP): the fit of one rank that holds them all, and its checkpoints."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from torch import nn

from constrained_diffusion.batch import NoisyBatch
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.networks import Networks
from constrained_diffusion.runtime.fully_sharded import FullySharded

PROGRAM = Path(__file__).with_name("shard_ranks.py")
SHARED = runpy.run_path(str(PROGRAM))
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # float32, as between ranks


class Story(NamedTuple):
    """What one process found that holds all, and what two ranks found that share the weights out."""

    folder: Path
    alone: dict[str, Any]
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, run_program: Any) -> Story:
    folder = tmp_path_factory.mktemp("sharded")
    fit = SHARED["fit"]
    fit(folder / "half", 1, SHARED["HALF"])
    shutil.copy(folder / "half" / "checkpoints" / "last.ckpt", folder / "plain.ckpt")
    alone = {
        "whole": fit(folder / "alone", 1, SHARED["STEPS"]),
        "bf16": fit(folder / "alone bf16", 1, SHARED["HALF"], precision="bf16-mixed"),
        "lora": fit(folder / "alone lora", 1, SHARED["HALF"], lora=True),
    }
    run_program(PROGRAM, folder)
    return Story(folder, alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)])


def assert_same_fit(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("weights", "ema", "coefficient", "metrics"):
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", ["continued", "continued plain"])
def test_a_fit_in_two_parts_is_the_plain_one(story: Story, name: str) -> None:
    """Steps with clipping and momentum, EMA, validation, checkpoint; the first part sharded, or by one process."""
    expected = story.alone["whole"]
    for rank in story.ranks:
        assert_same_fit(rank[name], expected)
    start = SHARED["make"]().denoiser.network.state_dict()
    assert max((expected["weights"][k] - start[k]).abs().max() for k in start) > 0.01  # something was learnt
    assert max((expected["weights"][k] - expected["ema"][k]).abs().max() for k in start) > 1e-3


def test_each_rank_holds_its_share(story: Story) -> None:
    total = sum(p.numel() for p in SHARED["make"]().denoiser.network.parameters())
    for part in ("trained", "ema", "pretrained", "momentum"):
        held = [rank["first"]["held"][part] for rank in story.ranks]
        assert sum(held) == total
        assert max(held) < 0.6 * total


def test_a_checkpoint_is_what_one_process_writes(story: Story) -> None:
    sharded, plain = (torch.load(story.folder / f"{name}.ckpt", weights_only=True) for name in ("half", "plain"))
    assert sharded.keys() == plain.keys()
    assert sharded["state_dict"].keys() == plain["state_dict"].keys()
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(sharded[part], plain[part], **TOLERANCE)  # refuses another type of tensor too
    assert sharded["denoiser"] == plain["denoiser"]


def test_a_fit_without_a_step_left_exports_all_the_same(story: Story) -> None:
    checkpoint = torch.load(story.folder / "half.ckpt", weights_only=True)
    (file,) = (story.folder / "finished" / "export").rglob("*.safetensors")
    weights = load_file(file)
    assert weights
    for key, value in weights.items():
        assert torch.equal(value, checkpoint["state_dict"][f"networks.ema.{key}"])


def test_a_module_that_is_shared_out_is_not_tested(story: Story, tmp_path: Path) -> None:
    module, data = SHARED["make"](), SHARED["PARTS"]["Data"](test_samples=5)
    trainer = SHARED["trainer_for"](tmp_path, 1, 0)
    module.networks._meta_copy = (module.networks.ema,)
    with pytest.raises(ValueError, match="shared out over ranks, since its fit: make the module anew"):
        trainer.test(module, datamodule=data, verbose=False)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`, callbacks")
def test_one_process_goes_on_with_it_and_tests_it(story: Story, tmp_path: Path) -> None:
    found = SHARED["fit"](tmp_path, 1, SHARED["STEPS"], story.folder / "half.ckpt")
    assert_same_fit(found, story.alone["whole"])
    last = story.folder / "run" / "checkpoints" / "last.ckpt"
    module, data = SHARED["make"](), SHARED["PARTS"]["Data"](test_samples=5)
    trainer = SHARED["trainer_for"](tmp_path, 1, 0)
    trainer.test(module, datamodule=data, ckpt_path=last, verbose=False, weights_only=True)
    assert module.evaluator.results["after"]["n"] == 5
    torch.testing.assert_close(dict(module.networks.ema.state_dict()), story.alone["whole"]["ema"], **TOLERANCE)


def test_the_export_is_of_the_ema(story: Story) -> None:
    (file,) = (story.folder / "run" / "export").glob("*.safetensors")
    torch.testing.assert_close(load_file(file), story.alone["whole"]["ema"], **TOLERANCE)
    assert (story.folder / "run" / "grids" / "epoch-001.png").is_file()  # drawn from its whole copy


def test_adapters_are_trained_alike(story: Story) -> None:
    for rank in story.ranks:
        assert_same_fit(rank["lora"], story.alone["lora"])
    assert story.alone["lora"]["held"]["momentum"] < story.alone["lora"]["held"]["trained"]


def test_a_unet_is_shared_out_block_by_block(story: Story) -> None:
    for rank in story.ranks:
        assert rank["unet"]["output"] < 1e-5
        assert rank["unet"]["gradients"] < 1e-3  # of a sum over 128 pixels


def test_weights_are_kept_in_single_precision_under_autocast(story: Story) -> None:
    for rank in story.ranks:
        torch.testing.assert_close(rank["bf16"]["ema"], story.alone["bf16"]["ema"], rtol=0, atol=2**-10)
        assert {value.dtype for value in rank["bf16"]["weights"].values()} == {torch.float32}


def test_float16_with_a_scaler_is_refused() -> None:
    strategy = FullySharded()
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="cannot train in precision 16-mixed.*choose bf16-mixed"):
        strategy.setup_environment()


def test_all_ranks_end_where_one_s_share_is_broken(story: Story) -> None:
    for rank in story.ranks:
        assert "1 of 14 tensors of weights are broken at step 1" in rank["diverged"]


def test_lightning_s_own_strategy_is_refused(tmp_path: Path) -> None:
    module = SHARED["make"]()
    module._trainer = Trainer(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(), logger=False)
    with pytest.raises(ValueError, match="shares out nothing.*choose the strategy fully_sharded"):
        module.configure_model()


def test_the_ema_is_not_drawn_from_by_one_rank_alone() -> None:
    module = SHARED["make"]()
    assert module.networks.averaged is module.networks.ema
    module.networks._meta_copy = (module.networks.ema,)
    with pytest.raises(RuntimeError, match="shared out over ranks"):
        module.sample([0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_on_a_gpu(tmp_path: Path, precision: str) -> None:
    """One rank with NCCL: what a single GPU can show."""
    fit, settings = SHARED["fit"], {"accelerator": "gpu", "precision": precision}
    expected = fit(tmp_path / "plain", 1, SHARED["HALF"], **settings)
    try:
        found = fit(tmp_path / "sharded", 1, SHARED["HALF"], strategy="fully_sharded", **settings)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    for name in ("weights", "ema"):
        close = {"rtol": 0, "atol": 1e-5 if precision == "32-true" else 2**-8}
        on_host = [{key: value.cpu() for key, value in one[name].items()} for one in (found, expected)]
        torch.testing.assert_close(*on_host, **close)


def a_step(dtype: torch.dtype = torch.float32) -> NoisyBatch:
    x, t = torch.full((4, 1, 8, 8), 0.5, dtype=dtype), torch.tensor([3, 20, 50, 90])
    return NoisyBatch(x, x, x, x, t, t)


def test_what_the_frozen_model_predicts_may_take_part_in_a_loss(tiny_denoiser: Any) -> None:
    networks = Networks(tiny_denoiser())
    frozen = networks.predict_frozen(a_step())
    assert not any(part.requires_grad or part.is_inference() for part in frozen)
    (networks.predict(a_step()).output * frozen.output).mean().backward()  # keeps both for the gradient
    assert networks.trained.last.bias.grad is not None


def test_the_frozen_model_follows_to_another_precision_and_is_kept_for_those_who_compare(tiny_denoiser: Any) -> None:
    networks = Networks(tiny_denoiser()).to(torch.float64)
    assert {value.dtype for value in networks.pretrained.parameters()} == {torch.float64}
    assert networks.pretrained is not networks.trained
    found = networks.predict_frozen(a_step(torch.float64)).output
    torch.testing.assert_close(found, networks.predict(a_step(torch.float64)).output)
    without = Networks(tiny_denoiser(), keep_frozen=False)
    assert without.pretrained is without.trained
    assert without.weights_sha256().keys() == {"after"}
    assert ConstrainedDiffusion(tiny_denoiser()).networks.weights_sha256().keys() == {"after"}


def test_dropout_is_never_of_the_frozen_model_with_adapters_either(tiny_denoiser: Any) -> None:
    """With LoRA it is the trained network itself, which is in train mode."""
    pytest.importorskip("peft", reason="peft is not installed")
    denoiser = tiny_denoiser()
    denoiser.network.time = nn.Sequential(denoiser.network.time, nn.Dropout(0.5))
    expected = denoiser.network.eval()(a_step().noisy, a_step().timesteps).detach()
    networks = Networks(denoiser, lora={"r": 2, "target_modules": ["last"], "init_lora_weights": False})
    networks.trained.train()
    torch.testing.assert_close(networks.predict_frozen(a_step()).output, expected)
    with networks.evaluating("pretrained") as network:
        torch.testing.assert_close(network(a_step().noisy, a_step().timesteps), expected)
    assert networks.trained.training
