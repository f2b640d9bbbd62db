import copy
import math
import random
from dataclasses import asdict

import pytest

from constrained_diffusion.evaluation import Figure
from constrained_diffusion.reports.table import (
    before_after_table,
    figure,
    footnote,
    html_table,
    percent,
    rows,
    subject,
    verdict,
)

FIGURES = [
    asdict(Figure("class_histogram", "class shares", "histogram", marked=4)),
    asdict(Figure("total_variation", "total variation of the other nine", "distance", "less", headline=True)),
    asdict(Figure("non_digit_rate", "non-digits", "rate", "less")),
    asdict(Figure("fid", "FID", "number", "less", headline=True)),
    asdict(Figure("kid", "KID")),
]


@pytest.fixture
def results():
    before = {
        "violation_rate": 0.1018, "violation_upper_95": 0.11371, "n": 2000,
        "own_violation_rate": 0.131, "own_violation_upper_95": 0.14401,
        "constraints": {"NoFour": {"violation_rate": 0.131, "violation_upper_95": 0.14401, "n": 2000}},
        "metrics": {"class_histogram": [200] * 10, "total_variation": 0.0, "total_variation_noise_floor": 0.0,
                    "non_digit_rate": 0.124, "fid": 7.9, "kid": 0.0213},
    }  # fmt: skip
    after = {
        "violation_rate": 0.002, "violation_upper_95": 0.00456, "n": 2000,
        "own_violation_rate": 0.0, "own_violation_upper_95": 0.001497,
        "constraints": {"NoFour": {"violation_rate": 0.0, "violation_upper_95": 0.001497, "n": 2000}},
        "metrics": {"class_histogram": [222] * 4 + [4] + [222] * 5, "total_variation": 0.031,
                    "total_variation_noise_floor": 0.034, "non_digit_rate": 0.127, "fid": 6.93, "kid": 0.0187},
    }  # fmt: skip
    return {"before": before, "after": after, "status": "feasible", "figures": FIGURES, "subject": "fours"}


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.1018, "10.2 %"), (0.1, "10.0 %"), (0.01, "1.0 %"), (0.002, "0.2 %"), (0.00044, "0.04 %"), (0.0, "0 %"),
     (1e-5, "< 0.01 %"), (1.0, "100.0 %"), (None, "-"), (math.nan, "-"), ("0.5", "-"), (True, "-")],
)  # fmt: skip
def test_percentages_keep_small_rates_visible(share, text):
    assert percent(share) == text


def test_an_upper_bound_is_never_printed_below_its_value():
    draw = random.Random(0)
    for share in [draw.random() ** 3 for _ in range(500)]:
        printed = float(percent(share, up=True).removesuffix(" %").removeprefix("< "))
        assert 100 * share - 1e-6 <= printed <= 100 * share + (0.1 if share >= 0.01 else 0.01)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.9012, "7.9"), (12.34, "12.3"), (1234.5, "1,234"), (0.0213, "0.021"), (-0.5, "-0.5"), (0, "0"), (math.inf, "-")],
)
def test_plain_numbers(value, text):
    assert figure(value) == text


def test_rows_carry_bounds_floors_and_units(results):
    assert [tuple(row) for row in rows(results)] == [
        ("NoFour, by its own g (upper 95 % bound)", "13.1 % (14.5 %)", "0 % (0.15 %)"),
        ("fours, by the judge (upper 95 % bound)", "10.2 % (11.4 %)", "0.2 % (0.46 %)"),
        ("total variation of the other nine (noise floor), less is better", "0", "0.031 (0.034)"),
        ("non-digits, less is better", "12.4 %", "12.7 %"),
        ("FID, less is better", "7.9", "6.9"),
        ("KID", "0.021", "0.019"),
    ]
    assert footnote(results) == "n = 2,000 samples each"
    assert footnote({"before": {"n": 5000}, "after": {"n": 2000}}) == "n = 5,000 samples before, 2,000 after"
    assert footnote({"after": {"n": 64}}) == "n = 64 samples"
    assert footnote({}) == ""


def test_the_terminal_table_is_ascii_with_right_aligned_columns(results):
    lines = before_after_table(results).splitlines()
    assert lines[-1] == "n = 2,000 samples each"
    table = [lines[0], *lines[2:-1]]
    before_ends, after_ends = lines[0].index("before") + len("before"), len(lines[0])
    for line, row in zip(table[1:], rows(results), strict=True):
        assert line[:before_ends].endswith(row.before)
        assert line[:after_ends].endswith(row.after)
        assert len(line) == after_ends
    assert "\n".join(lines).isascii()


def test_other_domains_bring_their_own_metrics_and_leave_lines_out():
    results = {"after": {"violation_rate": 0.5, "metrics": {"path_length": 12.34, "collision_rate": 0.25, "note": "x"}}}
    assert [tuple(row) for row in rows(results)] == [
        ("violations, by the judge (upper 95 % bound)", "-", "50.0 %"),
        ("collision rate", "-", "25.0 %"),
        ("path length", "-", "12.3"),
    ]


