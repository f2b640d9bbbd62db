import logging
from datetime import timedelta

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from constrained_diffusion.callbacks.output import sample_grid
from constrained_diffusion.callbacks.output.sample_grid import (
    BACKGROUND,
    RED,
    YELLOW,
    SampleGrid,
    cell_origin,
    draw_grid,
)
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.randomness import keyed_normal

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]


class MeanBelow(Constraint):
    """g = mean pixel - 0.5."""

    def forward(self, clean):
        return clean.flatten(1).mean(1) - 0.5


class Brightness(Evaluation):
    """Bright samples violate, very dark ones are invalid."""

    def update(self, clean):
        pass

    def compute(self):
        return {}

    def reset(self):
        pass

    def marks(self, clean):
        means = clean.flatten(1).mean(1)
        return ["violation" if m > 0.55 else "invalid" if m < 0.45 else "" for m in means.tolist()]


class Painter(LightningModule):
    """The smallest module with the interface that the callback speaks to."""

    def __init__(self, shape=(1, 8, 9), constraints=(), evaluation=None):
        super().__init__()
        self.shape, self.evaluation = shape, evaluation
        self.steering = Steering(constraints)
        self.level = nn.Parameter(torch.tensor(0.1))
        self.calls = []

    def sample(self, seeds, weights="ema"):
        self.calls.append((list(seeds), weights))
        level = 0.5 if weights == "pretrained" else self.level
        return (keyed_normal([(s,) for s in seeds], self.shape) * 0.2 + level).clamp(0, 1)

    def training_step(self, batch, batch_idx):
        return (self.level - batch[0].mean()).square()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(torch.ones(2, 1)), batch_size=1)


def trainer(run, *callbacks, **settings):
    defaults = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
                "enable_model_summary": False, "accelerator": "cpu", "default_root_dir": run}  # fmt: skip
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def read(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def pixels(image):
    return np.asarray(image).astype(int)


def cell_of(image, index, columns, height, width, scale):
    x, y = cell_origin(index, columns, height, width, scale)
    return pixels(image)[y : y + height * scale, x : x + width * scale]


def frame_of(image, index, columns, height, width, scale):
    """The pixels just outside a cell, once around."""
    x, y = cell_origin(index, columns, height, width, scale)
    box = pixels(image)[y - 1 : y + height * scale + 1, x - 1 : x + width * scale + 1]
    return np.concatenate([box[0], box[-1], box[1:-1, 0], box[1:-1, -1]])


def share(frame, colour):
    return (frame == np.array(colour)).all(-1).mean()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_every_pixel_is_where_it_belongs(channels, scale):
    images = torch.rand(5, channels, 4, 7, generator=torch.Generator().manual_seed(0))
    grid = draw_grid(images, [], columns=2, scale=scale)
    for index, image in enumerate(images):
        expected = (image * 255).round().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        expected = expected.expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert (cell_of(grid, index, 2, 4, 7, scale) == expected).all()
        assert share(frame_of(grid, index, 2, 4, 7, scale), BACKGROUND) == 1


def test_outlines_have_colour_and_style_and_touch_neither_pixels_nor_neighbours():
    images = torch.full((6, 1, 28, 28), 0.5)
    grid = draw_grid(images, ["", "violation", "", "invalid", "", ""], columns=3)
    frames = [frame_of(grid, i, 3, 28, 28, 2) for i in range(6)]
    assert RED[0] > 200 > 2 * max(RED[1:])
    assert min(YELLOW[:2]) > 200 > 2 * YELLOW[2]
    assert [share(f, RED) for f in frames] == [0, 1, 0, 0, 0, 0]
    assert [share(f, YELLOW) > 0 for f in frames] == [False, False, False, True, False, False]
    assert 0.4 < share(frames[3], YELLOW) < 0.75  # dashed
    assert share(frames[3], YELLOW) + share(frames[3], BACKGROUND) == 1
    assert all((cell_of(grid, i, 3, 28, 28, 2) == 128).all() for i in range(6))


def test_dashes_are_the_same_on_opposite_sides():
    grid = pixels(draw_grid(torch.zeros(1, 1, 10, 20), ["invalid"], columns=1))
    x, y = cell_origin(0, 1, 10, 20, 2)
    line = y // 2
    box = grid[y - line : y + 20 + line, x - line : x + 40 + line]
    assert (box[0] == box[-1]).all()
    assert (box[:, 0] == box[:, -1]).all()
    assert (box[0] == box[0, ::-1]).all()
    assert (box[0, 0] == YELLOW).all()


def test_the_legend_counts():
    images = torch.zeros(8, 1, 28, 28)

    def strip(marks, caption=""):
        grid = draw_grid(images, marks, columns=8, caption=caption)
        return pixels(grid)[cell_origin(0, 8, 28, 28, 2)[1] + 56 + 6 :]

    one, other_one, two = (
        strip(["violation"] + [""] * 7), strip([""] * 7 + ["violation"]), strip(["violation"] * 2 + [""] * 6)
    )  # fmt: skip
    assert (one == other_one).all()
    assert one.shape != two.shape or (one != two).any()
    assert share(one.reshape(-1, 3), RED) > 0
    assert share(one.reshape(-1, 3), YELLOW) > 0
    unjudged = strip([]).reshape(-1, 3)
    assert share(unjudged, RED) == share(unjudged, YELLOW) == 0
    assert (unjudged.max(-1) > 150).any()  # but there is text


def test_values_outside_the_range_and_transparency():
    grid = draw_grid(torch.tensor([-3.0, 9.0, float("nan")]).reshape(3, 1, 1, 1), [], columns=3, scale=2)
    assert [int(cell_of(grid, i, 3, 1, 1, 2)[0, 0, 0]) for i in range(3)] == [0, 255, 0]
    clear = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 4, 1, 1)
    assert tuple(cell_of(draw_grid(clear, [], columns=1), 0, 1, 1, 1, 2)[0, 0]) == BACKGROUND


