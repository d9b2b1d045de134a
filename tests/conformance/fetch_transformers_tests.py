"""Downloads the tests that transformers has for models, configurations and processors.

The wheel leaves them out; the source distribution of the same version has them, but for a few modules that they import
and that the tests of this project don't need. Those are replaced by stubs.

    python tests/conformance/fetch_transformers_tests.py FOLDER
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch(folder: Path) -> None:
    """Makes `folder` hold `tests/` and `utils/` of the installed version, unless it already does.

    Raises:
        subprocess.CalledProcessError: The download failed.
    """
    version_file = folder / "VERSION"
    if version_file.is_file() and version_file.read_text() == transformers.__version__:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        requirement = f"transformers=={transformers.__version__}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", temporary, requirement], check=True)
        (archive,) = Path(temporary).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            root = archive.name.removesuffix(".tar.gz")
            members = [member for member in tar.getmembers() if member.name.startswith(f"{root}/tests/")]
            tar.extractall(temporary, members, filter="data")
        shutil.copytree(Path(temporary) / root / "tests", folder / "tests")
    for name, text in STUBS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    version_file.write_text(transformers.__version__)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
