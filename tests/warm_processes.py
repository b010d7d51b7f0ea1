"""Python processes that start warm: forked from one that has imported torch and what it brings, which takes seconds.

What reads the environment when it is imported (libraries of Hugging Face, this package) is imported after the fork,
so that a process has an environment and a cache of its own, as one from the shell has.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


WARM = """
import json, os, runpy, sys, types
import pandas, scipy.stats, sympy, torch, torch._dynamo, torchvision
while request := sys.stdin.readline():
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
arguments, folder, environment, files = json.loads(request)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
for number, (path, flags) in enumerate(zip(files, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
    os.dup2(os.open(path, flags), number)
kind, target, *rest = arguments
sys.path[:1] = [""]
if kind == "-c":
    sys.argv = ["-c", *rest]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(target, "<string>", "exec"), vars(main))
else:
    sys.argv = [target, *rest]
    runpy.run_module(target, run_name="__main__", alter_sys=True)
"""


@cache
def _parent() -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(process.wait)
    atexit.register(process.stdin.close)  # which ends it, before it is waited for
    return process


def run_python(
    *arguments: object, cwd: str | os.PathLike | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run `python -c CODE ...` or `python -m MODULE ...` in a process of its own, with nothing to read from.

    `PYTHONPATH` and what else Python reads when it starts are those of this process.
    """
    words, parent = [str(word) for word in arguments], _parent()
    assert words[0] in ("-c", "-m")
    with TemporaryDirectory() as folder:
        files = [os.devnull, os.path.join(folder, "stdout"), os.path.join(folder, "stderr")]
        for path in files[1:]:
            Path(path).touch()
        request = words, os.path.abspath(cwd or "."), dict(os.environ if env is None else env), files
        parent.stdin.write(json.dumps(request) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(Path(path).read_text() for path in files[1:]))
