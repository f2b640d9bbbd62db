"""`PolymerDataModule`: repeat units of polymers as sequences of tokens."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_info

from constrained_diffusion.domains.polymers.coding import coding
from constrained_diffusion.domains.polymers.reference import Reference
from constrained_diffusion.domains.polymers.repeat_units import canonical
from constrained_diffusion.domains.polymers.spelling import along_backbone
from constrained_diffusion.domains.polymers.split import train_and_held_out
from constrained_diffusion.domains.polymers.table import NAME, Table, fetch, high_threshold, read_table
from constrained_diffusion.domains.polymers.vocabulary import LABELS, Vocabulary
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

Task = Literal["all", "high", "conditional"]
Spelling = Literal["backbone", "as_given"]


class PolymerDataModule(DiffusionDataModule):
    """Repeat units as `(C, length)` in [0, 1], in the order of their tokens.

    Units are split into training and held-out ones before anything is repeated, so that no held-out unit is seen in
    training; the reference splits after it has repeated the high class eighteenfold.

    Args:
        path: a table of repeat units (`polymers.table`), or the folder that PolyGen's lies in; the folder `polymers`
            below the environment variable CONSTRAINED_DIFFUSION_DATA when not given, else `data/polymers`.
        download: fetch PolyGen's table where it is missing.
        task: "all" units; those of the "high" class alone (the upper 5.3 % of conductivities); or "conditional", where
            a token behind each unit names its class, and the high class is repeated until there are as many of either.
        coding: "one_hot", "analog_bits" or "ordinal" (PolyGen's); see `polymers.coding`.
        notation: "smiles", "postfix" or "valence", in which any tokens make a molecule; see `polymers.notation`.
        spelling: "backbone", along which units are spelt anew (`polymers.spelling`), or "as_given" by the table.
        length: of a sample, in tokens; PolyGen's table needs 33 in postfix and 34 in SMILES, one more with a class;
            its own config has 64.
        held_out: share of the units that is kept for the held-out loss.
        split_seed: keys the split.
        skip_invalid: leave out rows that are no repeat unit, rather than refuse the file.
        kwargs: see `DiffusionDataModule`.

    Raises:
        FileNotFoundError: no table, and download is off.
        ValueError: a bad table or setting.
        ImportError: the extra `polymer` is not installed.
    """

    def __init__(
        self,
        path: str | None = None,
        download: bool = False,
        task: Task = "all",
        coding: str = "one_hot",
        notation: str = "valence",
        spelling: Spelling = "backbone",
        length: int = 34,
        held_out: float = 0.1,
        split_seed: int = 0,
        skip_invalid: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if task not in get_args(Task) or spelling not in get_args(Spelling):
            raise ValueError(
                f"PolymerDataModule expects a task of {', '.join(get_args(Task))} and a spelling of "
                f"{', '.join(get_args(Spelling))}, got '{task}' and '{spelling}'."
            )
        if not 0 < held_out < 1 or length < 1:
            raise ValueError(f"expected held_out in (0, 1) and a length of at least 1, got {held_out} and {length}.")
        self.path = Path(path or Path(os.environ.get("CONSTRAINED_DIFFUSION_DATA", "data"), "polymers"))
        self.download, self.task, self.length = download, task, length
        self.coding, self.notation, self.spelling = coding, notation, spelling
        self.held_out, self.split_seed, self.skip_invalid = held_out, split_seed, skip_invalid

    def prepare_data(self) -> None:
        if self.download:
            fetch(self.path)

    @cached_property
    def table(self) -> Table:
        """All distinct units of the file, spelt as they are learnt."""
        table = read_table(self.path / NAME if self.path.suffix == "" else self.path, self.skip_invalid)
        if table.skipped:
            rank_zero_info(f"'{self.path}': {table.skipped} rows are no repeat units and are left out.")
        if self.spelling == "as_given":
            return table
        return table._replace(smiles=[along_backbone(smiles) for smiles in table.smiles])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the table, and those of the two classes where they are used."""
        return Vocabulary.of([*self.table.smiles, *(LABELS if self.task == "conditional" else ())], self.notation)

    @cached_property
    def split(self) -> tuple[list[int], list[int]]:
        """Rows of the table to train on, and those held out; of either only the high class where that is the task."""
        sides = train_and_held_out(len(self.table.smiles), self.held_out, self.split_seed)
        train, held_out = ([row for row in rows if self.task != "high" or self._high[row]] for rows in sides)
        if not train or not held_out:
            raise ValueError(
                f"'{self.path}' leaves {len(train)} units to train on and {len(held_out)} held out for the task "
                f"'{self.task}'; expected some of each: give a larger table, or another share to hold out."
            )
        return train, held_out

    def build(self) -> tuple[TensorRows, TensorRows]:
        train, held_out = self.split
        if self.task == "conditional":
            high = [row for row in train if self._high[row]]
            low = [row for row in train if not self._high[row]]
            if not high or not low:
                raise ValueError(
                    f"the task 'conditional' expects units of both classes, but '{self.path}' leaves {len(low)} of the "
                    f"low and {len(high)} of the high one to train on; give a larger table, or the task 'all'."
                )
            train = low + (high * -(-len(low) // len(high)))[: len(low)]
        return self._rows(train), self._rows(held_out)

    def export(self, folder: Path) -> None:
        """Write the vocabulary and the training units, which make the folder a `reference` of `PolymerEvaluation`."""
        Reference(self.vocabulary, [self.table.smiles[row] for row in self.split[0]]).save(folder)

    @cached_property
    def _high(self) -> list[bool]:
        return (self.table.conductivity >= high_threshold(self.table.conductivity)).tolist()

    def _rows(self, rows: list[int]) -> TensorRows:
        units = [self.table.smiles[row] for row in rows]
        written = [unit + LABELS[self._high[row]] for unit, row in zip(units, rows, strict=True)]
        numbers = self.vocabulary.encode(written if self.task == "conditional" else units, self.length)
        for unit, read in zip(units, self.vocabulary.decode(numbers), strict=True):
            if canonical(read) != canonical(unit):
                raise ValueError(
                    f"'{unit}' of '{self.path}' is another molecule in the notation '{self.notation}', '{read}'; leave "
                    "the row out, or take the notation 'postfix', which allows any valence."
                )
        return TensorRows(coding(self.coding, len(self.vocabulary)).encode(numbers))
