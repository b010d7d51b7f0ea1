"""Every expert once: the cache, its fingerprints, and what is kept above 256 labels."""

import errno
import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pertinence import PertinenceError
from pertinence.data.dataset import LabelledImages
from pertinence.experts.expert import Expert
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions
from pertinence.predictions.predict import predict
from pertinence.predictions.predictions import MAX_DENSE_LABELS, Predictions
from pertinence.predictions.store import identify, read_store, store_folder, write_store
from pertinence.utils.distributed import make_accelerator


@pytest.fixture(scope="module")
def images(digits) -> LabelledImages:
    return LabelledImages(digits[1].select(range(70)))


@pytest.fixture
def pool(digit_experts) -> list[Expert]:
    return load_pool(digit_experts, LoadOptions())


def predict_all(pool, images, folder, **options) -> Predictions:
    return predict(pool, images, make_accelerator("cpu"), batch_size=32, cache_dir=folder, **options)


def stores(folder):
    return sorted((folder / "predictions").iterdir())


def test_predictions_are_what_the_experts_say(pool, images, tmp_path):
    predictions = predict_all(pool, images, tmp_path, features_of=[0])
    batch = [images[index] for index in range(len(images))]
    for index, expert in enumerate(pool):
        logits, features = expert(batch)
        found, found_features = predictions.outputs(index, torch.arange(len(images)))
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
        if index == 0:
            torch.testing.assert_close(found_features, features, atol=1e-4, rtol=1e-4)
    assert torch.equal(predictions.targets, images.labels)
    assert predictions.costs.of_experts == tuple(expert.entry.gmacs for expert in pool)


@pytest.mark.parametrize("name", ["字" * 200, "a/b\\c:d*"])
def test_experts_of_any_name_are_cached(name, pool, images, tmp_path, runs):
    renamed = [pool[0].with_entry(pool[0].entry.replace(name=name))]
    predict_all(renamed, images, tmp_path)
    runs.clear()
    predict_all(renamed, images, tmp_path)
    assert not runs
    assert re.fullmatch(r"[\w.-]+", stores(tmp_path)[0].name, re.ASCII)


def test_second_search_runs_no_expert(pool, images, tmp_path, runs):
    first = predict_all(pool, images, tmp_path)
    assert set(runs) == {expert.entry.name for expert in pool}
    runs.clear()
    second = predict_all(pool, images, tmp_path)
    assert not runs
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(first.experts, second.experts, strict=True))


def test_an_expert_that_was_evaluated_again_does_not_run_again(digit_experts, images, tmp_path, runs):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in digit_experts[:2]]
    predict_all(load_pool(folders, LoadOptions()), images, tmp_path / "cache")
    for folder in folders:
        (folder / "eval_results.json").write_text("{}")
    same = load_pool(folders, LoadOptions())
    (folders[1] / "config.json").write_text((folders[1] / "config.json").read_text() + "\n")
    other = load_pool(folders, LoadOptions())
    runs.clear()
    predict_all(same, images, tmp_path / "cache")
    assert not runs
    predict_all(other, images, tmp_path / "cache")
    assert set(runs) == {folders[1].name}


def test_any_name_of_an_expert_is_the_name_of_a_folder(pool, images, tmp_path):
    named = [pool[0].with_entry(pool[0].entry.replace(name='C:\\a "cheap" one?')), *pool[1:]]
    predict_all(named, images, tmp_path)
    assert {path.name[:-17] for path in stores(tmp_path)} >= {"C--a--cheap--one-"}


def test_one_more_expert_runs_that_expert_only(pool, images, tmp_path, runs):
    predict_all(pool[:2], images, tmp_path)
    runs.clear()
    predict_all(pool, images, tmp_path)
    assert set(runs) == {pool[2].entry.name}


def test_features_are_added_where_they_were_not_kept(pool, images, tmp_path, runs):
    predict_all(pool, images, tmp_path)
    runs.clear()
    assert predict_all(pool, images, tmp_path, features_of=[0]).outputs(0, torch.arange(2))[1] is not None
    assert set(runs) == {pool[0].entry.name}


