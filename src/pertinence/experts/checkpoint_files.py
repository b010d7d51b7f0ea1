"""The files of a checkpoint: names, allowed locations, content hash, and the headers of the weights."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

from ..runtime.entry import CONFIG
from ..utils.errors import PertinenceError, explain
from ..utils.json_files import parse_json, read_text


CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.py")
"""Patterns of the files that an expert may be loaded from; see `checkpoint_files` for those that it is loaded from."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SETTINGS = (CONFIG, *PROCESSORS)
"""The files that may name code."""
LEGAL_FILES = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*")
"""Patterns of the files that are copied with an expert, as most licences require."""

MODULE = re.compile(r"[\w-]+(/[\w-]+)*")
"""The path of a module without ".py": no other leads to a file beside or below the one that names it."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
FLOATS = {"F64", "F32", "F16", "BF16"}


class NamedClass(NamedTuple):
    """A class that an `auto_map` names: the repository of its module (None: that of the file itself), the path of the
    module without ".py", and its name."""

    repository: str | None
    module: str
    name: str


@dataclass(frozen=True)
class Tensors:
    """Headers of the safetensors files of a checkpoint.

    Attributes:
        shapes, dtypes: shape and dtype (as safetensors names it) of each tensor, by name.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @classmethod
    def of(cls, *paths: Path) -> Tensors:
        """Read the headers, and nothing else, of some files; raises `PertinenceError` if one is damaged."""
        shapes, dtypes = {}, {}
        for path in paths:
            try:
                # Framework "np", because for "pt" torch would map the whole file into memory.
                with safe_open(path, framework="np") as file:
                    for name in file.keys():  # noqa: SIM118
                        part = file.get_slice(name)
                        shapes[name], dtypes[name] = tuple(part.get_shape()), part.get_dtype()
            except (SafetensorError, OSError) as error:
                if path.is_file() and path.read_bytes()[:20] == b"version https://git-":
                    raise PertinenceError(
                        f"{path} is a pointer of git-lfs, not the weights: fetch them, `git lfs pull`"
                    ) from error
                raise PertinenceError(f"{path} is damaged ({explain(error)}): fetch it again") from error
        return cls(shapes, dtypes)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files in a folder that an expert is loaded from, sorted by name: its config, that of its image processor,
    its weights and its own code, which may lie in subfolders.

    They are what the expert is: what else lies beside them, such as results and logs of a trainer, is no part of it.

    Raises:
        PertinenceError: one that names others of them is damaged.
    """
    settings = {folder / name for name in SETTINGS}
    single, index = _weight_names(find_variant(folder))
    listing = set() if (folder / single).is_file() else {folder / index}
    found = {*settings, *listing, *expert_weights(folder), *own_modules(folder)}
    return _by_name((path for path in found if path.is_file()), folder)


def _by_name(files: Iterable[Path], folder: Path) -> list[Path]:
    """Files in the order of their names in a folder, which is the same on every operating system: paths of Windows, as
    they are, ignore case."""
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def own_modules(folder: Path) -> set[Path]:
    """The modules in the folder of a checkpoint that its settings name, and those that these import."""
    named = (parse_class(text) for _, text in named_classes(folder))
    return find_modules(folder, (one.module for one in named if one and one.repository is None))


def find_modules(home: Path, names: Iterable[str]) -> set[Path]:
    """Modules in a folder, and all that they import from beside them, as transformers finds them; those that do not
    exist, or would lie elsewhere, are left out.

    Args:
        home: the folder.
        names: paths of modules in it, without ".py".

    Raises:
        PertinenceError: a module cannot be read.
    """
    waiting, found = list(names), set()
    while waiting:
        name = waiting.pop()
        path = home / f"{name}.py"
        if MODULE.fullmatch(name) and path not in found and path.is_file():
            found.add(path)
            try:
                # It searches the text, so what looks like an import in a comment may be any path.
                imported = get_relative_imports(path)
            except (OSError, UnicodeDecodeError) as error:
                raise PertinenceError(f"its {path.name} cannot be read ({explain(error)})") from error
            waiting += (f"{name[: name.rfind('/') + 1]}{other}" for other in imported)
    return found


def named_classes(folder: Path) -> Iterator[tuple[str, Any]]:
    """What the `auto_map` of a checkpoint's settings names: pairs of an Auto class and a text, see `parse_class`."""
    for values in (read_json(folder / name) for name in SETTINGS if (folder / name).is_file()):
        for part in (values, values.get("image_processor")):
            auto_map = part.get("auto_map") if isinstance(part, dict) else None
            for auto, value in auto_map.items() if isinstance(auto_map, dict) else ():
                # An image processor may have one class for each backend.
                listed = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
                yield from ((auto, text) for text in listed if text is not None)