@pytest.mark.parametrize(
    ("images", "marks", "columns", "match"),
    [
        (torch.zeros(2, 5), [], 1, r"shape \(2, 5\)"),
        (torch.zeros(2, 2, 4, 4), [], 1, "C = 1, 3 or 4"),
        (torch.zeros(2, 1, 4, 4), [""], 1, "got 1 for 2"),
        (torch.zeros(1, 1, 4, 4), ["bad"], 1, "unknown mark 'bad'"),
        (torch.zeros(1, 1, 4, 4), [], 0, "got 0 and 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(images, marks, columns, match):
    with pytest.raises(ValueError, match=match):
        draw_grid(images, marks, columns)


def test_a_fit_draws_every_epoch_with_the_weights_of_that_epoch(tmp_path, loader):
    model = Painter(evaluation=Brightness())
    trainer(tmp_path, SampleGrid(samples=6, columns=3)).fit(model, loader, loader)
    assert sorted(p.name for p in (tmp_path / "grids").iterdir()) == ["epoch-000.png", "epoch-001.png"]
    assert model.calls == [([0, 1, 2, 3, 4, 5], "ema")] * 2  # none for the sanity check
    first, last = (read(tmp_path / f"grids/epoch-00{i}.png") for i in (0, 1))
    images = model.sample(range(6)).detach()
    expected = draw_grid(images, model.evaluation.marks(images), 3, 2, "epoch 1")
    assert (pixels(last) == pixels(expected)).all()
    assert pixels(first).shape != pixels(last).shape or (pixels(first) != pixels(last)).any()


def test_every_n_epochs_and_the_last(tmp_path, loader):
    trainer(tmp_path, SampleGrid(samples=1, every_n_epochs=3), max_epochs=6).fit(Painter(), loader, loader)
    assert sorted(p.stem for p in (tmp_path / "grids").iterdir()) == ["epoch-000", "epoch-003", "epoch-005"]


def test_validate_alone_leaves_the_grids_of_the_fit(tmp_path, loader):
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids/epoch-000.png").write_bytes(b"of the fit")
    trainer(tmp_path, SampleGrid(samples=1)).validate(Painter(), loader, verbose=False)
    assert (tmp_path / "grids/epoch-000.png").read_bytes() == b"of the fit"


def test_test_draws_before_and_after_on_the_same_seeds(tmp_path, loader):
    model = Painter(constraints=[MeanBelow()], evaluation=Brightness())
    trainer(tmp_path, SampleGrid(samples=4, columns=2)).test(model, loader, verbose=False)
    assert model.calls == [([0, 1, 2, 3], "pretrained"), ([0, 1, 2, 3], "ema")]
    images = model.sample(range(4), weights="pretrained")
    expected = draw_grid(images, model.evaluation.marks(images), 2, 2, "before")
    assert (pixels(read(tmp_path / "grids/before.png")) == pixels(expected)).all()
    assert (tmp_path / "grids/after.png").is_file()


def test_a_pretraining_has_no_before_and_no_judge(tmp_path, loader):
    model = Painter()
    trainer(tmp_path, SampleGrid(samples=4)).test(model, loader, verbose=False)
    assert [p.name for p in (tmp_path / "grids").iterdir()] == ["after.png"]
    assert model.calls == [([0, 1, 2, 3], "ema")]


def test_samples_that_are_no_images_are_left_alone_and_it_says_so_once(tmp_path, loader, caplog):
    model = Painter(shape=(7,))
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        trainer(tmp_path, SampleGrid(samples=4)).fit(model, loader, loader)
    assert sum("SampleGrid draws images" in record.message for record in caplog.records) == 1
    assert not (tmp_path / "grids").exists()
    assert len(model.calls) == 1


class Striped(Brightness):
    """Draws plans (tokens, frames, channels) as pictures of 90 x 70."""

    def pictures(self, clean):
        return clean.flatten(1).mean(1)[:, None, None, None].expand(-1, 3, 90, 70)


def test_plans_are_drawn_by_the_evaluation_and_not_taken_for_images(tmp_path, loader):
    model = Painter(shape=(3, 10, 4), constraints=[MeanBelow()], evaluation=Striped())
    trainer(tmp_path, SampleGrid(samples=4, columns=2)).test(model, loader, verbose=False)
    plans = model.sample(range(4), weights="pretrained")
    marks = model.evaluation.marks(plans)
    expected = draw_grid(model.evaluation.pictures(plans), marks, 2, 1, "before")
    assert (pixels(read(tmp_path / "grids/before.png")) == pixels(expected)).all()
    assert (tmp_path / "grids/after.png").is_file()
    undrawn = Painter(shape=(3, 10, 4), evaluation=Brightness())
    trainer(tmp_path / "none", SampleGrid(samples=4)).test(undrawn, loader, verbose=False)
    assert not (tmp_path / "none" / "grids").exists()


def test_tensorboard_shows_the_same_pictures(tmp_path, loader):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    model = Painter(constraints=[MeanBelow()])
    fit = trainer(tmp_path, SampleGrid(samples=4), logger=logger, log_every_n_steps=1)
    fit.fit(model, loader, loader)
    fit.test(model, loader, verbose=False)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["samples", "samples/after", "samples/before"]
    assert [event.step for event in events.Images("samples")] == [2, 4]
    size = read(tmp_path / "grids/epoch-000.png").size
    assert {(event.width, event.height) for event in events.Images("samples")} == {size}


def test_settings_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 64, 0 and 1"):
        SampleGrid(columns=0)


class Collective(Painter):
    """Sampling that needs every rank, as with sharded weights."""

    def sample(self, seeds, weights="ema"):
        torch.distributed.all_reduce(torch.ones(1))
        return super().sample(seeds, weights)


def test_two_ranks_sample_together_and_one_draws(tmp_path, loader, monkeypatch):
    def draw_on_rank_zero(*args):
        assert torch.distributed.get_rank() == 0
        return draw_grid(*args)

    monkeypatch.setattr(sample_grid, "draw_grid", draw_on_rank_zero)
    model = Collective(constraints=[MeanBelow()], evaluation=Brightness())
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    both = trainer(tmp_path, SampleGrid(samples=2), strategy=strategy, devices=2, use_distributed_sampler=False)
    both.fit(model, loader, loader)
    both.test(model, loader, verbose=False)
    names = ["after.png", "before.png", "epoch-000.png", "epoch-001.png"]
    assert sorted(p.name for p in (tmp_path / "grids").iterdir()) == names