def test_other_images_other_weights_and_other_preprocessing_are_not_mistaken_for_these(
    pool, images, digits, digit_experts, tmp_path, runs
):
    predict_all(pool, images, tmp_path)
    for other_pool, other_images in [
        (pool, LabelledImages(digits[1].select(range(1, 71)))),
        (load_pool(digit_experts, LoadOptions(), "fast"), images),
        (load_pool(digit_experts, LoadOptions(dtype="bfloat16")), images),
    ]:
        runs.clear()
        predict_all(other_pool, other_images, tmp_path)
        assert len(set(runs)) == 3
    changed = tmp_path / "changed"
    shutil.copytree(digit_experts[0], changed)
    weights = load_file(changed / "model.safetensors")
    save_file({key: value * 0.9 for key, value in weights.items()}, changed / "model.safetensors")
    changed_pool = load_pool([changed, digit_experts[1]], LoadOptions())
    runs.clear()
    predict_all(changed_pool, images, tmp_path)
    assert set(runs) == {"changed"}


def test_answers_of_another_device_are_others_of_another_batch_size_are_not(pool, images, tmp_path, runs):
    predict_all(pool, images, tmp_path)
    devices = [torch.device(name) for name in ("cpu", "cuda", "cuda:1")]
    cpu, cuda, other = (identify(pool[0], images, device) for device in devices)
    assert cpu != cuda == other
    assert read_store(store_folder(tmp_path / "predictions", pool[0], cuda), cuda, False) is None
    runs.clear()
    predict(pool, images, make_accelerator("cpu"), batch_size=16, cache_dir=tmp_path)
    assert not runs


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "metadata", "missing", "foreign", "swapped", "swapped-as-if-whole"]
)
def test_damaged_store_is_detected_and_computed_again(pool, images, tmp_path, runs, damage):
    expected = predict_all(pool, images, tmp_path)
    store = stores(tmp_path)[0]
    path = store / "predictions.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "metadata":
        (store / "metadata.json").write_text("{")
    elif damage.startswith("swapped"):  # by the files of another expert
        other = stores(tmp_path)[1]
        shutil.copy(other / "predictions.safetensors", store)
        if damage == "swapped-as-if-whole":
            metadata, theirs = (json.loads((folder / "metadata.json").read_text()) for folder in (store, other))
            (store / "metadata.json").write_text(json.dumps({**metadata, "sha256": theirs["sha256"]}))
    elif damage == "missing":
        path.unlink()
    else:
        metadata = json.loads((store / "metadata.json").read_text())
        metadata["identity"]["count"] += 1
        (store / "metadata.json").write_text(json.dumps(metadata))
    runs.clear()
    again = predict_all(pool, images, tmp_path)
    assert len(set(runs)) == 1
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(expected.experts, again.experts, strict=True))
    runs.clear()
    predict_all(pool, images, tmp_path)
    assert not runs


def test_store_that_another_process_has_just_written_stays(tmp_path, monkeypatch):
    """As two nodes do on a shared disk: both saw no store, and one was faster."""
    identity, tensors, replace = {"count": 3}, {"scores": torch.zeros(3, 2)}, os.replace

    def slower(source, target):
        monkeypatch.setattr(os, "replace", replace)
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slower)
    write_store(tmp_path / "store", identity, tensors)
    assert torch.equal(read_store(tmp_path / "store", identity, False)["scores"], tensors["scores"])
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_store_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PertinenceError, match="No space left on device.: .* another --cache-dir"):
        write_store(tmp_path / "store", {"count": 3}, {"scores": torch.zeros(3, 2)})
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_to_is_said_before_any_work(pool, images, read_only, runs):
    with pytest.raises(PertinenceError, match=f"predictions cannot be written to {read_only}.*another --cache-dir"):
        predict_all(pool, images, read_only)
    assert not runs


