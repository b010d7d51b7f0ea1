"""A pool of experts with different labels: those that all share are found by their names."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
    SearchArguments,
)
from pertinence.commands.main import main
from pertinence.experts.pool import load_pool
from pertinence.experts.reference import LoadOptions


def load(*folders: Path, **options):
    return load_pool([str(folder) for folder in folders], LoadOptions(), **options)


NAMES = [f"digit {index}" for index in range(10)]


def test_the_labels_that_all_share_are_kept_in_the_order_of_the_first(make_expert, tmp_path, caplog):
    more = make_expert(tmp_path / "more", labels=["background", *NAMES])
    turned = make_expert(tmp_path / "turned", size=96, labels=["Digit_9, nine", *NAMES[:9]])
    pool = {expert.entry.name: expert for expert in load(more, turned, label_map="by_name")}
    assert pool["more"].entry.label_map == list(range(1, 11))
    assert pool["turned"].entry.label_map == [*range(1, 10), 0]
    assert list(pool["more"].labels.values()) == NAMES
    assert "'more' has 11 labels, of which the pool keeps the 10" in caplog.text
    assert "dropped from its output: 'background'" in caplog.text
    assert "'turned' has" not in caplog.text


def test_experts_with_the_same_labels_need_no_map(make_expert, tmp_path, caplog):
    pool = load(make_expert(tmp_path / "a"), make_expert(tmp_path / "b", size=96), label_map="by_name")
    assert [expert.entry.label_map for expert in pool] == [None, None]
    assert "dropped" not in caplog.text


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            [f"LABEL_{index}" for index in range(10)],
            r"the labels of expert 'b' have no names .LABEL_0",
        ),
        (["crane"] * 10, "the experts share 0 labels by their names: 'a' has .*'digit 0'.* and 'b' .*'crane'"),
    ],
)
def test_labels_without_names_are_refused(make_expert, tmp_path, labels, words):
    folders = make_expert(tmp_path / "a"), make_expert(tmp_path / "b", size=96, labels=labels)
    with pytest.raises(PertinenceError, match=words):
        load(*folders, label_map="by_name")
    with pytest.raises(PertinenceError, match="label_map must be 'by_name' or None, got 'by-name'"):
        load(*folders, label_map="by-name")


@pytest.mark.parametrize("tag", ["a1_in12k", "mine", None])
def test_a_timm_checkpoint_without_names_must_say_that_it_knows_imagenet(zoo, tmp_path, tag):
    """transformers names any thousand labels as ImageNet's."""
    own = tmp_path / "own"
    shutil.copytree(zoo / "imagenet/tf_efficientnet_lite0", own)
    config = json.loads((own / "config.json").read_text())
    config["pretrained_cfg"]["tag"] = tag
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(PertinenceError, match="'own' have no names, and its pretrained_cfg does not say"):
        load(zoo / "imagenet/mobilenet_v1_0.25_128", own, label_map="by_name")


POOL = ("mobilenet_v1_0.25_128", "mobilenet_v2_1.0_224", "tf_efficientnet_lite2")


@pytest.fixture(scope="module")
def searched(zoo, tmp_path_factory) -> Path:
    """A pool of 1,001 and 1,000 labels, searched on images labelled by WordNet ids, with the flag alone."""
    folder = tmp_path_factory.mktemp("imagenet")
    images = datasets.load_dataset("parquet", data_files=str(zoo / "imagenet-val/data/*.parquet"), split="train")
    (folder / "data").mkdir()
    images.select(range(240)).to_parquet(folder / "data/validation.parquet")
    experts = [str(zoo / "imagenet" / name) for name in POOL]
    (folder / "search.yaml").write_text(
        f"experts: {json.dumps(experts)}\ndataset: {folder / 'data'}\nsplit: &name validation\nlabel_map: by_name\n"
        "baselines: &no false\nsave_experts: *no\n"
    )
    arguments = ["--config", str(folder / "search.yaml"), "--cache-dir", str(folder / "cache"), "--device", "cpu"]
    assert main(["search", *arguments, "--output-dir", str(folder / "run")]) == 0
    return folder


@pytest.mark.nightly
def test_a_pool_of_a_thousand_and_one_labels_and_a_thousand(searched, zoo):
    model = PertinenceForImageClassification.from_pretrained(searched / "run")
    assert model.config.num_labels == 1000
    assert model.config.id2label[0].startswith("tench")
    images = datasets.load_dataset("parquet", data_files=str(searched / "data/*.parquet"), split="train")["image"][:6]
    batch = PertinenceImageProcessor()(images)["images"]
    for expert in model.pool:
        folder = zoo / "imagenet" / expert.entry.name
        if not expert.entry.name.startswith("mobilenet"):  # transformers refuses its config.json
            continue
        alone = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        with torch.inference_mode():
            expected = alone(**processor([image.convert("RGB") for image in images], return_tensors="pt")).logits
            found, _ = expert.run(batch)
        torch.testing.assert_close(found, expected[:, 1:], rtol=1e-4, atol=1e-4)
    answers = pipeline("image-classification", model=str(searched / "run"))(images[0].convert("RGB"))
    assert answers[0]["label"] in model.config.id2label.values()


@pytest.mark.nightly
def test_figures_are_on_the_shared_labels(searched):
    record = json.loads((searched / "run/search_result.json").read_text())
    accuracy = [expert["accuracy"] for expert in record["experts"]]
    assert accuracy == sorted(accuracy)
    assert accuracy[0] > 0.4, "a wrong map would leave nothing"


@pytest.mark.nightly
def test_in_python(zoo, searched):
    images = datasets.load_dataset("parquet", data_files=str(searched / "data/*.parquet"), split="train")
    args = SearchArguments(cache_dir=str(searched / "cache"), baselines=False, device="cpu")
    result = DispatcherSearch([str(zoo / "imagenet" / name) for name in POOL], images, args, label_map="by_name").run()
    config = json.loads((searched / "run/config.json").read_text())
    assert result.model.front.to_list() == config["front"]
    cascade = PertinenceForImageClassification.from_experts(
        [str(zoo / "imagenet" / name) for name in POOL[::2]], 0.5, label_map="by_name"
    )
    assert cascade.config.num_labels == 1000
