"""Lazy experts: loaded when first chosen, gone when the cap demands it, answering as experts that are all there."""

from __future__ import annotations

import copy
import gc
import hashlib
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
import pytest
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForImageClassification, PreTrainedModel

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.routing.front import Front, OperatingPoint
from pertinence.routing.metrics import Figures


ARCHITECTURES = ("test_convnext", "test_efficientnet", "test_resnet")


@pytest.fixture(scope="module")
def folders(make_expert, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lazy")
    return [make_expert(folder / name, name, 64, seed=seed) for seed, name in enumerate(ARCHITECTURES)]


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory) -> Path:
    """A cascade of three whose experts are references to folders."""
    folder = tmp_path_factory.mktemp("lazy_model")
    PertinenceForImageClassification.from_experts(folders, 0.6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved) -> PertinenceForImageClassification:
    """With every expert there."""
    return PertinenceForImageClassification.from_pretrained(saved)


def lazy(folder: Path | str, **options) -> PertinenceForImageClassification:
    return PertinenceForImageClassification.from_pretrained(folder, lazy=True, **options)


def sizes(model: PertinenceForImageClassification) -> list[int]:
    return [4 * entry["parameters"] for entry in model.config.experts]


def paths(model: PertinenceForImageClassification, batch: torch.Tensor) -> list[int]:
    """How many experts each image runs; there are images of one, of two and of three."""
    counts = model(batch).experts_run.sum(1).tolist()
    assert set(counts) == {1, 2, 3}
    return counts


def put_on_hub(hub, folders: list[Path], folder: Path, embedded: bool, mark: str) -> str:
    """A model on the Hub, its experts inside or repositories of their own, with nothing of it in the cache."""
    references = [f"lazy/{expert.name}-{mark}" for expert in folders]
    for reference, expert in zip(references, folders, strict=True):
        hub.add_model(reference, expert)
    whole = PertinenceForImageClassification.from_experts(folders if embedded else references, 0.6)
    whole.save_pretrained(folder, save_experts=embedded)
    hub.add_model(f"lazy/composite-{mark}", folder)
    for cached in Path(huggingface_hub.constants.HF_HUB_CACHE).glob("models--lazy--*"):
        shutil.rmtree(cached)
    return f"lazy/composite-{mark}"


@pytest.fixture(scope="module")
def batch(images) -> torch.Tensor:
    return images(40, 64, seed=3)


def test_an_expert_is_loaded_when_it_is_first_chosen(saved, model, batch):
    lazily, counts = lazy(saved), paths(model, batch)
    store = lazily.experts[0].store
    assert store.loaded == []
    for longest in (1, 2, 3):
        image = batch[counts.index(longest)][None]
        torch.testing.assert_close(lazily(image).logits, model(image).logits, atol=1e-5, rtol=0)
        assert store.loaded == list(range(longest))
    lazily(batch)
    assert store.loads == 3


