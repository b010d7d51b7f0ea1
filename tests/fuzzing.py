"""Damage to a saved model, as hypothesis draws it, and what may become of whoever loads it all the same.

A case either loads and works (finite scores of the right shape, and saved and loaded again the same), or is refused by
one of `CLEAR`, within `SECONDS` of computing and `MEMORY` above what was in use before.
"""

from __future__ import annotations

import copy
import faulthandler
import hashlib
import json
import math
import resource
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st
from safetensors import SafetensorError
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from pertinence import (
    Figures,
    Front,
    OperatingPoint,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    Stage,
)
from pertinence.experts.expert import load_expert
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.routing.evidence import EVIDENCE, TOP_PROBABILITY
from pertinence.routing.front import STEM
from pertinence.routing.guarantee import Comparison, Guarantee
from pertinence.routing.heads import Head
from pertinence.routing.metrics import Latency
from pertinence.runtime import load
from pertinence.utils.errors import causes_of


SECONDS = 10
MEMORY = 2**30
CLEAR = (PertinenceError, OSError, StrictDataclassError, SafetensorError)
"""What may be raised: our error; of transformers that a file is missing or no JSON (OSError); of huggingface_hub that
a value of a config has the wrong type; of safetensors that a file is damaged."""
WATCHDOG = 300
"""Seconds after which the process is ended with a traceback, whatever it does."""

LABELS = ["cat", "dog", "ship", "tree"]
CONFIGS = ("config.json", "experts/0/config.json", "experts/1/config.json", "experts/stem/config.json")
PROCESSORS = (
    "preprocessor_config.json",
    "experts/1/preprocessor_config.json",
    "experts/stem/preprocessor_config.json",
)
RECORDS = ("search_result.json", "search.yaml", "baselines.safetensors", "seen_images.safetensors")
WEIGHTS = ("model.safetensors", "experts/0/model.safetensors", "experts/1/model.safetensors")


# The model that is damaged


def save_whole_model(folder: Path, make_expert: Callable[..., Path]) -> Path:
    """A model with copies of its tiny experts: of timm and of transformers, with a stem, every kind of stage, figures,
    latencies and a guarantee."""
    timm_expert = make_expert(folder / "of-timm", "test_resnet", 32, LABELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=96, num_hidden_layers=2, num_attention_heads=2, intermediate_size=192,
                           image_size=64, patch_size=8, id2label=dict(enumerate(LABELS)))  # fmt: skip
        config.label2id = {label: index for index, label in enumerate(LABELS)}
        ViTForImageClassification(config).save_pretrained(folder / "of-transformers")
        ViTModel(config).save_pretrained(folder / "stem")
    for name in ("of-transformers", "stem"):
        ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / name)
    stem = load_expert(ExpertReference.parse(folder / "stem"), LoadOptions(), is_stem=True)
    pool = load_pool([timm_expert, folder / "of-transformers"], LoadOptions())
    figures = Figures(0.9, (0.88, 0.92), {"gmacs": 0.01}, (0.5, 0.5), 1000)
    points = [
        OperatingPoint("first", "static", (0,), (), figures, figures, (Latency("cpu", 1, 2.0, 1.9, 2.1),)),
        OperatingPoint("stem", "paper", (0, 1), (Stage(STEM, "features"),), figures),
        OperatingPoint("both", "cascade", (0, 1), (Stage(0, "both", (1.1,)), Stage(1, "mix", (0.4, 0.8))), figures),
        OperatingPoint("thresholds", "thresholds", (0, 1), (Stage(0),)),
    ]
    sizes = {0: pool[0].entry.features, STEM: stem.entry.features}
    heads = {}
    for point in points:
        heads[point.name] = [
            Head(
                torch.zeros(2, EVIDENCE.get(stage.evidence).width(2, sizes[stage.after])),
                torch.zeros(2),
                torch.zeros(8),
            )
            for stage in point.decisions
        ]
    for name in ("both", "thresholds"):
        heads[name][0].weight[1, TOP_PROBABILITY - (len(heads["thresholds"][0].weight[0]))] = -1.0
        heads[name][0].bias[1] = 0.6
    model = PertinenceForImageClassification.compose(
        pool, Front(points, [expert.entry.name for expert in pool]), heads, "both", stem
    )
    for entry in model.config.experts:
        entry["select"] = figures.to_dict()
    model.config.guarantee = Guarantee(
        "first", 0.01, 0.95, 5000, "digest", (Comparison("first", 3, 4, 0.001),)
    ).to_dict()
    model.save_pretrained(folder / "model", save_experts=True)
    # Without the hashes that tell files which belong together: whoever writes a config can write those, too.
    values = json.loads((folder / "model" / "config.json").read_text())
    for entry in (*values["experts"], values["stem"]):
        entry["revision"] = "0" * 40
    values.pop("heads_hash", None)
    (folder / "model" / "config.json").write_text(json.dumps(values))
    return folder / "model"


