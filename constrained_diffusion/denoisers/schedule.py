"""Noise schedules read from diffusers' scheduler configs."""

from __future__ import annotations

import inspect
from typing import Any

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule

LONGEST = 1_000_000  #: noise levels; a thousand are usual


class DiffusersSchedule(NoiseSchedule):
    """The noise schedule of a diffusers scheduler config.

    Args:
        config: keyword arguments of `diffusers.DDPMScheduler`, or the content of a `scheduler_config.json`, for example
            `{num_train_timesteps: 1000, beta_schedule: squaredcos_cap_v2, prediction_type: epsilon}`.

    Raises:
        ValueError: the config belongs to a flow-matching or sigma-parametrised scheduler without alpha-bar, or one
            without `_class_name` has a key that DDPMScheduler does not know.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from diffusers import DDPMScheduler

        class_name = str(config.get("_class_name", "DDPMScheduler"))
        if "Flow" in class_name:
            raise ValueError(
                f"expected the scheduler of a noise-predicting diffusion model, got {class_name}: flow-matching models "
                "have no alpha-bar and are not supported; choose one that predicts epsilon, sample or v_prediction."
            )
        if class_name not in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler") and "beta_schedule" not in config:
            raise ValueError(
                f"expected a scheduler config with a beta_schedule, got that of {class_name}, which is parametrised "
                "otherwise; give the noise schedule of the model's training as a DDPMScheduler config."
            )
        expected = [name for name in inspect.signature(DDPMScheduler.__init__).parameters if name != "self"]
        unknown = sorted(key for key in config if key not in expected and not key.startswith("_"))
        if unknown and "_class_name" not in config:  # a written one; other schedulers' files may hold keys of their own
            raise ValueError(
                f"a scheduler config has no setting '{unknown[0]}'; expected some of {', '.join(expected)}."
            )
        levels = config.get("num_train_timesteps", 1000)
        if type(levels) is not int or not 1 <= levels <= LONGEST:
            raise ValueError(f"num_train_timesteps must be an integer in 1 .. {LONGEST:,}, got {str(levels)[:80]}.")
        try:
            scheduler = DDPMScheduler.from_config({key: value for key, value in config.items() if key in expected})
        except Exception as error:  # what it raises on settings of the wrong kind has no common base
            raise ValueError(f"this scheduler config does not make a DDPMScheduler: {error}.") from error
        super().__init__(scheduler.alphas_cumprod, scheduler.config["prediction_type"])
        self.config: dict[str, Any] = {key: scheduler.config[key] for key in expected}
