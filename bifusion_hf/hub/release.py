"""Releases of models and data sets on the Hub.

A release is first a folder, complete and checked, and then one commit: the Hub shows the whole of it or nothing. Large
files that were sent before the commit are not visible, and a repeated upload does not send them again.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from PIL import Image

from ..data.frames import frame_from_row, load_frames
from ..evaluation.results import save_results
from ..io.checkpoint_files import is_network_error
from ..io.hub_files import pinned_name
from ..io.images import save_png
from ..modeling_bifusion import BiFusionForInstanceSegmentation
from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline
from ..processing_bifusion import BiFusionProcessor
from ..recipe.arguments import TrainArguments
from ..visualization import draw_instances
from . import remote_code_shim
from .model_card import DataDescription, dataset_card, model_card, read_front_matter


CARD = "README.md"
PICTURE = "picture.png"
METRICS = "metrics.json"
RECIPE = "recipe.yaml"
# Data sets whose terms forbid passing them on, by the `license_name` of their card.
PRIVATE_LICENSES = ("scannet-terms-of-use",)
BINARY_SUFFIXES = (".safetensors", ".parquet", ".png")
# What the Hub itself puts into a repository.
HUB_FILES = (".gitattributes",)


class ReleaseError(RuntimeError):
    """A release did not get to the Hub; the message says what is there and what to do."""


@dataclass(frozen=True)
class Published:
    """A release on the Hub.

    Args:
        url: Of the repository.
        commit: SHA to pin with `revision=`.
        tag: Name of the version, if any.
    """

    url: str
    commit: str
    tag: str | None


def write_model_release(
    folder: Path,
    checkpoint: str | Path,
    *,
    repo_id: str,
    results: Mapping[str, Any],
    recipe: TrainArguments,
    training_data: DataDescription,
    evaluation_data: DataDescription,
    license: str,
    base_model: str | None = None,
    tag: str | None = None,
    picture: Path | None = None,
    template: Path | None = None,
) -> None:
    """Writes the folder of a model's release: weights, processor, metrics, recipe, picture, card, remote code.

    Args:
        folder: Is made, and must be new or empty.
        checkpoint: Folder or id of the model and its processor.
        repo_id: Repository that the card speaks of.
        results: In the form of `bifusion_hf.evaluation.results`; local paths in its protocol are replaced.
        recipe: What the model was trained with; local paths are replaced.
        training_data: What it was trained on.
        evaluation_data: What `results` were measured on.
        license: Of the weights.
        base_model: Id of the model that training started from.
        tag: Version of the release.
        picture: File for the card; None = the model's instances in a sample frame.
        template: Card template to use instead of the one in `model_cards/`.

    Raises:
        ValueError: `repo_id` is malformed, the folder is not empty, the template is wrong, or the checkpoint lacks
            weights or names its labels otherwise than its processor.
        OSError: The checkpoint is none.
    """
    check_repo_id(repo_id)
    model, processor = _load(checkpoint)
    results = {**results, "protocol": {**results.get("protocol", {}), "checkpoint": repo_id}}
    results["protocol"].pop("predictions", None)
    results["protocol"]["data"] = evaluation_data.reference
    recipe = _public_recipe(recipe, repo_id, training_data, evaluation_data)
    card = model_card(
        repo_id=repo_id,
        config=model.config,
        num_parameters=model.num_parameters(),
        num_points=processor.num_points,
        results=results,
        recipe=recipe,
        training_data=training_data,
        evaluation_data=evaluation_data,
        license=license,
        base_model=base_model,
        tag=tag,
        template=template,
    )
    _make_folder(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _add_remote_code(folder)
    save_results(results, folder / METRICS)
    recipe.save(folder / RECIPE)
    if picture is None:
        save_png(draw_sample(model, processor), folder / PICTURE)
    else:
        Image.open(picture).save(folder / PICTURE)
    (folder / CARD).write_text(card, encoding="utf-8")


def write_dataset_release(
    folder: Path,
    data: Path,
    *,
    repo_id: str,
    private: bool = True,
    name: str | None = None,
    license: str | None = None,
    origin: str | None = None,
    template: Path | None = None,
) -> None:
    """Writes the folder of a data set's release: its shards and its card.

    Args:
        folder: Is made, and must be new or empty.
        data: Folder with `data/{split}-*.parquet`, and perhaps a card and other files of its maker.
        repo_id: Repository that the card speaks of.
        private: Whether the repository will be.
        name: Of the data set, needed where it has no card, as are the next two.
        license: As the Hub abbreviates it.
        origin: Where the frames come from, and whose they are.
        template: Card template to use instead of the one in `model_cards/`.

    Raises:
        ValueError: There are no shards, the card has no licence, or the licence forbids a public release.
    """
    check_repo_id(repo_id)
    shards = sorted((data / "data").glob("[!.]*.parquet"))
    if not shards:
        raise ValueError(f"{data}: no data/*.parquet; expected a data set of frames")
    splits = _splits(data, shards)
    if (data / CARD).is_file():
        front = read_front_matter(data / CARD)
        if not front.get("license"):
            raise ValueError(f"{data / CARD}: names no licence; add `license:` to the block at its top")
        if not private and front.get("license_name") in PRIVATE_LICENSES:
            raise ValueError(
                f"{data}: {front['license_name']} forbids passing the data on; its release must be private"
            )
        card = (data / CARD).read_text(encoding="utf-8")
    else:
        given = {"name": name, "license": license, "origin": origin}
        missing = [f"--{what}" for what, value in given.items() if value is None]
        if missing:
            raise ValueError(f"{data} has no {CARD}: give {', '.join(missing)} to make one")
        card = dataset_card(repo_id=repo_id, splits=splits, template=template, **given)
    _make_folder(folder)
    (folder / "data").mkdir()
    for path in [*shards, *sorted(data.glob("*.json"))]:
        shutil.copyfile(path, folder / path.relative_to(data))
    (folder / CARD).write_text(card, encoding="utf-8")


def publish(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = True,
    tag: str | None = None,
    message: str | None = None,
) -> Published:
    """Uploads the folder of a release as one commit and tags it.

    The repository is made if there is none; files of an earlier release that this one lacks are deleted in the same
    commit. The same call again finishes what a failed one began. The token is that of `hf auth login` or `HF_TOKEN`.

    Args:
        folder: As `write_model_release` or `write_dataset_release` left it.
        repo_id: `"org/name"`.
        repo_type: `"model"` or `"dataset"`.
        private: Of the repository; one that exists must be so already.
        tag: Name of the version. Tags never move.
        message: Of the commit.

    Raises:
        ValueError: `repo_id` is malformed, the tag exists, the repository's visibility is another, or a file holds the
            token.
        ReleaseError: The Hub refused, or the connection failed.
    """
    check_repo_id(repo_id)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    _refuse_token(paths)
    api = HfApi()
    names = [path.relative_to(folder).as_posix() for path in paths]

    def prepare() -> tuple[str, Any, dict[str, str]]:
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type)
        tags = api.list_repo_refs(repo_id, repo_type=repo_type).tags
        return str(url), info, {ref.name: ref.target_commit for ref in tags}

    url, info, tags = _attempt(f"{repo_id} could not be opened, nothing was uploaded", prepare)
    if bool(info.private) != private:
        found, wanted = ("private", "public") if info.private else ("public", "private")
        raise ValueError(f"{repo_id} is {found}, the release is to be {wanted}; change one of them")
    if tag in tags:
        raise ValueError(
            f"{repo_id} has the tag {tag!r} already, at {tags[tag]}; a version never changes, take another"
        )
    stale = {file.rfilename for file in info.siblings or ()} - {*names, *HUB_FILES}
    operations = [
        *(CommitOperationAdd(name, str(path)) for name, path in zip(names, paths, strict=True)),
        *(CommitOperationDelete(name) for name in sorted(stale)),
    ]
    commit = _attempt(
        f"the upload to {repo_id} failed; what it showed before is unchanged",
        lambda: api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"Release {tag or 'of ' + repo_id.split('/')[-1]}",
            repo_type=repo_type,
            parent_commit=info.sha,
        ),
    )
    wrong = _attempt(
        f"{repo_id} has the release as {commit.oid}, but it could not be checked",
        lambda: _differing_files(
            paths, names, api.get_paths_info(repo_id, names, revision=commit.oid, repo_type=repo_type)
        ),
    )
    if wrong:
        raise ReleaseError(f"{repo_id} at {commit.oid}: the Hub's checksums of {wrong} are not those of the files")
    if tag is not None:
        _attempt(
            f"{repo_id} has the release as {commit.oid}, but it could not be tagged {tag!r}",
            lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type),
        )
    return Published(url, commit.oid, tag)


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError unless `repo_id` is an owner and a name that the Hub takes."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r}: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"repository {repo_id!r}: expected owner/name")


def draw_sample(model: BiFusionForInstanceSegmentation, processor: BiFusionProcessor) -> Image.Image:
    """The model's instances in the first sample frame that is not for training."""
    frame = frame_from_row(load_frames("sample", "val")[0])
    result = RGBDInstanceSegmentationPipeline(model=model, processor=processor, device="cpu")(frame)
    return draw_instances(frame.image, result["segmentation"], result["segments_info"])