def test_loading_does_not_disturb_who_builds_a_network_meanwhile(saved, batch):
    """In torch all threads share the hooks that see what is built."""
    lazily, met = lazy(saved), []

    def load_in_another_thread(*_) -> None:
        if not met:
            met.append(True)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lazily, batch).result()

    hooks = (load_in_another_thread, lambda *_: None)  # one that is called, and one that is still to come
    handles = [register_module_parameter_registration_hook(hook) for hook in hooks]
    try:
        torch.nn.Linear(2, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert lazily.experts[0].store.loads == 3


def test_only_the_folder_of_a_chosen_expert_is_opened(folders, tmp_path, batch):
    """Loading everything, or another expert, would not survive that the folders are empty."""
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    whole = PertinenceForImageClassification.from_experts(copies, 0.6)
    whole.save_pretrained(tmp_path / "model")
    counts = paths(whole, batch)
    order = [Path(entry["repo_id"]) for entry in whole.config.experts]
    for folder in order[1:]:
        (folder / "model.safetensors").unlink()
    lazily = lazy(tmp_path / "model")
    assert lazily(batch[counts.index(1)][None]).expert_indices.tolist() == [0]
    with pytest.raises(PertinenceError, match=order[1].name):
        lazily(batch[counts.index(2)][None])
    assert lazily.experts[0].store.loaded == [0]  # what failed takes no room
    assert lazily(batch[counts.index(1)][None]).expert_indices.tolist() == [0]


def test_the_least_recently_used_leaves_and_the_first_stays(saved, model, batch):
    first, second, third = sizes(model)
    cap = first + max(second, third)
    lazily, counts = lazy(saved, max_memory=cap), paths(model, batch)
    store = lazily.experts[0].store
    torch.testing.assert_close(lazily(batch).logits, model(batch).logits, atol=1e-5, rtol=0)
    assert store.loaded == [0, 2]
    assert store.memory <= cap
    lazily(batch[counts.index(2)][None])
    assert store.loaded == [0, 1]
    assert store.loads == 4
    lazily(batch[counts.index(1)][None])
    assert store.loads == 4


@pytest.mark.nightly
@pytest.mark.no_cover
def test_coming_and_going_costs_no_memory(saved, model, batch):
    first, second, third = sizes(model)
    lazily = lazy(saved, max_memory=first + max(second, third))

    def come_and_go(times: int) -> float:
        """Bytes that Python holds more for each time."""
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            for expert in lazily.experts:
                expert(batch[:1])
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / times

    tracemalloc.start()
    try:
        come_and_go(3)
        loads, growth = lazily.experts[0].store.loads, come_and_go(10)
    finally:
        tracemalloc.stop()
    assert lazily.experts[0].store.loads == loads + 20
    assert growth < 4_000


@pytest.mark.parametrize("default", ["large", None, "most-accurate"])
def test_what_runs_first_stays_however_it_is_named(folders, batch, default):
    pool = load_pool(folders, LoadOptions())
    alone = [OperatingPoint(name, "static", (index,)) for index, name in enumerate(("small", "middle", "large"))]
    front = Front([replace(p, select=figures(p.members[0])) for p in alone], [e.entry.name for e in pool])
    model = PertinenceForImageClassification.compose(pool, front, {}, "large")
    first, second, third = sizes(model)
    model.config.operating_point = default
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        lazily = lazy(folder, max_memory=third + max(first, second))
        for point, loaded in ((None, [2]), ("small", [0, 2]), ("middle", [1, 2])):
            lazily(batch, operating_point=point)
            assert lazily.experts[0].store.loaded == loaded


def figures(expert: int) -> Figures:
    shares = tuple(float(i == expert) for i in range(3))
    return Figures(0.5 + expert / 10, (0.4, 0.9), {"gmacs": 1.0 + expert}, shares, 100)


def test_a_save_does_not_disturb_what_is_loaded_meanwhile(saved, model, batch, tmp_path, monkeypatch):
    lazily, met = lazy(saved), []
    write = PreTrainedModel.save_pretrained

    def write_while_another_thread_asks(self, *args, **kwargs) -> None:
        with ThreadPoolExecutor(1) as thread:
            met.append(thread.submit(lazily, batch).result())
        write(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", write_while_another_thread_asks)
    lazily.save_pretrained(tmp_path, save_experts=True)
    torch.testing.assert_close(met[0].logits, model(batch).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(lazy(tmp_path)(batch).logits, model(batch).logits, atol=1e-5, rtol=0)


def test_files_are_hashed_once_and_again_when_they_change(folders, tmp_path, batch, monkeypatch, caplog):
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    whole = PertinenceForImageClassification.from_experts(copies, 0.6)
    whole.save_pretrained(tmp_path / "model")
    first, second, third = sizes(whole)
    lazily = lazy(tmp_path / "model", max_memory=first + max(second, third))
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: hashed.append(Path(file.name)) or digest(file, how))
    for _ in range(3):
        lazily(batch)
    assert lazily.experts[0].store.loads > 4
    assert len(hashed) == len(set(hashed))
    config = Path(whole.config.experts[2]["repo_id"]) / "config.json"
    config.write_text(config.read_text() + "\n")
    lazily(batch)
    assert f"Expert {whole.config.experts[2]['name']!r} in {config.parent} has changed" in caplog.text


def test_a_cap_that_is_too_small_says_what_is_needed(saved, model):
    first, second, third = sizes(model)
    needed = first + max(second, third)
    with pytest.raises(PertinenceError, match=f"give at least {needed:,}"):
        lazy(saved, max_memory=needed - 1)
    lazy(saved, max_memory=needed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lazy": True, "max_memory": "much"}, 'a size like "2GiB"'),
        ({"lazy": True, "max_memory": -1}, "a number of bytes"),
        ({"max_memory": "2GiB"}, "needs lazy=True"),
        ({"lazy": True, "device_map": {"experts.0": 0}}, "lazy experts all go to one device"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(saved, options, words):
    with pytest.raises(PertinenceError, match=words):
        PertinenceForImageClassification.from_pretrained(saved, **options)


@pytest.mark.parametrize("capped", [False, True])
def test_threads_share_what_is_loaded_and_keep_the_cap(saved, model, batch, capped):
    first, second, third = sizes(model)
    cap = first + max(second, third) if capped else None
    lazily = lazy(saved, max_memory=cap)
    expected = model(batch).logits
    parts = [torch.arange(start, len(batch), 8) for start in range(8)] * 3
    held = []

    def ask(rows: torch.Tensor) -> torch.Tensor:
        logits = lazily(batch[rows]).logits
        held.append(lazily.experts[0].store.memory)
        return logits

    with ThreadPoolExecutor(8) as threads:
        for rows, logits in zip(parts, threads.map(ask, parts), strict=True):
            torch.testing.assert_close(logits, expected[rows], atol=1e-4, rtol=0)
    if capped:
        assert max(held) <= cap
    else:
        assert lazily.experts[0].store.loads == 3


@pytest.mark.parametrize("name", ["memory", "loaded"])
def test_what_is_held_is_not_read_while_it_changes(saved, name):
    store = lazy(saved).experts[0].store
    with ThreadPoolExecutor(1) as threads:
        with store._changed:
            reading = threads.submit(getattr, store, name)
            with pytest.raises(TimeoutError):
                reading.result(timeout=0.2)
        assert not reading.result(timeout=60)


@pytest.mark.parametrize("embedded", [False, True])
def test_from_the_hub_only_what_is_chosen_is_fetched_and_then_works_offline(
    hub, folders, model, batch, tmp_path, monkeypatch, embedded
):
    name, counts = put_on_hub(hub, folders, tmp_path / "model", embedded, str(embedded)), paths(model, batch)
    hub.requests.clear()
    lazily = lazy(name)
    for longest in (1, 2, 3):
        assert lazily(batch[counts.index(longest)][None]).experts_run.sum() == longest
        assert len({r.path for r in hub.requests if r.method == "GET" and is_expert(r.path)}) == longest
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    torch.testing.assert_close(lazy(name)(batch).logits, model(batch).logits, atol=1e-5, rtol=0)
    assert hub.requests == []


@pytest.mark.parametrize("lazily", [False, True])
def test_a_model_in_a_subfolder_finds_its_copies_there(hub, folders, model, batch, tmp_path, lazily):
    PertinenceForImageClassification.from_experts(folders, 0.6).save_pretrained(
        tmp_path / "of/mine", save_experts=True
    )
    first = hub.add_model("lazy/several", tmp_path)
    hub.add_model("lazy/several", Path(__file__).parents[1] / "fixtures" / "format_1")  # with nothing of it any more
    for source, revision in ((tmp_path, None), ("lazy/several", first)):
        options = {"subfolder": "of/mine", "lazy": lazily, **({"revision": revision} if revision else {})}
        loaded = PertinenceForImageClassification.from_pretrained(source, **options)
        torch.testing.assert_close(loaded(batch).logits, model(batch).logits, atol=1e-5, rtol=0)


def is_expert(path: str) -> bool:
    """Whether the weights of an expert are asked for."""
    return path.endswith("model.safetensors") and ("/experts/" in path or "composite" not in path)


def test_experts_of_one_checkpoint_share_its_weights(folders, tmp_path, batch):
    large = folders[2]
    pool = [folders[0], {"repo_id": str(large), "image_size": 32}, large]
    whole = PertinenceForImageClassification.from_experts(pool, 0.6)
    whole.save_pretrained(tmp_path)
    lazily = lazy(
        tmp_path, max_memory=4 * sum({e["revision"]: e["parameters"] for e in whole.config.experts}.values())
    )
    torch.testing.assert_close(lazily(batch).logits, whole(batch).logits, atol=1e-5, rtol=0)
    assert lazily.experts[0].store.loads == 2
    sharing = []
    for expert in lazily.experts:
        if expert.entry.repo_id == str(large):
            with expert.store.borrow(expert.index, lambda _: None) as loaded:
                sharing.append(loaded.model)
    assert len(sharing) == 2
    assert sharing[0] is sharing[1]


def test_it_is_saved_copied_and_cast_like_any_other(saved, model, batch, tmp_path):
    lazily = lazy(saved, max_memory=sum(sizes(model)[:2]) + sizes(model)[2])
    lazily.save_pretrained(tmp_path / "references")
    lazily.save_pretrained(tmp_path / "whole", save_experts=True)
    for name in ("references", "whole"):
        again = PertinenceForImageClassification.from_pretrained(tmp_path / name)
        torch.testing.assert_close(again(batch).logits, model(batch).logits, atol=1e-5, rtol=0)
    duplicate = copy.deepcopy(lazily)
    torch.testing.assert_close(duplicate(batch).logits, model(batch).logits, atol=1e-5, rtol=0)
    assert duplicate.experts[0].store is not lazily.experts[0].store
    half = lazily.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    expected = copy.deepcopy(model).to(torch.bfloat16)
    assert torch.equal(half(batch).logits, expected(batch).logits)


def test_the_cap_holds_what_is_cast(saved, model, batch):
    first, second, third = (2 * size for size in sizes(model))
    cap = first + max(second, third)
    small, large = lazy(saved, max_memory=cap - 1), lazy(saved, max_memory=cap)
    with pytest.raises(PertinenceError, match=f"do not hold expert 'test_resnet'.*give at least {cap:,}"):
        small.to(torch.float64)
    assert {expert.dtype for expert in small.experts} == {torch.float32}
    torch.testing.assert_close(small(batch).logits, model(batch).logits, atol=1e-5, rtol=0)
    expected = copy.deepcopy(model).to(torch.float64)(batch).logits
    large.to(torch.float64)
    for cast in (large, copy.deepcopy(large)):
        torch.testing.assert_close(cast(batch).logits, expected, atol=1e-5, rtol=0)
        store = cast.experts[0].store
        assert store.loaded == [0, 2]
        assert store.memory == first + third
    large.to(torch.bfloat16)(batch)
    assert large.experts[0].store.memory == sum(sizes(model)) // 2


@pytest.fixture(scope="module")
def halves(make_expert, tmp_path_factory) -> dict[str, Path]:
    """Models of a ViT whose linear layers compute in 8 bits before the whole one, by the dtype of the checkpoint."""
    folder = tmp_path_factory.mktemp("halves")
    whole = make_expert(folder / "float32", "test_vit", 96, model_args={"img_size": 96})
    half = AutoModelForImageClassification.from_pretrained(whole, dtype=torch.bfloat16)
    half.save_pretrained(folder / "bfloat16")
    for dtype in ("float32", "bfloat16"):
        pool = [{"repo_id": str(folder / dtype), "quantization": "int8"}, folder / dtype]
        PertinenceForImageClassification.from_experts(pool, 0.6).save_pretrained(folder / f"model-{dtype}")
    return {dtype: folder / f"model-{dtype}" for dtype in ("float32", "bfloat16")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_cast", [False, True])
def test_eight_bits_are_left_as_they_are_by_a_cast(halves, batch, dtype, is_cast):
    size = lazy(halves[dtype]).config.experts[0]["parameters"] * (2 if dtype == "bfloat16" else 4)
    eager, lazily = (
        PertinenceForImageClassification.from_pretrained(halves[dtype]),
        lazy(halves[dtype], max_memory=size),
    )
    if is_cast:
        in_eight_bits = eager.experts[0](batch)
        eager, lazily = eager.to(torch.bfloat16), lazily.to(torch.bfloat16)
        assert torch.equal(eager.experts[0](batch)[0], in_eight_bits[0])
    for one in (eager, lazily):
        half = torch.bfloat16 if is_cast else getattr(torch, dtype)
        assert [expert.dtype for expert in one.experts] == [torch.float32, half]
    for index in (1, 0):  # in 8 bits after the other: not made of what that was cast to
        assert torch.equal(lazily.experts[index](batch)[0], eager.experts[index](batch)[0])
    assert torch.equal(lazily(batch).logits, eager(batch).logits)


@pytest.mark.parametrize("save_experts", [False, True])
def test_saving_builds_no_network(saved, model, batch, tmp_path, save_experts):
    lazily = lazy(saved)
    for folder in (tmp_path, tmp_path):  # the second time over itself
        lazily.save_pretrained(folder, save_experts=save_experts)
        assert lazily.experts[0].store.loads == 0
        lazily = lazy(folder)
    assert [Path(entry["repo_id"]).is_absolute() for entry in lazily.config.experts] == [not save_experts] * 3
    torch.testing.assert_close(lazily(batch).logits, model(batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("save_experts", [False, True])
def test_saving_fetches_what_is_copied_alone(hub, folders, model, batch, tmp_path, embedded, save_experts):
    lazily = lazy(put_on_hub(hub, folders, tmp_path / "model", embedded, f"saved-{embedded}-{save_experts}"))
    hub.requests.clear()
    lazily.save_pretrained(tmp_path / "again", save_experts=save_experts)
    assert lazily.experts[0].store.loads == 0
    # A copy in a repository is referred to by where it lies in the cache.
    fetched = 3 if embedded or save_experts else 0
    assert len({r.path for r in hub.requests if r.method == "GET" and is_expert(r.path)}) == fetched
    again = PertinenceForImageClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(batch).logits, model(batch).logits, atol=1e-5, rtol=0)


def test_what_is_not_whole_in_the_cache_is_not_copied(hub, folders, tmp_path, monkeypatch):
    references = [f"lazy/part-{folder.name}" for folder in folders[:2]]
    for reference, folder in zip(references, folders, strict=False):
        hub.add_model(reference, folder)
    whole = PertinenceForImageClassification.from_experts(references, 0.6)
    whole.save_pretrained(tmp_path / "model")
    name = whole.config.experts[1]["name"]
    for weights in Path(huggingface_hub.constants.HF_HUB_CACHE).glob(
        f"models--lazy--{name}/snapshots/*/*.safetensors"
    ):
        weights.unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PertinenceError, match=f"expert '{name}': .*: connect and load it once"):
        lazy(tmp_path / "model").save_pretrained(tmp_path / "copy", save_experts=True)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("is_copy", [False, True])
def test_what_has_changed_is_not_copied_unseen(folders, tmp_path, is_copy):
    """Nobody was warned of it, as it was not loaded."""
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    PertinenceForImageClassification.from_experts(copies, 0.6).save_pretrained(
        tmp_path / "model", save_experts=is_copy
    )
    lazily = lazy(tmp_path / "model")
    changed = Path(lazily.config.experts[1]["repo_id"])
    config = tmp_path / "model" / changed / "config.json"
    config.write_text(config.read_text() + " ")
    for target in ("model", "other"):
        with pytest.raises(PertinenceError, match=f"in .*{changed} has changed since this model was made"):
            lazily.save_pretrained(tmp_path / target, save_experts=True)
    (config.parent / "model.safetensors").unlink()
    with pytest.raises(PertinenceError, match="'test_efficientnet': the checkpoint in .* is incomplete"):
        lazily.save_pretrained(tmp_path / "other", save_experts=True)
    assert lazily.experts[0].store.loads == 0
    assert lazy(tmp_path / "model").config.experts == lazily.config.experts
