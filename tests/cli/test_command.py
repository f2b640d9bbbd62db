"""What a user can get wrong on the command line: one sentence, status 2, and everything on disk as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion import objectives
from constrained_diffusion.cli import command, runs
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

SHIPPED = sorted(path.relative_to(runs.shipped_configs()).as_posix() for path in runs.shipped_configs().rglob("*.yaml"))
OVERLAYS = [name for name in SHIPPED if name.startswith("cluster/")]
LABEL = "--model.init_args.constraints.init_args.label"


def test_an_unknown_config_lists_the_shipped_ones(refused: Callable[..., str]) -> None:
    said = refused("fit", "--config", "mnits.yaml")
    assert said.startswith("no config 'mnits.yaml'")
    assert all(name in said for name in SHIPPED)


CONSTRAINT, CALLBACK = "class_path: ClassProbability", "class_path: PenaltyScheduler"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # names
        (CONSTRAINT, "class_path: ClasProbability", "model.init_args.constraints: 'ClasProbability' is no registered"),
        (CONSTRAINT, "class_path: DigitCNN", "model.init_args.constraints: 'DigitCNN' is no registered constraint"),
        (CONSTRAINT, "class_path: my_project.Mine", "'my_project.Mine' cannot be imported (No module named"),
        (
            CALLBACK,
            "class_path: PenaltySchedule",
            "trainer.callbacks: 'PenaltySchedule' is no known class; did you mean",
        ),
        (
            f"    - {CALLBACK}\n      init_args",
            "    class_path: PenaltySchedule\n    init_args",
            "trainer.callbacks: 'PenaltySchedule' is no known class; did you mean",
        ),
        # options
        ("max_epochs", "max_epoch", "no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("max_timestep", "max_timestp", "model: ConstrainedDiffusion has no option 'max_timestp'; did you mean 'max_t"),
        ("label: 8", "labl: 8", "constraints: ClassProbability has no option 'labl'; did you mean 'label'?"),
        (
            "growth_factor",
            "growth_facto",
            "PenaltyScheduler has no option 'growth_facto'; did you mean 'growth_factor'?",
        ),
        ("val_samples", "val_sample", "data: GeneratedDataModule has no option 'val_sample'; did you mean 'val_s"),
        ("sampler: {steps", "sampler: {step", "Sampler has no option 'step'; did you mean 'steps'?"),
        ("data:\n", "dta:\n", "no option 'dta."),
        ("        label: 8\n", "", "model.init_args.constraints: ClassProbability needs label"),
        # types
        ("max_timestep: 80", "max_timestep: many", "model.init_args.max_timestep: expected int or null, got 'many'"),
        ("label: 8", "label: eight", "model.init_args.constraints.init_args.label: expected int, got 'eight'"),
        ("every_n_steps: 2", "scope: all", "trainer.callbacks.init_args.scope: expected 'fit' or 'batch', got 'all'"),
        ("max_epochs: 2", "max_epochs: [2", "line 3"),
        ("      init_args: {initial", "      {initial", "line 7"),
        ("          init_args: {source: mnist_classifier}", "          source: mnist_classifier", "below `init_args:`"),
        # values
        ("max_timestep: 80", "max_timestep: 101", "max_timestep (T_phi) must be in 1 .. 100"),
        ("growth_factor: 1.2", "growth_factor: 0.9", "growth_factor must be at least 1"),
        ("label: 8", "label: 10", "so not the label 10"),  # says the judge
        ("accelerator: cpu", "accelerator: cpuu", "invalid accelerator name: `accelerator='cpuu'`"),
        ("samples: 16", "samples: 4", "the training set has 4 items, fewer than one batch of 8"),
    ],
)
def test_a_mistake_in_the_config(refused: Callable[..., str], tiny_config: str, old: str, new: str, said: str) -> None:
    assert old in tiny_config
    assert said in refused("fit", config=tiny_config.replace(old, new, 1))


def test_an_unknown_constraint_lists_the_registered_ones(refused: Callable[..., str], tiny_config: str) -> None:
    said = refused("fit", config=tiny_config.replace("class_path: ClassProbability", "class_path: Clas"))
    assert all(name in said for name in objectives.available(objectives.Constraint))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"{LABEL[:-1]}=7", "ClassProbability has no option 'labe'; did you mean 'label'?"),
        ("--model.init_args.max_timestp=7", "ConstrainedDiffusion has no option 'max_timestp'; did you mean"),
        ("--data.init_args.sample=7", "GeneratedDataModule has no option 'sample'; did you mean 'samples'?"),
        ("--trainer.max_epocs=7", "no option 'trainer.max_epocs'; did you mean 'trainer.max_epochs'?"),
        ("--ckpt_pth=last", "no option 'ckpt_pth'; did you mean 'ckpt_path'?"),
        (f"{LABEL}=seven", "model.init_args.constraints.init_args.label: expected int, got 'seven'"),
        ("--model.init_args.constraints=Clas", "model.init_args.constraints: 'Clas' is no registered constraint"),
        (
            "--trainer.callbacks=PenaltySchedule",
            "'PenaltySchedule' is no known class; did you mean 'PenaltyScheduler'?",
        ),
        (
            "--some=1",
            "the command has no option 'some'; it has config, seed_everything, trainer, model, data, ckpt_path",
        ),
        ("tiny.yaml", "'tiny.yaml' stands without an option: name a config by `fit --config tiny.yaml`."),
        ("-config=tiny.yaml", "'-config=tiny.yaml' has one dash: options begin with two, as in --config=tiny.yaml."),
        ("--trainer.max_epochs=some", "trainer.max_epochs: expected int or null, got 'some'"),
        ("--ckpt_path=none.ckpt", "there is no checkpoint 'none.ckpt'"),
        ("--ckpt_path=last", "holds no checkpoints/last.ckpt to continue from"),
    ],
)
def test_a_mistake_on_the_command_line(refused: Callable[..., str], word: str, said: str) -> None:
    assert said in refused("fit", "--config", "tiny.yaml", word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_where_there_is_none(refused: Callable[..., str], accelerator: str) -> None:
    said = refused("fit", "--config", "tiny.yaml", f"--trainer.accelerator={accelerator}")
    assert said.startswith("trainer.accelerator asks for a GPU, but torch finds none here: leave it out, or")


def test_a_label_that_the_classifier_does_not_have(refused: Callable[..., str], tiny_config: str) -> None:
    start, end = tiny_config.index("    evaluation:"), tiny_config.index("    sampler:")
    unjudged = tiny_config[:start] + tiny_config[end:]
    said = refused("fit", config=unjudged.replace("label: 8", "label: 10"))
    assert said.startswith("ClassProbability was asked for label 10, but PretrainedClassifier has 10 classes, 0 to 9")


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_without_a_run_there_is_nothing_to_test(refused: Callable[..., str], place: Path, command: str) -> None:
    (place / "other.yaml").write_text((place / "tiny.yaml").read_text())
    assert refused(command, "--config", "other.yaml").startswith("there is no run of 'other' below 'runs'")
    assert "holds no checkpoints/last.ckpt" in refused(command)


def test_last_without_a_run_is_no_fresh_start(refused: Callable[..., str], place: Path) -> None:
    (place / "other.yaml").write_text((place / "tiny.yaml").read_text())
    said = refused("fit", "--config", "other.yaml", "--ckpt_path", "last")
    assert said.startswith("there is no run of 'other' below 'runs'")
    assert "run `lightning fit` with this config first" in said


def test_a_checkpoint_that_is_truncated_foreign_or_of_another_model(
    refused: Callable[..., str], place: Path, tiny_denoiser: Any, tiny_data: Any, fit: Any
) -> None:
    trainer = fit(ConstrainedDiffusion(tiny_denoiser()), tiny_data(), max_steps=0)
    other = place / "other.ckpt"
    trainer.save_checkpoint(other)
    assert "the checkpoint is of another model" in refused("fit", "--config", "tiny.yaml", "--ckpt_path", "other.ckpt")
    assert "the checkpoint is of another model" in refused("test", "--config", "tiny.yaml", "--ckpt_path", "other.ckpt")

    (place / "cut.ckpt").write_bytes(other.read_bytes()[:1000])
    assert "'cut.ckpt' cannot be read: it is truncated" in refused("fit", "--ckpt_path", "cut.ckpt")
    last = place / "runs" / "tiny" / "1" / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_bytes(other.read_bytes()[:1000])
    for verb in ("fit", "test", "predict"):
        assert "last.ckpt' cannot be read: it is truncated" in refused(verb, "--ckpt_path", "last")

    torch.save({"weights": torch.zeros(2)}, place / "foreign.ckpt")
    said = refused("fit", "--ckpt_path", "foreign.ckpt")
    assert "'foreign.ckpt' is not a checkpoint of a fit: it has no global_step and no state_dict" in said


def test_a_data_folder_without_the_files(refused: Callable[..., str], tiny_config: str) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    data = "data: {class_path: MNISTDataModule, init_args: {data_dir: nowhere}}\n"
    said = refused("fit", config=tiny_config[: tiny_config.index("data:\n")] + data)
    assert said.startswith("MNIST was not found whole under 'nowhere'")
    data = "data: {class_path: ImageFolderDataModule, init_args: {folder: nowhere, size: 28, channels: 1}}\n"
    said = refused("fit", config=tiny_config[: tiny_config.index("data:\n")] + data)
    assert "below 'nowhere', found 0" in said


@pytest.mark.parametrize(("words", "said"), [([], "{fit,validate,test,predict}"), (["fitt"], "choose from 'fit'")])
def test_a_missing_or_unknown_command(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_refused_first_run_leaves_nothing(place: Path, tiny_config: str) -> None:
    (place / "fresh.yaml").write_text(tiny_config.replace("samples: 16", "samples: 4"))
    with pytest.raises(SystemExit):
        command.main(["fit", "--config", "fresh.yaml"])
    assert not (place / "runs" / "fresh").exists()


def test_what_goes_wrong_in_training_is_shown_whole(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(PenaltyLoss, "diffusion_loss", broken)
    with pytest.raises(ValueError, match="a bug"):
        command.main(["fit", "--config", "tiny.yaml"])
    assert (place / "runs" / "tiny" / "latest").resolve().name == "1"  # no step was made


def test_what_the_config_switches_off_is_off_and_nothing_is_advertised(
    place: Path, tiny_config: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = tiny_config.replace(
        "    - class_path: PenaltyScheduler\n      init", "    class_path: PenaltyScheduler\n    init"
    )
    (place / "tiny.yaml").write_text(one.replace("accelerator: cpu", "accelerator: cpu\n  enable_checkpointing: false"))
    with caplog.at_level("INFO"):
        command.main(["fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"])
    run = place / "runs" / "tiny" / "2"
    assert (run / "status.json").is_file()
    assert (run / "export" / "unet").is_dir()
    assert not (run / "checkpoints").exists()
    assert any("the weights are in" in record.getMessage() for record in caplog.records)
    assert not any("Tip:" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("key", ["model", "data", "trainer", "named"])
def test_files_that_options_and_configs_name_are_measured_too(
    refused: Callable[..., str], place: Path, tiny_config: str, key: str
) -> None:
    lists = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]  # 10 of 10 of ..
    (place / "bomb.yaml").write_text("\n".join(["a0: &a0 [x, x]", *lists]))
    if key == "named":
        (place / "tiny.yaml").write_text(f"{tiny_config[: tiny_config.index('data:')]}data: bomb.yaml\n")
    assert "its aliases written out" in refused(
        "fit", "--config", "tiny.yaml", *([] if key == "named" else [f"--{key}=bomb.yaml"])
    )


def test_recompute_is_a_flag_of_its_own(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(model: ConstrainedDiffusion, *_: Any) -> None:
        raise ValueError(f"recompute is {model.evaluator.recompute}")

    monkeypatch.setattr(command.defaults, "callbacks", tell)
    assert refused("fit") == "recompute is False"
    assert refused("fit", "--recompute") == "recompute is True"
    said = refused("fit", "--config", "pretrain/mnist_judge.yaml", "--recompute")
    assert "--recompute is for models that draw samples" in said


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_alone_is_refused(refused: Callable[..., str], name: str) -> None:
    assert "model" in refused("fit", "--config", name)


def test_a_rank_that_the_trainer_does_not_know_is_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.rank_zero_only, "rank", 1)  # as Lightning reads it from the environment
    assert "but for the Trainer it is; start it by torchrun or srun on all ranks" in refused("fit")
