"""The registry of encodings. A new encoding is added here."""

from .encoding import Encoding
from .ggml.ggml_encoding import GGML_ENCODINGS

ENCODINGS: dict[str, Encoding] = {**GGML_ENCODINGS}
"""The encodings by label. The configuration, the costs, the builders and the evaluation know them from here."""
