"""What every data module does: rows, held-out rows, seeds, resume."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import distributed

from constrained_diffusion.datamodules import GeneratedDataModule
from constrained_diffusion.runtime.conditions import Labels
from constrained_diffusion.runtime.data import Listed, Shard, TensorRows


def test_bytes_become_zero_to_one() -> None:
    rows = TensorRows(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8), target=torch.tensor([7, 8]))
    batch = rows.__getitems__([1, 0])
    torch.testing.assert_close(batch.clean, torch.tensor([[0.2, 0.4], [0.0, 1.0]]))
    assert batch.target is not None
    assert batch.target.tolist() == [8, 7]
    assert batch.rows is not None
    assert batch.rows.tolist() == [1, 0]
    assert batch.mask is None
    assert len(rows) == 2


def test_every_part_is_fetched_by_row() -> None:
    numbers = torch.arange(6.0)[:, None]
    told = {"a.b": numbers + 10, "c": numbers + 20}
    rows = TensorRows(numbers, told, numbers + 30, numbers + 40, {"c": numbers + 50})
    batch = rows.__getitems__([4, 1])
    assert batch.condition is not None
    assert batch.teacher is not None
    parts = (batch.clean, batch.condition["a.b"], batch.condition["c"], batch.target, batch.latent, batch.teacher["c"])
    assert [part.flatten().tolist() for part in parts] == [[n + 4.0, n + 1.0] for n in range(0, 60, 10)]


@pytest.mark.parametrize("part", ["condition", "target", "latent", "teacher"])
def test_a_part_with_other_rows_is_refused(part: str) -> None:
    given = torch.zeros(3)
    name = "class_labels" if part in ("condition", "teacher") else part
    with pytest.raises(ValueError, match=f"has 4 samples, but '{name}' 3 rows: expected one row per sample"):
        TensorRows(torch.zeros(4, 1), **{part: {name: given} if part in ("condition", "teacher") else given})


def test_seeds_come_with_what_is_asked_of_them(tiny_data: Any) -> None:
    data = tiny_data(predict_samples=5, eval_batch_size=3, first_eval_seed=2, conditions=Labels([4, 7, 9], "digit"))
    batches = list(data.predict_dataloader())
    assert [batch.seeds.tolist() for batch in batches] == [[2, 3, 4], [5, 6]]
    assert [batch.condition["digit"].tolist() for batch in batches] == [[9, 4, 7], [9, 4]]
    assert [batch.condition for batch in tiny_data(predict_samples=2).predict_dataloader()] == [None]


def test_floats_stay_as_they_are() -> None:
    batch = TensorRows(torch.tensor([[-3.0], [5.0]]))[1]
    assert batch.clean.tolist() == [[5.0]]
    assert batch.condition is None


@pytest.mark.parametrize("size", [0, 1, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_lies_on_exactly_one_rank(monkeypatch: pytest.MonkeyPatch, size: int, world: int) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: world > 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    shards = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        shards.append(Shard(size))
    asked = [list(shard) for shard in shards]
    assert all(asked) or not size  # no rank without a batch
    assert [len(shard) for shard in shards] == [len(piece) for piece in asked]
    rows = [Listed(range(size)).__getitems__(piece) for piece in asked]
    assert sorted(chain(*rows)) == list(range(size))
    assert all(piece == sorted(piece) for piece in rows)


def test_training_batches_fit_and_cover_the_data(tiny_data: Any) -> None:
    data = tiny_data(batch_size=16)
    loader = data.train_dataloader()
    rows = torch.cat([batch.rows for batch in loader])
    assert sorted(rows.tolist()) == list(range(64))
    assert data.sample_shape == (1, 8, 8)
    batch = next(iter(loader))
    assert torch.equal(batch.clean, data.data[0].clean[batch.rows])


def test_validation_has_held_out_rows_and_seeds(tiny_data: Any) -> None:
    data = tiny_data(val_samples=10, eval_batch_size=4)
    held_out, seeds = data.val_dataloader()
    assert torch.equal(torch.cat([batch.clean for batch in held_out]), data.data[1].clean)
    assert torch.cat([batch.seeds for batch in seeds]).tolist() == list(range(10))
    assert [len(batch.seeds) for batch in seeds] == [4, 4, 2]


def test_validation_without_samples_has_one_loader(tiny_data: Any) -> None:
    assert len(tiny_data(val_samples=0).val_dataloader()) == 1


def test_test_and_predict_have_their_own_seeds(tiny_data: Any) -> None:
    data = tiny_data(test_samples=5, predict_samples=3)
    assert torch.cat([batch.seeds for batch in data.test_dataloader()]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch.seeds for batch in data.predict_dataloader()]).tolist() == [0, 1, 2]


def test_data_are_built_once(tiny_data: Any) -> None:
    data = tiny_data()
    assert data.data[0] is data.data[0]


def test_the_state_brings_back_the_place_in_the_stream(tiny_data: Any) -> None:
    uninterrupted = [batch.rows.tolist() for batch in tiny_data().train_dataloader()]
    first = tiny_data()
    stream = iter(first.train_dataloader())
    drawn = [next(stream).rows.tolist() for _ in range(2)]
    state = first.state_dict()

    second = tiny_data()
    second.load_state_dict(state)  # before the loader exists, as in a resumed fit
    drawn += [batch.rows.tolist() for batch in second.train_dataloader()][:2]
    assert drawn == uninterrupted

    third = tiny_data()
    loader = third.train_dataloader()
    third.load_state_dict(state)  # and after
    assert next(iter(loader)).rows.tolist() == uninterrupted[2]


def test_there_is_no_state_before_training(tiny_data: Any) -> None:
    assert tiny_data().state_dict() == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 0}, "expects batch_size >= 1, got 0"),
        ({"eval_batch_size": -1}, "expects eval_batch_size >= 1, got -1"),
        ({"val_samples": -1}, "expects val_samples in 0 .. 1,000,000,000, got -1"),
        ({"test_samples": 10**12}, "expects test_samples in 0 .. 1,000,000,000, got 1,000,000,000,000"),
    ],
)
def test_sizes_out_of_range_are_refused_at_once(tiny_data: Any, settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny_data(**settings)


def test_a_set_beyond_memory_is_refused_before_it_is_drawn() -> None:
    with pytest.raises(ValueError, match=r"at most 10,000,000, but samples \+ held_out is 1,000,000,000,128"):
        GeneratedDataModule(samples=10**12)
