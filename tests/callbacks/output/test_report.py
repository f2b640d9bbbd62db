import base64
import csv
import io
import itertools
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from constrained_diffusion.callbacks.output.report import MAX_GRIDS, Report, read_metrics, write_report
from constrained_diffusion.callbacks.output.sample_grid import draw_grid

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]
HOSTILE = "<script>alert(1)</script>"
SIDE = {
    "violation_rate": 0.1, "violation_upper_95": 0.12, "n": 2000,
    "own_violation_rate": 0.1, "own_violation_upper_95": 0.12,
    "metrics": {"class_histogram": [200] * 10, "total_variation": 0.02, "non_digit_rate": 0.1, "fid": 8.0, "kid": 0.02},
}  # fmt: skip
RESULTS = {
    "before": SIDE, "after": {**SIDE, "violation_rate": 0.002}, "status": "feasible", "label": 4, "cost": "FID 7.00",
    "seconds": {"fit": 240.04, "test": None}, "config": "mnist", "sampler": {"steps": 20, "eta": 0.0},
    "seeds": [0, 1999], "versions": {"torch": "2.9"}, "weights_sha256": {"before": "ab" * 32, "after": "cd" * 32},
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text outside and inside <style>."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.text, self.open, self.captions = html, [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data.replace("\xa0", " ")
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def grid(run, name, shade=0.5):
    (run / "grids").mkdir(exist_ok=True)
    draw_grid(torch.full((2, 1, 4, 4), shade), ["violation", ""], 2).save(run / "grids" / f"{name}.png")


@pytest.fixture
def run(tmp_path):
    """A run folder with everything in it."""
    folder = tmp_path / "mnist" / "3"
    folder.mkdir(parents=True)
    columns = {
        "loss/total": 0.2, "loss/diffusion": 0.1, "penalty/Rule": 0.01, "penalty_coefficient/Rule": 0.05,
        "violation_rate/Rule": 0.1, "val/fid": 8.0, "val/violation_rate": 0.1, "val/violation_upper_95": 0.12,
        "val/own_violation_rate": 0.1, "val/own_violation_upper_95": 0.12, "val/diffusion_loss": 0.03,
    }  # fmt: skip
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "epoch", *columns])
        writer.writeheader()
        for step in range(4):
            writer.writerow({"step": step, "epoch": step, **{k: v / (1 + step) for k, v in columns.items()}})
    (folder / "config.yaml").write_text("model:\n  max_violation_rate: 0.01\ncallbacks:\n- stop_below: 1.0e-3\n")
    (folder / "results.json").write_text(json.dumps(RESULTS))
    for name in ("before", "after", "epoch-000", "epoch-010", "epoch-002"):
        grid(folder, name)
    return folder


def test_the_page_needs_nothing_but_itself(run):
    html = page(run)
    assert not html.all("script")
    assert not html.all("link")
    for tag, attrs in html.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", html.html))
    assert "@import" not in html.html
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]+", html.html)) <= namespaces


def test_the_page_shows_every_part_in_order(run):
    html = page(run)
    parts = [
        "mnist / 3", "feasible: fours fell from 10.0 % to 0.2 %", "Cost: FID 7.00", "Before and after",
        "fours (upper 95 % bound)", "Samples", "Samples through the fit", "Course of the fit", "Settings", "stop_below",
    ]  # fmt: skip
    places = [html.text.index(part) for part in parts]
    assert places == sorted(places)
    assert html.captions == [
        "before", "after", "epoch 0", "epoch 2", "epoch 10", "class shares", "validation: FID and violations",
        "validation: the constraint's own g", "penalty P, raw, in units of g squared", "penalty coefficient C",
        "training loss", "held-out diffusion loss", "violations in training batches",
    ]  # fmt: skip
    assert len(html.all("svg")) == 8
    for fact in ("steps 20, eta 0.0", "0 to 1,999", "fit 240.0 s", "torch 2.9", "before " + "ab" * 32):
        assert fact in html.text
    assert {"tau = 0.001", "allowed: 1 %"} <= set(re.findall(r">([^<>]+)</text>", html.html))
    assert "prefers-color-scheme:dark" in html.html
    assert any(meta.get("name") == "viewport" for meta in html.all("meta"))


