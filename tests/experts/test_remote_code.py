"""Code that lies in another repository than the weights: pinned, copied, and never run unasked."""

import json
import logging
import re
import shutil

import pytest
import torch
from coded_expert import save_coded_expert, write_code

from pertinence import PertinenceError, PertinenceForImageClassification
from pertinence.hub.info import describe_model
from pertinence.hub.push import push_folder


from_experts = PertinenceForImageClassification.from_experts
load = PertinenceForImageClassification.from_pretrained


@pytest.fixture(scope="module")
def other(make_expert, tmp_path_factory):
    return make_expert(tmp_path_factory.mktemp("other") / "other")


@pytest.fixture
def coded(hub, tmp_path, request):
    """An expert on the Hub whose code, and that of its processor, lies in two other repositories of its own."""
    owner = f"tester{abs(hash(request.node.name))}"
    model = write_code(tmp_path / "code", "configuration_patches", "modeling_patches")
    commits = {
        f"{owner}/code": hub.add_model(f"{owner}/code", model),
        f"{owner}/images": hub.add_model(f"{owner}/images", write_code(tmp_path / "images", "processing_patches")),
    }
    hub.add_model(f"{owner}/tuned", save_coded_expert(tmp_path / "tuned", *commits))
    return f"{owner}/tuned", commits


def change_code(hub, tmp_path, repository):
    hub.add_model(repository, write_code(tmp_path / "code", "configuration_patches", "modeling_patches", scale=100))