# Damage to JSON

Path_ = tuple[Any, ...]

DEEP = "nested too deeply"
"""Stands for a value that no parser should follow to its end."""
ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, 10**4, 10**6, 10**9, 10**18, 10**300, -(10**9), 0.5, -0.5, 1e-9,
    1e-300, 1e9, 1e300, math.nan, math.inf, -math.inf, "", "0", "1e9", "1000000000", "../../etc/passwd",
    "/etc/passwd", "./experts/0", "./experts/1", "./experts/../experts/1", "experts/9",
    "https://example.org/model", "hf-hub:someone/model", "local-dir:/etc", "someone/model@main", "a\x00b",
    "\x1b[31mred", "two\nlines", "\u202egpj.exe", "x" * 5000, "os.system", "torch", "float32", "float64",
    "bfloat16", "int8", "pickle", "uint8", "pytorch_model.bin", [], {}, [[]], [None], [math.nan], [10**9],
    [1] * 1000, {"0": 1}, {"": {}}, {"model_type": "pertinence"}, DEEP,
]  # fmt: skip
KEYS = [
    "model_type", "num_labels", "num_classes", "id2label", "label2id", "label_names", "architecture",
    "architectures", "model_args", "pretrained_cfg", "dtype", "torch_dtype", "quantization_config",
    "attn_implementation", "_attn_implementation", "experts_implementation", "transformers_weights", "auto_map",
    "fusion_config", "base_model_name_or_path", "checkpoint_path", "problem_type", "image_processor_type",
    "size", "crop_size", "crop_pct", "input_size", "do_pad", "pad_size", "do_resize", "resample", "image_mean",
    "image_std", "rescale_factor", "stem", "guarantee", "experts", "front", "num_hidden_layers", "hidden_size",
    "image_size", "patch_size", "depths", "dims", "per_layer_config", "label_map", "window", "processor_size",
    "resize", "crop", "quantization", "latency", "tie_word_embeddings", "use_bfloat16", "return_dict",
    "output_hidden_states", "custom_pipelines", "_commit_hash", "name_or_path", "backbone", "backbone_config",
    "use_timm_backbone", "depth_multiplier", "width_multiplier", "depth_coefficient", "repo_path", "class_info_file",
    "apply_ocr", "tesseract_config", "min_pixels", "max_pixels", "size_divisor", "image_grid_pinpoints", "num_frames",
]  # fmt: skip
KINDS = sorted(
    name for by_backend in IMAGE_PROCESSOR_MAPPING_NAMES.values() if by_backend for name in by_backend.values()
)
"""Every image processor of transformers."""
YAML = [
    "a: &a [*a]", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nexperts: [*c, *c]", "seed: !!bool maybe",
    "seed: !!timestamp foo", "seed: !!int ''", "seed: !!float foo", "seed: 2020-13-45", "seed: " + "9" * 5000,
    "experts: !!python/object/apply:os.system [ls]", "? [a]\n: b", "seed: 1\nseed: 2", "<<: {seed: 1}", "--- a\n--- b",
    "experts: !!set {a, b}", "experts: !!binary x", "- a", "\t", "a: [", "%YAML 9.9\n---\na: b",
    "[" * 5000 + "]" * 5000,
]  # fmt: skip


