"""Everything that depends on the version of transformers, in one place. Tested with 5.17.0 and 5.24.0."""

from transformers import PreTrainedModel

from .generation import as_argument

__all__ = ["PreTrainedModel", "as_argument"]  # what is asked for everywhere; all else is in the modules
