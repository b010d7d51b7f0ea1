"""Code of an expert: in subfolders, or in another repository than its weights (`auto_map`: `user/code--module.Class`).

transformers takes the newest version of code in another repository, whichever version of the weights it loads. Here it
is pinned to a commit, and always runs from a copy of the files that name it, in which it lies beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..utils.downloads import fetch, pin
from ..utils.errors import PertinenceError, explain, printable, shown
from ..utils.hub_errors import explain_hub
from .checkpoint_files import (
    CHECKPOINT_FILES,
    LEGAL_FILES,
    SETTINGS,
    NamedClass,
    check_contained,
    find_modules,
    named_classes,
    parse_class,
    read_json,
)
from .reference import LoadOptions


CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor", "AutoFeatureExtractor")
"""The Auto classes that an expert is loaded with."""


def fetch_checkpoint(repo_id: str, commit: str | None, options: LoadOptions) -> Path:
    """Download the files of a checkpoint, also its own code in subfolders, and return their folder."""
    folder = fetch(repo_id, commit, CHECKPOINT_FILES + LEGAL_FILES, **options.hub)
    inner = {one.module for one in _classes(folder) if one.repository is None and "/" in one.module}
    if inner:
        fetch(repo_id, commit, _patterns(inner), **options.hub)
    return folder


def fetch_code(folder: Path, pinned: Mapping[str, str], options: LoadOptions) -> dict[str, Path]:
    """Download the code that a checkpoint has in other repositories; none of it runs.

    Args:
        folder: folder of the checkpoint.
        pinned: commits of repositories; others are pinned to their newest one.
        options: how files are downloaded.

    Returns:
        The folder of each repository's files, whose name is the commit; empty if the checkpoint has all of its code.

    Raises:
        PertinenceError: it names something else than a class and a repository on the Hub, or that cannot be read.
    """
    for auto, text in named_classes(folder):
        if auto in CLASSES and parse_class(text) is None:
            raise PertinenceError(
                f"its auto_map names {shown(text)} for {auto}, expected 'module.Class' or 'user/code--module.Class' "
                "with the path of a file without '.py' as the module"
            )
    modules: dict[str, set[str]] = {}
    for repository, module in code_references(folder):
        modules.setdefault(repository, set()).add(module)
    folders = {}
    for repository, names in sorted(modules.items()):
        try:
            validate_repo_id(repository)
            commit = pinned.get(repository) or pin(repository, None, f"{min(names)}.py", **options.hub)
            folders[repository] = fetch(repository, commit, _patterns(names), **options.hub)
        except HFValidationError as error:
            raise PertinenceError(
                f"its code is said to be in {shown(repository)}, which is not a repository on the Hub: put it beside "
                "the weights"
            ) from error
        except Exception as error:  # the Hub's client raises errors of HTTP, of the network, and its own
            reason = explain_hub(repository, pinned.get(repository), error) or explain(error)
            raise PertinenceError(f"its code in {printable(repository)} cannot be read: {reason}") from error
    return folders


def _patterns(modules: Iterable[str]) -> list[str]:
    """Glob patterns of modules, and of those that they can import."""
    return sorted({f"{name[: name.rfind('/') + 1]}*.py" for name in modules})


def commits_of(code: Mapping[str, Path]) -> dict[str, str] | None:
    """The commit of each repository of `fetch_code`; None if there are none."""
    return {repository: folder.name for repository, folder in code.items()} or None


def code_references(folder: Path) -> list[tuple[str, str]]:
    """The modules that a checkpoint needs from other repositories, as pairs of repository and module."""
    return sorted({(one.repository, one.module) for one in _classes(folder) if one.repository})


@contextmanager
def described_in(folder: Path, code: Mapping[str, Path]) -> Iterator[Path]:
    """A folder that holds all code of a checkpoint with the files that name it: its own, or one made for this context.

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


def needs_code(folder: Path) -> bool:
    """Whether the settings of a checkpoint name code of its own, or of another repository."""
    return any(_classes(folder))


def write_with_code(folder: Path, code: Mapping[str, Path], target: Path) -> None:
    """Write the settings of a checkpoint, and all code that they name, as if it had none in other repositories.

    Modules keep their paths.

    Args:
        folder: folder of the checkpoint.
        code: from `fetch_code`.
        target: folder to write to, which exists.

    Raises:
        PertinenceError: two modules that it needs have the same path, but not the same content; or one is a link that
            leads out of its folder.
    """
    named = list(_classes(folder))
    homes: list[tuple[str | None, Path]] = [(None, folder), *code.items()]
    needed: dict[str, Path] = {}
    for repository, home in homes:
        modules = find_modules(home, (one.module for one in named if one.repository == repository))
        check_contained(modules, home)
        for path in modules:
            name = path.relative_to(home).as_posix()
            if path.read_bytes() != needed.setdefault(name, path).read_bytes():
                raise PertinenceError(
                    f"it needs two modules {name} that differ, from {', '.join(code)} or its own: rename "
                    "one, or put all of its code beside its weights"
                )
    copy_into(target, needed)
    for name in SETTINGS:
        if (folder / name).is_file():
            values = read_json(folder / name)
            for part in (values, values.get("image_processor")):
                if isinstance(part, dict) and isinstance(auto_map := part.get("auto_map"), dict):
                    part["auto_map"] = {
                        auto: _own(value, code) if auto in CLASSES else value for auto, value in auto_map.items()
                    }
            (target / name).write_text(json.dumps(values, indent=2) + "\n")


def copy_into(folder: Path, files: Mapping[str, Path]) -> None:
    """Copy files to their paths in a folder."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _classes(folder: Path) -> Iterator[NamedClass]:
    """The classes that a checkpoint's files name for the Auto classes; `fetch_code` refuses what is none."""
    for auto, text in named_classes(folder):
        if auto in CLASSES and (found := parse_class(text)):
            yield found


def _own(value: Any, code: Mapping[str, Path]) -> Any:
    """The value of an `auto_map`, as if it named no other repository."""
    if isinstance(value, dict):
        return {key: _own(inner, code) for key, inner in value.items()}
    if isinstance(value, list):
        return [_own(inner, code) for inner in value]
    found = parse_class(value)
    return f"{found.module}.{found.name}" if found and found.repository in code else value
