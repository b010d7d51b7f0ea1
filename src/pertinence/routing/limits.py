"""How large a front may be; imports nothing, as the help of a command needs it."""

MAX_POINTS = 10_000
"""Operating points."""
