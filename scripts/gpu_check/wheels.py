"""Packages for a machine without a network: wheels that travel beside the tree, unpacked where Python finds them.

A wheel is a zip archive. Recompressed with LZMA, those of CUDA libraries shrink to half; pip reads them too.
"""

import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path


def install_wheels(folders: Sequence[Path], site: Path) -> list[str]:
    """Unpacks wheels into `site`, which goes first on the path of this process and those that it starts.

    Args:
        folders: Of wheels for this Python and machine.
        site: May hold those of earlier calls, which stay.

    Returns:
        Names of all wheels that `site` holds.

    Raises:
        ValueError: A folder holds no wheel, or a file is none.
    """
    marks = site / ".wheels"
    marks.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise ValueError(f"{folder} holds no wheel (*.whl)")
        for wheel in wheels:
            if not (marks / wheel.name).exists():
                _unpack(wheel, site)
                (marks / wheel.name).touch()
    sys.path.insert(0, str(site))
    return sorted(mark.name for mark in marks.iterdir())


def _unpack(wheel: Path, site: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in Path(name).parts:
                    raise ValueError(f"{wheel} holds {name!r}, which lies outside of it")
            archive.extractall(site)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel} is no wheel: {error}") from error
    # Some wheels keep their modules in a folder beside the others; scripts and headers are left there.
    for kind in ("purelib", "platlib"):
        for data in site.glob(f"*.data/{kind}"):
            shutil.copytree(data, site, dirs_exist_ok=True)
            shutil.rmtree(data)


def recompress(wheels: Sequence[Path], folder: Path) -> list[Path]:
    """The same wheels with LZMA's compression, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for wheel in wheels:
        target = folder / wheel.name
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as packed:
            for item in source.infolist():
                with source.open(item) as content, packed.open(_described(item), "w", force_zip64=True) as copy:
                    shutil.copyfileobj(content, copy, 1 << 20)
        made.append(target)
    return made


def _described(item: zipfile.ZipInfo) -> zipfile.ZipInfo:
    copied = zipfile.ZipInfo(item.filename, item.date_time)
    copied.compress_type, copied.external_attr = zipfile.ZIP_LZMA, item.external_attr
    return copied