def places(values: Any, at: Path_ = ()) -> list[Path_]:
    """Where the values of a document stand, the outermost first."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [at, *(place for key, value in items for place in places(value, (*at, key)))]


def value_at(values: Any, place: Path_) -> Any:
    for key in place:
        values = values[key]
    return values


def replaced_at(values: Any, place: Path_, value: Any) -> Any:
    if not place:
        return value
    value_at(values, place[:-1])[place[-1]] = value
    return values


def odd_values(document: Any) -> st.SearchStrategy[Any]:
    """Any value: extreme, of another type, or one that stands elsewhere in the document."""
    elsewhere = st.sampled_from(places(document)).map(lambda place: copy.deepcopy(value_at(document, place)))
    drawn = st.one_of(st.integers(), st.floats(), st.text(max_size=20), st.booleans())
    return st.one_of(st.sampled_from(ODD).map(copy.deepcopy), elsewhere, drawn)


def dumped(document: Any) -> bytes:
    return json.dumps(document).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> Any:
    """A document of which one to three places are changed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(document)))
        value = value_at(document, place)
        hows = ["replace", "replace", "delete", "scale", "repeat", "deepen", "add"]
        if isinstance(document, dict) and "image_processor_type" in document:
            hows += ["kind", "kind"]
        how = draw(st.sampled_from(hows))
        if how == "kind":
            document["image_processor_type"] = draw(st.sampled_from(KINDS))
        elif how == "delete" and place:
            del value_at(document, place[:-1])[place[-1]]
        elif how == "scale" and type(value) in (int, float):
            document = replaced_at(document, place, value * draw(st.sampled_from([-1, 0, 2, 10, 1000, 10**6, 10**12])))
        elif how == "repeat" and isinstance(value, list) and value:
            document = replaced_at(document, place, value * draw(st.sampled_from([2, 3, 300])))
        elif how == "deepen":
            for _ in range(draw(st.sampled_from([1, 2, 50]))):
                value = [value] if draw(st.booleans()) else {"a": value}
            document = replaced_at(document, place, value)
        elif how == "add" and isinstance(value, dict):
            value[draw(st.one_of(st.sampled_from(KEYS), st.text(max_size=10)))] = draw(odd_values(document))
        else:
            document = replaced_at(document, place, draw(odd_values(document)))
    return document


