"""Names of the ways in which experts can be run, which settings and configurations choose between."""

PREPROCESSING_MODES = ("exact", "fast")
"""exact: each expert sees the pixels of its own processor; fast: torchvision on uint8 for all."""
