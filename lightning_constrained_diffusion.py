"""Where the commands begin: beside the package, to tell when another module named `constrained_diffusion` hides it.

The package is imported as `constrained_diffusion`. So is a module of another project, the distribution
`constrained-diffusion`; whichever comes first on `sys.path` is found, and a file `constrained_diffusion.py` there has
no command line. The two live together only in one folder, where Python takes a package before a file.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

STRANGER = "constrained-diffusion"  #: the distribution of another project that installs such a file


def main() -> None:
    """Run the command line of `constrained_diffusion`, or end with status 2 and a sentence where that is hidden."""
    spec = find_spec("constrained_diffusion")
    if spec is not None and spec.submodule_search_locations is None:  # a file; finding it has not run it
        print(f"error: {_hidden(Path(str(spec.origin)))}", file=sys.stderr)
        sys.exit(2)
    from constrained_diffusion.cli import main as run

    run()


def _hidden(file: Path) -> str:
    try:
        theirs = Path(str(distribution(STRANGER).locate_file(file.name))).resolve() == file.resolve()
    except PackageNotFoundError:
        theirs = False
    owner = f"of another project, the distribution '{STRANGER}'" if theirs else "of something else"
    mend = f"pip uninstall {STRANGER}" if theirs else "rename it, or take its folder off Python's path"
    return f"'{file}', a module {owner}, hides the package constrained_diffusion, which these commands run: {mend}"
