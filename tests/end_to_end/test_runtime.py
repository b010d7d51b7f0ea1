"""How experts are run: in chunks, laid out for convolutions, compiled, from many threads, and never waiting twice."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from memory import memory

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.experts import features as features_module
from pertinence.experts.backends.torch import ISOLATES
from pertinence.experts.expert import Expert, load_expert
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.experts.transforms import apply_transform
from pertinence.runtime.transform import Transform


@pytest.fixture(scope="module")
def model(tiny_experts) -> PertinenceForImageClassification:
    """A ViT, then a CNN."""
    return PertinenceForImageClassification.from_experts(tiny_experts, 0.6)


@pytest.fixture
def pool(tiny_experts) -> list[Expert]:
    return load_pool(tiny_experts, LoadOptions())


@pytest.fixture
def given(monkeypatch) -> list[int]:
    """How many images the networks are given at once."""
    sizes: list[int] = []
    run = features_module.FeatureTap.run
    monkeypatch.setattr(
        features_module.FeatureTap,
        "run",
        lambda self, model, pixels, **options: sizes.append(len(pixels)) or run(self, model, pixels, **options),
    )
    return sizes


def test_a_model_is_stored_by_torch_as_any_other(model, images, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(images(4, 40)).logits, model(images(4, 40)).logits)


def test_an_expert_that_is_let_go_is_freed_at_once(tiny_experts, images):
    """Not when the garbage collector comes by: a lazy model would hold far more than it may."""
    gc.collect()
    gc.disable()
    try:
        experts = load_pool(tiny_experts, LoadOptions())
        networks = [weakref.ref(expert.model) for expert in experts]
        for expert in experts:
            expert(images(2, 40))
        del expert, experts
        assert [network() for network in networks] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("as_list", [False, True])
def test_chunks_change_no_answer(pool, images, given, as_list):
    batch = images(11, 70)
    for expert in pool:
        given.clear()
        whole = expert(batch, max_batch=11)
        parts = expert(list(batch) if as_list else batch, max_batch=4)
        assert given == [11, 4, 4, 3]
        for actual, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_chunks_are_few_and_even(pool, images, given):
    size = pool[0].chunk_size(torch.device("cpu"))
    assert size == 65536 // 96**2 * torch.get_num_threads()
    pool[0](images(size + 1, 40))
    assert given == [-(-(size + 1) // 2), (size + 1) // 2]
    assert pool[0].chunk_size(torch.device("cuda")) > 1000


def test_convolutions_have_channels_last_and_transformers_do_not(pool):
    vit, cnn = pool
    assert cnn.model.timm_model.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert vit.model.timm_model.patch_embed.proj.weight.is_contiguous()


def test_an_error_in_any_chunk_is_found(pool, images):
    batch, cnn = images(6, 160), pool[1]
    poisoned = copy.deepcopy(cnn)
    poisoned.model.timm_model.get_classifier().register_forward_hook(
        lambda module, inputs, out: out * (torch.nan if inputs[0].shape[0] == 2 else 1)
    )
    with pytest.raises(PertinenceError, match="NaN or infinite"):
        poisoned(batch[:5], max_batch=3)  # 3 and 2
    poisoned(batch, max_batch=3)


def test_preprocessing_sees_only_the_images_that_an_expert_receives(model, images, monkeypatch):
    seen = []
    for expert in model.experts:
        apply = expert.preprocess._apply
        monkeypatch.setattr(
            expert.preprocess, "_apply", lambda batch, apply=apply: seen.append(tuple(batch.shape)) or apply(batch)
        )
    mixed = [image for pair in zip(images(9, 40), images(9, 64, seed=1), strict=True) for image in pair]
    out = model(mixed)
    second = out.experts_run[:, 1]
    expected = Counter({40: 9 + second[0::2].sum().item(), 64: 9 + second[1::2].sum().item()})
    assert 0 < second.sum() < len(mixed)
    assert sum((Counter({height: count}) for count, _, height, _ in seen), Counter()) == expected
    sizes = [expert.chunk_size(torch.device("cpu")) for expert in model.experts]
    chunks = sum(-(-count // size) for count, size in zip((len(mixed), second.sum().item()), sizes, strict=True))
    assert len(seen) <= chunks + len(sizes)  # of each expert at most one chunk holds both sizes


def test_pixels_do_not_depend_on_a_model_that_loads_meanwhile(images):
    """transformers sets the default dtype, for all threads, while it loads one."""
    mean, std = (0.4851, 0.4561, 0.4061), (0.2291, 0.2241, 0.2251)  # of no other test: constants are made once
    transform, batch = Transform("timm", (40, 40), rescale=1 / 255, mean=mean, std=std), images(2, 40)
    expected = (batch / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        pixels = apply_transform(transform, batch)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(apply_transform(transform, batch), expected)


@pytest.mark.parametrize(("count", "is_host"), [(1, True), (4, True), (4, False)])
def test_an_answer_may_be_differentiated(model, images, count, is_host, monkeypatch):
    monkeypatch.setattr("pertinence.routing.policy.is_host", lambda device: is_host)  # False: as on an accelerator
    temperature = torch.ones((), requires_grad=True)
    (model(images(count, 40)).logits / temperature).logsumexp(1).sum().backward()
    assert temperature.grad is not None


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("lazy", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_compiled_experts_answer_the_same_and_are_one_graph(model, images, tmp_path, lazy):
    model.save_pretrained(tmp_path)
    compiled = PertinenceForImageClassification.from_pretrained(tmp_path, lazy=lazy)
    calls = []

    def backend(graph: torch.fx.GraphModule, _):
        calls.append(graph)
        return graph.forward

    compiled.compile_experts(backend=backend, fullgraph=True)  # which refuses a break
    batch = images(12, 64)
    for size in (12, 5, 1):
        torch.testing.assert_close(compiled(batch[:size]).logits, model(batch[:size]).logits, atol=1e-4, rtol=0)
    assert calls


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {"window_size": 4, "depths": [2], "num_heads": [3], "embed_dim": 24}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 2}),
    ],
)
def test_a_transformer_on_smaller_images_is_one_graph(make_expert, images, tmp_path, architecture, arguments):
    """Masks and positions that are made for the size of the images do not break it."""
    torch.compiler.reset()
    folder = make_expert(tmp_path / "expert", architecture, 32, model_args={"img_size": 32, **arguments})
    small, _ = load_pool([{"repo_id": str(folder), "image_size": 24}, str(folder)], LoadOptions())
    batch = images(5, 32)
    expected = small(batch)
    small.compile_network({"dynamic": True, "fullgraph": True, "backend": "eager"})
    for actual, wanted in zip(small(batch), expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.skipif(not ISOLATES, reason="this torch counts recompilations of all experts together")
def test_every_expert_of_a_large_pool_is_compiled(make_expert, images, tmp_path):
    """However many share their code."""
    torch.compiler.reset()
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _):
        calls.append(index)
        return graph.forward

    for index in range(6):
        arguments = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 16 * (index + 1), "num_heads": 1}
        folder = make_expert(tmp_path / str(index), "vit_tiny_patch16_224", 32, model_args=arguments)
        expert = load_expert(ExpertReference.parse(folder), LoadOptions())
        expert.compile_network({"dynamic": True, "fullgraph": True, "backend": backend})
        for count in (3, 1):
            expert(images(count, 32))
    assert sorted(set(calls)) == list(range(6))


@pytest.mark.parametrize("lazy", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_many_threads_and_mixed_sizes_give_no_wrong_answer_and_take_no_memory(model, images, tmp_path, lazy):
    model.save_pretrained(tmp_path)
    largest = 4 * sum(entry["parameters"] for entry in model.config.experts)
    options = {"lazy": True, "max_memory": largest} if lazy else {}
    shared = PertinenceForImageClassification.from_pretrained(tmp_path, **options)
    requests = [
        list(images(1 + number % 5, (40, 64, 96)[number % 3], seed=number)) + list(images(number % 2, 52, seed=number))
        for number in range(24)
    ]
    expected = [model(request) for request in requests]

    def wave() -> None:
        with ThreadPoolExecutor(8) as threads:
            for out, right in zip(threads.map(shared, requests * 2), expected * 2, strict=True):
                torch.testing.assert_close(out.logits, right.logits, atol=1e-4, rtol=0)
                assert torch.equal(out.expert_indices, right.expert_indices)

    wave()
    before = memory()["allocated"]
    for _ in range(3):
        wave()
    assert memory()["allocated"] - before < 0.25  # MiB of 144 requests, when their threads have ended
