"""The one exception of this package."""


class PertinenceError(ValueError):
    """A mistake that the user can correct: the message says what is wrong, what was expected and what to do."""


MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What is raised where values from a file do not have the expected structure."""


def causes_of(error: BaseException) -> list[BaseException]:
    """An error and what caused it, one after the other."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: object, most: int = 80) -> str:
    """What a value of any size looks like, as a part of one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."


def explain(error: BaseException) -> str:
    """What kind of error it is and what it says, as a part of one line."""
    return f"{type(error).__name__}: {printable(first_line(error))}"


def printable(text: str, most: int = 200) -> str:
    """Text of others as a part of one line, without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])
