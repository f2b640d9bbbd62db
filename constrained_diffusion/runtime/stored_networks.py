"""Networks that files may name by their class: the registry, and how small ones are written to a folder and read again.

Denoisers name their networks in their own config (`denoisers.config`); classifiers and preference models are in:

| file | what |
|---|---|
| config.json | the class, and the keyword arguments that make the network again |
| model.safetensors | its weights |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from constrained_diffusion.runtime import assets, untrusted
from constrained_diffusion.runtime.files import write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NETWORKS: dict[str, type[nn.Module]] = {}  #: classes that can be read again, by name; see `storable`
IMPORTERS: list[Callable[[], object]] = []  #: what imports the domains, whose classes then are in NETWORKS
_Network = TypeVar("_Network", bound=nn.Module)


def storable(cls: type[_Network]) -> type[_Network]:
    """Class decorator for networks that files may name: it registers the class under its name.

    The class has `settings`, the keyword arguments that make it again, or is a `ModelMixin` of diffusers, whose config
    says the same.

    Raises:
        ValueError: the name is taken by another class.
    """
    known = NETWORKS.get(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"'{cls.__name__}' is registered already, by {known.__module__}; choose another name.")
    NETWORKS[cls.__name__] = cls
    return cls


def find_network(name: str) -> type[nn.Module] | None:
    """Return the class that is registered as `name`, None where there is none.

    What a file names is looked up, never imported: where the name is unknown, all domains are imported, whatever it is.
    """
    if name not in NETWORKS:
        for load in IMPORTERS:
            load()
    return NETWORKS.get(name)


def save_network(module: nn.Module, folder: str | Path) -> None:
    """Write a network to `folder`, which is made.

    Raises:
        TypeError: its class is not `storable`.
    """
    name = type(module).__name__
    known = sorted(key for key, cls in NETWORKS.items() if not hasattr(cls, "save_pretrained"))  # diffusers has its own
    if name not in known or NETWORKS[name] is not type(module):
        raise TypeError(
            f"save_network expects one of {', '.join(known)}, got {name}; decorate your class with "
            "constrained_diffusion.runtime.stored_networks.storable, and give it `settings`."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, target / WEIGHTS)
    write_json(target / CONFIG, {"class": name, "init_args": module.settings})


def load_network(source: str | Path, base: type[_Network], kind: str) -> _Network:
    """Read a network from a zoo name or from a folder that `save_network` wrote.

    Args:
        source: the name, or the folder.
        base: the class that it must be of.
        kind: what such a network is called, for messages.

    Raises:
        ValueError: no such zoo entry or folder, an unknown class, or weights that are truncated or of another network.
        FileNotFoundError: the folder lacks one of the two files.
    """
    folder, known = _folder(source, kind), {name: cls for name, cls in NETWORKS.items() if issubclass(cls, base)}
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"a {kind}'s folder holds {CONFIG} and {WEIGHTS}; '{folder}' has no {' and no '.join(missing)}; "
            "write both with save_network."
        )
    try:
        config = untrusted.read_json(folder / CONFIG)
        name, arguments = str(config["class"]), dict(config["init_args"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{folder / CONFIG} should read {{"class": ..., "init_args": {{...}}}}, but it does not '
            f"({type(error).__name__}: {error}); export the {kind} again."
        ) from error
    if name not in known:
        raise ValueError(f"{folder / CONFIG} names the unknown class '{name}'; known are {', '.join(sorted(known))}.")
    weights, _ = untrusted.read_tensors(folder / WEIGHTS)
    try:
        with untrusted.no_larger_than(folder / WEIGHTS):
            network: Any = known[name](**arguments)
        network.load_state_dict(weights)
    except ValueError:
        raise
    except Exception as error:  # torch has many for sizes that are none
        raise ValueError(
            f"{folder / WEIGHTS} does not hold the weights of {name}({arguments}), which {CONFIG} beside it names: "
            f"{str(error).splitlines()[0]} Export both together."
        ) from error
    return network  # type: ignore[no-any-return]


def _folder(source: str | Path, kind: str) -> Path:
    if str(source) in assets.available():
        return assets.path(str(source))
    if Path(source).is_dir():
        return Path(source)
    raise ValueError(
        f"a {kind} is a zoo name or a folder with {CONFIG} and {WEIGHTS}; '{source}' is neither; "
        f"the zoo has {', '.join(assets.available()) or 'nothing'}."
    )