def test_a_share_shows_its_interval():
    side = {"metrics": {"validity_rate": 0.88, "validity_rate_95": [0.86, 0.90004], "similarity": 0.25}}
    unmeasured = {"metrics": {"validity_rate": None, "validity_rate_95": None, "similarity": None}}
    assert [tuple(row) for row in rows({"before": side, "after": unmeasured})] == [
        ("similarity", "0.25", "-"),
        ("validity rate", "88.0 % (86.0 % to 90.1 %)", "-"),
    ]
    for broken in ([0.86], [0.86, 0.9, 0.95], "0.86", None):
        side["metrics"]["validity_rate_95"] = broken
        assert rows({"after": side})[1].after == "88.0 %"


def test_each_constraint_has_a_line_of_its_own():
    """Of ten samples six break the first rule, two the second, and two of these break both."""
    each = {"A": {"violation_rate": 0.6, "n": 10}, "B": {"violation_rate": 0.2, "violation_upper_95": 0.5069, "n": 10}}
    after = {"own_violation_rate": 0.6, "own_violation_upper_95": 0.85, "n": 10, "constraints": each}
    assert [tuple(row) for row in rows({"after": after})] == [
        ("A, by its own g (upper 95 % bound)", "-", "60.0 %"),
        ("B, by its own g (upper 95 % bound)", "-", "20.0 % (50.7 %)"),
        ("any constraint, by its own g (upper 95 % bound)", "-", "60.0 % (85.0 %)"),
    ]
    assert verdict({"status": "infeasible", "after": after}).splitlines() == [
        "infeasible.",
        "By own g: A at 60.0 % (n = 10); B at 20.0 % (upper 95 % bound 50.7 %, n = 10).",
    ]


@pytest.mark.parametrize("named", [None, 4, "", ["fours"]])
def test_what_violates_has_a_name(named):
    assert subject({"subject": "fours"}) == "fours"
    assert subject({"subject": named}) == "violations"


def test_the_verdict_says_what_happened_and_what_it_cost(results):
    assert verdict(results).splitlines() == [
        "feasible.",
        "By own g: NoFour fell from 13.1 % to 0 % (upper 95 % bound 0.15 %, n = 2,000).",
        "By the judge: fours fell from 10.2 % to 0.2 % (upper 95 % bound 0.46 %, n = 2,000); "
        "total variation of the other nine 0.03 (noise floor 0.03); FID fell from 7.9 to 6.9.",
    ]


def test_the_verdict_does_not_gloss_over_what_the_judge_found(results):
    results["after"]["violation_rate"] = 0.2
    results["after"]["metrics"] |= {"total_variation": 0.2, "fid": 22.0}
    status, own, judged = verdict(results).splitlines()
    assert (status, own.count("fell")) == ("feasible.", 1)
    assert judged.startswith("By the judge: fours rose from 10.2 % to 20.0 %")
    assert "total variation of the other nine 0.20 (noise floor 0.03)" in judged
    assert judged.endswith("FID rose from 7.9 to 22.0.")


def test_the_verdict_calls_a_change_below_the_printed_digits_none(results):
    results["after"]["violation_rate"] = 0.1019
    assert "fours stayed at 10.2 % (upper" in verdict(results)


def test_the_verdict_without_a_fit_or_a_judge(results):
    unfitted = copy.deepcopy(results) | {"status": "not fitted"}
    lines = verdict(unfitted).splitlines()
    assert (lines[0], lines[1][:29]) == ("not fitted.", "By own g: NoFour at 0 % (uppe")
    assert "By the judge: fours at 0.2 % (upper" in lines[2]
    assert "fell" not in verdict(unfitted)
    del results["figures"], results["after"]["violation_rate"]
    assert verdict(results).splitlines()[1:] == [
        "By own g: NoFour fell from 13.1 % to 0 % (upper 95 % bound 0.15 %, n = 2,000)."
    ]
    assert verdict({}) == "status unknown.\nNothing was measured."


def test_the_html_table_has_the_same_cells_and_escapes_names(results):
    results["after"]["metrics"]["<script>alert(1)</script>"] = 3.0
    page = html_table(results)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count('<th scope="row">') == len(rows(results)) == 7
    assert "<td>0.2&nbsp;% (0.46&nbsp;%)</td>" in page
    assert html_table({}) == ""


@pytest.mark.parametrize("broken", [{"before": None, "after": []}, {"after": {"metrics": None}}, {"after": {"n": "x"}}])
def test_results_of_another_shape_give_an_empty_table(broken):
    assert rows(broken) == []
    assert "Nothing was measured" in verdict(broken)