def test_pictures_come_back_as_they_were_written(run):
    images = page(run).all("img")
    names = ("before", "after", "epoch 0", "epoch 2", "epoch 10")
    assert [image["alt"] for image in images] == [f"samples, {name}" for name in names]
    data = base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,"), validate=True)
    assert data == (run / "grids/before.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def test_the_same_files_give_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert not list(run.glob("*.part"))


def test_hostile_names_are_shown_and_not_obeyed(run):
    evil = run.with_name(HOSTILE.replace("/", "\u2215"))
    run.rename(evil)
    results = json.loads(json.dumps(RESULTS).replace('"mnist"', json.dumps(HOSTILE)))
    results |= {"status": HOSTILE, "cost": HOSTILE, "label": 4, "versions": {HOSTILE: HOSTILE}, "seeds": [HOSTILE]}
    results["after"]["metrics"][HOSTILE] = 1.0
    (evil / "results.json").write_text(json.dumps(results))
    image = "</pre><img src=http://example.org/x.png onerror=alert(1)>"
    (evil / "config.yaml").write_text(f"name: {HOSTILE}\nend: {image}\n")
    metrics = (evil / "metrics.csv").read_text().replace("loss/total", f"loss/{HOSTILE}")
    (evil / "metrics.csv").write_text(metrics)
    html = page(evil)
    assert not html.all("script")
    assert len(html.all("img")) == 5
    assert html.text.count(HOSTILE) >= 7  # status, cost, metric, config, versions, seeds, legend
    assert HOSTILE not in html.html


@pytest.mark.parametrize("present", [["config.yaml"], ["metrics.csv"], ["results.json"], ["grids"], []])
def test_what_is_missing_is_left_out_with_a_note(run, present):
    for path in run.iterdir():
        if path.name not in present:
            path.rename(run.parent / path.name)
    html = page(run)
    notes = {
        "config.yaml": "There is no config.yaml.",
        "results.json": "not tested yet",
        "grids": "No sample grids were drawn.",
        "metrics.csv": "penalty coefficient C",  # among what was not measured
    }
    for name, note in notes.items():
        drawn = "penalty coefficient C" in html.captions
        assert (drawn if name == "metrics.csv" else note not in html.text) == (name in present), name
    assert "penalty coefficient C" in html.text


def test_after_a_fit_the_last_validation_speaks(run):
    (run / "results.json").unlink()
    (run / "status.json").write_text(json.dumps({"status": "infeasible", "cost": "FID 9"}))
    text = page(run).text
    assert "infeasible, not tested yet: no results.json." in text
    assert "(epoch 3) found 2.5 % violations (upper 95 % bound 3.0 %)." in text
    assert "Cost: FID 9" in text
    metrics = (run / "metrics.csv").read_text().replace("val/violation", "val/other")
    (run / "metrics.csv").write_text(metrics)
    assert "(epoch 3) found 2.5 % violations" in page(run).text  # by the constraint's own g, where nobody judges


def test_validations_within_one_epoch_are_drawn_over_steps(run):
    text = (run / "metrics.csv").read_text().splitlines()
    rows = [re.sub(r"^(\d+),\d+", r"\1,0", row) for row in text]
    (run / "metrics.csv").write_text("\n".join(rows))
    assert ">epoch</text>" not in page(run).html
    (run / "metrics.csv").write_text("\n".join(text))
    assert ">epoch</text>" in page(run).html


def test_truncated_results_are_an_error_that_says_so(run):
    earlier = write_report(run).read_bytes()
    content = (run / "results.json").read_text()
    for broken in (content[: len(content) // 2], "", "[1, 2]"):
        (run / "results.json").write_text(broken)
        with pytest.raises(ValueError, match=r"expected a complete JSON object in '.*results\.json'.*again.*or delete"):
            write_report(run)
    assert (run / "report.html").read_bytes() == earlier


@pytest.mark.parametrize("key", list(RESULTS))
@pytest.mark.parametrize("value", [None, "x", [1], {"metrics": None}, {"metrics": {"class_histogram": ["a"]}}, -1])
def test_results_of_unexpected_types_never_crash(tmp_path, key, value):
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, key: value}))
    assert "Before and after" in page(tmp_path).text


