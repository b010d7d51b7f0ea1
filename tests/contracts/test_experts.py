"""What every kind of expert keeps to: one that is loaded, and one that is loaded when it is first chosen."""

import inspect
from pathlib import Path

import pytest
import torch

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.experts.base import ExpertLike


ATTRIBUTES = [name for name, value in vars(ExpertLike).items() if isinstance(value, property)]


@pytest.fixture(scope="module")
def saved(tiny_experts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "model"
    pool = [{"repo_id": str(path), "label_map": list(range(9, -1, -1))} for path in tiny_experts]
    PertinenceForImageClassification.from_experts(pool, thresholds=0.9).save_pretrained(folder)
    return folder


@pytest.fixture
def eager(saved):
    return PertinenceForImageClassification.from_pretrained(saved).experts


@pytest.fixture
def lazy(saved):
    return PertinenceForImageClassification.from_pretrained(saved, lazy=True).experts


@pytest.fixture(params=["eager", "lazy"])
def experts(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def batch(images):
    return images(6, 120)


def test_reading_an_attribute_loads_nothing(lazy, hub, monkeypatch):
    hub.requests.clear()
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("something is built"))
    for expert in lazy:
        for name in ATTRIBUTES:
            assert hasattr(expert, name)
        for name in ("model", "preprocess", "labels", "checkpoint", "network"):
            assert not hasattr(expert, name), "only a loaded expert has it"
        expert.find_folder(), expert.find_code(), expert.find_revision()
        assert expert.store.loads == 0
    assert not hub.requests


def test_what_it_tells_is_the_same(eager, lazy):
    for one, other in zip(eager, lazy, strict=True):
        for name in set(ATTRIBUTES) - {"weights_key"}:
            assert getattr(one, name) == getattr(other, name), name
        assert one.num_labels == 10
        assert one.find_folder() == other.find_folder()
        assert one.find_revision() == other.find_revision() == one.entry.revision


def test_what_it_gives_is_the_same(eager, lazy, batch):
    for one, other in zip(eager, lazy, strict=True):
        for ours, theirs in zip(one(batch), other(batch), strict=True):
            assert torch.equal(ours, theirs)


def test_outputs(experts, batch):
    for expert in experts:
        logits, features = expert(batch)
        assert (logits.shape, features.shape) == ((6, 10), (6, expert.entry.features))
        assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)
        with torch.no_grad():
            assert all(map(torch.equal, expert.run(batch), (logits, features)))
            assert torch.allclose(expert.run(batch, 2)[0], logits, atol=1e-4)


def test_impossible_scores_are_refused(experts):
    for expert in experts:
        expert.check(torch.zeros(()))
        with pytest.raises(PertinenceError, match=f"{expert.entry.name}.* NaN or infinite scores"):
            expert.check(torch.tensor(float("nan")))


def test_cast(experts, batch):
    for expert in experts:
        before = expert(batch)[0]
        assert expert.to(torch.float64) is expert
        assert expert.dtype == torch.float64
        assert torch.allclose(expert(batch)[0], before, atol=1e-4)


def test_compiled(experts, batch):
    for expert in experts:
        graphs, before = [], expert(batch)[0]
        expert.compile_network({"backend": lambda graph, _, graphs=graphs: graphs.append(graph) or graph.forward})
        assert torch.allclose(expert(batch)[0], before, atol=1e-4)
        assert graphs


def test_it_has_what_the_protocol_asks(experts):
    methods = {name: value for name, value in vars(ExpertLike).items() if inspect.isfunction(value) and name[0] != "_"}
    asked = {"run", "check", "find_folder", "find_code", "find_revision", "compile_network", "loaded", "to"}
    assert asked == set(methods)
    for expert in experts:
        for name, method in methods.items():
            if name != "to":  # of torch, which takes more
                found = inspect.signature(getattr(type(expert), name)).parameters
                assert list(found) == list(inspect.signature(method).parameters)