def parse_class(text: Any) -> NamedClass | None:
    """Split `user/code--folder/module.Class` or `folder/module.Class` as transformers does; None if it is neither."""
    repository, mark, own = text.rpartition("--") if isinstance(text, str) else ("", "", "")
    module, _, name = own.rpartition(".")
    if bool(mark) != bool(repository) or not MODULE.fullmatch(module) or not name.isidentifier():
        return None
    return NamedClass(repository or None, module, name)


def hash_folder(folder: Path) -> str:
    """Content hash of a checkpoint: SHA-256 over the names and bytes of the files that it is loaded from."""
    return _hash(checkpoint_files(folder), folder)


def is_content(revision: str, content: str, folder: Path) -> bool:
    """Whether a recorded content hash is that of a checkpoint.

    Args:
        revision: the recorded hash; earlier versions hashed every file at the top that matches `CHECKPOINT_FILES`.
        content: hash of the files that were read.
        folder: the folder that they were read from.
    """
    if revision == content:
        return True
    former = (path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern) if path.is_file())
    return revision == _hash(_by_name(former, folder), folder) and content == hash_folder(folder)


def _hash(files: Iterable[Path], folder: Path) -> str:
    found = [(path, path.stat()) for path in files]
    return _hash_files(tuple((path, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for path, s in found), folder)


@lru_cache(maxsize=1024)
def _hash_files(files: tuple[tuple[Path, int, int, int, int], ...], folder: Path) -> str:
    """Hash files; the cache helps lazy experts, which are loaded repeatedly, as long as the files do not change."""
    digest = hashlib.sha256()
    for path, size, *_ in files:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return f"sha256:{digest.hexdigest()}"


def read_json(path: Path) -> dict[str, Any]:
    """Read the mapping in a JSON file; raises `PertinenceError` if the file is damaged or too large."""
    try:
        values = parse_json(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, PertinenceError):
            raise PertinenceError(f"{path.name} is too large: {error}") from error
        raise PertinenceError(f"{path.name} is damaged ({explain(error)})") from error
    if not isinstance(values, dict):
        raise PertinenceError(f"{path.name} is damaged: it holds no mapping")
    return values


def find_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a checkpoint, or of a variant of it; empty if it has only other weights.

    Raises:
        PertinenceError: its index names anything other than safetensors files beside it.
    """
    single, index = _weight_names(variant)
    if (folder / single).is_file():
        return [folder / single]
    if not (folder / index).is_file():
        return []
    places = read_json(folder / index).get("weight_map")
    names: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
    if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise PertinenceError(f"its {index} names files that are no safetensors files beside it")
    return [folder / name for name in sorted(set(names))]


def _weight_names(variant: str | None) -> tuple[str, str]:
    """The names of the file of all weights, and of the index of shards."""
    if variant is None:
        return SINGLE, INDEX
    return f"model.{variant}.safetensors", f"{INDEX.removesuffix('json')}{variant}.json"


def find_variant(folder: Path) -> str | None:
    """The variant that a checkpoint has instead of weights under the usual name, such as "fp16"; None if it has those,
    or several variants, of which only the user can choose."""
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return None
    names = re.compile(r"model\.([\w-]+)\.safetensors|model\.safetensors\.index\.([\w-]+)\.json")
    found = {match[1] or match[2] for path in folder.iterdir() if (match := names.fullmatch(path.name))}
    shards = {name for name in found if re.search(r"-\d{5}-of-\d{5}$", name)}
    return min(found - shards) if len(found - shards) == 1 else None


def expert_weights(folder: Path) -> list[Path]:
    """The safetensors files that an expert is loaded from, see `find_weights` and `find_variant`."""
    return find_weights(folder, find_variant(folder))


def check_contained(paths: Iterable[Path], root: Path) -> None:
    """Refuse paths that lie outside of a folder, or are links to the outside; links in the Hub's cache may lead to the
    blobs of the same repository."""
    home = root.resolve()
    homes = [home] + [
        place.parent / "blobs"
        for place in home.parents
        if place.name == "snapshots" and place.parent.name.startswith("models--")
    ]
    for path in paths:
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise PertinenceError(f"{path} is a link that leads out of {root}: put the file itself there")
