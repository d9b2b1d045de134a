"""The version of the package, and which checkpoints it can read."""

__version__ = "0.1.0"


def check_checkpoint_version(written_by: str | None) -> None:
    """Refuses a checkpoint that a later release of the package wrote.

    Releases that differ in the third number alone read each other's checkpoints; what a later first or second number
    wrote may mean something that this release does not know.

    Args:
        written_by: Version of the package that saved the checkpoint; None = unknown, is let through.

    Raises:
        ValueError: The installed package is older; the message says how to update it.
    """
    if written_by is None:
        return
    if _release(written_by) > _release(__version__):
        needed = ".".join(str(number) for number in _release(written_by))
        raise ValueError(
            f"this checkpoint was saved by bifusion_hf {written_by}; installed is {__version__}, which is older and "
            f'may misread it. Update the package: pip install --upgrade "bifusion_hf>={needed}"'
        )


def _release(version: str) -> tuple[int, int]:
    """The first two numbers of a version.

    Raises:
        ValueError: It is no version.
    """
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"bifusion_hf_version of the checkpoint is {version!r}; expected such as '0.1.0'") from error
