"""The section of a report that shows all samples in one picture, before and after."""

from __future__ import annotations

from pathlib import Path

from constrained_diffusion.reports.page import note, picture

SIDES = ("before", "after")


def file_name(name: str, side: str) -> str:
    """Return the name of the picture `name`, "" for the main one, of the side "before" or "after"."""
    return f"{name}_{side}.png" if name else f"{side}.png"


def overlays_section(folder: Path, legend: str) -> str:
    """Return a report's section (HTML) on the overlays in `folder`, "" where there are none.

    Args:
        folder: of the pictures.
        legend: what they show, as the evaluation tells.
    """
    others = {path.stem.rpartition("_")[0] for side in SIDES for path in folder.glob(f"*_{side}.png")}
    files = [folder / file_name(name, side) for name in ("", *sorted(others - {""})) for side in SIDES]
    found = [path for path in files if path.is_file()]
    if not found:
        return ""
    figures = [picture(path.stem.replace("_", ", "), path) for path in found]
    return "\n".join(["<h2>All samples in one picture</h2>", note(legend), '<div class="pair">', *figures, "</div>"])
