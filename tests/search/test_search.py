"""The search from experts and images to a saved model, on a pool of two CNNs and a ViT of three input sizes."""

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import timm
import torch
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    SearchArguments,
    SearchResult,
)
from pertinence.data.arguments import DataArguments
from pertinence.evaluation.candidates import save_candidates
from pertinence.evaluation.evaluate import evaluate_model
from pertinence.evaluation.intervals import non_dominated
from pertinence.predictions.arguments import RuntimeArguments
from pertinence.routing.names import BEST_BELOW_REFERENCE, CHEAPEST_LOSSLESS
from pertinence.search.folder import SearchFolder, check_output_dir
from pertinence.search.steps import load_stem


ARGUMENTS = {
    "population": 12,
    "generations": 3,
    "epochs": 4,
    "seed": 1,
    "device": "cpu",
    "recipe": "both",
    "front_size": 1000,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def search(digits, digit_experts, cache):
    """A function: a small search with other settings or parts."""

    def run(experts=digit_experts, images=digits[1], report=digits[2], **settings) -> SearchResult:
        args = SearchArguments(**(ARGUMENTS | {"cache_dir": cache} | settings))
        return DispatcherSearch(experts, images, args, report_dataset=report).run()

    return run


@pytest.fixture(scope="module")
def result(search) -> SearchResult:
    return search()


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result.save(folder)
    return folder


def test_front_is_what_no_evaluated_candidate_dominates(result):
    """By the estimate that chooses: out of fold where there is one."""
    points = [(p.select.gmacs, p.select.out_of_fold or p.select.accuracy) for p in result.front]
    assert points == sorted(points)
    assert len(non_dominated(*zip(*points, strict=True))) == len(points)
    for entry in result.record["evaluated"]:
        assert any(gmacs <= entry["cost"] + 1e-12 and accuracy >= entry["accuracy"] for gmacs, accuracy in points)
    assert len(result.record["evaluated"]) == ARGUMENTS["population"] * ARGUMENTS["generations"]


def test_static_experts_are_in_the_archive(result):
    for entry in result.model.config.experts:
        select = entry["select"]
        assert any(
            point.select.gmacs <= select["gmacs"] and point.select.accuracy >= select["accuracy"]
            for point in result.front
        )


def test_fit_select_and_report_images_are_disjoint_and_stated(result, digits):
    images = result.record["images"]
    assert images["fit"] + images["select"] == len(digits[1])
    assert images["report"] == len(digits[2])
    assert all(point.select.samples == images["select"] for point in result.front)
    assert all(point.report.samples == images["report"] for point in result.front)
    assert {entry["select"]["samples"] for entry in result.model.config.experts} == {images["select"]}


@pytest.fixture(scope="module")
def batch(digits):
    """The report images."""
    images = [torch.from_numpy(image) for image in digits[2].with_format("numpy")["image"][:]]
    return [image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1) for image in images]


@pytest.fixture(scope="module")
def routed(saved, batch):
    """For each operating point what the loaded model does with every report image."""
    model = PertinenceForImageClassification.from_pretrained(saved)
    return {point.name: model(batch, operating_point=point.name) for point in model.front}


def test_reported_figures_are_those_of_the_saved_model(saved, routed, digits):
    labels = torch.tensor(digits[2]["label"][:])
    for point in PertinenceForImageClassification.from_pretrained(saved).front:
        out = routed[point.name]
        assert point.report.accuracy == (out.logits.argmax(1) == labels).double().mean().item()
        assert point.report.gmacs == pytest.approx(out.gmacs.double().mean().item(), rel=1e-5)
        shares = torch.bincount(out.expert_indices, minlength=3) / len(labels)
        assert point.report.expert_shares == pytest.approx(shares.tolist())


@pytest.mark.nightly
def test_one_decision_then_one_expert_that_answers_alone(search, batch):
    model = search(recipe="paper").model
    dispatched = [point for point in model.front if point.recipe == "paper"]
    assert dispatched
    for point in dispatched:
        out = model(batch, operating_point=point.name)
        chosen = torch.nn.functional.one_hot(out.expert_indices, 3).bool()
        chosen[:, 0] = True
        assert torch.equal(out.experts_run, chosen)
        assert torch.equal(out.dispatcher_logits[:, 0].argmax(1), out.expert_indices)


