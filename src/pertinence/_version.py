"""The version of this package, and how to install it."""

__version__ = "0.1.0"
INSTALL = "`pip install .` in a clone of its repository, or the wheel that `uv build` makes there"
"""What cards and messages tell users to do; a release on an index changes it to `pip install pertinence`."""
