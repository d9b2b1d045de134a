"""Labels of one's own for a network: from a file, or the recipe itself, to its heads and its processor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..configuration_bifusion import BiFusionConfig
from ..io.files import DataFileError
from ..labels import NONE, SCANNET200_CLASS_NAMES, STUFF_CLASSES


STUFF = [SCANNET200_CLASS_NAMES[index] for index in STUFF_CLASSES]


@dataclass(frozen=True)
class LabelSet:
    """Labels of the instances.

    Args:
        labels: Label -> the classes of the data whose instances have it, by name or by number.
        classes: Names of the classes of the data by number, wall and floor first; None = the network's own.
    """

    labels: dict[str, list[str | int]]
    classes: list[str] | None = None

    def config_fields(self) -> dict[str, Any]:
        """What of `BiFusionConfig` follows."""
        fields: dict[str, Any] = {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels))}
        if self.classes is not None:
            fields["num_semantic_labels"] = len(self.classes)
            fields["semantic_id2label"] = dict(enumerate(self.classes))
        return fields

    def processor_fields(self, config: BiFusionConfig) -> dict[str, Any]:
        """What of the processor follows.

        Args:
            config: Of the network that has `config_fields`.

        Raises:
            ValueError: A class is unknown, has no instances, or belongs to two labels.
        """
        numbers = {name: index for index, name in (config.semantic_id2label or {}).items()}
        class_to_label = [NONE] * config.num_semantic_labels
        for label, (name, classes) in enumerate(self.labels.items()):
            for given in classes:
                index = given if isinstance(given, int) else numbers.get(given, NONE)
                if not len(STUFF) <= index < config.num_semantic_labels:
                    known = ", ".join(list(numbers)[len(STUFF) : len(STUFF) + 5])
                    raise ValueError(
                        f"model.labels: {name!r} has {given!r}, which is no class with instances; expected names "
                        f"({known}, ...) or numbers from {len(STUFF)} to {config.num_semantic_labels - 1}"
                    )
                if class_to_label[index] != NONE:
                    other = list(self.labels)[class_to_label[index]]
                    raise ValueError(f"model.labels: class {given!r} is of {other!r} and of {name!r}")
                class_to_label[index] = label
        return {
            "label_names": list(self.labels),
            "class_to_label": class_to_label,
            "num_semantic_labels": config.num_semantic_labels,
        }


def read_label_set(source: str | Mapping[str, Any]) -> LabelSet:
    """The labels of `model.labels`.

    Args:
        source: A mapping from labels to a class or a list of classes; or a YAML or JSON file with such a mapping, or
            with the list of the data's classes by number, wall and floor first, each of which but these is a label.

    Raises:
        DataFileError: The file is missing or malformed.
        ValueError: The mapping is malformed.
    """
    if isinstance(source, Mapping):
        return _of_mapping(source, "model.labels")
    try:
        content = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataFileError(source, f"is no readable file of labels ({error})") from error
    if isinstance(content, Mapping):
        return _of_mapping(content, str(source))
    if not isinstance(content, list) or not all(isinstance(name, str) and name for name in content):
        raise DataFileError(source, "has no labels; expected a mapping from labels to classes, or a list of classes")
    if content[: len(STUFF)] != STUFF or len(content) == len(STUFF) or len(set(content)) < len(content):
        raise DataFileError(
            source,
            f"has the classes {content[:4]}...; expected different ones, {STUFF} first, which have no instances",
        )
    return LabelSet({name: [name] for name in content[len(STUFF) :]}, content)


def _of_mapping(content: Mapping[str, Any], source: str) -> LabelSet:
    labels: dict[str, list[str | int]] = {}
    for name, classes in content.items():
        classes = [classes] if isinstance(classes, str | int) else classes
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{source} has the label {name!r}; expected text")
        good = isinstance(classes, Sequence) and len(classes)
        if not good or not all(isinstance(item, str | int) and not isinstance(item, bool) for item in classes):
            raise ValueError(f"{source}: {name!r} has {classes!r}; expected names or numbers of classes")
        labels[name] = list(classes)
    if len(labels) < 2:
        raise ValueError(f"{source} has {len(labels)} labels; expected at least two, for one tells nothing apart")
    return LabelSet(labels)