def test_pipeline_reaches_the_reported_accuracy(saved, result, digits):
    classify = pipeline("image-classification", model=str(saved))
    answers = classify(KeyDataset(digits[2], "image"), batch_size=32, top_k=1)
    right = [int(answer[0]["label"]) == label for answer, label in zip(answers, digits[2]["label"], strict=True)]
    default = result.front.find(result.model.config.operating_point)
    assert sum(right) / len(right) == pytest.approx(default.report.accuracy)


def test_default_is_the_cheapest_lossless_or_says_that_it_is_not(result):
    default = result.model.config.operating_point
    assert default in (CHEAPEST_LOSSLESS, BEST_BELOW_REFERENCE)
    largest = result.model.config.experts[-1]["select"]
    if default == CHEAPEST_LOSSLESS:
        assert result.front.find(default).select.accuracy > largest["accuracy"]


def test_same_seed_same_result_and_another_seed_another(search, result, saved, tmp_path):
    again = search()
    assert again.record["evaluated"] == result.record["evaluated"]
    again.save(tmp_path / "again")
    first, second = (json.loads((folder / "search_result.json").read_text()) for folder in (saved, tmp_path / "again"))
    for record in (first, second):
        record.pop("run")
    assert first == second
    assert search(seed=2).record["evaluated"] != result.record["evaluated"]


def test_saved_folder_is_a_model_a_record_and_a_plot(saved, result):
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "search_result.json",
        "baselines.safetensors",
        "routing_reference.safetensors",
        "seen_images.safetensors",
        "front.png",
        "shares.png",
        "certainty.png",
        "convergence.png",
        "examples.png",
    }
    record = json.loads((saved / "search_result.json").read_text())
    assert {"settings", "seed", "versions", "evaluated", "front", "baselines", "run"} <= set(record)
    config = json.loads((saved / "config.json").read_text())
    assert record["front"] == config["front"] == result.front.to_list()
    assert set(record["baselines"]) == set(result.evaluation.baselines)
    assert record["settings"]["recipe"] == "both"
    assert "cache_dir" not in json.dumps({key: value for key, value in record.items() if key != "run"})


def test_every_file_has_the_usual_mode(saved, cache, tmp_path):
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    stores = [path for path in (Path(cache) / "predictions").rglob("*") if path.is_file()]
    assert stores
    assert {path.name for path in [*saved.iterdir(), *stores] if path.stat().st_mode != usual} == set()


def test_report_images_are_held_out_where_none_are_given(search, digits):
    result = search(report=None, report_fraction=0.25)
    images = result.record["images"]
    assert images["report"] == round(0.25 * len(digits[1]))
    assert images["fit"] + images["select"] + images["report"] == len(digits[1])
    assert images["report_from"] == "held out of the search split"


@pytest.mark.nightly
def test_copies_of_an_image_serve_one_purpose(search, digits, caplog):
    thrice = datasets.concatenate_datasets([digits[1].select(range(203))] * 3)
    images = search(images=thrice, report=None, report_fraction=0.25, folds=3).record["images"]
    counts = [images[purpose] for purpose in ("fit", "select", "report")]
    assert sum(counts) == 609
    assert all(count % 3 == 0 for count in counts)
    assert "406 of 609 search images are copies of others" in caplog.text


