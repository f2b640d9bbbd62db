"""The domains: each a folder that holds all that is special to it, its classes, figures, networks and zoo entries."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType

from constrained_diffusion.runtime.cards import ZooEntry

GROUP = "constrained_diffusion.domains"  #: the entry points by which installed packages offer domains of their own


def load() -> list[ModuleType]:
    """Import every domain, ours and those that installed packages offer, so that their classes go by bare names.

    Raises:
        ImportError: a package's entry point names a domain that cannot be imported; the message names the package.
    """
    ours = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    return [*ours, *map(_offered, entry_points(group=GROUP))]


def zoo_entries() -> dict[str, ZooEntry]:
    """Return what the domains declare as `ENTRIES` in a module `zoo_entries`, by name; some have none."""
    found: dict[str, ZooEntry] = {}
    for domain in load():
        name = f"{domain.__name__}.zoo_entries"
        if hasattr(domain, "__path__") and find_spec(name) is not None:
            found |= import_module(name).ENTRIES
    return found


def _offered(entry: object) -> ModuleType:
    name, value = getattr(entry, "name", "?"), getattr(entry, "value", "?")
    try:
        module: ModuleType = import_module(str(value))
    except Exception as error:
        raise ImportError(
            f"the domain '{name}' ({value}), which an installed package offers as an entry point of '{GROUP}', cannot "
            f"be imported ({type(error).__name__}: {error}); mend that package, or uninstall it."
        ) from error
    return module