def test_a_broken_picture_is_named(run):
    (run / "grids/after.png").write_bytes(b"")
    assert "after: after.png is no PNG file." in page(run).text


def test_a_long_fit_shows_some_of_its_epochs(tmp_path):
    for epoch in range(60):
        grid(tmp_path, f"epoch-{epoch:03d}")
    html = page(tmp_path)
    shown = [int(caption.removeprefix("epoch ")) for caption in html.captions if caption.startswith("epoch ")]
    assert (len(shown), shown[0], shown[-1]) == (MAX_GRIDS, 0, 59)
    assert {b - a for a, b in itertools.pairwise(shown)} <= {2, 3}
    assert f"{MAX_GRIDS} of 60 epochs" in html.text


def test_without_matplotlib_the_rest_is_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    html = page(run)
    assert 'pip install "constrained-diffusion[image]"' in html.text
    assert not html.all("svg")
    assert len(html.all("img")) == 5


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expects a run folder"):
        write_report(tmp_path / "none")


class Logging(LightningModule):
    """Logs what a fine-tuning logs, at known values."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        self.log("penalty/Rule", 10.0**-self.global_step)
        self.log("penalty_coefficient/Rule", float(self.global_step))
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/violation_rate": 0.1 / (1 + self.current_epoch), "val/fid": float("nan")})

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_report_reads_what_lightning_logged(tmp_path, capsys):
    loader = DataLoader(TensorDataset(torch.ones(3, 1)))
    run = tmp_path / "tiny" / "1"
    trainer = Trainer(
        max_epochs=2, logger=CSVLogger(run, name="", version=""), log_every_n_steps=1, callbacks=[Report()],
        default_root_dir=run, accelerator="cpu", num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Logging()
    trainer.fit(model, loader, loader)
    metrics = read_metrics(run / "metrics.csv")
    assert [(p.step, p.value) for p in metrics["penalty_coefficient/Rule"]] == [(i, i) for i in range(6)]
    assert [(p.epoch, round(p.value, 6)) for p in metrics["val/violation_rate"]] == [(0, 0.1), (1, 0.05)]
    assert "val/fid" not in metrics  # not a number, so nothing to draw
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    after_fit = Page((run / "report.html").read_text())
    assert "(epoch 1) found 5.0 % violations." in after_fit.text
    assert "penalty P, raw, in units of g squared" in after_fit.captions

    (run / "results.json").write_text(json.dumps(RESULTS))
    trainer.test(model, loader, verbose=False)
    assert "fours fell from 10.0 % to 0.2 %" in Page((run / "report.html").read_text()).text
    assert capsys.readouterr().out.count("report: ") == 1


def test_distributions_are_drawn_for_both_sides(run):
    told = {"x": [0.5, 1.5, 2.5], "share": [0.25, 0.5, 0.25]}
    sides = {side: {**SIDE, "metrics": {"reward_distribution": told}} for side in ("before", "after")}
    (run / "results.json").write_text(json.dumps({**RESULTS, **sides}))
    assert "reward distribution" in page(run).captions
    text = write_report(run).read_text(encoding="utf-8")
    figure = text[text.index("<figcaption>reward distribution") :].split("</figure>")[0]
    assert ">before<" in figure
    assert ">after<" in figure


@pytest.mark.parametrize("told", [None, [1], {"x": [1, 2], "share": [1]}, {"x": ["a"], "share": ["b"]}, {"x": 1}])
def test_broken_distributions_never_crash(run, told):
    sides = {side: {**SIDE, "metrics": {"reward_distribution": told}} for side in ("before", "after")}
    (run / "results.json").write_text(json.dumps({**RESULTS, **sides}))
    assert "Before and after" in page(run).text


def test_half_a_results_file_ends_a_fit_before_it_trains(tmp_path):
    (tmp_path / "results.json").write_text('{"status": ')
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[Report()], default_root_dir=tmp_path, accelerator="cpu", **quiet)
    with pytest.raises(ValueError, match=r"complete JSON object in '.*results.json'"):
        trainer.fit(Logging(), DataLoader(TensorDataset(torch.ones(3, 1))))
    assert trainer.global_step == 0
