"""Every kind of source, and every way in which one can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

SCHEDULE = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
BAD_WEIGHTS = "truncated or from another model"


class Trap:
    """Executed by any unpickling that executes code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def reference(unet: Any, answers: Any) -> Any:
    """The answers of the denoiser that the `pipeline` folder holds."""
    return answers(Denoiser(unet(), DiffusersSchedule(SCHEDULE)))


@pytest.fixture
def checkpoint(tmp_path: Path, unet: Any) -> Path:
    """What the LightningModule writes: raw weights of seed 1, EMA weights of seed 0."""
    raw = Denoiser(unet(1), DiffusersSchedule(SCHEDULE))
    state = {f"networks.denoiser.{key}": value for key, value in raw.state_dict().items()}
    state |= {f"networks.ema.{key}": value for key, value in unet(0).state_dict().items()}
    torch.save({"state_dict": state, "denoiser": denoiser_config(raw), "epoch": 3}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# --------------------------------------------------------------------------------------------------- diffusers' folders


def test_a_pipeline_folder(pipeline: Path, reference: Any, answers: Any) -> None:
    denoiser = PretrainedDenoiser(str(pipeline))
    assert not denoiser.network.training
    assert torch.equal(answers(denoiser), reference)
    assert denoiser.noise_schedule.prediction_type == "v_prediction"
    assert denoiser.sample_shape == (1, 8, 8)
    assert denoiser.folder == pipeline
    assert denoiser.codec.settings == {"mean": 0.5, "std": 0.5, "low": 0.0, "high": 1.0}


def test_old_pipelines_hold_their_network_in_the_top_folder(pipeline: Path, reference: Any, answers: Any) -> None:
    for file in [*(pipeline / "unet").iterdir(), *(pipeline / "scheduler").iterdir()]:
        file.rename(pipeline / file.name)
    (pipeline / "unet").rmdir()
    (pipeline / "scheduler").rmdir()
    assert torch.equal(answers(PretrainedDenoiser(str(pipeline))), reference)


def test_pickled_tensors_without_code_are_read(pipeline: Path, reference: Any, answers: Any) -> None:
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert torch.equal(answers(PretrainedDenoiser(str(pipeline))), reference)


def test_a_bare_model_folder_needs_a_schedule(pipeline: Path, reference: Any, answers: Any) -> None:
    bare = str(pipeline / "unet")
    with pytest.raises(ValueError, match="has no noise schedule: give one as `noise_schedule="):
        PretrainedDenoiser(bare)
    denoiser = PretrainedDenoiser(bare, noise_schedule=DiffusersSchedule(SCHEDULE))
    assert torch.equal(answers(denoiser), reference)
    shutil.copytree(pipeline / "scheduler", pipeline / "unet" / "scheduler")
    assert torch.equal(answers(PretrainedDenoiser(bare)), reference)


def test_what_is_given_replaces_the_sources_own(pipeline: Path) -> None:
    codec, schedule = Normalizer(mean=3.0), VariancePreserving([0.9, 0.5])
    denoiser = PretrainedDenoiser(str(pipeline), codec=codec, noise_schedule=schedule, sample_shape=(1, 16, 16))
    assert denoiser.codec is codec
    assert denoiser.noise_schedule is schedule
    assert denoiser.sample_shape == (1, 16, 16)
    assert denoiser.folder is None  # samples that lie beside the weights were drawn otherwise


def test_a_pipeline_without_its_autoencoder_is_refused(pipeline: Path) -> None:
    edit(pipeline / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(ValueError, match="lacks its folder vae: expected all parts"):
        PretrainedDenoiser(str(pipeline))


@pytest.mark.parametrize("given", [None, VariancePreserving([0.5])])
def test_the_schedule_is_the_schedulers_unless_one_is_given(pipeline: Path, given: VariancePreserving | None) -> None:
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(pipeline / "scheduler")
    schedule = PretrainedDenoiser(str(pipeline), noise_schedule=given).noise_schedule
    assert schedule is given or (isinstance(schedule, FlowMatching) and schedule.shift == 3)


def test_a_variance_is_dropped_and_masks_are_refused(tmp_path: Path, unet: Any) -> None:
    network, schedule = unet(out_channels=2), VariancePreserving([0.5])
    network.save_pretrained(tmp_path / "learned")
    denoiser, noisy = PretrainedDenoiser(str(tmp_path / "learned"), noise_schedule=schedule), torch.ones(1, 1, 8, 8)
    assert torch.equal(denoiser(noisy, torch.tensor([0])), network(noisy, 0).sample[:, :1])
    unet(in_channels=3).save_pretrained(tmp_path / "inpainting")
    with pytest.raises(ValueError, match="takes 3 channels and returns 1: expected as many, .*inpainting"):
        PretrainedDenoiser(str(tmp_path / "inpainting"), noise_schedule=schedule)


def test_a_folder_of_something_else_is_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no diffusers folder: expected a model_index.json .* or config.json"):
        PretrainedDenoiser(str(tmp_path))
    (tmp_path / "config.json").write_text('{"class": "DigitCNN", "init_args": {}}')
    with pytest.raises(ValueError, match="'DigitCNN', which is no noise predictor"):
        PretrainedDenoiser(str(tmp_path), noise_schedule=VariancePreserving([0.5]))
    edit(pipeline / "model_index.json", unet=None)
    with pytest.raises(ValueError, match="has no noise predictor: expected a unet or transformer"):
        PretrainedDenoiser(str(pipeline))


def test_a_network_beside_a_folder_that_names_its_own_is_refused(pipeline: Path, unet: Any) -> None:
    with pytest.raises(ValueError, match="names its own network: leave `network` out"):
        PretrainedDenoiser(str(pipeline), network=unet())


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "renamed", "misshapen", "config"])
def test_damaged_folders_are_refused(pipeline: Path, damage: str) -> None:
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:20_000])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "gone":
        weights.unlink()
    elif damage == "renamed":
        tensors["conv_in.other"] = tensors.pop("conv_in.weight")
        save_file(tensors, weights)
    elif damage == "misshapen":
        tensors["conv_in.weight"] = torch.zeros(4, 1, 3, 3)
        save_file(tensors, weights)
    else:
        edit(pipeline / "unet" / "config.json", block_out_channels=[8, 32])
    with pytest.raises(ValueError, match=BAD_WEIGHTS):
        PretrainedDenoiser(str(pipeline))


