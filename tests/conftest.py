"""What every test shares: an environment whose Hub is on this machine, tiny experts, images."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from local_hub import LocalHub
from safetensors.torch import save_file


# Hugging Face's libraries read these when they are imported, which nothing may have done yet.
assert not {"huggingface_hub", "transformers", "datasets", "timm"} & set(sys.modules)
_HOME = tempfile.TemporaryDirectory(prefix="pertinence-tests-")
atexit.register(_HOME.cleanup)
_HUB = LocalHub().start()
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))]:
    del os.environ[_name]
# The processes that tests start must not compile every library anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": _HOME.name,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}

# Tiny models gain nothing from a second thread, and wait for each other where the cores are busy.
torch.set_num_threads(1)

LABELS = [f"digit {index}" for index in range(10)]


TESTS = Path(__file__).parent
SLOW = (
    "commands",
    "contracts",
    "end_to_end",
    "examples",
    "evaluation/test_monitoring.py",
    "evaluation/test_noninferiority.py",
    "experts/test_variants.py",
    "models/test_expert_store.py",
    "search/test_evolution.py",
    *(f"serving/test_{name}.py" for name in ("app", "protocol", "server", "uploads")),
    "utils/test_io.py",
)
"""Tests of whole programs, of chances that need many draws, and of processes that are killed."""
SLOW_FIXTURES = {"digits", "digit_experts", "exported", "hub", "small_disk", "tiny_experts", "zoo"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m quick`: what neither lies in a slow place, nor waits for trained experts, searches, disks or the Hub."""
    for item in items:
        place = Path(os.path.relpath(item.path, TESTS))
        is_slow = any(place.is_relative_to(slow) for slow in SLOW) or item.get_closest_marker("nightly")
        if not is_slow and not SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("quick")


def pytest_configure(config: pytest.Config) -> None:
    # huggingface_hub uploads large files in a way that its HTTP library deprecates.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="session")
def hub() -> LocalHub:
    """The Hub that every library talks to; `hub.requests.clear()` before counting requests."""
    return _HUB


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between attempts to reach the Hub, neither this package nor its client."""
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("pertinence.utils.downloads.sleep", hurried.sleep)
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)


@pytest.fixture(scope="session")
def zoo() -> Path:
    """Folder of real pre-trained experts and real images; not a part of the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "zoo"
    if not folder.is_dir():
        pytest.skip(f"the zoo of pre-trained experts is not at {folder}")
    return folder


@pytest.fixture
def registered_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, and the modules and paths that it imports from, are gone afterwards."""
    from pertinence.search.recipes.registry import RECIPES

    monkeypatch.setattr(RECIPES, "_registered", dict(RECIPES._registered))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def images() -> Callable[..., torch.Tensor]:
    """A function: so many uint8 images (count, 3, size, size) of coloured blobs, the same for the same seed."""
    return _blobs


class SmallDisk:
    """A file system in memory that can be filled up.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path):
        self.path, self._ballast = path, path / ".ballast"

    def leave(self, count: int | None) -> None:
        """Leave so many bytes of it free; None: all that there are."""
        self._ballast.unlink(missing_ok=True)
        if count is not None:
            free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - count)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system of 4 MB (tmpfs), which only root may mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def read_only(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that cannot be written to; for root, who may write anywhere, on a disk that is mounted read-only."""
    if os.geteuid():
        path = tmp_path / "read-only"
        path.mkdir(mode=0o555)
    else:
        path = request.getfixturevalue("small_disk").path
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)
    yield path
    if os.geteuid():
        path.chmod(0o755)


@pytest.fixture(scope="session")
def make_expert() -> Callable[..., Path]:
    """A function: writes a tiny expert, see `_save_expert`."""
    return _save_expert


@pytest.fixture(scope="session")
def tiny_experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two tiny experts by rising cost: a ViT for 96 pixels and a CNN for 160, ten labels each."""
    folder = tmp_path_factory.mktemp("experts")
    return [
        _save_expert(folder / "vit", "test_vit", 96, model_args={"img_size": 96}),
        _save_expert(folder / "efficientnet", "test_efficientnet", 160),
    ]


def _save_expert(
    folder: Path,
    architecture: str = "test_convnext",
    size: int = 64,
    labels: Sequence[str] = LABELS,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a timm classifier with random weights, laid out as timm's repositories on the Hub are; returns the folder.

    Its last layer is scaled so that images get different labels, with confidences of every height.

    Args:
        config: further entries of config.json; `model_args` also make the model.
    """
    import timm

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = timm.create_model(architecture, num_classes=len(labels), **config.get("model_args", {})).eval()
        logits = model(_blobs(64, size) / 127.5 - 1)
        last = model.get_classifier()
        last.weight.mul_(2 / logits.std(0).unsqueeze(1))
        last.bias.copy_((last.bias - logits.mean(0)) * 2 / logits.std(0))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    transform = {"interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3, "license": "mit"}
    values = {
        "architecture": architecture,
        "num_classes": len(labels),
        "label_names": list(labels),
        "pretrained_cfg": {"input_size": [3, size, size], "num_classes": len(labels), **transform},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    return folder


def _blobs(count: int, size: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the experts that are run, one entry for each batch."""
    from pertinence.experts.expert import Expert

    names, forward = [], Expert.forward
    monkeypatch.setattr(
        Expert, "forward", lambda self, *batch: (names.append(self.entry.name), forward(self, *batch))[1]
    )
    return names


@pytest.fixture(scope="session")
def digits() -> tuple:
    """scikit-learn's digits as data sets: images that train experts, that search, and that nobody has seen."""
    from pertinence.commands.demo_pool import digits

    return digits(seed=0)


@pytest.fixture(scope="session")
def digit_experts(digits: tuple, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three experts that read digits, by rising cost: two CNNs and a ViT, three input sizes."""
    from digit_pool import ARCHITECTURES, save_digit_expert

    folder = tmp_path_factory.mktemp("digit_experts")
    return [save_digit_expert(name, digits[0], folder / name) for name in ARCHITECTURES]


@pytest.fixture(scope="session")
def exported(tiny_experts: list[Path], make_expert, images, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of three experts and a stem that were exported to ONNX, see `exported.make_exported`."""
    from exported import make_exported

    return make_exported(tiny_experts, tmp_path_factory.mktemp("exported"), make_expert, images)
