"""Labels and prompts in turn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.runtime.conditions import Labels, Prompts


def test_labels_come_in_turn_under_the_network_s_name() -> None:
    asked = Labels([4, 7, 7], "label").of([0, 1, 2, 3, 1_000_000], None)
    assert asked["label"].tolist() == [4, 7, 7, 4, 7]
    assert Labels(3).names([2, 3, 4]) == ["2", "0", "1"]


@pytest.mark.parametrize("labels", [0, [], [3, -1]])
def test_labels_need_one_at_least_and_none_below_zero(labels: Any) -> None:
    with pytest.raises(ValueError, match="at least one label, each at least 0"):
        Labels(labels)


class Encoder:
    def encode(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": torch.tensor([[float(len(prompt))] for prompt in prompts])}


def test_prompts_are_encoded_by_the_denoiser_itself(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a duck"\n\n{"prompt": "a white rabbit", "seeds": [3]}\n')
    for given in (Prompts(["a duck", "a white rabbit"]), Prompts(prompt_file=str(file))):
        assert given.names([1, 2]) == ["a white rabbit", "a duck"]
        assert given.of([1, 2], Encoder())["encoder_hidden_states"].tolist() == [[14.0], [6.0]]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a duck"\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 2: expected a JSON string"):
        Prompts(prompt_file=str(file))
    with pytest.raises(ValueError, match="either prompts or prompt_file, got neither"):
        Prompts()
