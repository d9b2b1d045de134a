"""Names for instances in the user's own words, by any zero-shot image-text model."""

from .labeler import TextLabeler
from .texts import UNKNOWN, read_labels, read_templates


__all__ = ["UNKNOWN", "TextLabeler", "read_labels", "read_templates"]
