"""Scenes on disk: one `.safetensors` file, written whole or not at all."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..io.atomic import new_file
from ..io.files import DataFileError
from ..version import __version__, check_checkpoint_version
from .merging import STRATEGIES, ObjectBank
from .voxel_map import SceneMap


if TYPE_CHECKING:
    from .session import SceneSession

FORMAT = "bifusion_hf scene"


def save_session(session: "SceneSession", path: str | Path) -> None:
    """Writes a session; see `SceneSession.save`."""
    from safetensors.numpy import save_file

    heights, widths, data = zip(*session._maps, strict=True) if session._maps else ((), (), ())
    tensors = {f"bank.{name}": value for name, value in session.bank.state().items()}
    tensors.update({f"map.{name}": value for name, value in session.map.state().items()})
    tensors["frames.poses"] = session.poses
    tensors["frames.sizes"] = np.array([heights, widths, [len(part) for part in data]], dtype=np.int64)
    tensors["frames.maps"] = np.frombuffer(b"".join(data), dtype=np.uint8)
    merging = {} if session.merging.name == "none" else asdict(session.merging)
    content = {
        "format": FORMAT,
        "bifusion_hf_version": __version__,
        "merging": {"name": session.merging.name, **merging},
        "threshold": session.threshold,
        "max_instances": session.max_instances,
        "voxel_size": session.voxel_size,
        "max_objects": session.max_objects,
        "keep_frames": session.keep_frames,
        "next_id": session.bank.next_id,
        "frame_ids": session.frame_ids,
        "notes": session.notes,
    }
    with new_file(path) as partial:
        arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(arrays, partial, {"scene": json.dumps(content)})


def load_session(kind: type["SceneSession"], path: str | Path, model, processor) -> "SceneSession":
    """The session of a file; see `SceneSession.load`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            content = json.loads((file.metadata() or {}).get("scene", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataFileError(path, f"is no readable scene ({error})") from error
    if content.get("format") != FORMAT:
        raise DataFileError(path, "is not the file of a scene")
    check_checkpoint_version(content["bifusion_hf_version"])
    settings = dict(content["merging"])
    names = ("threshold", "max_instances", "voxel_size", "max_objects", "keep_frames")
    session = kind(
        model,
        processor,
        merging=STRATEGIES[settings.pop("name")](**settings),
        **{name: content[name] for name in names},
    )

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    session.bank = ObjectBank.from_state(content["next_id"], part("bank."))
    session.map = SceneMap.from_state(session.voxel_size, part("map."))
    session.frame_ids, session.notes = list(content["frame_ids"]), dict(content["notes"])
    session._poses = list(tensors["frames.poses"])
    sizes = tensors["frames.sizes"]
    data = tensors["frames.maps"].tobytes()
    ends = np.cumsum(sizes[2])
    session._maps = [
        (int(height), int(width), data[end - length : end])
        for (height, width, length), end in zip(sizes.T, ends, strict=True)
    ]
    return session
