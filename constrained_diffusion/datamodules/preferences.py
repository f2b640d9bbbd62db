"""`PreferenceDataModule`: pairs of molecules as pairs of token sequences, with which of the two was preferred."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from constrained_diffusion.domains.polymers.coding import OneHot
from constrained_diffusion.domains.polymers.preferences.pairs import Preferences, read_preferences
from constrained_diffusion.domains.polymers.preferences.simulated import simulate_preferences
from constrained_diffusion.domains.polymers.spelling import along_backbone
from constrained_diffusion.domains.polymers.split import preferences_and_judge, train_and_held_out
from constrained_diffusion.domains.polymers.table import NAME, read_table
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows, as_is


class PreferenceDataModule(DiffusionDataModule):
    """Pairs as `(2, V, length)`, one-hot, with the outcome as their target: 1, 0, or 0.5 for a tie.

    Molecules are split before pairs are looked at: a held-out pair has two molecules that no training pair has. Pairs
    with one of each are left out.

    Args:
        pairs: a table of preferences (`preferences.pairs`). Without one they are *simulated* from the conductivities of
            a table of polymers (`preferences.simulated`), without the quarter for a judge (`polymers.parts`).
        table: that table, or the folder of PolyGen's; the folder `polymers` below CONSTRAINED_DIFFUSION_DATA when not
            given, else `data/polymers`.
        count: simulated training pairs; a tenth as many are held out.
        beta: how sure simulated preferences are; the merit is the conductivity to this power.
        keep_contradictions: see `read_preferences`.
        tokens: the vocabulary without END; that of the molecules when not given. A generator's, to judge its samples.
        notation: of the tokens; see `polymers.notation`.
        length: of a sequence, in tokens.
        held_out: share of the molecules that is kept for validation.
        split_seed: keys the split and the simulation.
        kwargs: see `DiffusionDataModule`.

    Raises:
        FileNotFoundError: no table.
        ValueError: a bad table, molecule or setting, or too few pairs.
        ImportError: the extra `polymer` is not installed.
    """

    def __init__(
        self,
        pairs: str | None = None,
        table: str | None = None,
        count: int = 5000,
        beta: float = 6.0,
        keep_contradictions: bool = False,
        tokens: list[str] | None = None,
        notation: str = "valence",
        length: int = 34,
        held_out: float = 0.1,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pairs = None if pairs is None else Path(pairs)
        self.table = Path(table or Path(os.environ.get("CONSTRAINED_DIFFUSION_DATA", "data"), "polymers"))
        self.count, self.beta, self.keep_contradictions = count, beta, keep_contradictions
        self.tokens, self.notation, self.length = tokens, notation, length
        self.held_out, self.split_seed = held_out, split_seed

    @cached_property
    def preferences(self) -> tuple[Preferences, Preferences]:
        """Training pairs and held-out ones."""
        if self.pairs is not None:
            told = read_preferences(self.pairs, self.keep_contradictions, along_backbone)
            sides = train_and_held_out(len(told.smiles), self.held_out, self.split_seed)
            train, held_out = (told.among(set(rows)) for rows in sides)
        else:
            units = read_table(self.table / NAME if self.table.suffix == "" else self.table)
            rest, kept = train_and_held_out(len(units.smiles), self.held_out, self.split_seed)
            sides = preferences_and_judge(rest)[0], kept
            train, held_out = (
                simulate_preferences(
                    [units.smiles[row] for row in rows], units.conductivity[rows], count, self.beta, seed
                )
                for rows, count, seed in zip(
                    sides,
                    (self.count, max(1, self.count // 10)),
                    (self.split_seed, self.split_seed + 1),
                    strict=True,
                )
            )
        if not len(train.pairs) or not len(held_out.pairs):
            raise ValueError(
                f"'{self.pairs}' leaves {len(train.pairs)} pairs to train on and {len(held_out.pairs)} held out, since "
                "molecules are split, not pairs; expected some of each: give more pairs, or another share to hold out."
            )
        return train, held_out

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens given, or those of all molecules."""
        if self.tokens is not None:
            return Vocabulary(self.tokens, self.notation)
        units = (along_backbone(smiles) for told in self.preferences for smiles in told.smiles)
        return Vocabulary.of(units, self.notation)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        read = getattr(getattr(getattr(self.trainer, "lightning_module", None), "network", None), "vocabulary", None)
        if read is not None and not self.vocabulary.same_tokens(read):
            raise ValueError(
                f"the network reads {read.notation} with the tokens {' '.join(read.tokens[1:])}, but the data has "
                f"{self.notation} with {' '.join(self.vocabulary.tokens[1:])}; give both the same, in the same order."
            )

    def build(self) -> tuple[TensorRows, TensorRows]:
        train, held_out = self.preferences
        return self._rows(train), self._rows(held_out)

    def _rows(self, told: Preferences) -> TensorRows:
        units = [along_backbone(smiles) for smiles in told.smiles]
        clean: Tensor = OneHot(len(self.vocabulary)).encode(self.vocabulary.encode(units, self.length))
        return TensorRows(clean[told.pairs], target=told.outcomes)

    def test_dataloader(self) -> Any:
        return self._in_order(self.data[1], collate_fn=as_is)
