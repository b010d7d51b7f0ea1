"""The one exception of this package."""


class PertinenceError(ValueError):
    """Something the user can mend: the message says what is wrong, what was expected and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