def test_cut_json_is_refused(pipeline: Path) -> None:
    index = pipeline / "model_index.json"
    index.write_text(index.read_text()[:40])
    with pytest.raises(ValueError, match="no valid JSON, perhaps truncated"):
        PretrainedDenoiser(str(pipeline))


def test_code_in_pickled_weights_is_not_executed(pipeline: Path, tmp_path: Path) -> None:
    weights, mark = pipeline / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "executed"
    torch.save({**load_file(weights), "more": Trap(mark)}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=BAD_WEIGHTS):
        PretrainedDenoiser(str(pipeline))
    assert not mark.exists()


# ------------------------------------------------------------------------------------------------------ our checkpoints


def test_a_checkpoint_gives_its_ema_weights(checkpoint: Path, reference: Any, answers: Any) -> None:
    denoiser = PretrainedDenoiser(str(checkpoint))
    assert torch.equal(answers(denoiser), reference)
    assert denoiser.folder is None


def test_a_checkpoint_without_ema_gives_the_raw_weights(checkpoint: Path, unet: Any, answers: Any) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {key: v for key, v in content["state_dict"].items() if not key.startswith("networks.ema.")}
    torch.save(content, checkpoint)
    expected = answers(Denoiser(unet(1), DiffusersSchedule(SCHEDULE)))
    assert torch.equal(answers(PretrainedDenoiser(str(checkpoint))), expected)


def test_a_checkpoint_of_an_earlier_layout_gets_one_sentence(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {key.removeprefix("networks."): value for key, value in content["state_dict"].items()}
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="written by an earlier version of this package.*export/"):
        PretrainedDenoiser(str(checkpoint))


def test_a_checkpoint_of_a_foreign_network(tmp_path: Path, tiny_denoiser: Any, answers: Any) -> None:
    denoiser = tiny_denoiser(seed=3)
    state = {f"networks.ema.{key}": value for key, value in denoiser.network.state_dict().items()}
    torch.save({"state_dict": state, "denoiser": denoiser_config(denoiser)}, tmp_path / "tiny.ckpt")
    with pytest.raises(ValueError, match=r"how to make its network \(TinyNetwork\): give the network"):
        PretrainedDenoiser(str(tmp_path / "tiny.ckpt"))
    loaded = PretrainedDenoiser(str(tmp_path / "tiny.ckpt"), network=tiny_denoiser(seed=4).network)
    assert torch.equal(answers(loaded), answers(denoiser))


