"""What a user can get wrong on the command line: one sentence, status 2, and everything on disk as it was."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse.typing import import_object  # type: ignore[attr-defined]

from constrained_diffusion import cli, objectives, runs
