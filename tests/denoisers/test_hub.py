"""What is fetched of a pipeline on the hub, and when."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from constrained_diffusion.denoisers.hub import download


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`hub(source)`: a hub whose only repository is that folder; it returns the names that each request brought."""

    def serve(source: Path) -> list[list[str]]:
        requests: list[list[str]] = []

        def fetch(name: str, allow_patterns: list[str]) -> str:
            files = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
            chosen = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)]
            new = [file for file in chosen if not (tmp_path / "cache" / file).exists()]
            for file in new:
                (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, tmp_path / "cache" / file)
            requests.append(sorted(new))
            return str(tmp_path / "cache")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        return requests

    return serve


@pytest.fixture
def repository(folders: Any, tmp_path: Path) -> Path:
    """The pipeline "sd" with all that people upload beside it."""
    shutil.copytree(folders["sd"], tmp_path / "repository")
    for name in ("README.md", "v1-5.ckpt", "v1-5-pruned.safetensors", "evil.py", "safety_checker/model.safetensors"):
        (tmp_path / "repository" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "repository" / name).write_text("much")
    for file in [*(tmp_path / "repository").glob("*/*.safetensors")]:
        (file.with_name(file.name.replace(".", ".fp16.", 1))).write_text("half")
        (file.with_suffix(".bin")).write_text("a pickle")
    return tmp_path / "repository"


@pytest.mark.parametrize(("variant", "middle"), [(None, ""), ("fp16", ".fp16")])
def test_configs_come_first_and_then_the_weights_of_one_variant(
    hub: Any, repository: Path, variant: str | None, middle: str
) -> None:
    requests = hub(repository)
    download("owner/name", variant)
    configs, weights = requests
    assert not any(name.endswith((".safetensors", ".bin", ".ckpt", ".py")) for name in configs)
    assert {"model_index.json", "tokenizer/tokenizer_config.json"} <= set(configs)
    assert weights == [
        f"text_encoder/model{middle}.safetensors",
        f"unet/diffusion_pytorch_model{middle}.safetensors",
        f"vae/diffusion_pytorch_model{middle}.safetensors",
    ]


def test_pickled_weights_come_where_there_are_no_others(hub: Any, repository: Path) -> None:
    for file in repository.rglob("*.safetensors"):
        file.unlink()
    requests = hub(repository)
    download("owner/name")
    assert [len(names) for names in requests[1:]] == [0, 3]


def test_no_weights_are_fetched_of_what_is_refused(hub: Any, repository: Path) -> None:
    index = json.loads((repository / "model_index.json").read_text())
    (repository / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "UNet"]}))
    requests = hub(repository)
    with pytest.raises(ValueError, match="names a part of 'evil', whose code is not trusted"):
        download("owner/name")
    assert len(requests) == 1
