"""Names of the modes of running experts, among which settings and configurations choose."""

PREPROCESSING_MODES = ("exact", "fast")
"""exact: each expert receives the pixels of its own processor; fast: torchvision on uint8 for all."""