@pytest.mark.nightly
def test_report_images_choose_nothing(search, result, digits):
    """With shuffled report labels the search finds the very same points; only their report differs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(digits[2]["label"][:])[torch.randperm(len(digits[2]), generator=generator)].tolist()
    wrong = digits[2].remove_columns("label").add_column("label", labels, feature=digits[2].features["label"])
    other = search(report=wrong)
    assert [p.select for p in other.front] == [p.select for p in result.front]
    assert other.model.config.operating_point == result.model.config.operating_point
    assert all(p.report.accuracy < 0.3 for p in other.front)


@pytest.mark.nightly
def test_unsolved_images_go_where_asked(search):
    found = [
        search(recipe="paper", unsolved=where).record["evaluated"] for where in ("cheapest", "largest", "dropped")
    ]
    assert found[0] != found[1] != found[2] != found[0]


@pytest.mark.nightly
def test_features_alone_are_the_papers_evidence(search):
    result = search(recipe="paper", evidence="features")
    stages = [stage for point in result.front for stage in point.stages]
    assert {stage.evidence for stage in stages} == {"features"}


def test_expert_no_better_than_chance_stops_the_search(search, digit_experts, make_expert, tmp_path):
    guesser = make_expert(tmp_path / "guesser", labels=list("0123456789"))
    with pytest.raises(PertinenceError, match="expert 'guesser' is right on .* no better than chance"):
        search(experts=[*digit_experts[:2], guesser])


@pytest.mark.nightly
def test_corrected_search_takes_the_place_of_one_that_failed(search, digit_experts, make_expert, tmp_path):
    guesser, output = make_expert(tmp_path / "guesser", labels=list("0123456789")), str(tmp_path / "run")
    settings = {"recipe": "cascade", "generations": 1, "baselines": False, "output_dir": output}
    with pytest.raises(PertinenceError, match="no better than chance"):
        search(experts=[*digit_experts[:2], guesser], **settings)
    result = search(experts=digit_experts[:2], **settings)
    assert json.loads((tmp_path / "run/search_state/settings.json").read_text()) == result.record["settings"]


def test_corrupt_image_stops_the_search_and_is_named(search, digits, tmp_path):
    good = digits[1].select(range(40)).cast_column("image", datasets.Image(decode=False))
    records = [*good["image"][:], {"bytes": b"broken", "path": None}]
    images = datasets.Dataset.from_dict(
        {"image": records, "label": [*good["label"][:], 0]}, features=digits[1].features
    )
    for workers in (0, 1):
        with pytest.raises(PertinenceError, match=r"^image 40 of column 'image' cannot be decoded"):
            search(images=images, num_workers=workers, cache_dir=str(tmp_path))


def test_folder_that_holds_something_else_is_refused_before_any_work(search, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(PertinenceError, match="holds something else"):
        search(output_dir=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.nightly
def test_same_search_may_replace_its_result_another_may_not(search, result, saved, tmp_path):
    folder = tmp_path / "run"
    result.save(folder)
    (folder / "config.json").write_text("stale")
    result.save(folder)
    assert PertinenceForImageClassification.from_pretrained(folder).front.to_list() == result.front.to_list()
    with pytest.raises(PertinenceError, match="another search .its seed is 1, not 2"):
        search(seed=2, output_dir=str(folder))


def test_other_processes_wait_for_the_one_that_saves(result, tmp_path, monkeypatch):
    """They neither write nor look at a folder whose files are being moved."""
    waited = []
    monkeypatch.setattr("accelerate.PartialState.wait_for_everyone", lambda _: waited.append(True))
    (tmp_path / "thesis.tex").write_text("precious")
    other = dataclasses.replace(result, is_main_process=False)
    other.save(tmp_path)
    accelerator = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: waited.append(True))
    with SearchFolder.opened(tmp_path, result.record["settings"], False, accelerator):
        pass
    assert waited == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_failed_save_leaves_nothing_behind(result, tmp_path, monkeypatch):
    monkeypatch.setattr("pertinence.search.result.plot_front", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        result.save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_experts_come_as_a_list(search):
    with pytest.raises(PertinenceError, match="experts come as a list of at least two, got one str"):
        search(experts="user/resnet8")


SETTINGS = {
    "seed": 0,
    "experts": [{"name": "small", "revision": "a"}, {"name": "large", "revision": "b"}],
    "stem": None,
    "images": {"search": "c", "report": None},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"experts": SETTINGS["experts"][:1]}, "its experts are small, large, not small"),
        ({"experts": SETTINGS["experts"][:1] * 2}, "its experts are small, large, not small, small"),
        ({"experts": [{"name": "small", "revision": "z"}, SETTINGS["experts"][1]]}, "its experts had other weights"),
        ({"stem": {"name": "eye"}}, "its stem is none, not eye"),
        ({"images": {"search": "z", "report": None}}, "it searched other images"),
        ({"images": {"search": "c", "report": "z"}}, "it reported on other images"),
        ({"seed": 1, "images": {"search": "z", "report": None}}, "its seed is 0, not 1; it searched other images"),
    ],
)
def test_another_search_is_told_in_a_readable_sentence(changes, words, tmp_path):
    (tmp_path / "search_result.json").write_text(json.dumps({"settings": SETTINGS}))
    check_output_dir(tmp_path, SETTINGS)
    with pytest.raises(PertinenceError) as caught:
        check_output_dir(tmp_path, SETTINGS | changes)
    assert str(caught.value) == (
        f"the output folder {tmp_path} holds another search ({words}): choose another --output-dir, or remove it"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "many " * 1000}, "its seed is 'many many"),
        ({"experts": [{"name": "two\nlines", "revision": "z"}]}, "is damaged"),
    ],
)
def test_a_record_of_another_search_says_no_more_than_a_sentence(changes, words, tmp_path):
    (tmp_path / "search_result.json").write_text(json.dumps({"settings": SETTINGS | changes}))
    with pytest.raises(PertinenceError, match=words) as caught:
        check_output_dir(tmp_path, SETTINGS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_finished_search_is_run_again_only_after_saying_so(tmp_path, caplog):
    (tmp_path / "search_result.json").write_text(json.dumps({"settings": SETTINGS}))
    alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    with SearchFolder.opened(tmp_path, SETTINGS, False, alone):
        assert not caplog.records
    with SearchFolder.opened(tmp_path, SETTINGS, True, alone):
        pass
    assert f"{tmp_path} holds the result of this very search, which is run again" in caplog.text


def test_damaged_record_is_said(tmp_path):
    (tmp_path / "search_result.json").write_text('{"settings": {"experts": 3, "images": 4}}')
    with pytest.raises(PertinenceError, match="is damaged"):
        check_output_dir(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [
        {"population": 1},
        {"generations": 0},
        {"recipe": "magic"},
        {"select_fraction": 1.0},
        {"unsolved": "nobody"},
        {"dtype": "float31"},
        {"batch_size": 0},
        {"preprocessing": "sloppy"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(PertinenceError, match=next(iter(settings))):
        SearchArguments(**settings)


@pytest.fixture(scope="module")
def with_stem(search, make_expert, tmp_path_factory):
    """A `paper` search whose decisions look at a network that knows other labels, and the folder it is saved in."""
    stem = make_expert(tmp_path_factory.mktemp("stem") / "watcher", labels=["cat", "dog", "fish"])
    result = search(recipe="paper", stem=str(stem))
    folder = tmp_path_factory.mktemp("runs") / "stem"
    result.save(folder, save_experts=True)
    return result, folder


@pytest.mark.nightly
def test_separate_stem_decides_and_answers_nothing(with_stem, digits):
    result, folder = with_stem
    model = PertinenceForImageClassification.from_pretrained(folder)
    stages = [stage for point in model.front if point.recipe == "paper" for stage in point.stages]
    assert stages
    assert {(stage.after, stage.evidence) for stage in stages} == {(-1, "features")}
    assert model.config.stem["name"] == "watcher"
    labels = torch.tensor(digits[2]["label"][:])
    images = [torch.from_numpy(image).expand(3, -1, -1) for image in digits[2].with_format("numpy")["image"][:]]
    for point in model.front:
        out = model(images, operating_point=point.name)
        assert point.report.accuracy == (out.logits.argmax(1) == labels).double().mean().item()
        assert point.report.gmacs == pytest.approx(out.gmacs.double().mean().item(), rel=1e-5)
        if point.recipe == "paper":
            assert (out.experts_run.sum(1) == 1).all()
            costs = torch.tensor([entry["gmacs"] for entry in model.config.experts])[out.expert_indices]
            assert (out.gmacs - costs).min().item() == pytest.approx(model.config.stem["gmacs"], rel=0.01)


def bare(kind: str, folder) -> Path:
    """Save a backbone without any classification head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "timm":
            model = timm.create_model("test_convnext", num_classes=0)
            model.pretrained_cfg.update(input_size=(3, 64, 64))
            timm.models.save_for_hf(model, folder, safe_serialization=True)
        elif kind == "vit":
            config = ViTConfig(image_size=32, patch_size=16, hidden_size=24, num_hidden_layers=1,
                               num_attention_heads=2, intermediate_size=32)  # fmt: skip
            ViTModel(config).save_pretrained(folder)
            ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        else:
            config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            ResNetModel(config).save_pretrained(folder)
            ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "features"), [("timm", 64), ("vit", 24), ("resnet", 16)])
