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
        ValueError: No revision follows the `@`, the weights are damaged, not those that the Hub promised, or of other
            shapes than the configuration says, or a later release of the package wrote them.
    """
    name, pinned = pinned_name(source)
    try:
        model = BiFusionForInstanceSegmentation.from_pretrained(name, **pinned)
    except OSError as error:
        raise explain_missing(name, error) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(f"{source}: its weights do not have the shapes of its config.json, see above") from error
    return model, BiFusionProcessor.from_pretrained(name, **pinned)