def _attempt(failure: str, action: Callable[[], Any]) -> Any:
    """Runs `action`; what the Hub or the network does wrong becomes a ReleaseError that begins with `failure`."""
    try:
        return action()
    except LocalTokenNotFoundError as error:
        raise ReleaseError(f"{failure}: not logged in. Run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ReleaseError(
                f"{failure}: the Hub answers {status}. Run `hf auth login`, or set HF_TOKEN, with a token that may "
                "write there"
            ) from error
        raise ReleaseError(f"{failure} (HTTP {status}): {error}. The same command again goes on from here") from error
    except Exception as error:
        if not is_network_error(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ReleaseError(f"{failure} ({reason}). The same command again goes on from here") from error


def _differing_files(paths: list[Path], names: list[str], entries: list[RepoFile]) -> list[str]:
    """Names of the files whose checksum on the Hub is another, or that are not there."""
    on_hub = {entry.path: entry for entry in entries}
    wrong = []
    for path, name in zip(paths, names, strict=True):
        entry = on_hub.get(name)
        if entry is None:
            wrong.append(name)
        elif entry.lfs is not None:
            with path.open("rb") as file:
                if sha_fileobj(file).hex() != entry.lfs.sha256:
                    wrong.append(name)
        elif git_hash(path.read_bytes()) != entry.blob_id:
            wrong.append(name)
    return wrong


def _refuse_token(paths: list[Path]) -> None:
    token = get_token()
    if token is None:
        return
    for path in paths:
        if path.suffix not in BINARY_SUFFIXES and token.encode() in path.read_bytes():
            raise ValueError(f"{path} holds the access token of the Hub; it was not uploaded")


def _load(checkpoint: str | Path) -> tuple[BiFusionForInstanceSegmentation, BiFusionProcessor]:
    name, pinned = pinned_name(checkpoint)
    model, report = BiFusionForInstanceSegmentation.from_pretrained(name, output_loading_info=True, **pinned)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise ValueError(f"{checkpoint}: {kind} {sorted(map(str, report[kind]))[:5]}; expected a whole model")
    processor = BiFusionProcessor.from_pretrained(name, **pinned)
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    if processor.label_names != names:
        raise ValueError(f"{checkpoint}: the processor's label_names {processor.label_names} are not id2label {names}")
    return model, processor


def _make_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; the release needs a new one")
    folder.mkdir(parents=True, exist_ok=True)


def _add_remote_code(folder: Path) -> None:
    """Adds the shim, and says in both configurations which class of it each auto class takes."""
    source = Path(remote_code_shim.__file__)
    shutil.copyfile(source, folder / source.name)
    classes = {
        "config.json": {
            "AutoConfig": "BiFusionConfig",
            "AutoModel": "BiFusionModel",
            "AutoModelForInstanceSegmentation": "BiFusionForInstanceSegmentation",
        },
        "processor_config.json": {"AutoProcessor": "BiFusionProcessor"},
    }
    for name, auto_map in classes.items():
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content["auto_map"] = {auto: f"{source.stem}.{target}" for auto, target in auto_map.items()}
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _public_recipe(
    recipe: TrainArguments, repo_id: str, training_data: DataDescription, evaluation_data: DataDescription
) -> TrainArguments:
    """The recipe with names instead of the folders of the machine that trained."""
    values = recipe.to_dict()
    values["output_dir"] = f"outputs/{repo_id.split('/')[-1]}"
    values["resume_from_checkpoint"] = None
    for key, data in (("train", training_data), ("val", evaluation_data)):
        source = values["data"][key]
        if isinstance(source, dict):
            values["data"][key] = {
                Path(part).name if Path(part).is_absolute() else part: weight for part, weight in source.items()
            }
        elif source not in (None, "sample"):
            values["data"][key] = data.reference
    for section, key in (("model", "pretrained"), ("init", "sv3d"), ("init", "clip"), ("init", "vision")):
        source = values[section][key]
        if source is not None and Path(source).is_absolute():
            values[section][key] = Path(source).name
    return TrainArguments.from_dict(values)


def _splits(data: Path, shards: list[Path]) -> dict[str, tuple[int, int]]:
    """Frames and files of each split.

    Raises:
        ValueError: A shard is not named `{split}-*.parquet`, or cannot be read.
    """
    import pyarrow.parquet

    splits: dict[str, tuple[int, int]] = {}
    for shard in shards:
        match = re.match(r"(\w+)-", shard.name)
        if match is None:
            raise ValueError(f"{data}: {shard.name}; expected SPLIT-00000-of-00001.parquet")
        try:
            rows = pyarrow.parquet.read_metadata(shard).num_rows
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{shard}: not a parquet file ({error})") from error
        frames, files = splits.get(match[1], (0, 0))
        splits[match[1]] = (frames + rows, files + 1)
    return splits