def test_stem_needs_no_classification_head(kind, features, images, tmp_path):
    stem = load_stem(str(bare(kind, tmp_path / "backbone")), [], SearchArguments(recipe="paper"))
    assert stem.entry.features == features
    with torch.no_grad():
        batch = images(3, 32)
        output = stem.model.model(pixel_values=stem.preprocess(batch))
    torch.testing.assert_close(stem(batch)[1], output.pooler_output.flatten(1))
    with FlopCounterMode(display=False) as counter:
        stem(batch[:1])
    assert stem.entry.gmacs == pytest.approx(counter.get_total_flops() / 2e9, rel=0.05)


@pytest.mark.nightly
def test_stem_without_a_head_is_searched_saved_and_loaded_again(search, digits, tmp_path):
    result = search(recipe="paper", stem=str(bare("timm", tmp_path / "backbone")), baselines=False)
    images = [torch.from_numpy(image).expand(3, -1, -1) for image in digits[2].with_format("numpy")["image"][:]]
    labels = torch.tensor(digits[2]["label"][:])
    for folder, save_experts in (("references", False), ("copies", True)):
        result.save(tmp_path / folder, save_experts=save_experts)
        model = PertinenceForImageClassification.from_pretrained(tmp_path / folder)
        point = next(point for point in model.front if point.recipe == "paper")
        out = model(images, operating_point=point.name)
        assert point.report.accuracy == (out.logits.argmax(1) == labels).double().mean().item()
        assert point.report.gmacs == pytest.approx(out.gmacs.double().mean().item(), rel=1e-5)


