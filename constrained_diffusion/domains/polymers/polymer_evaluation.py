"""`PolymerEvaluation`: are generated strings repeat units, new and various ones, and what does a judge say of them?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from constrained_diffusion.domains.polymers.coding import coding as named_coding
from constrained_diffusion.domains.polymers.drawing import unit_pictures
from constrained_diffusion.domains.polymers.judge import load_judge
from constrained_diffusion.domains.polymers.merit import BradleyTerryMerit
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN
from constrained_diffusion.domains.polymers.reference import Reference
from constrained_diffusion.domains.polymers.repeat_units import is_valid, require_rdkit
from constrained_diffusion.domains.polymers.spelling import along_backbone
from constrained_diffusion.domains.polymers.unit_metrics import clean_samples, polymer_figures
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.evaluation import Evaluation, Figure
from constrained_diffusion.objectives import Constraint, Reward, RewardAtLeast, measure_reward
from constrained_diffusion.statistics import clopper_pearson_interval, clopper_pearson_upper

REWARD_BIN, JUDGE_BIN = 0.25, 0.05  #: widths of the bins of distributions, in nats and in decades
MOST_BINS = 200  #: of one distribution
SHARES = {"validity": "n", "uniqueness": "valid", "novelty": "distinct", "synthesizability": "clean"}  #: of how many


FIGURES = (  #: in the order of reports
    Figure("validity_rate", "valid", "rate", "more", headline=True),
    Figure("as_written_rate", "valid as written", "rate", "more"),
    Figure("uniqueness_rate", "unique, of the valid", "rate", "more"),
    Figure("novelty_rate", "new, of the distinct", "rate", "more"),
    Figure("synthesizability_rate", "synthesizable, of the clean", "rate", "more"),
    Figure("similarity", "similarity to the training units"),
    Figure("diversity", "diversity", "number", "more"),
    Figure("judge_high_rate", "in the judge's high class", "rate", "more"),
    Figure("judge_mean", "judge's mean log10 conductivity, S/cm", "number", "more", headline=True),
    Figure("judge_sd", "its standard deviation"),
    Figure("reward_mean", "mean of the fitted reward", "number", "more"),
    Figure("reward_sd", "standard deviation of the fitted reward"),
    Figure("respelt_reward_mean", "mean reward of valid units, spelt anew", "number", "more"),
    Figure("reward_distribution", "fitted reward", "distribution"),
    Figure("judge_distribution", "judge's log10 conductivity, S/cm", "distribution"),
)


class Sequences(Metric):
    """Token numbers `(n, L)` and rewards `(n,)` of all ranks' samples."""

    full_state_update = False
    numbers: list[Tensor]
    merits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("numbers", [], dist_reduce_fx="cat")
        self.add_state("merits", [], dist_reduce_fx="cat")

    def update(self, numbers: Tensor, merits: Tensor) -> None:
        """Add one batch."""
        self.numbers.append(numbers)
        self.merits.append(merits)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return both, on the CPU."""
        return dim_zero_cat(self.numbers).cpu(), dim_zero_cat(self.merits).double().cpu()


class PolymerEvaluation(Evaluation):
    """The six figures of polymer generation (`metrics.polymers`), the fitted reward, and an independent judge.

    A sample violates where it is no repeat unit, or where the judge, if any, does not place it in the high class.

    Args:
        reference: zoo weights or a folder with the vocabulary and the training units; see `polymers.reference`.
        judge: zoo weights or a folder with a judge (`polymers.judge`); None for none.
        coding: of the samples; see `polymers.coding`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or there is no such coding.
        ImportError: the extra `polymer` is not installed.
    """

    subject = "units that are invalid or below the judge's high class"
    figures = FIGURES

    def __init__(
        self,
        reference: str = "polymer_generator",
        judge: str | None = "polymer_judge",
        coding: str = "one_hot",
    ) -> None:
        super().__init__()
        require_rdkit()  # now, not after hours of training
        self.reference = Reference.load(reference)
        self.judge = None if judge is None else load_judge(judge)
        self.coding = named_coding(coding, len(self.reference.vocabulary))
        self.reward: Reward | None = None
        self.sequences = Sequences()

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Take the reward of the first `RewardAtLeast`, to show its distribution; forgets all samples.

        Raises:
            ValueError: it reads other tokens, or the same in another order.
        """
        reward = self.reward = next((c.reward for c in constraints if isinstance(c, RewardAtLeast)), None)
        model = reward.model if isinstance(reward, BradleyTerryMerit) else None
        read, written = model.vocabulary if isinstance(model, MeritCNN) else None, self.reference.vocabulary
        if read is not None and not written.same_tokens(read):
            raise ValueError(
                f"the preference model reads {read.notation} with the tokens {' '.join(read.tokens[1:])}, but the "
                f"generator writes {written.notation} with {' '.join(written.tokens[1:])}; train it with these."
            )
        self.reset()

    @torch.no_grad()
    def update(self, clean: Tensor) -> None:
        """Judge one batch of samples `(B, C, L)`, in [0, 1].

        Raises:
            ValueError: they have another number of channels than the coding, or some are not finite.
        """
        if clean.ndim != 3 or clean.shape[1] != self.coding.channels:
            raise ValueError(
                f"PolymerEvaluation expects samples (B, {self.coding.channels}, L), one value per channel of its "
                f"coding and the reference's vocabulary, got the shape {tuple(clean.shape)}; set its coding and "
                "reference to those of the generator."
            )
        if not bool(clean.isfinite().all()):
            raise ValueError(
                "an evaluation expects finite samples, got NaN or infinity; the model has diverged, so lower the "
                "learning rate or the penalty coefficient, or test an earlier checkpoint."
            )
        numbers, merits = self.coding.decode(clean), clean.new_zeros(len(clean))
        if self.reward is not None:  # a sample is its tokens, whatever it says beside them
            merits = self.reward.to(clean.device)(self.coding.encode(numbers).to(clean))
        self.sequences.update(numbers, merits)

    def compute(self) -> dict[str, Any]:
        """Return {"violation_rate", "violation_upper_95", "n", "metrics"}; call it on every rank.

        | metric | what |
        |---|---|
        | validity_rate, .., similarity, diversity | the six figures; shares have an interval, `.._rate_95` |
        | as_written_rate | share of all samples that are valid with no valence mended; see `polymers.notation` |
        | reward_mean, reward_sd | of the fitted reward over all samples, as tokens |
        | respelt_reward_mean | of valid ones, spelt anew: what a reward finds in the molecule, not in its spelling |
        | judge_high_rate | share of all samples that the judge places in the high class |
        | judge_mean, judge_sd | of its predicted log10 conductivity, in S/cm, over valid samples |
        | reward_distribution, judge_distribution | of either; see `distribution` |

        A figure that was not measured is None.

        Raises:
            ValueError: no sample was measured.
        """
        numbers, merits = self.sequences.compute()
        smiles = self.reference.vocabulary.decode(numbers)
        figures = polymer_figures(smiles, self.reference.known, self.reference.fingerprints)
        counts = clean_samples(smiles, self.reference.known)[1]._asdict()
        metrics: dict[str, Any] = {"similarity": figures["similarity"], "diversity": figures["diversity"]}
        for name, of in SHARES.items():
            share, count = figures[name], counts[of]
            metrics[f"{name}_rate"] = share
            metrics[f"{name}_rate_95"] = None if share is None else _interval(round(share * count), count)
        good = [string for string in smiles if is_valid(string)]
        if self.reference.vocabulary.notation == "valence":
            plain = Vocabulary(self.reference.vocabulary.tokens[1:], "postfix").decode(numbers)
            metrics["as_written_rate"] = sum(map(is_valid, plain)) / len(plain)
        if self.reward is not None:
            metrics |= {"reward_mean": float(merits.mean()), "reward_sd": float(merits.std(correction=0))}
            metrics["reward_distribution"] = distribution(merits, REWARD_BIN)
            if good:
                metrics["respelt_reward_mean"] = self._respelt_reward(good, numbers.shape[1])
        hits = len(good)
        if self.judge is not None:
            judged = self.judge.predict(good)
            hits = int((judged >= self.judge.threshold).sum())
            metrics |= {"judge_high_rate": hits / len(smiles), "judge_high_rate_95": _interval(hits, len(smiles))}
            if good:
                metrics |= {"judge_mean": float(judged.mean()), "judge_sd": float(judged.std(correction=0))}
                metrics["judge_distribution"] = distribution(judged, JUDGE_BIN)
        n = len(smiles)
        violations = {"violation_rate": 1 - hits / n, "violation_upper_95": clopper_pearson_upper(n - hits, n), "n": n}
        return {**violations, "metrics": metrics}

    @torch.no_grad()
    def _respelt_reward(self, units: list[str], length: int) -> float | None:
        """Return the mean reward of valid units, spelt along their backbone; None where no tensor holds any."""
        assert self.reward is not None
        vocabulary = self.reference.vocabulary
        spelt = [unit for unit in map(along_backbone, units) if vocabulary.fits(unit, length)]
        if not spelt:
            return None
        clean = self.coding.encode(vocabulary.encode(spelt, length))
        where = next(self.reward.parameters(), clean)
        return float(measure_reward(self.reward, clean.to(where)).double().mean())

    def reset(self) -> None:
        """Forget all samples."""
        self.sequences.reset()

    @torch.no_grad()
    def marks(self, clean: Tensor) -> list[str]:
        """Return "invalid" for what is no repeat unit, "violation" where the judge's class is not the high one."""
        smiles = self._strings(clean)
        good = [string for string in smiles if is_valid(string)]
        below: set[str] = set()
        if self.judge is not None and good:
            judged = self.judge.predict(good)
            low = (judged < self.judge.threshold).tolist()
            below = {string for string, is_low in zip(good, low, strict=True) if is_low}
        return ["violation" if one in below else "" if is_valid(one) else "invalid" for one in smiles]

    def pictures(self, clean: Tensor) -> Tensor:
        """Draw each unit; see `polymers.drawing`."""
        return unit_pictures(self._strings(clean))

    def _strings(self, clean: Tensor) -> list[str]:
        finite = clean.nan_to_num()  # a diverged model can still be drawn
        return self.reference.vocabulary.decode(self.coding.decode(finite).cpu())


def distribution(values: Tensor, width: float) -> dict[str, list[float]]:
    """Return a histogram of `values` `(n,)`, n >= 1: the middles of its bins, and the share of values in each.

    The bins are `width` wide, or as often twice that as it takes for a picture to show them.

    >>> distribution(torch.tensor([0.1, 0.2, 1.3]), 0.5)
    {'x': [0.25, 0.75, 1.25], 'share': [0.6666666666666666, 0.0, 0.3333333333333333]}
    """
    while (values.max() - values.min()) / width > MOST_BINS:
        width *= 2
    bins = (values.double() / width).floor().long()
    shares = (bins - bins.min()).bincount().double() / len(values)
    return {"x": [(int(bins.min()) + i + 0.5) * width for i in range(len(shares))], "share": shares.tolist()}


def _interval(hits: int, n: int) -> list[float] | None:
    return list(clopper_pearson_interval(hits, n)) if n else None
