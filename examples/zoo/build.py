"""Build the pools of docs/results.md, experts and images, from their public sources.

    python examples/zoo/build.py                                  # everything, in runs/zoo
    python examples/zoo/build.py --pools cifar10                  # one pool
    python examples/zoo/build.py --output-dir ../shared/zoo       # where the commands of docs/results.md look

Downloads continue where they stopped, and are checked: by the hash that sources.yaml states, or by what they hold.
Every expert is converted to a folder that transformers (or timm) and pertinence load, measured on the validation
images, and put in place only if it has the accuracy that sources.yaml states. What is in place is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
import yaml
from conversion import FORMATS
from PIL import Image

from pertinence import PertinenceError
from pertinence.data.arguments import DataArguments
from pertinence.data.dataset import LabelledImages, raise_or
from pertinence.data.loading import load_images
from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.utils.io import hash_file, replaced
from pertinence.utils.progress import progress_bar


HERE = Path(__file__).resolve().parent
CHUNK = 1 << 20
PIXELS = 3 * 32 * 32
TOLERANCE = 0.3
"""Points of accuracy by which an expert may differ: libraries decode and resize images with small differences."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--pools", nargs="+", help="Names in sources.yaml; default: all.")
    parser.add_argument("--sources", type=Path, default=HERE / "sources.yaml", help="What to build, and from where.")
    parser.add_argument(
        "--mirror", help="URL that takes the place of `https:/`, so that MIRROR/github.com/... is asked."
    )
    options = parser.parse_args()
    try:
        sources = yaml.safe_load(options.sources.read_text())
        if unknown := set(options.pools or ()) - set(sources):
            raise PertinenceError(f"there is no pool {', '.join(sorted(unknown))}: choose from {', '.join(sources)}")
        for pool in options.pools or sources:
            build(pool, sources[pool], options)
    except PertinenceError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept, and the same command continues from there")


def build(pool: str, source: dict[str, Any], options: argparse.Namespace) -> None:
    """Build the images of a pool, then its experts; what exists is kept."""
    downloads, images = options.output_dir / "downloads", source["images"]
    data = options.output_dir / images.get("folder", pool) / "data"
    if not data.is_dir():
        archive = download(images["url"], downloads, images.get("sha256", ""), options.mirror)
        if images["format"] == "cifar":
            splits = read_cifar(archive, images, options.sources.parent)
        else:
            splits = {"validation": read_listed(archive, images)}
        with replaced(data) as folder:
            folder.mkdir()
            for split, rows in splits.items():
                rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    missing = {name: e for name, e in source["experts"].items() if not (options.output_dir / pool / name).is_dir()}
    if not missing:
        return
    validation = load_images(DataArguments(str(data), split="validation"))
    for name, expert in missing.items():
        path = None
        if "url" in expert:
            path = download(expert["url"], downloads, expert.get("sha256", ""), options.mirror)
        elif "package" in expert:
            path = download_wheel(expert["package"], downloads, expert["sha256"])
        with replaced(options.output_dir / pool / name) as folder:
            folder.mkdir()
            FORMATS[expert["format"]](path, expert, list(validation.label_names.values()), folder)
            accuracy = measure(folder, validation)
            if not abs(accuracy - expert["accuracy"]) <= expert.get("tolerance", TOLERANCE):
                raise PertinenceError(
                    f"{name} of {origin_of(expert)} has {accuracy:.2f} % on the validation "
                    f"images, not {expert['accuracy']:.2f} %: these are not the weights of the results page"
                )
            (folder / "README.md").write_text(card(name, expert, path, accuracy))
        print(f"{pool}/{name}: {accuracy:.2f} % on the validation images")


def card(name: str, expert: dict[str, Any], path: Path | None, accuracy: float) -> str:
    """The text of a model card, which records what was downloaded."""
    library = "timm" if expert["format"] in ("wheel", "hub") else "transformers"
    record = f"Hub repository {expert.get('repo_id')}"
    if path is not None:
        record = f"{origin_of(expert)} ({path.stat().st_size:,} bytes, SHA-256 {hash_file(path)})"
    return f"""---
license: {expert["licence"]}
library_name: {library}
pipeline_tag: image-classification
---

# {name}

Built by `examples/zoo/build.py` from {record}. It has {accuracy:.2f} % on the validation images beside it.
"""


def measure(folder: Path, images: LabelledImages) -> float:
    """Top-1 accuracy of an expert in %; labels that it has before those of the images (background) are left out."""
    ours = (folder / "modeling_cifar_resnet.py").is_file()  # no code that was downloaded is run
    expert = load_expert(ExpertReference.parse(folder), LoadOptions(trust_remote_code=ours))
    extra, right = len(expert.labels) - len(images.label_names), 0
    with progress_bar(len(images), f"Measuring {folder.name}", "image") as bar, torch.no_grad():
        for start in range(0, len(images), 100):
            batch = raise_or([images[row] for row in range(start, min(start + 100, len(images)))])
            answers = expert(torch.stack(batch))[0][:, extra:].argmax(1)
            right += int((answers == images.labels[start : start + len(batch)]).sum())
            bar.update(len(batch))
    return 100 * right / len(images)


def origin_of(expert: dict[str, Any]) -> str:
    """Where an expert comes from: an address, a package, or a repository of the Hub."""
    return next(expert[key] for key in ("url", "package", "repo_id") if expert.get(key))


# Downloads


