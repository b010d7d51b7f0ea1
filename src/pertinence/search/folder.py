"""The folder of a search: locked while the search runs, continued after a kill, and recognised when it is finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ..hub.layout import RECORD, STATE
from ..utils.errors import MALFORMED, PertinenceError, shown
from ..utils.io import SUFFIX, remove_leftovers, replaced
from ..utils.locks import LOCK, locked
from ..utils.validation import is_name


logger = logging.get_logger(__name__)

ADVICE = "free some space, or choose another --output-dir; the same search goes on from where it stopped"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock an output folder against other searches within the context, or until this process ends in any way.

    Raises:
        PertinenceError: another process is searching there, or the folder is not writable.
    """
    busy = f"another search is running in {folder}: wait for its end, or choose another --output-dir"
    with locked(folder / STATE, busy, ADVICE):
        yield


class SearchFolder:
    """The folder of a search while it runs: settings and state, so that a killed search can be continued.

    Args:
        state_dir: folder of the state; None: nothing is kept.
    """

    def __init__(self, state_dir: Path | None):
        self.state_dir = state_dir

    @classmethod
    @contextmanager
    def opened(
        cls, output_dir: str | os.PathLike | None, settings: dict[str, Any], resume: bool, accelerator: Accelerator
    ) -> Iterator[SearchFolder]:
        """Check that a search with these settings may use the folder, store the settings there, and lock the folder.

        Raises:
            PertinenceError: it contains something else, cannot be written to, or another search is running there.
        """
        if output_dir is None:
            yield cls(None)
            return
        state_dir = Path(output_dir) / STATE
        folder = cls(state_dir)
        with ExitStack() as until_the_end:
            if accelerator.is_main_process:
                check_output_dir(output_dir, settings)
                until_the_end.enter_context(exclusive(Path(output_dir)))
                if resume and (Path(output_dir) / RECORD).is_file():
                    logger.warning(f"{output_dir} holds the result of this very search, which is run again.")
                if not (resume and _has_generations(state_dir)):
                    clear_state(state_dir)
                folder.remember("settings", lambda: settings)
            accelerator.wait_for_everyone()
            yield folder

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """The value stored under a name; if there is none, it is made by `make` and stored."""
        if self.state_dir is None:
            return make()
        path = self.state_dir / f"{name}.json"
        if not path.is_file():
            value = make()
            with replaced(path, ADVICE) as temporary:
                temporary.write_text(json.dumps(value, indent=1))
        return json.loads(path.read_text())


def holds_result(
    output_dir: str | os.PathLike | None, make_settings: Callable[[], dict[str, Any]], accelerator: Accelerator
) -> bool:
    """Whether a folder contains the result of this very search; the main process decides for all.

    Args:
        output_dir: folder for the result.
        make_settings: makes the settings of the search; called only if there is a result.
        accelerator: the processes.

    Raises:
        PertinenceError: it contains the result of another search.
    """
    found = False
    if accelerator.is_main_process and output_dir is not None and (Path(output_dir) / RECORD).is_file():
        check_output_dir(output_dir, make_settings())
        if (
            Path(output_dir) / STATE
        ).is_dir():  # of a search that was killed after it finished, or when it was repeated
            with exclusive(Path(output_dir)):
                remove_leftovers(Path(output_dir) / "result")
                clear_state(Path(output_dir) / STATE)
        found = True
    (found,) = broadcast_object_list([found])
    return found


def clear_state(state_dir: Path) -> None:
    """Remove everything except the lock, which this process holds."""
    for path in state_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def _has_generations(state_dir: Path) -> bool:
    """Whether there is anything to continue; otherwise a corrected search may take the folder of a failed one."""
    return any(state_dir.glob("*.safetensors"))


def check_output_dir(output_dir: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Refuse a folder that contains anything other than the same search or its result.

    Args:
        output_dir: folder for the result.
        settings: settings of the search.

    Raises:
        PertinenceError: it is a file, or contains something else, or another search.
    """
    folder, settings = Path(output_dir), json.loads(json.dumps(settings))
    if not holds_search(folder):
        return
    try:
        if (folder / RECORD).is_file():
            stored = json.loads((folder / RECORD).read_text())["settings"]
        else:
            path = folder / STATE / "settings.json"
            stored = settings
            if path.is_file() and _has_generations(path.parent):
                stored = json.loads(path.read_text())
        differences = _differences(stored, settings)
    except MALFORMED as error:
        raise PertinenceError(
            f"the search in the output folder {folder} is damaged: choose another --output-dir, or remove it"
        ) from error
    if differences:
        raise PertinenceError(
            f"the output folder {folder} holds another search ({'; '.join(differences)}): choose another "
            "--output-dir, or remove it"
        )


def holds_search(folder: Path) -> bool:
    """Whether a folder contains a search or its result; False if it is new or empty.

    Raises:
        PertinenceError: it is a file, or contains something else.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise PertinenceError(f"the output folder {folder} is a file: choose another --output-dir")
    if all(path.name.endswith(SUFFIX) for path in folder.iterdir()):
        return False
    if not (folder / RECORD).is_file() and not (folder / STATE).is_dir():
        raise PertinenceError(
            f"the output folder {folder} holds something else: choose another --output-dir, or empty it"
        )
    return True


def _differences(stored: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """One clause for each setting that has changed."""
    clauses = []
    for key in {**stored, **settings}:
        theirs: Any = stored.get(key)
        ours: Any = settings.get(key)
        if theirs == ours:
            continue
        if key == "images":
            verbs = {"search": "searched", "report": "reported on"}
            clauses += [f"it {verbs[part]} other images" for part in verbs if theirs[part] != ours[part]]
        elif key in ("experts", "stem"):
            names = [_names(value) for value in (theirs, ours)]
            verb = "are" if key == "experts" else "is"
            is_renamed = names[0] != names[1]
            clauses.append(
                f"its {key} {verb} {names[0]}, not {names[1]}" if is_renamed else f"its {key} had other weights"
            )
        else:
            clauses.append(f"its {key} is {shown(theirs)}, not {shown(ours)}")
    return clauses


def _names(entries: Any) -> str:
    names = [entry["name"] for entry in ([entries] if isinstance(entries, dict) else entries or [])]
    if not all(map(is_name, names)):
        raise ValueError("a name is not text")
    return ", ".join(names) or "none"