def test_stem_that_does_not_load_is_called_a_stem(search, make_expert, tmp_path):
    folder = make_expert(tmp_path / "watcher")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PertinenceError, match="^stem 'watcher'"):
        search(recipe="paper", stem=str(folder))


def test_stem_that_is_an_expert_is_refused(search, digit_experts):
    with pytest.raises(PertinenceError, match="the stem 'test_vit' is an expert of the pool"):
        search(recipe="paper", stem=str(digit_experts[1]))


def test_stem_may_be_called_as_an_expert(search, make_expert, tmp_path):
    result = search(recipe="paper", stem=str(make_expert(tmp_path / "test_vit")), baselines=False)
    assert result.model.config.stem["name"] == "test_vit (stem)"


def test_stem_has_nothing_to_decide_in_a_cascade():
    with pytest.raises(PertinenceError, match="a cascade starts with an expert"):
        SearchArguments(stem="user/stem")


def test_labels_are_not_needed_where_right_means_as_the_largest(search, digits, tmp_path):
    unlabelled, report = (part.remove_columns("label") for part in digits[1:])
    result = search(images=unlabelled, report=report, labels="agree", recipe="cascade")
    result.save(tmp_path / "run")
    largest = result.model.config.experts[-1]
    assert largest["report"]["agreement"] == 1.0
    assert not any(stage.mixing for point in result.front for stage in point.stages)
    for file in ("config.json", "search_result.json"):
        text = (tmp_path / "run" / file).read_text()
        assert "agreement" in text
        assert "accuracy" not in text.replace("most-accurate", "")
    assert "accuracy" not in repr(result.evaluation)
    reloaded = PertinenceForImageClassification.from_pretrained(tmp_path / "run")
    assert reloaded.front.to_list() == result.front.to_list()


def test_latency_is_the_cost_where_asked(search, digit_experts, tmp_path):
    result = search(cost="latency", recipe="cascade", batch_size=16, output_dir=str(tmp_path / "run"))
    entries = result.model.config.experts
    latency = [entry["latency"] for entry in entries]
    assert all(value > 0 for value in latency)
    assert latency == sorted(latency)  # pool order is rising cost, whatever the cost is
    costs = [point.select.latency for point in result.front]
    assert costs == sorted(costs)
    assert "ms" in repr(result.front).split("\n")[0]
    for point in result.front:
        if point.recipe == "static":
            assert point.report.latency == pytest.approx(latency[point.members[0]])
    # Kept with the state: a search that is continued must not measure again.
    stored = json.loads((tmp_path / "run/search_state/latency.json").read_text())
    assert sorted(stored) == latency
    # But it must on another device.
    assert result.record["settings"]["device"] == "cpu"


@pytest.mark.nightly
def test_device_of_a_latency_is_resolved(search, monkeypatch):
    monkeypatch.setattr("pertinence.search.search.device_name", lambda device: f"a {device.type}")
    result = search(cost="latency", recipe="cascade", baselines=False, device=None)
    assert result.record["settings"]["device"] == "a cpu"


def test_latency_is_measured_with_all_threads_and_a_bar(digit_experts, monkeypatch):
    from pertinence.experts import costs
    from pertinence.experts.pool import load_pool
    from pertinence.experts.reference import LoadOptions
    from pertinence.utils import progress

    threads, bars, updates = [], [], []

    class Bar(contextlib.nullcontext):
        update = staticmethod(updates.append)

    class Timer(benchmark.Timer):
        def blocked_autorange(self, **options):
            threads.append(self._task_spec.num_threads)
            return super().blocked_autorange(min_run_time=0.01)

    monkeypatch.setattr(benchmark, "Timer", Timer)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(progress, "progress_bar", lambda total, *_: bars.append(total) or Bar(Bar))
    costs.measure_latency(
        load_pool(digit_experts[:2], LoadOptions()), torch.zeros(3, 8, 8, dtype=torch.uint8), 2, torch.device("cpu")
    )
    assert (set(threads), bars, updates) == ({3}, [len(threads)], [1] * len(threads))


