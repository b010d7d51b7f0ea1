"""Pushing: what lands on the Hub, what does not, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from coded_expert import save_coded_expert, write_code
from huggingface_hub import HfApi, ModelCard

from pertinence import (
    DispatcherSearch,
    PertinenceError,
    PertinenceForImageClassification,
    SearchArguments,
)
from pertinence.commands.main import main
from pertinence.hub.local_paths import check_no_paths
from pertinence.hub.push import push_folder


SETTINGS = ["--population", "6", "--generations", "2", "--device", "cpu"]
OF_A_RUN = {
    "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "search.yaml", "search_result.json",
    "routing_reference.safetensors",
    "seen_images.safetensors", "baselines.safetensors", "front.png", "shares.png", "certainty.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def experts(hub, digit_experts, tmp_path_factory) -> list[str]:
    """Hub ids of the digit experts, under several licences."""
    licences = ["mit", "apache-2.0", "bsd-3-clause"]
    for folder, licence in zip(digit_experts, licences, strict=True):
        copy = tmp_path_factory.mktemp("push") / folder.name
        shutil.copytree(folder, copy)
        (copy / "README.md").write_text(f"---\nlicense: {licence}\n---\n# {folder.name}\n")
        (copy / "LICENSE").write_text(f"The text of {licence}.")
        hub.add_model(f"tester/{folder.name}", copy)
    return [f"tester/{folder.name}" for folder in digit_experts]


@pytest.fixture(scope="module")
def run(experts, digits, tmp_path_factory) -> Path:
    """The result of a search of experts from the Hub on images in a local folder."""
    work = tmp_path_factory.mktemp("work")
    (work / "private-images").mkdir()
    digits[1].to_parquet(work / "private-images/validation.parquet")
    digits[2].to_parquet(work / "private-images/test.parquet")
    arguments = ["--experts", *experts, "--dataset", str(work / "private-images"), "--split", "validation"]
    folder = work / "runs/digits"
    assert main(["search", *arguments, "--report-split", "test", "--output-dir", str(folder), *SETTINGS]) == 0
    return folder


@pytest.fixture(scope="module")
def pushed(run, hub) -> dict[str, bytes]:
    """What `pertinence push` made of it, by path."""
    assert main(["push", str(run), "tester/digits", "--token", hub.token]) == 0
    return hub.files("tester/digits")


def push(hub, folder: Path | str, repo_id: str, **options):
    return push_folder(folder, repo_id, token=hub.token, **options)


def load(hub, repo_id: str, tmp_path: Path, **options) -> PertinenceForImageClassification:
    options = {"token": hub.token, "cache_dir": str(tmp_path / "empty"), **options}
    return PertinenceForImageClassification.from_pretrained(repo_id, **options)


# What is pushed


def test_a_run_is_one_commit(pushed, hub):
    assert len(hub.commits("tester/digits")) == 2  # the first is that of the creation
    assert set(pushed) - {".gitattributes"} == OF_A_RUN


def test_nothing_of_this_machine_is_pushed(pushed, run):
    record = json.loads(pushed["search_result.json"])
    assert "run" not in record
    assert {key: value for key, value in json.loads((run / "search_result.json").read_text()).items()
            if key != "run"} == record  # fmt: skip
    for path, content in pushed.items():
        for secret in (run.parents[2], Path.home(), Path.cwd()):
            assert f"{secret}/".encode() not in content, path


def test_settings_name_folders_and_say_so(pushed, run, experts, hub):
    settings = yaml.safe_load(pushed["search.yaml"])
    assert settings["dataset"] == "private-images"
    assert settings["output_dir"] == "digits"
    assert settings["experts"] == [f"{expert}@{hub.commits(expert)[-1]}" for expert in experts]
    kept = yaml.safe_load((run / "search.yaml").read_text())
    assert {name for name in settings if settings[name] != kept[name]} == {"dataset", "output_dir"}
    note = "names of local folders, to be replaced by your own"
    assert note in pushed["search.yaml"].decode().splitlines()[0]
    assert note in pushed["README.md"].decode()


def test_metadata_of_the_card(pushed, run, experts):
    data = ModelCard(pushed["README.md"].decode()).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert sorted(data.base_model) == sorted(experts)
    assert data.base_model_relation == "merge"
    assert data.datasets is None  # a folder is no data set of the Hub
    assert {"pertinence", "dynamic-routing"} <= set(data.tags)
    assert data.license is None  # there are only references
    config = json.loads((run / "config.json").read_text())
    default = next(point for point in config["front"] if point["name"] == config["operating_point"])
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {key: round(default["report"][key], 6) for key in ("accuracy", "gmacs")}


@pytest.mark.nightly
def test_a_data_set_of_the_hub_is_pinned_and_named(experts, digits, hub, tmp_path):
    for split, images in (("validation", digits[1]), ("test", digits[2])):
        images.to_parquet(tmp_path / f"data/{split}.parquet")
    commit = hub.add_dataset("tester/digit-images", tmp_path / "data")
    arguments = ["--dataset", "tester/digit-images", "--split", "validation", "--report-split", "test", *SETTINGS]
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["search", "--experts", *experts, *arguments, "--output-dir", str(first), "--no-baselines"]) == 0
    settings = yaml.safe_load((first / "search.yaml").read_text())
    assert settings["dataset"] == f"tester/digit-images@{commit}"
    push(hub, first, "tester/of-the-hub")
    data = ModelCard(hub.files("tester/of-the-hub")["README.md"].decode()).data
    assert data.datasets == ["tester/digit-images"]
    assert {(r.dataset_type, r.dataset_revision) for r in data.eval_results} == {("tester/digit-images", commit)}
    digits[1].select(range(100)).to_parquet(tmp_path / "data/validation.parquet")
    hub.add_dataset("tester/digit-images", tmp_path / "data")
    assert main(["search", "--config", str(first / "search.yaml"), "--output-dir", str(again)]) == 0
    fronts = [json.loads((folder / "search_result.json").read_text())["front"] for folder in (first, again)]
    assert fronts[0] == fronts[1]


def test_it_comes_back_from_the_hub_as_it_was(pushed, run, hub, images, tmp_path):
    here = PertinenceForImageClassification.from_pretrained(run)
    there = load(hub, "tester/digits", tmp_path, revision=hub.commits("tester/digits")[1], operating_point="fastest")
    assert there.config.operating_point == "fastest"
    batch = images(8, 32)
    assert torch.equal(there(batch).logits, here(batch, operating_point="fastest").logits)


def test_a_readme_is_kept_unless_asked(run, hub, tmp_path, caplog):
    (tmp_path / "README.md").write_text("mine")
    hub.add_model("tester/kept", tmp_path)
    push(hub, run, "tester/kept")
    assert hub.files("tester/kept")["README.md"] == b"mine"
    assert "README.md of tester/kept is kept" in caplog.text
    push(hub, run, "tester/kept", replace_card=True)
    assert hub.files("tester/kept")["README.md"].startswith(b"---\n")


def test_what_an_earlier_push_left_goes_and_what_is_not_ours_stays(run, hub, tmp_path):
    for path in ("experts/0/model.safetensors", "examples.png", "notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("old")
    hub.add_model("tester/again", tmp_path)
    before = len(hub.commits("tester/again"))
    push(hub, run, "tester/again")
    assert set(hub.files("tester/again")) == OF_A_RUN | {"notes.txt"}
    assert len(hub.commits("tester/again")) == before + 1


def test_what_a_search_left_goes_with_its_model(run, experts, hub, tmp_path, capsys):
    push(hub, run, "tester/replaced")
    searched = hub.commits("tester/replaced")[-1]
    chosen = load(hub, "tester/replaced", tmp_path, operating_point="fastest")
    chosen.push_to_hub("tester/replaced", token=hub.token)
    left = {"seen_images.safetensors", "search_result.json", "routing_reference.safetensors"}
    assert set(hub.files("tester/replaced")) >= left
    another = PertinenceForImageClassification.from_experts(experts[:2], thresholds=0.7)
    another.push_to_hub("tester/replaced", token=hub.token)
    assert not set(hub.files("tester/replaced")) & (left | {"search.yaml"})
    images = ["--dataset", str(run.parents[1] / "private-images"), "--split", "test", "--token", hub.token]
    capsys.readouterr()
    for revision, has_baselines in ((searched, True), (None, False)):
        pinned = ["--revision", revision] if revision else []
        assert main(["evaluate", "tester/replaced", *images, *pinned]) == 0
        assert ("cascade without search" in capsys.readouterr().out) is has_baselines


def test_pictures_of_images_are_pushed_only_where_asked(run, hub):
    assert (run / "examples.png").is_file()
    push(hub, run, "tester/with-examples", examples=True)
    files = hub.files("tester/with-examples")
    assert "examples.png" in files
    assert "](examples.png)" in files["README.md"].decode()


def test_branch_pull_request_and_private(run, hub, capsys):
    assert main(["push", str(run), "tester/secret-digits", "--private", "--token", hub.token]) == 0
    assert HfApi(token=hub.token).model_info("tester/secret-digits").private
    main_branch = hub.files("tester/secret-digits")
    push(hub, run, "tester/secret-digits", revision="other", tags=["mine"], replace_card=True)
    assert b"- mine" in hub.files("tester/secret-digits", "other")["README.md"]
    assert main(["push", str(run), "tester/secret-digits", "--pr", "--examples", "--token", hub.token]) == 0
    assert "discussions/1" in capsys.readouterr().out
    assert "examples.png" in hub.files("tester/secret-digits", "refs/pr/1")
    assert hub.files("tester/secret-digits") == main_branch


# Through Python


@pytest.fixture(scope="module")
def result(experts, digits, digit_experts):
    args = SearchArguments(population=6, generations=2, baselines=False, device="cpu")
    return DispatcherSearch(experts, digits[1], args, report_dataset=digits[2]).run()


def test_a_model_is_pushed_with_what_transformers_lets_one_say(experts, hub, tmp_path):
    model = PertinenceForImageClassification.from_experts(experts, 0.6, token=hub.token)
    model.add_model_tags(["made-by-us"])
    model.push_to_hub("tester/tagged", token=hub.token, tags="mine", max_shard_size=100)
    files = hub.files("tester/tagged")
    assert {"made-by-us", "mine"} <= set(ModelCard(files["README.md"].decode()).data.tags)
    assert "model.safetensors.index.json" in files
    options = {"repo_id": "tester/tagged-too", "tags": ["yours"], "replace_card": True, "max_shard_size": 100}
    model.save_pretrained(tmp_path / "tagged", push_to_hub=True, token=hub.token, **options)
    assert "model.safetensors.index.json" in hub.files("tester/tagged-too")
    assert {"made-by-us", "yours"} <= set(ModelCard(hub.files("tester/tagged-too")["README.md"].decode()).data.tags)


def test_a_result_is_pushed_by_the_main_process_alone(result, hub):
    hub.requests.clear()
    other = dataclasses.replace(result, is_main_process=False)
    assert other.push_to_hub("tester/from-python", token=hub.token) is None
    assert hub.requests == []
    assert result.push_to_hub("tester/from-python", token=hub.token).oid == hub.commits("tester/from-python")[-1]
    files = hub.files("tester/from-python")
    assert set(files) - {".gitattributes"} == OF_A_RUN - {"search.yaml"}
    assert "The data set was given in Python" in files["README.md"].decode()


def test_a_model_without_a_search_has_a_card_too(experts, hub, tmp_path, images):
    model = PertinenceForImageClassification.from_experts(experts[:2], thresholds=0.7)
    model.push_to_hub("tester/thresholds", token=hub.token)
    files = hub.files("tester/thresholds")
    assert set(files) - {".gitattributes"} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert "were not measured" in files["README.md"].decode()
    assert torch.equal(load(hub, "tester/thresholds", tmp_path)(images(4, 32)).logits, model(images(4, 32)).logits)


# Copies of experts


def test_local_experts_are_copied_where_asked(digit_experts, hub, tmp_path, images):
    model = PertinenceForImageClassification.from_experts(digit_experts, thresholds=0.7)
    model.save_pretrained(tmp_path / "model")
    for refused in (lambda: push(hub, tmp_path / "model", "tester/local"),
                    lambda: model.push_to_hub("tester/local", token=hub.token)):  # fmt: skip
        with pytest.raises(PertinenceError, match="is on this machine only.*save_experts=True"):
            refused()
    with pytest.raises(KeyError):
        hub.files("tester/local")
    push(hub, tmp_path / "model", "tester/local", save_experts=True)
    model.push_to_hub("tester/local-too", save_experts=True, token=hub.token)
    batch = images(4, 32)
    for repo_id in ("tester/local", "tester/local-too"):
        assert torch.equal(load(hub, repo_id, tmp_path)(batch).logits, model(batch).logits)
        assert all(str(tmp_path).encode() not in content for content in hub.files(repo_id).values())


def test_copies_of_experts_from_the_hub_keep_origin_licence_and_card(run, experts, hub, tmp_path, images, caplog):
    push(hub, run, "tester/whole", save_experts=True)
    files = hub.files("tester/whole")
    assert {path for path in files if path.startswith("experts/1/")} == {
        f"experts/1/{name}" for name in ("LICENSE", "README.md", "config.json", "model.safetensors")
    }
    data = ModelCard(files["README.md"].decode()).data
    assert sorted(data.base_model) == sorted(experts)
    assert data.license == "apache-2.0"  # the most restrictive of mit, apache-2.0, bsd-3-clause
    whole = load(hub, "tester/whole", tmp_path)
    # A fork has its copies again, and knows still where they come from.
    whole.push_to_hub("tester/fork", token=hub.token)
    assert sorted(ModelCard(hub.files("tester/fork")["README.md"].decode()).data.base_model) == sorted(experts)
    fork = load(hub, "tester/fork", tmp_path)
    batch = images(4, 32)
    assert torch.equal(fork(batch).logits, whole(batch).logits)
    assert "has changed" not in caplog.text


def changed_copy(source: Path, folder: Path, licence: str | None = None, **config) -> Path:
    shutil.copytree(source, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: other\nlicense_name: {licence}\n---\n")
    return folder


def test_experts_that_must_not_be_copied(digit_experts, hub, tmp_path):
    forbidding = changed_copy(digit_experts[0], tmp_path / "forbidding", "all-rights-reserved")
    model = PertinenceForImageClassification.from_experts([forbidding, digit_experts[1]], thresholds=0.7)
    with pytest.raises(PertinenceError, match="'forbidding' is under the licence 'all-rights-reserved'.*forbids"):
        model.push_to_hub("tester/forbidden", save_experts=True, token=hub.token)
    hub.add_model("tester/gated-digits", digit_experts[0], gated=True)
    hub.add_model("tester/open-digits", digit_experts[1])
    references = ["tester/gated-digits", "tester/open-digits"]
    model = PertinenceForImageClassification.from_experts(references, thresholds=0.7, token=hub.token)
    with pytest.raises(PertinenceError, match="'gated-digits' is gated.*no copy of it is pushed"):
        model.push_to_hub("tester/forbidden", save_experts=True, token=hub.token)
    with pytest.raises(KeyError):
        hub.files("tester/forbidden")
    model.push_to_hub("tester/referring", token=hub.token)
    assert "gated-digits is gated: pass a token" in hub.files("tester/referring")["README.md"].decode()


def test_a_config_that_says_where_it_came_from_is_cleaned(digit_experts, hub, tmp_path, images, caplog):
    expert = changed_copy(digit_experts[0], tmp_path / "expert", _name_or_path="/home/somebody/checkpoints/17")
    model = PertinenceForImageClassification.from_experts([expert, digit_experts[1]], thresholds=0.7)
    model.push_to_hub("tester/cleaned", save_experts=True, token=hub.token)
    files = hub.files("tester/cleaned")
    assert not any(b"/home/somebody" in content for content in files.values())
    reloaded = load(hub, "tester/cleaned", tmp_path)
    assert "has changed" not in caplog.text  # its hash is that of the cleaned files
    assert torch.equal(reloaded(images(4, 32)).logits, model(images(4, 32)).logits)


def test_a_file_that_names_a_folder_of_this_machine_is_not_pushed(digit_experts, hub, tmp_path):
    expert = changed_copy(digit_experts[0], tmp_path / "expert")
    (expert / "README.md").write_text(f"Trained in {Path.home()}/secret-project.")
    model = PertinenceForImageClassification.from_experts([expert, digit_experts[1]], thresholds=0.7)
    with pytest.raises(PertinenceError, match=r"experts/0/README.md names a folder of this machine"):
        model.push_to_hub("tester/leak", save_experts=True, token=hub.token)
    assert len(hub.commits("tester/leak")) == 1  # created, and empty


def test_a_folder_is_known_by_both_of_its_names(tmp_path, monkeypatch):
    (tmp_path / "real" / "alice").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "alice"))
    for spelt in ("home", "real"):
        text = f"Trained in {tmp_path / spelt / 'alice'}/run1."
        with pytest.raises(PertinenceError, match="names a folder of this machine"):
            check_no_paths({"README.md": text.encode()})


def test_a_damaged_repository_is_mended_by_a_push(experts, hub, tmp_path):
    for name in ("config.json", "search_result.json"):
        (tmp_path / name).write_text("{ no json")
    hub.add_model("tester/damaged", tmp_path)
    model = PertinenceForImageClassification.from_experts(experts[:2], thresholds=0.7)
    model.push_to_hub("tester/damaged", token=hub.token)
    assert "search_result.json" not in hub.files("tester/damaged")


def test_what_the_text_of_an_expert_from_the_hub_names_is_no_secret(digit_experts, hub, tmp_path):
    experts = [changed_copy(expert, tmp_path / expert.name) for expert in digit_experts[:2]]
    (experts[0] / "README.md").write_text(f"Trained with --output_dir {Path.home()}/run1.")
    for expert in experts:
        hub.add_model(f"tester/chatty-{expert.name}", expert)
    references = [f"tester/chatty-{expert.name}" for expert in experts]
    model = PertinenceForImageClassification.from_experts(references, thresholds=0.7)
    model.push_to_hub("tester/chatty", save_experts=True, token=hub.token)
    assert any(str(Path.home()).encode() in content for content in hub.files("tester/chatty").values())


def test_code_goes_along_and_runs_only_where_it_is_trusted(zoo, hub, tmp_path, images):
    experts = [zoo / "cifar10" / name for name in ("resnet8", "resnet20")]
    model = PertinenceForImageClassification.from_experts(experts, thresholds=0.7, trust_remote_code=True)
    model.save_pretrained(tmp_path / "model")
    push(hub, tmp_path / "model", "tester/coded", save_experts=True)
    files = hub.files("tester/coded")
    assert files["experts/0/modeling_cifar_resnet.py"] == (experts[0] / "modeling_cifar_resnet.py").read_bytes()
    card = files["README.md"].decode()
    assert "resnet8, resnet20 bring modelling code" in card
    assert 'pipeline("image-classification", model="tester/coded", trust_remote_code=True)' in card
    with pytest.raises(PertinenceError, match="'resnet8' needs code of its own"):
        load(hub, "tester/coded", tmp_path)
    trusted = load(hub, "tester/coded", tmp_path, trust_remote_code=True)
    assert torch.equal(trusted(images(4, 32)).logits, model(images(4, 32)).logits)


@pytest.mark.parametrize("place", ["copies", "hub"])
def test_a_program_beside_the_weights_is_no_code_of_the_expert(digit_experts, hub, tmp_path, place):
    """Only modules that its settings name run."""
    folders = [changed_copy(expert, tmp_path / expert.name) for expert in digit_experts[:2]]
    (folders[0] / "train.py").write_text("import sys\n")
    nested = tmp_path / "nested"
    save_coded_expert(nested)
    write_code(nested / "src", "configuration_patches", "modeling_patches")
    values = json.loads((nested / "config.json").read_text())
    values["auto_map"] = {auto: f"src/{text}" for auto, text in values["auto_map"].items()}
    (nested / "config.json").write_text(json.dumps(values))
    experts = [str(folder) for folder in (*folders, nested)]
    if place == "hub":
        for expert in experts:
            hub.add_model(f"programs/{Path(expert).name}", expert)
        experts = [f"programs/{Path(expert).name}" for expert in experts]
    model = PertinenceForImageClassification.from_experts(experts, thresholds=0.7, trust_remote_code=True)
    model.push_to_hub(f"programs/{place}", save_experts=place == "copies", token=hub.token)
    files = hub.files(f"programs/{place}")
    assert not [path for path in files if path.endswith("train.py")]
    assert "nested brings modelling code" in files["README.md"].decode()


# What goes wrong on the way

STEPS = {
    "create": r"/api/repos/create",
    "list": r"/api/models/tester/faulty(/.*)?/tree/.*",
    "expert": r"/api/models/tester/test_efficientnet/.*",
    "preupload": r".*/preupload/.*",
    "lfs-batch": r".*/info/lfs/objects/batch",
    "lfs-upload": r"/lfs/[0-9a-f]{64}",
    "lfs-verify": r"/lfs/verify",
    "commit": r"/api/models/tester/faulty/commit/.*",
}
"""Requests of a push, in the order in which something may happen to them."""
FAULTS = {"500": {"status": 500}, "reset": {"reset": True}, "truncated": {"truncate": 1}, "late": {"delay": 0.3}}


@pytest.fixture(scope="module")
def cascade(experts, hub) -> PertinenceForImageClassification:
    model = PertinenceForImageClassification.from_experts(experts[:2], thresholds=0.5)
    model.push_to_hub("tester/faulty", token=hub.token)
    return model


@pytest.fixture
def faulty(cascade, hub, no_pauses, tmp_path):
    """A function: while something happens to some requests, pushes a model that the repository does not have; returns
    what is said against it, and whether it is there afterwards."""
    repo_id = "tester/faulty"
    cascade.dispatcher.get_parameter("stages.0_mix.bias").data += 1e-3  # so that there is something to upload
    cascade.save_pretrained(tmp_path)
    expected = (tmp_path / "model.safetensors").read_bytes()

    def attempt(step: str, **fault) -> tuple[str | None, bool]:
        before, commits, said = hub.files(repo_id), len(hub.commits(repo_id)), None
        with hub.fault(STEPS[step], methods=("GET", "POST", "PUT"), **fault) as happening:
            try:
                push(hub, tmp_path, repo_id)
            except PertinenceError as error:
                said = str(error)
        assert happening.happened
        made, found = len(hub.commits(repo_id)) - commits, hub.files(repo_id)
        assert made in (0, 1)
        assert set(found) == set(before) if made else found == before
        assert (found["model.safetensors"] == expected) is bool(made)
        return said, bool(made)

    return attempt


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", [step for step in STEPS if step != "commit"])
def test_a_push_gets_over_what_passes(faulty, step, fault):
    assert faulty(step, times=1, **FAULTS[fault]) == (None, True)


@pytest.mark.parametrize("fault", ["500", "reset"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "commit"])
def test_a_push_that_does_not_get_through_changes_nothing_and_says_so(faulty, hub, tmp_path, step, fault):
    said, is_there = faulty(step, **FAULTS[fault])
    assert not is_there
    expected = {
        "500": "the Hub cannot serve {} now (it answered 500): try again later",
        "reset": "the connection to the Hub broke while {} was {}: try again",
    }[fault]
    if step == "expert":
        assert said == "expert 'test_efficientnet': " + expected.format("tester/test_efficientnet", "read")
    else:
        assert said == "tester/faulty was not pushed: " + expected.format("tester/faulty", "pushed")
    push(hub, tmp_path, "tester/faulty")


@pytest.mark.parametrize("fault", [*FAULTS, "corrupted"])
def test_a_commit_is_not_sent_twice_and_is_whole_or_not_there(faulty, fault):
    said, is_there = faulty("commit", times=1, **(FAULTS | {"corrupted": {"corrupt": True}})[fault])
    assert is_there  # this Hub made it before the answer was lost
    if fault == "late":
        assert said is None
    else:
        assert "whether tester/faulty was pushed is not known, as no answer to the commit came" in said
        assert "it has either all files or none, and you may push again" in said


# What is refused


def test_nobody_pushes_without_a_token(run, hub, capsys):
    for token in ([], ["--token", "hf_wrong"]):
        assert main(["push", str(run), "tester/nobodys", *token]) == 1
        assert "error: you may not push to tester/nobodys: log in with `hf auth login`" in capsys.readouterr().err


@pytest.mark.parametrize("holds", [[], ["search_result.json"]], ids=["nothing", "table"])
def test_folders_that_hold_no_model(holds, tmp_path, capsys):
    for name in holds:
        (tmp_path / name).write_text("{}")
    assert main(["push", str(tmp_path), "tester/nothing"]) == 1
    assert ("there is no model to push" if holds else "it has no config.json") in capsys.readouterr().err


def test_an_expert_that_is_gone_is_named_before_anything_is_pushed(digit_experts, hub):
    for number, folder in enumerate(digit_experts[:2]):
        hub.add_model(f"tester/going-{number}", folder)
    model = PertinenceForImageClassification.from_experts(["tester/going-0", "tester/going-1"], thresholds=0.7)
    hub.squash("tester/going-0")
    with pytest.raises(PertinenceError, match="'going-0': .* has no revision .*its owner has removed it"):
        model.push_to_hub("tester/dangling", token=hub.token)
    with pytest.raises(KeyError):
        hub.files("tester/dangling")


def test_a_search_that_could_not_be_pushed_does_not_start(digit_experts, run, hub, tmp_path, capsys):
    arguments = ["--dataset", str(run.parents[1] / "private-images"), "--split", "validation", "--push-to-hub",
                 "tester/early", "--output-dir", str(tmp_path / "run"), "--token", hub.token]  # fmt: skip
    assert main(["search", "--experts", *map(str, digit_experts), *arguments]) == 1
    assert "is on this machine only" in capsys.readouterr().err
    assert main(["search", "--experts", "tester/test_vit", "tester/test_resnet", *arguments[:-1], "hf_wrong"]) == 1
    assert "you may not push to tester/early" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_search_is_pushed_without_another(run, hub, capsys):
    arguments = ["--config", str(run / "search.yaml"), "--push-to-hub", "tester/finished", "--private"]
    assert main(["search", *arguments, "--token", hub.token]) == 0
    assert "Pushed to" in capsys.readouterr().out
    assert set(hub.files("tester/finished")) - {".gitattributes"} == OF_A_RUN
    assert HfApi(token=hub.token).model_info("tester/finished").private
