"""Start and goal of a plan as tokens that stay clean while the others are denoised (Diffusion Forcing, sec. 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import check_plans
from constrained_diffusion.guides.base import Guide


class HeldEnds(Guide):
    """Holds the first token of plans `(B, L, S, C)` at a start and the last one at a goal.

    The model must have been trained with a noise level per token.

    Args:
        start: [x, y] in the maze's units, where the plan stands at first; None leaves it to the model.
        goal: [x, y] where it stands at last; None leaves it to the model.
        maze: a name or the rows of a map.

    Raises:
        ValueError: neither is given, or one lies in a wall.
    """

    start: Tensor | None
    goal: Tensor | None

    def __init__(
        self,
        start: list[float] | None = None,
        goal: list[float] | None = None,
        maze: str | list[str] = "medium",
    ) -> None:
        super().__init__()
        if start is None and goal is None:
            raise ValueError("HeldEnds expects a start, a goal or both, got neither; leave the guide out instead.")
        for name, point in (("start", start), ("goal", goal)):
            if point is not None:
                Maze.of(maze).check_free(point, name)
            self.register_buffer(name, None if point is None else torch.tensor(point, dtype=torch.float32), False)

    def extra_repr(self) -> str:
        start, goal = (None if point is None else point.tolist() for point in (self.start, self.goal))
        return f"start={start}, goal={goal}"

    def check_data(self, shape: tuple[int, ...]) -> None:
        check_plans(shape, "HeldEnds")

    def hold(self, noisy: Tensor, timesteps: Tensor, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
        noisy = noisy.clone()
        levels = timesteps if timesteps.ndim == 2 else timesteps[:, None].repeat(1, noisy.shape[1])
        levels = levels.clone()
        for place, token in self._tokens(noisy, denoiser):
            noisy[:, place], levels[:, place] = token, 0
        return noisy, levels

    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        def held(noisy: Tensor, timesteps: Tensor) -> Prediction:
            given, levels = self.hold(noisy, timesteps, denoiser)
            output, _, clean = predict(given, levels)
            clean, output = clean.clone(), output.clone()
            for place, token in self._tokens(noisy, denoiser):
                clean[:, place] = token
            # In terms of the sampler's own x_t and timesteps, so that its step ends where the token is held.
            noise = denoiser.noise_schedule.to_noise(output, given, levels)
            wanted = denoiser.noise_schedule.from_clean(clean, noisy, timesteps)
            for place, _ in self._tokens(noisy, denoiser):
                output[:, place] = wanted[:, place]
                noise[:, place] = 0
            return Prediction(output, noise, clean)

        return held

    def _tokens(self, like: Tensor, denoiser: Denoiser) -> list[tuple[int, Tensor]]:
        """Return place and content `(S, C)`, in network units, of each held token."""
        tokens = []
        for place, point in ((0, self.start), (-1, self.goal)):
            if point is not None:
                standing = like.new_zeros(like.shape[2:])  # velocity and action of one who stands are zero
                standing[:, :2] = point.to(like)
                tokens.append((place, denoiser.codec.encode(standing)))
        return tokens