def test_a_checkpoint_of_a_fit(tmp_path: Path, tiny_denoiser: Any, tiny_data: Any, fit: Any, answers: Any) -> None:
    module = ConstrainedDiffusion(tiny_denoiser())
    fit(module, tiny_data(val_samples=0)).save_checkpoint(tmp_path / "fit.ckpt")
    ema = Denoiser(module.networks.ema, module.denoiser.noise_schedule, sample_shape=(1, 8, 8))
    loaded = PretrainedDenoiser(str(tmp_path / "fit.ckpt"), network=tiny_denoiser(seed=1).network)
    assert torch.equal(answers(loaded), answers(ema))
    assert not torch.equal(answers(loaded), answers(tiny_denoiser()))


@pytest.mark.parametrize("kept", [0, 1, 100, 20_000, -1])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, kept: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=BAD_WEIGHTS):
        PretrainedDenoiser(str(checkpoint))


@pytest.mark.parametrize("kept", [2, 50, 300])
def test_a_truncated_checkpoint_in_the_old_format_is_refused(checkpoint: Path, kept: int) -> None:
    torch.save(torch.load(checkpoint, weights_only=True), checkpoint, _use_new_zipfile_serialization=False)
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=BAD_WEIGHTS):
        PretrainedDenoiser(str(checkpoint))


@pytest.mark.parametrize("content", [b"not a checkpoint at all", pickle.dumps([1, 2], protocol=2), b"\x80\x02}q\x00."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=BAD_WEIGHTS):
        PretrainedDenoiser(str(tmp_path / "other.ckpt"))


def test_checkpoints_of_other_models_are_refused(checkpoint: Path, unet: Any) -> None:
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]
    for wrong, message in [
        ({**state, "networks.ema.more": torch.zeros(3)}, r"0 are missing .* 1 are left over \(the first: more\)"),
        ({k: v for k, v in state.items() if k != "networks.ema.conv_in.bias"}, r"1 are missing .*conv_in.bias"),
        ({**state, "networks.ema.conv_in.bias": torch.zeros(3)}, r"1 have another shape"),
    ]:
        torch.save({**content, "state_dict": wrong}, checkpoint)
        with pytest.raises(ValueError, match=f"{BAD_WEIGHTS}: .*{message}"):
            PretrainedDenoiser(str(checkpoint))


def test_adapters_are_not_taken_for_weights(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["networks.ema.conv_in.lora_A.default.weight"] = torch.zeros(1)
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="holds LoRA adapters, not whole weights: give the folder"):
        PretrainedDenoiser(str(checkpoint))


def test_a_checkpoint_with_other_objects_says_how_to_give_its_weights(tmp_path: Path, tiny_denoiser: Any) -> None:
    """As LightningModules write them that keep a path in their hyperparameters."""
    denoiser = tiny_denoiser()
    state = {f"model.{key}": value for key, value in denoiser.network.state_dict().items()}
    given = {"network": tiny_denoiser(1).network, "noise_schedule": denoiser.noise_schedule, "sample_shape": (1, 8, 8)}
    torch.save({"state_dict": state, "hyper_parameters": {"root": tmp_path}}, tmp_path / "mine.ckpt")
    with pytest.raises(ValueError, match="holds pathlib.PosixPath besides .*with `network`, .*`prefix`.$") as caught:
        PretrainedDenoiser(str(tmp_path / "mine.ckpt"), prefix="model.", **given)
    assert str(caught.value).isprintable()
    torch.save(state, tmp_path / "weights.pt")
    PretrainedDenoiser(str(tmp_path / "weights.pt"), prefix="model.", **given)


@pytest.mark.filterwarnings("ignore:the network does not fit what its config says")  # which is random
def test_a_check_needs_a_condition_to_draw_with(tmp_path: Path, unet: Any) -> None:
    diffusers.DDPMPipeline(unet(num_class_embeds=4), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="check=True draws samples, for which UNet2DModel needs class_labels: expected"
    ):
        PretrainedDenoiser(str(tmp_path), check=True)
    PretrainedDenoiser(str(tmp_path), null_condition={"class_labels": 3}, check=True)


def test_code_in_a_checkpoint_is_not_executed(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({**torch.load(checkpoint, weights_only=True), "more": Trap(mark)}, checkpoint)
    with pytest.raises(ValueError, match="besides its tensors, and is not read"):
        PretrainedDenoiser(str(checkpoint))
    assert not mark.exists()
    torch.load(checkpoint, weights_only=False)
    assert mark.exists()  # the trap is a real one
