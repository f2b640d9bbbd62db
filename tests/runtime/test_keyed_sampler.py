"""The order of training data: a function of (seed, position), whatever the ranks and the interruptions."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch
from torch import distributed

from constrained_diffusion.runtime.data import TensorRows, as_is
from constrained_diffusion.runtime.keyed_sampler import KeyedSampler


def make(size: int, batch_size: int, monkeypatch: pytest.MonkeyPatch, rank: int = 0, world: int = 1) -> KeyedSampler:
    """A sampler as rank `rank` of `world` would construct it."""
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "is_initialized", lambda: world > 1)
        patch.setattr(distributed, "get_world_size", lambda: world)
        patch.setattr(distributed, "get_rank", lambda: rank)
        return KeyedSampler(size, batch_size, seed=3)


def batches(sampler: KeyedSampler, count: int) -> list[list[int]]:
    """The next `count` batches of this rank, over as many passes as it takes."""
    found: list[list[int]] = []
    while len(found) < count:
        stream = iter(sampler)
        while len(found) < count and (batch := list(islice(stream, sampler.share))):
            found.append(batch)
    return found


def test_a_pass_is_a_permutation_and_the_next_another_one() -> None:
    sampler = KeyedSampler(20, 4, seed=0)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert len(sampler) == 20


def test_what_fills_no_batch_is_left_out_and_differs_from_pass_to_pass() -> None:
    sampler = KeyedSampler(22, 4, seed=0)
    left_out = []
    for _ in range(20):
        rows = list(sampler)
        assert len(rows) == len(set(rows)) == len(sampler) == 20
        left_out.append(frozenset(range(22)) - set(rows))
    assert len(set(left_out)) > 10


def test_the_seed_decides() -> None:
    assert list(KeyedSampler(20, 4, seed=0)) == list(KeyedSampler(20, 4, seed=0))
    assert list(KeyedSampler(20, 4, seed=0)) != list(KeyedSampler(20, 4, seed=1))


@pytest.mark.parametrize(("size", "world"), [(48, 2), (50, 2), (53, 4)])
def test_the_ranks_pieces_are_one_ranks_batch(monkeypatch: pytest.MonkeyPatch, size: int, world: int) -> None:
    one = batches(make(size, 3 * world, monkeypatch), 20)
    pieces = [batches(make(size, 3 * world, monkeypatch, rank, world), 20) for rank in range(world)]
    for position, batch in enumerate(one):
        assert list(chain(*(piece[position] for piece in pieces))) == batch


@pytest.mark.parametrize("done", [1, 4, 5, 7, 10])
def test_a_resume_from_a_position_goes_on_with_the_same_rows(done: int) -> None:
    uninterrupted = batches(KeyedSampler(20, 4, seed=0), 15)
    before = KeyedSampler(20, 4, seed=0)
    batches(before, done)
    after = KeyedSampler(20, 4, seed=0)
    after.position = before.position
    assert batches(after, 15 - done) == uninterrupted[done:]


def test_the_position_is_that_of_the_batch_drawn_last() -> None:
    sampler = KeyedSampler(20, 4, seed=0)
    assert sampler.position == -1
    stream = iter(sampler)
    for position in range(5):
        batch = list(islice(stream, 4))
        assert sampler.position == position
        assert sampler.rows(position) == batch


def test_repeat_draws_the_last_batches_again() -> None:
    plain = batches(KeyedSampler(20, 4, seed=0), 6)
    sampler = KeyedSampler(20, 4, seed=0)
    stream = iter(sampler)
    drawn = []
    for again in (1, 1, 0, 2, 0):  # how many batches to draw once more after each
        drawn.append(list(islice(stream, 4)))
        sampler.repeat(again)
    assert drawn == [plain[0], plain[0], plain[0], plain[1], plain[0]]
    assert batches(sampler, 1) == [plain[1]]


def test_repeat_goes_back_over_the_end_of_a_pass() -> None:
    sampler = KeyedSampler(8, 4, seed=0)
    first = batches(sampler, 2)
    second = batches(sampler, 1)
    sampler.repeat(2)
    assert batches(sampler, 2) == [first[1], second[0]]


def test_through_a_data_loader() -> None:
    rows = TensorRows(torch.arange(20.0)[:, None])
    sampler = KeyedSampler(20, 4, seed=0)
    loader = torch.utils.data.DataLoader(rows, 4, sampler=sampler, drop_last=True, collate_fn=as_is)
    assert len(loader) == 5
    expected = batches(KeyedSampler(20, 4, seed=0), 10)
    drawn = []
    for _ in range(2):
        for batch in loader:
            drawn.append(batch.clean[:, 0].int().tolist())
            assert sampler.position == len(drawn) - 1  # the loader does not run ahead
            assert batch.rows.tolist() == drawn[-1]
    assert drawn == expected


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_any_number_of_ranks_makes_the_same_steps(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    samplers = [make(50, 16, monkeypatch, rank, world) for rank in range(world)]
    assert {(s.batches, s.batch_size, s.share, len(s)) for s in samplers} == {(3, 16, 16 // world, 48 // world)}


@pytest.mark.parametrize(("batch_size", "world", "instead"), [(16, 3, 15), (2, 4, 4)])
def test_ranks_that_cannot_share_a_batch_evenly_are_refused(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, world: int, instead: int
) -> None:
    said = rf"expected a multiple of {world} for {world} ranks, got {batch_size}; take {instead}, or another number"
    with pytest.raises(ValueError, match=said):
        make(64, batch_size, monkeypatch, world=world)


@pytest.mark.parametrize("world", [1, 2])
def test_too_little_data_is_refused(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    with pytest.raises(ValueError, match="3 items, fewer than one batch of 4;"):
        make(3, 4, monkeypatch, world=world)
