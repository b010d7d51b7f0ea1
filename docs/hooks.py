"""What `mkdocs build` takes from elsewhere: the README as the first page, and what `--help` says of every command."""

import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path

from pertinence.commands.main import COMMANDS, main


ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, page, config, files) -> str:
    """The text of a page, with its generated part where it says so."""
    make = {"index.md": readme, "command-line.md": helps}.get(page.file.src_uri)
    return markdown if make is None else markdown.replace("<!-- generated -->", make())


def on_page_content(html: str, page, config, files) -> str:
    """Docstrings name things as those of transformers do, [`~Class.method`]: here by their last name."""
    return re.sub(r"\[<code>~?(?:\w+\.)*(\w+)</code>\]", r"<code>\1</code>", html)


def readme() -> str:
    """The README, whose pages and figures lie here; what lies elsewhere in the repository is named, not linked."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?://|#|docs/)[^)]+\)", r"\1", text)
    return re.sub(r"(\[)(?:docs/)?([^\]]+\]\()docs/", r"\1\2", text)


def helps() -> str:
    os.environ["COLUMNS"] = "110"
    sections = []
    for command in COMMANDS:
        with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            main([command, "--help"])
        sections.append(f"## pertinence {command}\n\n```text\n{printed.getvalue().rstrip()}\n```\n")
    return "\n".join(sections)
