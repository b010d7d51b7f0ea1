"""Code of an expert that lies in another repository than its weights (`auto_map`: `user/code--module.Class`).

transformers takes the newest version of such code, whichever version of the weights it loads. Here it is pinned to a
commit, and always runs from a copy of the files that name it, in which it lies beside them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from ..utils.downloads import fetch, pin
from ..utils.errors import PertinenceError, explain, printable, shown
from ..utils.hub_errors import explain_hub
from .checkpoint_files import CHECKPOINT_FILES, read_json
from .entry import CONFIG
from .reference import LoadOptions


CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor", "AutoFeatureExtractor")
"""The Auto classes that an expert is loaded with."""
NAMING = (CONFIG, "preprocessor_config.json", "processor_config.json")
"""The files that may name code."""
CLASS = re.compile(r"(?:(?P<repository>.+)--)?(?P<module>\w+(?:/\w+)*)\.(?P<name>\w+)")


def fetch_code(folder: Path, pinned: Mapping[str, str], options: LoadOptions) -> dict[str, Path]:
    """Download the code that a checkpoint has in other repositories; none of it runs.

    Args:
        folder: folder of the checkpoint.
        pinned: commits of repositories; others are pinned to their newest one.
        options: how files are downloaded.

    Returns:
        The folder of each repository's files, whose name is the commit; empty if the checkpoint has all of its code.

    Raises:
        PertinenceError: it names something else than a repository on the Hub, or that cannot be read.
    """
    modules: dict[str, set[str]] = {}
    for repository, module in code_references(folder):
        modules.setdefault(repository, set()).add(module)
    folders = {}
    for repository, names in sorted(modules.items()):
        try:
            validate_repo_id(repository)
            commit = pinned.get(repository) or pin(repository, None, f"{min(names)}.py", **options.hub)
            patterns = {f"{name.rpartition('/')[0]}/*.py".lstrip("/") for name in names}
            folders[repository] = fetch(repository, commit, sorted(patterns), **options.hub)
        except HFValidationError as error:
            raise PertinenceError(
                f"its code is said to be in {shown(repository)}, which is not a repository on the Hub: put it beside "
                "the weights"
            ) from error
        except Exception as error:  # the Hub's client raises errors of HTTP, of the network, and its own
            reason = explain_hub(repository, pinned.get(repository), error) or explain(error)
            raise PertinenceError(f"its code in {printable(repository)} cannot be read: {reason}") from error
    return folders


def commits_of(code: Mapping[str, Path]) -> dict[str, str] | None:
    """The commit of each repository of `fetch_code`; None if there are none."""
    return {repository: folder.name for repository, folder in code.items()} or None


def code_references(folder: Path) -> list[tuple[str, str]]:
    """The modules that a checkpoint needs from other repositories, as pairs of repository and module."""
    return sorted({(match["repository"], match["module"]) for match in _classes(folder) if match["repository"]})


@contextmanager
def described_in(folder: Path, code: Mapping[str, Path]) -> Iterator[Path]:
    """A folder in which a checkpoint's code lies beside the files that name it: its own, or one made for this context.

    Weights are not in it. Arguments and errors: see `write_with_code`.
    """
    if not code:
        yield folder
        return
    with TemporaryDirectory() as work:
        target = Path(work) / folder.name
        target.mkdir()
        write_with_code(folder, code, target)
        yield target


def is_scattered(folder: Path, code: Mapping[str, Path]) -> bool:
    """Whether not all code of a checkpoint lies beside its files: some is in another repository, or in a subfolder."""
    return bool(code) or any("/" in match["module"] for match in _classes(folder))


def write_with_code(folder: Path, code: Mapping[str, Path], target: Path, others: Sequence[Path] = ()) -> None:
    """Write a copy of a checkpoint's files in which its code lies beside them.

    Args:
        folder: folder of the checkpoint.
        code: from `fetch_code`.
        target: folder to write to, which exists.
        others: files to copy besides those that name code.

    Raises:
        PertinenceError: two modules that it needs have the same name, but not the same content.
    """
    for path in {*others, *folder.glob(CHECKPOINT_FILES[-1])}:
        shutil.copyfile(path, target / path.name)
    needed: dict[str, Path] = {}
    for match in _classes(folder):
        home = code[match["repository"]] if match["repository"] else folder
        module = home / f"{match['module']}.py"
        for path in [module, *map(Path, get_relative_import_files(module) if module.is_file() else ())]:
            other = needed.setdefault(path.name, path)
            if path.is_file() and other.is_file() and path.read_bytes() != other.read_bytes():
                raise PertinenceError(
                    f"it needs two modules {path.name} that differ, from {', '.join(code)} or its own: rename one, or "
                    "put all of its code beside its weights"
                )
    for name, path in needed.items():
        if path.is_file() and path.parent != folder:
            shutil.copyfile(path, target / name)
    for name in NAMING:
        if (folder / name).is_file():
            values = read_json(folder / name)
            for named in (values, values.get("image_processor")):
                if isinstance(named, dict) and "auto_map" in named:
                    named["auto_map"] = _beside(named["auto_map"])
            (target / name).write_text(json.dumps(values, indent=2) + "\n")


def _classes(folder: Path) -> Iterator[re.Match[str]]:
    """The classes that a checkpoint's files name for the Auto classes."""
    for values in (read_json(folder / name) for name in NAMING if (folder / name).is_file()):
        for named in (values, values.get("image_processor")):
            auto_map = named.get("auto_map") if isinstance(named, dict) else None
            for value in map(auto_map.get, CLASSES) if isinstance(auto_map, dict) else ():
                # An image processor may have one class for each backend.
                listed = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
                yield from filter(None, (CLASS.fullmatch(text) for text in listed if isinstance(text, str)))


def _beside(values: Any) -> Any:
    """The value of an `auto_map`, as if all code lay beside the file."""
    if isinstance(values, dict):
        return {key: _beside(value) for key, value in values.items()}
    if isinstance(values, list):
        return list(map(_beside, values))
    match = CLASS.fullmatch(values) if isinstance(values, str) else None
    return f"{match['module'].rpartition('/')[2]}.{match['name']}" if match else values
