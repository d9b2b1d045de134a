import importlib.metadata
import os
import shutil
from types import SimpleNamespace

import pytest
from torch import nn

from bifusion_hf.training.environment_check import EnvironmentCheck, _version


def test_the_disk_has_to_hold_ten_copies_of_the_weights(tmp_path, monkeypatch):
    check = SimpleNamespace(
        arguments=SimpleNamespace(output_dir=tmp_path / "new" / "run"), model=nn.Linear(1000, 1000, bias=False)
    )
    free = [40_000_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]) if path == tmp_path else None)
    assert EnvironmentCheck._output(check).startswith(f"{tmp_path / 'new' / 'run'}, 0 GB free")
    free[0] -= 1
    with pytest.raises(ValueError, match=r"run: 0\.0 GB free, checkpoints need 0\.0 GB"):
        EnvironmentCheck._output(check)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot write in"):
        EnvironmentCheck._output(check)


@pytest.mark.parametrize(
    ("package", "distribution"), [("torch", "torch"), ("PIL", "pillow"), ("yaml", "PyYAML"), ("no_such_package", None)]
)
def test_versions_are_found_by_the_name_of_the_import_too(package, distribution):
    assert _version(package) == (distribution and importlib.metadata.version(distribution))
