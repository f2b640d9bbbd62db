"""The zoo's polymers: the generator, the preference model and the judge, each measured on units that it never saw."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.samples import draw
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.domains.polymers.coding import OneHot
from constrained_diffusion.domains.polymers.judge import Judge
from constrained_diffusion.domains.polymers.polymer_evaluation import PolymerEvaluation
from constrained_diffusion.domains.polymers.preferences.model import load_merits
from constrained_diffusion.domains.polymers.split import preferences_and_judge
from constrained_diffusion.runtime import cards
from constrained_diffusion.runtime.cards import DataMaker, ZooEntry
from constrained_diffusion.runtime.stored_networks import CONFIG, WEIGHTS

COUNT = 1000  #: seeds 0 .. 999
SAMPLER = Sampler(steps=50, eta=1.0, spacing="linspace")  #: of the configs that start from the generator
APART = 0.2  #: decades of conductivity, from which on two units are far apart
DATA = "PolyGen's table of 6,024 repeat units with simulated conductivities (Yang et al. 2024, from HTP-MD)"
LICENCE = "CC0-1.0"


def generator(target: Path, export: Path, make_data: DataMaker, count: int = COUNT) -> cards.Card:
    """Copy an exported generator to `target`, write what it was trained on, and measure it."""
    model = PretrainedDenoiser(str(export))  # refuses an export that is not whole, before anything is overwritten
    data = make_data()
    shutil.rmtree(target)
    shutil.copytree(export, target, ignore=shutil.ignore_patterns("training.json"))
    data.export(target)
    started = time.perf_counter()
    samples = draw(model, SAMPLER, count)
    seconds = (time.perf_counter() - started) / count
    evaluation = PolymerEvaluation(str(target), judge=None)
    evaluation.update(samples)
    figures = {key: value for key, value in evaluation.compute()["metrics"].items() if value is not None}
    return cards.Card(
        name=target.name,
        summary="A small Unet1D that writes repeat units of polymers along their backbone, as postfix tokens read "
        f"by valence, (B, {model.sample_shape[0]}, {model.sample_shape[1]}) in [0, 1], one channel per token.",
        data=f"{DATA}: nine tenths of the units, spelt along their backbone; the other tenth is held out",
        data_licence=LICENCE,
        command="lightning fit --config pretrain/polymer.yaml",
        training=json.loads((export / "training.json").read_text()),
        figures={
            "parameters": sum(p.numel() for p in model.parameters()),
            f"{SAMPLER.steps} steps, eta {SAMPLER.eta:g}, n": count,
            "seconds_per_unit": seconds,
            **figures,
        },
        notes=[
            "EMA weights of the last step.",
            "units.txt: the units that it was trained on; vocabulary.json: its tokens.",
        ],
    )


def preference(target: Path, export: Path, make_data: DataMaker) -> cards.Card:
    """Copy an exported preference model to `target`, and measure it on the order of held-out units' conductivities."""
    model, data = load_merits(str(export)), make_data()
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(export / file, target / file)
    train, held_out = data.split
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    for name, rows in (("held_out", held_out), ("judge_part", preferences_and_judge(train)[1])):
        units = [data.table.smiles[row] for row in rows]
        clean = OneHot(len(model.vocabulary)).encode(model.vocabulary.encode(units, data.length))
        figures |= {f"{name}_{key}": value for key, value in pair_accuracy(
            model(clean), data.table.conductivity[rows]).items()}  # fmt: skip
    return cards.Card(
        name=target.name,
        summary="A Bradley-Terry model of polymers: s_BT(x), the log merit of a repeat unit, from its tokens.",
        data=f"5,000 *simulated* preferences between units of {DATA}; the merit is the conductivity to the power 6",
        data_licence=LICENCE,
        command="lightning fit --config preference.yaml",
        training=json.loads((export / "training.json").read_text()),
        figures=figures,
        notes=[
            "Nobody was asked: the preferences are drawn from simulated conductivities.",
            "Accuracies are of the true order of conductivities, over all pairs of units that it never saw: the "
            "held-out tenth, and the quarter that the judge is fitted on.",
        ],
    )


def pair_accuracy(merits: Tensor, conductivity: Tensor) -> dict[str, float]:
    """Return the share of pairs in the right order, over all pairs and over those more than 0.2 decades apart.

    Args:
        merits: `(n,)`.
        conductivity: in S/cm, `(n,)`.

    >>> pair_accuracy(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 1.1, 9.0]))
    {'pair_accuracy': 0.3333333333333333, 'far_pair_accuracy': 0.0, 'pairs': 3}
    """
    first, second = torch.triu_indices(len(merits), len(merits), 1)
    gap = conductivity.log10()[first] - conductivity.log10()[second]
    right = ((merits[first] > merits[second]) == (gap > 0)).double()
    far = right[gap.abs() > APART]
    return {"pair_accuracy": float(right.mean()), "far_pair_accuracy": float(far.mean()), "pairs": len(right)}


def judge(target: Path, export: Path, make_data: DataMaker) -> cards.Card:
    """Fit the judge on its quarter of the training units, and measure it on held-out ones; `export` is not needed."""
    data = make_data()
    smiles, values = data.table.smiles, data.table.conductivity.log10()
    train, held_out = data.split
    rows = preferences_and_judge(train)[1]
    started = time.perf_counter()
    fitted = Judge.fit([smiles[row] for row in rows], values[rows], smiles)
    fitted.save(target)
    seconds = time.perf_counter() - started
    predicted, true = fitted.predict([smiles[row] for row in held_out]), values[held_out]
    ranks = torch.stack([predicted.argsort().argsort(), true.argsort().argsort()]).double()
    return cards.Card(
        name=target.name,
        summary="The judge of polymers: kernel ridge regression of log10 conductivity on counts of substructures.",
        data=f"{DATA}: the quarter of the training units that preferences are not about",
        data_licence=LICENCE,
        command="python -m constrained_diffusion.cli.build_zoo polymer_judge",
        training={"units": len(rows), "seconds": round(seconds)},
        figures={
            "held_out_n": len(held_out),
            "held_out_r2": 1 - float((predicted - true).square().mean() / true.var(correction=0)),
            "held_out_rank_correlation": float(torch.corrcoef(ranks)[0, 1]),
            "threshold_log10_conductivity": fitted.threshold,
            "share_of_real_units_above": float((fitted.predict(smiles) >= fitted.threshold).double().mean()),
        },
    )


ENTRIES = {
    "generator": ZooEntry("polymer_generator", generator, "PolymerDataModule"),
    "preference": ZooEntry("polymer_preference", preference, "PolymerDataModule"),
    "polymer_judge": ZooEntry("polymer_judge", judge, "PolymerDataModule"),
}
