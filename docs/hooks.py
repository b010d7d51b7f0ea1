"""The parts of the documentation that `mkdocs build` generates: the README as the first page, the help of every
command, the settings of every dataclass, and a table with the first sentence of every module.
"""

import ast
import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pertinence
from pertinence.commands.main import COMMANDS, main


ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, page, config, files) -> str:
    """The text of a page, with its generated part in the place of the marker."""
    make = {"index.md": readme, "command-line.md": helps, "architecture.md": modules}.get(page.file.src_uri)
    if page.file.src_uri == "api.md":
        return re.sub(r"<!-- settings of (\w+) -->", lambda found: settings(found[1]), markdown)
    return markdown if make is None else markdown.replace("<!-- generated -->", make())


def on_page_content(html: str, page, config, files) -> str:
    """Show references of docstrings, [`~Class.method`] as in transformers, by their last name."""
    return re.sub(r"\[<code>~?(?:\w+\.)*(\w+)</code>\]", r"<code>\1</code>", html)


def readme() -> str:
    """The README with links to pages and figures of docs/; links to other files become plain names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?://|#|docs/)[^)]+\)", r"\1", text)
    return re.sub(r"(\[)(?:docs/)?([^\]]+\]\()docs/", r"\1\2", text)


def helps() -> str:
    os.environ["COLUMNS"] = "110"
    sections = []
    for command in COMMANDS:
        with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            main([command, *(["--recipe", "both"] if command == "search" else []), "--help"])
        sections.append(f"## pertinence {command}\n\n```text\n{printed.getvalue().rstrip()}\n```\n")
    return "\n".join(sections)


def settings(name: str) -> str:
    """A table of a settings dataclass: mkdocstrings reads the source, where the text on a field is an argument."""
    rows = []
    for one in getattr(pertinence, name).settings():
        accepted = "" if one.choices is None else f" One of {', '.join(f'`{choice}`' for choice in one.choices)}."
        rows.append(f"| `{one.name}` | `{one.default!r}` | {one.metadata['help']}{accepted} |")
    return "\n".join(["| setting | default | what it does |", "| --- | --- | --- |", *rows])


def modules() -> str:
    """A table for each package: the first sentence of the docstring of each module."""
    source, sections = ROOT / "src" / "pertinence", ["## Every module\n"]
    for package in sorted(path.parent for path in source.rglob("*/__init__.py")):
        rows = [f"| `{path.name}` | {_first_sentence(path)} |" for path in sorted(package.glob("[!_]*.py"))]
        name = package.relative_to(source).as_posix()
        sections.append("\n".join([f"### {name}\n", "| module | what it does |", "| --- | --- |", *rows, ""]))
    return "\n".join(sections)


def _first_sentence(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.])\s", " ".join(docstring.split()))[0].replace("|", "\\|")