def entry_of(folder, name="tuned"):
    entries = json.loads((folder / "config.json").read_text())["experts"]
    return next(entry for entry in entries if entry["name"] == name)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_saved_model_answers_as_before_when_its_code_has_changed(coded, other, hub, tmp_path, images, lazy):
    expert, commits = coded
    model = from_experts([expert, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "model")
    assert entry_of(tmp_path / "model")["code"] == commits
    change_code(hub, tmp_path, next(iter(commits)))
    again = load(tmp_path / "model", trust_remote_code=True, lazy=lazy)
    assert torch.equal(again(images(8, 32)).logits, model(images(8, 32)).logits)
    again.save_pretrained(tmp_path / "again")
    assert entry_of(tmp_path / "again")["code"] == commits
    changed = from_experts([expert, other], 0.5, trust_remote_code=True)
    assert not torch.equal(changed(images(8, 32)).logits, model(images(8, 32)).logits)


def test_the_code_that_is_pinned_is_described(coded, other, tmp_path):
    expert, commits = coded
    from_experts([expert, other], 0.5, trust_remote_code=True).save_pretrained(tmp_path / "model")
    _, text = describe_model(tmp_path / "model")
    for repository, commit in commits.items():
        assert f"The code of tuned is from {repository}, at {commit[:14]}" in text


def test_other_code_runs_only_where_it_is_trusted(coded, other, tmp_path):
    expert, (repository, _) = coded
    with pytest.raises(PertinenceError, match=f"'tuned' needs code of its own from {repository}, .*trust_remote_code"):
        from_experts([expert, other], 0.5)
    from_experts([expert, other], 0.5, trust_remote_code=True).save_pretrained(tmp_path / "model")
    with pytest.raises(PertinenceError, match="'tuned' needs code of its own"):
        load(tmp_path / "model")


@pytest.mark.parametrize("how", ["loaded", "lazy", "pushed"])
def test_a_copy_needs_no_other_repository(coded, other, hub, tmp_path, images, how):
    expert, commits = coded
    model = from_experts([expert, other], 0.5, trust_remote_code=True)
    if how == "loaded":
        model.save_pretrained(tmp_path / "whole", save_experts=True)
    else:
        model.save_pretrained(tmp_path / "model")
        change_code(hub, tmp_path, next(iter(commits)))
    if how == "lazy":
        again = load(tmp_path / "model", lazy=True, trust_remote_code=True)
        again.save_pretrained(tmp_path / "whole", save_experts=True)
    if how == "pushed":
        push_folder(tmp_path / "model", f"{expert}-whole", save_experts=True, token=hub.token)
        for path, content in hub.files(f"{expert}-whole").items():
            (tmp_path / "whole" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "whole" / path).write_bytes(content)
        card = (tmp_path / "whole" / "README.md").read_text()
        assert all(f"`{repository}` at `{commit}`" in card for repository, commit in commits.items())
    hub.requests.clear()
    alone = load(tmp_path / "whole", trust_remote_code=True, cache_dir=str(tmp_path / "empty"), local_files_only=True)
    assert torch.equal(alone(images(8, 32)).logits, model(images(8, 32)).logits)
    assert hub.requests == []
    assert entry_of(tmp_path / "whole")["code"] == commits
    with pytest.raises(PertinenceError, match="'tuned' needs code of its own"):
        load(tmp_path / "whole")


def test_a_folder_of_the_same_name_is_not_mistaken_for_the_code(coded, other, tmp_path, monkeypatch, images):
    expert, commits = coded
    expected = from_experts([expert, other], 0.5, trust_remote_code=True)(images(8, 32)).logits
    (tmp_path / "work" / next(iter(commits))).mkdir(parents=True)
    write_code(tmp_path / "work" / next(iter(commits)), scale=100)
    monkeypatch.chdir(tmp_path / "work")
    assert torch.equal(from_experts([expert, other], 0.5, trust_remote_code=True)(images(8, 32)).logits, expected)


def test_what_was_saved_before_code_was_pinned_loads_and_is_told(coded, other, tmp_path, images, caplog):
    expert, commits = coded
    model = from_experts([expert, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    for entry in values["experts"]:
        entry.pop("code", None)
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING, "pertinence"):
        again = load(tmp_path / "model", trust_remote_code=True)
    assert f"code of expert 'tuned' in {', '.join(commits)} is not pinned" in caplog.text
    assert torch.equal(again(images(8, 32)).logits, model(images(8, 32)).logits)
    again.save_pretrained(tmp_path / "again")
    assert entry_of(tmp_path / "again")["code"] == commits


def test_code_in_a_local_folder_with_the_code_of_another_repository(coded, other, tmp_path, images):
    """A folder pins its files by their hash, and the code by its commit."""
    expert, commits = coded
    expected = from_experts([expert, other], 0.5, trust_remote_code=True)(images(8, 32)).logits
    folder = tmp_path / "tuned"
    model = from_experts([folder, other], 0.5, trust_remote_code=True)
    assert torch.equal(model(images(8, 32)).logits, expected)
    write_code(folder, scale=7)  # stale modules beside it, which nothing names
    model = from_experts([folder, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "whole", save_experts=True)
    shutil.rmtree(folder)
    assert torch.equal(load(tmp_path / "whole", trust_remote_code=True)(images(8, 32)).logits, expected)


@pytest.mark.parametrize("place", ["own", "another"])
def test_code_in_a_subfolder_is_copied(other, hub, tmp_path, images, place):
    folder = save_coded_expert(tmp_path / "tuned")
    code = folder if place == "own" else tmp_path / "code"
    (code / "src").mkdir(parents=True)
    for name in ("configuration_patches.py", "modeling_patches.py"):
        (folder / name).rename(code / "src" / name)
    if place == "another":
        hub.add_model("nested/code", code)
    values = json.loads((folder / "config.json").read_text())
    prefix = "src/" if place == "own" else "nested/code--src/"
    values["auto_map"] = {auto: prefix + name for auto, name in values["auto_map"].items()}
    (folder / "config.json").write_text(json.dumps(values))
    model = from_experts([folder, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "model")
    lazy = load(tmp_path / "model", trust_remote_code=True, lazy=True)
    lazy.save_pretrained(tmp_path / "whole", save_experts=True)
    shutil.rmtree(folder)
    again = load(tmp_path / "whole", trust_remote_code=True)
    assert torch.equal(again(images(8, 32)).logits, model(images(8, 32)).logits)


@pytest.mark.parametrize("lazy", [False, True])
def test_an_expert_on_the_hub_with_its_code_in_a_subfolder(other, hub, tmp_path, images, lazy):
    folder = with_code_in(save_coded_expert(tmp_path / "tuned"), "src")
    expected = from_experts([folder, other], 0.5, trust_remote_code=True)(images(8, 32)).logits
    repository = f"inner{lazy}/tuned".lower()
    hub.add_model(repository, folder)
    options = {"trust_remote_code": True, "cache_dir": str(tmp_path / "cache")}
    model = from_experts([repository, other], 0.5, **options)
    assert torch.equal(model(images(8, 32)).logits, expected)
    model.save_pretrained(tmp_path / "model")
    hub.add_model(repository, with_code_in(save_coded_expert(tmp_path / "newer"), "src", scale=100))
    again = load(tmp_path / "model", lazy=lazy, **{**options, "cache_dir": str(tmp_path / "empty")})
    again.save_pretrained(tmp_path / "whole", save_experts=True)
    push_folder(tmp_path / "whole", f"{repository}-whole", token=hub.token)
    assert "experts/0/src/modeling_patches.py" in hub.files(f"{repository}-whole")
    for place in (tmp_path / "whole", f"{repository}-whole"):
        assert torch.equal(load(place, **options)(images(8, 32)).logits, expected)


def with_code_in(folder, *places, **code):
    """An expert whose modelling code lies in a subfolder."""
    target = folder.joinpath(*places)
    target.mkdir(parents=True)
    write_code(target, "configuration_patches", "modeling_patches", **code)
    for name in ("configuration_patches.py", "modeling_patches.py"):
        (folder / name).unlink()
    prefix = "".join(f"{place}/" for place in places)
    change_auto_map(folder, lambda text: prefix + text)
    return folder


def change_auto_map(folder, change):
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {auto: change(text) for auto, text in values["auto_map"].items()}
    (folder / "config.json").write_text(json.dumps(values))


def test_modules_with_a_hyphen_are_pinned_and_copied(other, hub, tmp_path, images):
    code = write_code(tmp_path / "code", "configuration_patches", "modeling_patches")
    (code / "modeling_patches.py").rename(code / "my-net.py")
    commit = hub.add_model("hyphens/code", code)
    folder = save_coded_expert(tmp_path / "tuned", "hyphens/code")
    change_auto_map(folder, lambda text: text.replace("modeling_patches.", "my-net."))
    model = from_experts([folder, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "whole", save_experts=True)
    assert entry_of(tmp_path / "whole")["code"] == {"hyphens/code": commit}
    assert (tmp_path / "whole/experts/0/my-net.py").read_bytes() == (code / "my-net.py").read_bytes()
    assert torch.equal(
        load(tmp_path / "whole", trust_remote_code=True)(images(8, 32)).logits, model(images(8, 32)).logits
    )


@pytest.mark.parametrize(
    "text", ["modeling_patches", "a.b.Net", "../code.Net", "/tmp/code.Net", "my net.Net", "--modeling_patches.Net", 7]
)
def test_what_names_no_class_is_refused(other, tmp_path, text):
    folder = save_coded_expert(tmp_path / "tuned")
    change_auto_map(folder, lambda former: text if "modeling" in former else former)
    with pytest.raises(PertinenceError, match=f"'tuned': its auto_map names {re.escape(repr(text))} for AutoModelFor"):
        from_experts([folder, other], 0.5, trust_remote_code=True)


def test_only_the_code_that_is_needed_is_copied(coded, other, tmp_path):
    """Neither what lies beside it, nor what a text that looks like an import names."""
    _, (repository, _) = coded
    secret = tmp_path / "secret.py"
    secret.write_text("SECRET = 1\n")
    folder = save_coded_expert(tmp_path / "mixed", repository)
    (folder / "notes.py").symlink_to(secret)
    (folder / "train.py").write_text("")
    code = folder / "processing_patches.py"
    code.write_text(f'"""\nfrom .{secret.with_suffix("")} import x\n"""\n' + code.read_text())
    model = from_experts([folder, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "whole", save_experts=True)
    copied = {path.name for path in (tmp_path / "whole/experts").rglob("*.py")}
    assert copied == {"configuration_patches.py", "modeling_patches.py", "processing_patches.py"}


def test_code_that_is_a_link_to_elsewhere_is_not_copied(coded, other, tmp_path):
    """To a copy of the expert; nor, beside the code of another repository, to the copy that runs."""
    _, (_, repository) = coded
    (tmp_path / "secret.py").write_text("SECRET = 1\n")
    alone, mixed = (
        with_code_in(save_coded_expert(tmp_path / name, None, place), "src")
        for name, place in (("alone", None), ("mixed", repository))
    )
    for folder in (alone, mixed):
        (folder / "src/helper.py").symlink_to(tmp_path / "secret.py")
        with (folder / "src/modeling_patches.py").open("a") as modeling:
            modeling.write("\nfrom .helper import SECRET\n")
    words = "helper.py is a link that leads out of"
    model = from_experts([alone, other], 0.5, trust_remote_code=True)
    with pytest.raises(PertinenceError, match=words):
        model.save_pretrained(tmp_path / "new", save_experts=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(PertinenceError, match=words):
        from_experts([mixed, other], 0.5, trust_remote_code=True)


def test_checkpoints_that_share_only_a_part_of_their_code_are_kept_apart(other, tmp_path, images):
    """Folders of one name, of which one config is the code of both."""
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
    folders = [save_coded_expert(tmp_path / place / "tuned") for place in ("first", "second")]
    write_code(folders[1], scale=3)
    first, second = (
        from_experts([folder, other], 0.5, trust_remote_code=True).experts[0](images(4, 32))[0] for folder in folders
    )
    assert torch.equal(3 * first, second)


def test_modules_of_one_name_in_different_folders_are_kept_apart(coded, other, hub, tmp_path, images):
    """Modules keep the paths that they have in their repositories."""
    _, (repository, _) = coded
    (tmp_path / "apart").mkdir()
    hub.add_model(f"{repository}-3", write_code(tmp_path / "apart" / "src", scale=3).parent)
    folder = save_coded_expert(tmp_path / "mixed", f"{repository}-3", repository.replace("/code", "/images"))
    change_auto_map(folder, lambda text: text.replace("--", "--src/"))
    write_code(folder, scale=7)
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"]["AutoModel"] = "modeling_patches.PatchClassifier"
    (folder / "config.json").write_text(json.dumps(values))
    model = from_experts([folder, other], 0.5, trust_remote_code=True)
    model.save_pretrained(tmp_path / "whole", save_experts=True)
    copy = tmp_path / "whole/experts/0"
    assert "SCALE = 3" in (copy / "src/modeling_patches.py").read_text()
    assert "SCALE = 7" in (copy / "modeling_patches.py").read_text()
    again = load(tmp_path / "whole", trust_remote_code=True)
    assert torch.equal(again(images(8, 32)).logits, model(images(8, 32)).logits)


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ("nobody/nothing", "its code in nobody/nothing cannot be read"),
        ("/tmp/code", "its code is said to be in '/tmp/code', which is not a repository"),
        ("../code", "its code is said to be in '../code', which is not a repository"),
    ],
)
def test_code_that_leads_nowhere(other, tmp_path, repository, words):
    folder = save_coded_expert(tmp_path / "tuned", repository)
    with pytest.raises(PertinenceError, match=f"'tuned'.*{words}"):
        from_experts([folder, other], 0.5, trust_remote_code=True)


def test_two_modules_of_one_name_are_not_mixed_up(coded, other, hub, tmp_path):
    _, (repository, _) = coded
    hub.add_model(f"{repository}-2", write_code(tmp_path / "more", scale=3))
    folder = save_coded_expert(tmp_path / "mixed", repository, f"{repository}-2")
    text = (tmp_path / "more" / "processing_patches.py").read_text()
    (tmp_path / "more" / "processing_patches.py").write_text("from .modeling_patches import SCALE\n" + text)
    hub.add_model(f"{repository}-2", tmp_path / "more")
    with pytest.raises(PertinenceError, match="needs two modules modeling_patches.py that differ"):
        from_experts([folder, other], 0.5, trust_remote_code=True)
