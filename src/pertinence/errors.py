"""The one exception of this package."""


class PertinenceError(ValueError):
    """Something the user can mend: the message says what is wrong, what was expected and what to do."""
