"""Files that others wrote, read so that they can do nothing but be wrong.

Nothing in them is executed, what they claim of sizes is checked before memory is taken, and whatever is the matter with
one ends in a ValueError of one sentence that names it. Every part of the package reads foreign files through here.
"""

from constrained_diffusion.runtime.untrusted.documents import check_config, parse_json, read_json, restrict_configs
from constrained_diffusion.runtime.untrusted.pictures import open_picture
from constrained_diffusion.runtime.untrusted.weights import (
    HoldsObjectsError,
    check_archive,
    no_larger_than,
    read_checkpoint,
    read_tensors,
)

__all__ = [
    "HoldsObjectsError",
    "check_archive",
    "check_config",
    "no_larger_than",
    "open_picture",
    "parse_json",
    "read_checkpoint",
    "read_json",
    "read_tensors",
    "restrict_configs",
]
