"""The type check covers what a user imports, and the package says that it has types."""

import sys
from importlib.resources import files
from pathlib import Path

import pytest

import bifusion_hf


ROOT = Path(__file__).parents[1]


def test_the_package_says_that_it_has_types():
    assert files("bifusion_hf").joinpath("py.typed").is_file()
    assert "    py.typed\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_every_public_name_is_of_a_checked_file():
    import tomllib

    checked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["files"]
    assert all((ROOT / name).exists() for name in checked)
    for name in bifusion_hf.__all__:
        module = getattr(getattr(bifusion_hf, name), "__module__", "bifusion_hf")
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py", str(Path(path).parent)} & set(checked), name