def test_interrupted_run_leaves_whole_stores_only(pool, images, tmp_path, monkeypatch):
    forward = Expert.forward

    def interrupted(self, *batch):
        if self is pool[1]:
            raise KeyboardInterrupt
        return forward(self, *batch)

    monkeypatch.setattr(Expert, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_all(pool, images, tmp_path)
    assert [store.name.split("-")[0] for store in stores(tmp_path)] == [pool[0].entry.name]


@pytest.mark.nightly  # in a process that has run very many other tests, its fork has ended the process, twice
def test_workers_decode_the_same(pool, images, tmp_path):
    alone = predict_all(pool, images, tmp_path / "alone")
    workers = predict_all(pool, images, tmp_path / "workers", num_workers=2)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(alone.experts, workers.experts, strict=True))


def test_above_256_labels_the_largest_scores_and_the_rest_are_kept(make_expert, images, tmp_path):
    names = [f"class {index}" for index in range(MAX_DENSE_LABELS + 44)]
    folders = [make_expert(tmp_path / f"expert-{seed}", labels=names, seed=seed) for seed in (1, 2)]
    pool = load_pool(folders, LoadOptions())
    predictions = predict_all(pool, images, tmp_path / "cache")
    batch = [images[index] for index in range(len(images))]
    assert predictions.tail == len(names) - predictions.candidates.shape[1]
    for index, expert in enumerate(pool):
        true = expert(batch)[0].log_softmax(1)
        found = predictions.outputs(index, torch.arange(len(images)))[0]
        top = true.topk(20).indices
        for row, labels in enumerate(top):
            columns = (predictions.candidates[row] == labels.unsqueeze(1)).int().argmax(1)
            torch.testing.assert_close(found[row, columns], true[row, labels], atol=1e-4, rtol=0)
        mass = found[:, :-1].exp().sum(1) + predictions.tail * found[:, -1].exp()
        torch.testing.assert_close(mass, torch.ones(len(images)))
        assert torch.equal(predictions.experts[index].top_labels(), true.argmax(1))
        right = found.argmax(1) == predictions.target_columns
        assert torch.equal(right, predictions.correct()[:, index])
        assert predictions.experts[index].scores.shape == (len(images), 20)


def test_evidence_of_one_expert_is_exact_above_256_labels(make_expert, images, tmp_path):
    from pertinence.routing.evidence import MIX, compute_evidence

    names = [f"class {index}" for index in range(MAX_DENSE_LABELS + 44)]
    pool = load_pool([make_expert(tmp_path / str(seed), labels=names, seed=seed) for seed in (1, 2)], LoadOptions())
    predictions = predict_all(pool, images, tmp_path / "cache")
    true = pool[0]([images[index] for index in range(len(images))])[0]
    ran = torch.zeros(len(images), 2, dtype=torch.bool)
    ran[:, 0] = True
    knots = MIX.fit(true)
    cached, exact = (
        compute_evidence(MIX, logits, logits.argmax(1, keepdim=True).expand(-1, 2), ran, knots, tail)
        for logits, tail in ((predictions.outputs(0, torch.arange(len(images)))[0], predictions.tail), (true, 1))
    )
    torch.testing.assert_close(cached, exact, atol=1e-4, rtol=0)


def test_predictions_are_those_of_the_weights_that_were_loaded(make_expert, images, tmp_path):
    """A folder that changed after a model was saved: its old predictions are not taken for the new weights'."""
    from safetensors.torch import load_file, save_file

    from pertinence import PertinenceForImageClassification

    folders = [make_expert(tmp_path / f"expert-{seed}", seed=seed) for seed in (1, 2)]
    PertinenceForImageClassification.from_experts(folders, 0.5).save_pretrained(tmp_path / "model")
    expected = predict_all(list(PertinenceForImageClassification.from_pretrained(tmp_path / "model").experts), images,
                           tmp_path / "cache")  # fmt: skip
    weights = load_file(folders[0] / "model.safetensors")
    save_file({k: -v if k == "head.fc.weight" else v for k, v in weights.items()}, folders[0] / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    changed = PertinenceForImageClassification.from_pretrained(tmp_path / "model")
    found = predict_all(list(changed.experts), images, tmp_path / "cache")
    place = [entry["repo_id"] for entry in changed.config.experts].index(str(folders[0]))
    assert not torch.equal(found.experts[place].scores, expected.experts[place].scores)
    assert torch.equal(found.experts[1 - place].scores, expected.experts[1 - place].scores)
