"""`certificate.json`: what is certain of samples that were drawn until they satisfied their constraints.

Two shares come with their exact bounds. All draws together are an inverse sample (each seed stops at its first feasible
one), so the acceptance rate has the interval of the negative binomial. The accepted samples are independent of each
other, so what the judge finds among them has the one-sided bound of Clopper and Pearson.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from constrained_diffusion.callbacks.output.results import versions
from constrained_diffusion.constraint_rates import judges_samples
from constrained_diffusion.diffusion.rejection import InfeasibleError, RejectionResult
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.reports.table import percent
from constrained_diffusion.runtime.files import rename_existing, write_json
from constrained_diffusion.runtime.ranks import gather_from_ranks
from constrained_diffusion.runtime.run_folder import RunFolder
from constrained_diffusion.statistics import clopper_pearson_upper, inverse_sampling_interval

Row = tuple[int, int, bool]  # seed, draws, accepted


class Certificate(Callback):
    """Writes `<run>/samples/certificate.json` after a `predict` with `rejection`, and prints it as a sentence.

    The command line adds it by itself. `certificate` holds what was written, on every rank.
    """

    def __init__(self) -> None:
        self.certificate: dict[str, Any] = {}
        self._rows: list[Row] = []

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.certificate, self._rows = {}, []
        if _rejects(pl_module) and pl_module.evaluation is not None:
            pl_module.evaluation.reset()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not isinstance(outputs, RejectionResult):
            return
        self._rows += zip(batch.seeds.tolist(), outputs.draws.tolist(), outputs.accepted.tolist(), strict=True)
        if not bool(outputs.accepted.all()):
            raise StopIteration  # Lightning ends this rank's loop; all ranks then fail together, and none waits
        if pl_module.evaluation is not None:
            pl_module.evaluation.update_asked(outputs.samples, batch.condition)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not _rejects(pl_module):
            return
        rows = sorted(row for part in gather_from_ranks(self._rows) for row in part)
        check_rows(rows, pl_module.rejection.max_draws)
        evaluation = pl_module.evaluation
        measured = None if evaluation is None else {"by": type(evaluation).__name__, **evaluation.compute()}
        named = zip(pl_module.steering.names, pl_module.steering.constraints, strict=True)
        self.certificate = {
            **certify(rows, dict(named), measured),
            "max_draws": pl_module.rejection.max_draws,
            "sampler": pl_module.evaluator.sampler_settings,
            "precision": str(trainer.precision),
            "weights_sha256": pl_module.networks.weights_sha256()["after"],
            "versions": versions(),
            "seeds": [row[0] for row in rows],
            "draws_per_seed": [row[1] for row in rows],
        }

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        # After every `on_predict_end`, so that the samples lie there, whatever the order of the callbacks.
        if stage != "predict" or not self.certificate or not trainer.is_global_zero:
            return
        file = RunFolder.of(trainer).certificate
        file.parent.mkdir(parents=True, exist_ok=True)
        rename_existing(file)
        write_json(file, self.certificate)
        print(self.certificate["sentence"])


def check_rows(rows: Sequence[Row], max_draws: int) -> None:
    """Raise where there is nothing to certify.

    Raises:
        InfeasibleError: a seed found no feasible sample.
        ValueError: a seed came twice; its samples would count as two, and are one.
    """
    without = [seed for seed, _, accepted in rows if not accepted]
    if without:
        drawn = sum(draws for _, draws, _ in rows)
        found = len(rows) - len(without)
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise InfeasibleError(
            f"no feasible sample in max_draws={max_draws} draws of seed {', '.join(map(str, without[:3]))}{more} "
            f"({found} feasible among {drawn} drawn so far); nothing was written; fit longer, raise the constraint's "
            "tolerance or threshold, or give more draws (model.init_args.rejection.max_draws)."
        )
    seeds = [seed for seed, _, _ in rows]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"a certificate expects independent samples, one per seed, got {len(set(seeds))} different seeds among "
            f"{len(seeds)}; give each seed once, and to one rank."
        )


def certify(
    rows: Sequence[Row], constraints: Mapping[str, Constraint], measured: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the certificate of accepted samples, JSON-ready.

    Args:
        rows: of each sample its seed, how many draws it took, and True.
        constraints: by their names; those that do not judge samples are named apart.
        measured: what `Evaluation.compute` returned for the samples, with the evaluation's name as "by"; None without
            one.
    """
    n, draws = len(rows), sum(row[1] for row in rows)
    judging = {name: c for name, c in constraints.items() if judges_samples(c)}
    rate = None if measured is None else measured.get("violation_rate")
    judge: dict[str, Any] | None = None
    if measured is not None and rate is not None:
        violations = round(rate * measured["n"])
        bound = {"violations": violations, "violation_upper_95": clopper_pearson_upper(violations, measured["n"])}
        judge = {**measured, **bound}
    facts: dict[str, Any] = {
        "n": n,
        "draws": draws,
        "acceptance_rate": n / draws,
        "acceptance_interval_95": list(inverse_sampling_interval(n, draws)),
        "constraints": [
            {"name": name, "tolerance": torch.as_tensor(c.tolerance).tolist()} for name, c in judging.items()
        ],
        "not_judging_samples": [name for name in constraints if name not in judging],
        "judge": judge,
    }
    return {"sentence": sentence(facts), **facts}


def sentence(certificate: Mapping[str, Any]) -> str:
    """Return the certificate in one sentence."""
    n, draws, judge = certificate["n"], certificate["draws"], certificate["judge"]
    rules = " and ".join(f"{c['name']} (g <= {_number(c['tolerance'])})" for c in certificate["constraints"])
    low, high = map(percent, certificate["acceptance_interval_95"])
    text = (
        f"{n:,} of {n:,} samples satisfy {rules} by their own g; accepted {n:,} of {draws:,} drawn "
        f"({percent(n / draws)}, 95 % interval {low} to {high})"
    )
    if certificate["not_judging_samples"]:
        text += f"; {', '.join(certificate['not_judging_samples'])} judges no samples and has no say"
    if judge is None:
        return f"{text}; no independent judge has looked at them."
    upper = percent(judge["violation_upper_95"], up=True)
    return f"{text}; the independent judge finds {judge['violations']:,} of {judge['n']:,} (upper 95 % bound {upper})."


def _rejects(module: Any) -> bool:
    return getattr(module, "rejection", None) is not None


def _number(tolerance: Any) -> str:
    return f"{tolerance:g}" if isinstance(tolerance, int | float) else str(tolerance)
