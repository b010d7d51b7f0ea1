"""Files that are whole or absent, whoever is killed."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pertinence.utils import io as files
from pertinence.utils.io import FORGOTTEN, SUFFIX, beside, give_usual_mode, hash_file, replaced


# Without the package's own __init__, which takes seconds to import.
WRITER = f"""
import sys, types
from pathlib import Path

package = sys.modules["pertinence"] = types.ModuleType("pertinence")
package.__path__ = [{str(Path(files.__file__).parents[1])!r}]
from pertinence.utils.io import replaced
with replaced(Path(sys.argv[1])) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        (temporary / "part").write_text("half")
    else:
        temporary.write_text("half")
    print(temporary, flush=True)
    sys.stdin.readline()
"""

Writer = Callable[..., tuple[subprocess.Popen, Path]]


@pytest.fixture
def writer() -> Iterator[Writer]:
    """A function: starts a process that writes to a path and waits before it is done; returns it and its file."""
    processes = []

    def start(path: Path, kind: str = "file") -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        temporary = Path(process.stdout.readline().strip())
        assert temporary.parent.parent == path.parent
        assert temporary.exists()
        return process, temporary

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with replaced(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with replaced(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names(path.parent) == ["file"]


def fail_in_the_middle(path: Path, kind: str, error: type[BaseException]) -> None:
    with replaced(path) as temporary:
        if kind == "folder":
            temporary.mkdir()
            temporary = temporary / "part"
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_old_file_stays_and_nothing_else_when_writing_fails(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        fail_in_the_middle(path, "file", error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_no_folder_is_made_for_what_is_not_written(tmp_path):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "new/deeper/file", tmp_path / "there/new/file"):
        with pytest.raises(RuntimeError):
            fail_in_the_middle(path, "file", RuntimeError)
    assert names(tmp_path) == ["there"]
    assert not names(tmp_path / "there")


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with replaced(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_the_old_folder_stays_and_nothing_else_when_writing_fails(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(RuntimeError):
        fail_in_the_middle(path, "folder", RuntimeError)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_takes_the_place_of_a_file(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")
    with replaced(path) as temporary:
        temporary.mkdir()
    assert path.is_dir()


def test_what_is_put_beside_is_gone_in_the_end(tmp_path):
    path = tmp_path / "file"
    with beside(path) as temporary:
        temporary.write_text("scratch")
        assert temporary.parent.parent == path.parent
        assert temporary.parent.name.endswith(SUFFIX)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed(writer, tmp_path, kind):
    path = tmp_path / "file [1]"  # what a pattern would read otherwise
    process, left = writer(path, kind)
    process.kill()
    process.wait()
    assert left.exists()
    assert not path.exists()
    with replaced(path) as temporary:
        assert not left.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == [path.name]


def test_what_a_killed_process_left_of_another_file_is_none_of_ours(writer, tmp_path):
    process, left = writer(tmp_path / "other")
    process.kill()
    process.wait()
    with replaced(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert left.exists()


def test_what_a_running_process_writes_is_not_touched(writer, tmp_path):
    path = tmp_path / "file"
    process, writing = writer(path)
    with replaced(path) as temporary:
        assert temporary != writing
        temporary.write_text("ours")
    assert writing.read_text() == "half"
    process.communicate("\n")
    assert process.returncode == 0
    assert path.read_text() == "half"
    assert names(tmp_path) == ["file"]


def test_threads_that_write_the_same_do_not_meet(tmp_path):
    both = threading.Barrier(2, timeout=60)

    def write(text: str) -> None:
        with replaced(tmp_path / "file") as temporary:
            both.wait()
            temporary.write_text(text)
            both.wait()
            assert temporary.read_text() == text

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, ["ours", "theirs"]))
    assert (tmp_path / "file").read_text() in ("ours", "theirs")
    assert names(tmp_path) == ["file"]


def test_what_another_machine_writes_is_not_touched(tmp_path):
    """Whether a process of another machine runs cannot be asked here."""
    theirs = tmp_path / f".file.another-machine-{os.getpid()}{SUFFIX}"
    theirs.write_text("half")
    with replaced(tmp_path / "file") as temporary:
        temporary.write_text("ours")
    assert theirs.exists()


def test_what_a_machine_with_a_longer_name_writes_is_not_touched(writer, tmp_path):
    """Its name may look like this machine's with the number of a process that has ended."""
    ended, _ = writer(tmp_path / "other")
    ended.communicate("\n")
    theirs = tmp_path / f".file.{platform.node()}-{ended.pid}.example-{os.getpid()}.abcd_123{SUFFIX}"
    theirs.mkdir()
    with replaced(tmp_path / "file") as temporary:
        temporary.write_text("ours")
    assert theirs.exists()


@pytest.mark.parametrize("machine", ["another-machine", platform.node()])
def test_whatever_is_left_goes_a_day_later(tmp_path, machine):
    """Of this machine, too: another process may have the number now."""
    theirs = tmp_path / f".file.{machine}-{os.getppid()}{SUFFIX}"
    theirs.write_text("half")
    yesterday = time.time() - FORGOTTEN - 60
    os.utime(theirs, (yesterday, yesterday))
    with replaced(tmp_path / "file") as temporary:
        temporary.write_text("ours")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_a_file_is_shared_as_any_new_one(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = tmp_path / "file"
        path.touch(0o600)
        give_usual_mode(path)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("size", [0, 10, (1 << 20) + 3], ids=str)
def test_a_hash_is_of_every_byte(tmp_path, size):
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert hash_file(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()
