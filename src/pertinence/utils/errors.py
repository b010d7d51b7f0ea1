"""The one exception of this package."""


class PertinenceError(ValueError):
    """A mistake that the user can correct: the message says what is wrong, what was expected and what to do."""


MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""The exceptions that values of an unexpected structure, read from a file, can raise."""


def causes_of(error: BaseException) -> list[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: object, most: int = 80) -> str:
    """The `repr` of a value, shortened to at most `most` characters, for use in a message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."


def explain(error: BaseException) -> str:
    """The type and the first line of an error, for use in a message."""
    return f"{type(error).__name__}: {printable(first_line(error))}"


def printable(text: str, most: int = 200) -> str:
    """Untrusted text for use in a message: shortened, without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])