def test_latency_is_measured_in_turns(digit_experts, monkeypatch):
    from pertinence.experts import costs
    from pertinence.experts.pool import load_pool
    from pertinence.experts.reference import LoadOptions

    timed = []

    class Timer(benchmark.Timer):
        def blocked_autorange(self, **options):
            timed.append(self._globals["expert"].entry.name)
            return super().blocked_autorange(min_run_time=0.01)

    monkeypatch.setattr(benchmark, "Timer", Timer)
    pool = load_pool(digit_experts[:2], LoadOptions())
    costs.measure_latency(pool, torch.zeros(3, 8, 8, dtype=torch.uint8), 2, torch.device("cpu"))
    assert timed == [expert.entry.name for expert in pool] * costs.TURNS


def test_first_image_that_is_broken_is_named_where_latency_is_measured(search, digits):
    good = digits[1].select(range(40)).cast_column("image", datasets.Image(decode=False))
    records = [{"bytes": b"broken", "path": None}, *good["image"][:]]
    images = datasets.Dataset.from_dict(
        {"image": records, "label": [0, *good["label"][:]]}, features=digits[1].features
    )
    with pytest.raises(PertinenceError, match=r"^image 0 of column 'image' cannot be decoded"):
        search(images=images, cost="latency", recipe="cascade")


def test_images_that_search_cannot_report(search, digits):
    with pytest.raises(PertinenceError, match="40 of the 40 report images are search images"):
        search(report=digits[1].select(range(40)))


def test_at_most_so_many_operating_points_are_kept(search, result):
    small = search(front_size=5)
    kept = {(p.select.cost, p.select.accuracy) for p in small.front}
    everything = [(p.select.cost, p.select.accuracy) for p in result.front]
    assert len(kept) == 5 < len(everything)
    assert kept <= set(everything)
    assert {everything[0], everything[-1]} <= kept
    default = result.front.find(result.model.config.operating_point).select
    assert small.front.find(small.model.config.operating_point).select == default


@pytest.mark.nightly
def test_experts_trained_on_the_search_images_are_called_out(zoo, cache, caplog):
    folder = str(zoo / "cifar10/data")
    images, report = (datasets.load_dataset(folder, split=f"{split}[:1000]") for split in ("train", "test"))
    args = SearchArguments(population=4, generations=1, device="cpu", trust_remote_code=True, cache_dir=cache)
    experts = [zoo / "cifar10/resnet8", zoo / "cifar10/resnet20"]
    result = DispatcherSearch(experts, images, args, report_dataset=report).run()
    assert any("'resnet20' is right on" in text and "looks trained" in text for text in result.evaluation.warnings)
    assert "Warning: Expert 'resnet20'" in repr(result.evaluation)
    assert "looks trained" in caplog.text
    unseen = datasets.load_dataset(folder, split="validation[:1000]")
    assert not DispatcherSearch(experts, unseen, args, report_dataset=report).run().evaluation.warnings


@pytest.mark.nightly
def test_baselines_that_read_features_are_evaluated_beside_a_front_that_does_not(search, digits, tmp_path):
    cascade, paper = search(recipe="cascade", mixing=False), search(recipe="paper")
    cascade.save(tmp_path / "run")
    ((name, (candidates, chosen)),) = [(n, b) for n, b in paper.found.baselines.items() if n.startswith("paper")]
    save_candidates(tmp_path / "run/baselines.safetensors", {name: candidates}, {name: chosen})
    digits[2].to_parquet(tmp_path / "data/test.parquet")
    data, args = DataArguments(str(tmp_path / "data"), "test"), RuntimeArguments(device="cpu")
    evaluation = evaluate_model(tmp_path / "run", data, args)
    measured = [point.report.accuracy for point in evaluation.baselines[name].points]
    assert measured == [point.report.accuracy for point in paper.evaluation.baselines[name].points]
    (tmp_path / "run/baselines.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PertinenceError, match="is damaged"):
        evaluate_model(tmp_path / "run", data, args)


def test_a_result_is_saved_to_the_folder_one_stands_in(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result.save(".")
    assert (tmp_path / "search_result.json").is_file()
    assert not list(tmp_path.glob(".*"))
