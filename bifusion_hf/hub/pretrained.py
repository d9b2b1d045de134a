"""Checkpoints of this package by their name: a model, and the processor that belongs to it."""

from pathlib import Path

from ..io.hub_files import explain_missing, pinned_name
from ..modeling_bifusion import BiFusionForInstanceSegmentation
from ..processing_bifusion import BiFusionProcessor


def load_pretrained(source: str | Path) -> tuple[BiFusionForInstanceSegmentation, BiFusionProcessor]:
    """Loads a model and its processor.

    Args:
        source: A folder, `"sample"` for the checkpoint that the package carries, or an id of the Hub, `"org/name"`, or
            `"org/name@revision"` for a branch, a tag or a commit of it.

    Raises:
        OSError: There is no such checkpoint or revision, or the Hub cannot be reached and nothing is cached.
        ValueError: No revision follows the `@`, the weights are damaged, not those that the Hub promised, of other
            shapes than the configuration says or not complete, or a later release of the package wrote them.
    """
    name, pinned = pinned_name(source)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        # transformers would take the default network.
        found = sorted(path.name for path in Path(name).iterdir())
        raise FileNotFoundError(f"{source}: has no config.json, as checkpoints have; it has {found}")
    try:
        model, loading = BiFusionForInstanceSegmentation.from_pretrained(name, **pinned, output_loading_info=True)
    except OSError as error:
        raise explain_missing(name, error) from error
    # transformers starts them anew with a warning: right for a training, never for results.
    if missing := sorted(loading["missing_keys"]):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{source}: {len(missing)} tensors of the network are missing from its weights: {some}")
    return model, BiFusionProcessor.from_pretrained(name, **pinned)