def download(url: str, folder: Path, sha256: str = "", mirror: str | None = None) -> Path:
    """Download a file unless it is there; an unfinished download continues.

    Args:
        url: an https address; the file gets the last part of its path as its name.
        folder: where to.
        sha256: the first digits of the file's hash.
        mirror: takes the place of `https:/`.

    Raises:
        PertinenceError: the address cannot be reached, or the file does not have this hash.
    """
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part, asked = path.with_name(path.name + ".part"), url.replace("https:/", mirror.rstrip("/"), 1) if mirror else url
    try:
        _fetch(asked, part)
    except urllib.error.HTTPError as error:
        error.close()
        raise PertinenceError(f"{asked} answers {error.code} {error.reason}: the file may have moved") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise PertinenceError(
            f"{asked} cannot be downloaded ({reason}): connect to the internet and repeat the command"
        ) from error
    check_hash(part, asked, sha256)
    part.replace(path)
    return path


def download_wheel(package: str, folder: Path, sha256: str) -> Path:
    """Download the wheel of a package with pip, from the index that pip is configured for, unless it is there.

    Raises:
        PertinenceError: pip is not installed or finds no such wheel, or the file does not have this hash.
    """
    name = package.partition("==")[0].replace("-", "_")
    if there := sorted(folder.glob(f"{name}-*.whl")):
        return there[0]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PertinenceError(f"pip cannot download {package} ({last}): connect to the internet, or install pip")
        (wheel,) = Path(temporary).glob("*.whl")
        check_hash(wheel, package, sha256)
        return wheel.replace(folder / wheel.name)


def check_hash(file: Path, asked: str, sha256: str) -> None:
    """Remove a file, and raise `PertinenceError`, unless its hash begins with these digits."""
    if not (found := hash_file(file)).startswith(sha256):
        file.unlink()
        raise PertinenceError(
            f"{asked} has the SHA-256 {found}, not {sha256}{'...' * (len(sha256) < 64)}: it arrived damaged, or "
            "is not the file of the results page; it was removed, try again"
        )


def _fetch(url: str, part: Path) -> None:
    """Append to a file what it lacks."""
    there = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing behind what is there: it is whole, or of another file
            raise
        error.close()
        part.unlink()
        return _fetch(url, part)
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        there = file.tell()
        length = response.headers.get("Content-Length")
        with progress_bar(there + int(length or 0), part.stem, "B") as bar:
            bar.update(there)
            while block := response.read1(CHUNK):  # what has arrived: a broken connection loses the rest alone
                file.write(block)
                bar.update(len(block))
        if length and file.tell() < there + int(length):
            raise ConnectionError("the connection broke")


# Images


def read_cifar(archive: Path, source: dict[str, Any], beside: Path) -> dict[str, datasets.Dataset]:
    """The official train split, and the validation and test images: the parts of the official test split whose hashes
    are in `source["rows"]`, in that order."""
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                files[Path(member.name).name] = tar.extractfile(member).read()
    names = next(files[name] for name in ("fine_label_names.txt", "batches.meta.txt") if name in files)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names.decode().split()))
    train, test = (
        np.frombuffer(
            b"".join(files[n] for n in sorted(files) if n.endswith(".bin") and (n[:4] == "test") is is_test), np.uint8
        ).reshape(-1, source["label_bytes"] + PIXELS)
        for is_test in (False, True)
    )
    splits = {"train": train}
    where = {hashlib.sha256(_pixels(row)).digest()[:5]: index for index, row in enumerate(test)}
    with np.load(beside / source["rows"], allow_pickle=False) as rows:
        for split in ("validation", "test"):
            wanted = [bytes(digest) for digest in rows[f"{archive.name.split('-binary')[0].replace('-', '')}_{split}"]]
            if lacking := sum(digest not in where for digest in wanted):
                raise PertinenceError(f"{archive} lacks {lacking} of the {len(wanted)} images of split {split!r}")
            splits[split] = test[[where[digest] for digest in wanted]]
    return {
        split: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(_pixels(row)) for row in rows], "label": rows[:, -PIXELS - 1].astype(int)},
            features,
        )
        for split, rows in splits.items()
    }


def _pixels(record: np.ndarray) -> np.ndarray:
    """The picture in a record of CIFAR's binary files: uint8 (32, 32, 3)."""
    return np.ascontiguousarray(record[-PIXELS:].reshape(3, 32, 32).transpose(1, 2, 0))


def read_listed(archive: Path, source: dict[str, Any]) -> datasets.Dataset:
    """Image files of an archive, with the label that a list in it gives each (`path, label` on each line)."""
    with tarfile.open(archive) as tar:
        members = {member.name.partition("/")[2]: member for member in tar if member.isfile()}
        read = {name: tar.extractfile(member).read() for name, member in members.items()}
    if source["list"] not in read:
        raise PertinenceError(f"{archive} has no {source['list']}, which lists its images")
    lines = [line.split(", ") for line in read[source["list"]].decode().splitlines() if line]
    paths, labels = [str(Path(source["list"]).parent / line[0]) for line in lines], [int(line[1]) for line in lines]
    content = hashlib.sha256()
    for path, label in zip(paths, labels, strict=True):
        content.update(read[path] + b"%d" % label)
    if content.hexdigest() != source["images_sha256"]:
        raise PertinenceError(f"the images of {source['url']} are not those of the results page")
    names = timm.data.ImageNetInfo().label_names()
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=names), file=datasets.Value("string")
    )
    rows = {"image": [{"bytes": read[path], "path": None} for path in paths], "label": labels}
    return datasets.Dataset.from_dict(rows | {"file": [Path(path).name for path in paths]}, features)


if __name__ == "__main__":
    main()
