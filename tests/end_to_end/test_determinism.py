"""The same images give the same answers: again, in another process, in other batches, orders and numbers of threads,
on real experts; bit for bit where the computation is the same, else within a tolerance that docs/robustness.md states.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from warm_processes import run_python

from pertinence import PertinenceForImageClassification
from pertinence.data.decoding import decode_image


TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
"""Largest difference of a logit where batches, orders or threads differ; decisions may differ where two actions are
closer than this."""
ELSEWHERE = """
import sys, torch
from safetensors.torch import load_file, save_file
from pertinence import PertinenceForImageClassification
folder, images, answers = sys.argv[1:]
images, found = load_file(images)["images"], {}
for dtype in ("float32", "bfloat16"):
    model = PertinenceForImageClassification.from_pretrained(folder, dtype=dtype, trust_remote_code=True)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = model(images)
        found |= {f"{dtype}-{threads}-{key}": out[key].float() for key in ("logits", "experts_run", "gmacs")}
save_file(found, answers)
"""


@pytest.fixture(scope="module")
def images(zoo) -> torch.Tensor:
    files = {"test": str(zoo / "cifar10/data/test-*.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, split="test[:48]")
    return torch.stack([decode_image(row["image"]) for row in rows])


@pytest.fixture(scope="module")
def saved(zoo, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "chain"
    experts = [zoo / "cifar10" / name for name in ("resnet8", "resnet20", "resnet56")]
    chain = PertinenceForImageClassification.from_experts(experts, [0.9, 0.95], trust_remote_code=True)
    chain.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(TOLERANCE))
def model(request, saved) -> PertinenceForImageClassification:
    loaded = PertinenceForImageClassification.from_pretrained(saved, dtype=request.param, trust_remote_code=True)
    assert str(loaded.dtype) == f"torch.{request.param}"
    return loaded


@pytest.fixture(scope="module")
def answers(model, images) -> dict[str, torch.Tensor]:
    out = dict(model(images))
    assert 4 < out["experts_run"][:, 1].sum() < len(images)
    return out


def tolerance_of(model: PertinenceForImageClassification) -> float:
    return TOLERANCE[str(model.dtype).removeprefix("torch.")]


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Within a tolerance, but for images whose decisions are closer than that."""
    scores = expected["dispatcher_logits"].nan_to_num(-1e9).sort(-1, descending=True).values
    reached = ~expected["dispatcher_logits"].isnan().all(-1)
    margin = torch.where(reached, scores[..., 0] - scores[..., 1], torch.inf).amin(1)
    clear = margin > (tolerance if tolerance < 0.01 else tolerance / 10)
    assert clear.float().mean() > 0.6
    assert torch.equal(found["experts_run"][clear].bool(), expected["experts_run"][clear])
    torch.testing.assert_close(found["logits"][clear], expected["logits"][clear], atol=tolerance, rtol=0)
    torch.testing.assert_close(found["gmacs"][clear], expected["gmacs"][clear])


def test_asked_again_every_bit_is_the_same(model, images, answers):
    for key, value in model(images).items():
        assert torch.equal(value.nan_to_num(), answers[key].nan_to_num())


@pytest.fixture(scope="module")
def elsewhere(saved, images, tmp_path_factory) -> dict[str, torch.Tensor]:
    """What another process answers, on one thread and on two."""
    folder = tmp_path_factory.mktemp("elsewhere")
    save_file({"images": images}, folder / "images.safetensors")
    run = run_python("-c", ELSEWHERE, saved, folder / "images.safetensors", folder / "found")
    assert run.returncode == 0, run.stderr
    return load_file(folder / "found")


def test_another_process_answers_the_same_bits(model, answers, elsewhere):
    dtype = str(model.dtype).removeprefix("torch.")
    for key in ("logits", "experts_run", "gmacs"):
        assert torch.equal(elsewhere[f"{dtype}-1-{key}"], answers[key].float())


def test_two_threads_answer_as_one(model, answers, elsewhere):
    dtype = str(model.dtype).removeprefix("torch.")
    found = {key: elsewhere[f"{dtype}-2-{key}"] for key in ("logits", "experts_run", "gmacs")}
    assert_alike(found, answers, tolerance_of(model))


@pytest.mark.parametrize("size", [1, 5, 32])
def test_any_batch_size_answers_as_one_batch(model, images, answers, size):
    parts = [dict(model(part)) for part in images.split(size)]
    found = {key: torch.cat([part[key] for part in parts]) for key in ("logits", "experts_run", "gmacs")}
    assert_alike(found, answers, tolerance_of(model))


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_answers_as_any_other(model, images, answers, seed):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    found = {key: value[order.argsort()] for key, value in model(images[order]).items()}
    assert_alike(found, answers, tolerance_of(model))


def test_bfloat16_answers_nearly_as_float32(saved, images):
    """A rounding to eight bits, not another network."""
    whole, rounded = (
        PertinenceForImageClassification.from_pretrained(saved, dtype=dtype, trust_remote_code=True)(images)
        for dtype in TOLERANCE
    )
    assert (whole.logits.argmax(1) == rounded.logits.argmax(1)).float().mean() > 0.9
    same_way = whole.expert_indices == rounded.expert_indices
    assert same_way.float().mean() > 0.9
    difference = (whole.logits - rounded.logits)[same_way].abs()
    assert 0 < difference.max() < 1.5