# Damage to bytes


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, head: int) -> bytes:
    """Bytes cut short, with flipped bits (half of the time among the first `head`), with more behind, or others."""
    changed = bytearray(content)
    how = draw(st.sampled_from(["flip", "flip", "cut", "append", "empty", "other", "zero"]))
    if how == "flip":
        end = head if draw(st.booleans()) else len(changed)
        for place in draw(st.lists(st.integers(0, 8 * min(end, len(changed)) - 1), min_size=1, max_size=8)):
            changed[place // 8] ^= 1 << place % 8
    elif how == "cut":
        changed = changed[: draw(st.integers(0, len(changed) - 1))]
    elif how == "append":
        changed += draw(st.binary(min_size=1, max_size=50))
    elif how == "zero":
        start = draw(st.integers(0, len(changed) - 1))
        changed[start : start + 100] = bytes(len(changed[start : start + 100]))
    elif how == "other":
        changed = bytearray(draw(st.binary(max_size=200)))
    else:
        changed = bytearray()
    return bytes(changed)


def header_of(content: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file, and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, data: bytes) -> bytes:
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def damaged_file(draw: st.DrawFn, name: str, content: bytes) -> bytes | None:
    """What stands in the place of a file now; None: nothing."""
    is_text = name.endswith((".json", ".yaml"))
    how = draw(st.sampled_from(["values"] * (12 if is_text else 2) + ["bytes"] * (1 if is_text else 3) + ["gone"]))
    if how == "gone":
        return None
    if how == "bytes":
        head = len(content) if is_text else 8 + struct.unpack("<Q", content[:8])[0]
        return draw(damaged_bytes(content, head))
    if name.endswith(".yaml") and draw(st.booleans()):
        text = draw(st.sampled_from(YAML))
        return content + text.encode() if draw(st.booleans()) else text.encode()
    if is_text:
        return dumped(draw(damaged_json(yaml.safe_load(content))))  # JSON is YAML, too
    header, data = header_of(content)
    return with_header(draw(damaged_json(header)), data)


@st.composite
def damage_to(draw: st.DrawFn, files: dict[str, bytes], groups: Sequence[Sequence[str]]) -> dict[str, bytes | None]:
    """One or two files, of groups that are drawn first, and what stands in their places."""
    names = st.one_of(*map(st.sampled_from, groups))
    chosen = [draw(names) for _ in range(draw(st.sampled_from([1, 1, 1, 2])))]
    return {name: draw(damaged_file(name, files[name])) for name in chosen}


def damage_to_model(files: dict[str, bytes]) -> st.SearchStrategy[dict[str, bytes | None]]:
    return damage_to(files, [["config.json"], ["config.json"], CONFIGS, PROCESSORS, WEIGHTS])


def damage_to_record(files: dict[str, bytes]) -> st.SearchStrategy[dict[str, bytes | None]]:
    return damage_to(files, [[name] for name in RECORDS])


# Using it


@dataclass
class Case:
    """What became of a case: "loaded", or the name of the error; CPU seconds, and bytes above what was in use."""

    outcome: str
    seconds: float
    memory: int


class TookTooLong(BaseException):
    """More than `SECONDS` of computing."""


class DamagedFiles:
    """The files of a folder, some of which are damaged for a case and put back after it."""

    def __init__(self, folder: Path):
        self.folder = folder
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def use(self, changed: dict[str, bytes | None], work: Callable[[], None]) -> Case:
        """Work with them; raises whatever is raised that is not clear."""
        try:
            for name, content in changed.items():
                if content is None:
                    (self.folder / name).unlink()
                else:
                    (self.folder / name).write_bytes(content)
            before, started, outcome = _memory("VmRSS"), process_time(), "loaded"
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
            try:
                with bounded():
                    work()
            except CLEAR as error:
                if isinstance(error, PertinenceError) and not is_a_sentence(str(error)):
                    raise AssertionError(f"no sentence: {str(error)!r}") from error
                if any(isinstance(one, MemoryError) or "allocate memory" in str(one) for one in causes_of(error)):
                    raise AssertionError("it took more memory than it may") from error
                outcome = type(error).__name__
            return Case(outcome, process_time() - started, _memory("VmHWM") - before)
        finally:
            for name in changed:
                (self.folder / name).write_bytes(self.files[name])


def use_model(folder: Path, images: torch.Tensor, saved: Path | None = None) -> None:
    """Load a model and classify; where `saved` is given also see that it comes back from there as it was."""
    PertinenceImageProcessor.from_pretrained(folder)
    model = PertinenceForImageClassification.from_pretrained(folder)
    logits = model(images).logits
    assert logits.shape == (len(images), model.config.num_labels)
    assert logits.isfinite().all()
    assert repr(model.front)
    if saved is None:
        return
    model.save_pretrained(saved)
    again = PertinenceForImageClassification.from_pretrained(saved)
    assert torch.equal(again(images).logits, logits)


def is_a_sentence(text: str) -> bool:
    """Whether it is one line that can be read, whatever was in the file that it speaks of."""
    return text.isprintable() and len(text) < 2000


def _memory(key: str) -> int:
    """Bytes of this process, by the name that Linux has for them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what computes for more than `SECONDS`, or takes more than `MEMORY`, with an error."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    previous = signal.signal(signal.SIGPROF, stop)
    faulthandler.dump_traceback_later(WATCHDOG, exit=True)
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, previous)


# Exported graphs


@st.composite
def damage_to_graphs(draw: st.DrawFn, files: dict[str, bytes]) -> dict[str, bytes | None]:
    """Another graph, half of the time with its hash in config.json, as whoever writes a config can write that, too; or
    another description of the graphs."""
    config = json.loads(files["config.json"])
    index, how = draw(st.integers(0, len(config["experts"]) - 1)), draw(st.integers(0, 3))
    export = config["experts"][index]["exports"][0]
    if how == 0:
        config["experts"][index]["exports"] = draw(damaged_json(config["experts"][index]["exports"]))
        return {"config.json": dumped(config)}
    content = draw(damaged_bytes(files[export["file"]], 2048))
    changed: dict[str, bytes | None] = {export["file"]: content}
    if how > 1:
        export["sha256"] = hashlib.sha256(content).hexdigest()
        changed["config.json"] = dumped(config)
    return changed


def use_graphs(folder: Path, images: torch.Tensor) -> None:
    """Load an exported model, with torch and without, and classify."""
    model = PertinenceForImageClassification.from_pretrained(folder, backend="onnx")
    logits = model(images).logits
    assert logits.shape == (len(images), model.config.num_labels)
    assert logits.isfinite().all()
    answers = load(folder).route([image.permute(1, 2, 0).numpy() for image in images])
    assert answers.logits.shape == logits.shape
