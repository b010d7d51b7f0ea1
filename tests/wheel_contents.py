"""What the wheel must hold: the package as it lies in src, the template of the model card, and nothing else.

python tests/wheel_contents.py dist/pertinence-0.1.0-py3-none-any.whl
"""

import re
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
RUNTIME = "pertinence_runtime"
"""The folder of another wheel, which is built from the same source."""
TEMPLATE = "pertinence/hub_cards/model_card.md.jinja"


def problems(wheel: Path) -> list[str]:
    """Sentences about what is wrong with a wheel; none where it may be released."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        header = HeaderParser().parsestr(archive.read(metadata).decode())
        scripts = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    info = metadata.removesuffix("METADATA")
    source = ROOT / "src"
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    files = [path for path in files if path.parts[0] != RUNTIME]
    expected = {path.as_posix() for path in files if not {"__pycache__", ".DS_Store"} & set(path.parts)}
    expected |= {TEMPLATE, *(info + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt"))}
    expected.add(f"{info}licenses/LICENSE")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.+)"', (source / "pertinence" / "_version.py").read_text(encoding="utf-8"))[
        1
    ]
    found = [f"{name} is missing" for name in sorted({*expected, "pertinence/py.typed"} - names)]
    found += [f"{name} does not belong there" for name in sorted(names - expected)]
    if header["Version"] != version:
        found.append(f"its version is {header['Version']}, that of the source is {version}")
    declared = [*project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        declared += [f"{requirement}; extra == '{extra}'" for requirement in requirements]
    if _bare(header.get_all("Requires-Dist")) != _bare(declared):
        found.append("its dependencies are not those of pyproject.toml")
    found += [
        f"the command {name} is missing"
        for name, target in project["scripts"].items()
        if f"{name} = {target}" not in scripts
    ]
    return found


def _bare(requirements: list[str]) -> set[str]:
    return {requirement.replace(" ", "") for requirement in requirements}


if __name__ == "__main__":
    wrong = [f"{path}: {sentence}" for path in sys.argv[1:] for sentence in problems(Path(path))]
    sys.exit("\n".join(wrong) or 0)
