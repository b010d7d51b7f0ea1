"""One split, from folders and from the Hub, also where it does not come at once."""

import zlib

import datasets
import pytest
from pets import make_dataset
from PIL import Image

from pertinence import PertinenceError
from pertinence.data.arguments import DataArguments
from pertinence.data.dataset import LabelledImages
from pertinence.data.loading import load_images


def save_image_folder(folder):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / split / label / f"{index}.png")


def test_local_folder_of_images_loads(tmp_path):
    save_image_folder(tmp_path)
    images = load_images(DataArguments(str(tmp_path), "test"))
    assert len(images) == 6
    assert images.label_names == {0: "cat", 1: "dog"}


def test_limit_takes_the_first_images(tmp_path):
    save_image_folder(tmp_path)
    assert len(load_images(DataArguments(str(tmp_path), "test", limit=4))) == 4


def test_local_parquet_loads(tmp_path):
    make_dataset().to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    assert len(load_images(DataArguments(str(tmp_path), "validation"))) == 6


def test_data_set_from_the_hub_loads_at_any_commit(hub, tmp_path):
    commits = []
    for count in (6, 4):
        make_dataset().select(range(count)).to_parquet(tmp_path / "test.parquet")
        commits.append(hub.add_dataset("tester/pets", tmp_path))
    for name, expected in (("tester/pets", 1), (f"tester/pets@{commits[0]}", 0), ("tester/pets@main", 1)):
        images = load_images(DataArguments(name, "test"))
        assert (len(images), images.commit) == ((6, 4)[expected], commits[expected])
    with pytest.raises(PertinenceError, match="tester/pets.*gone"):
        load_images(DataArguments("tester/pets@gone", "test"))
    assert load_images(DataArguments(str(tmp_path), "test")).commit is None
    with pytest.raises(PertinenceError, match="is a folder here, which has no revision"):
        load_images(DataArguments(f"{tmp_path}@gone", "test"))


FILES = r"/datasets/tester/{}/resolve/.*\.parquet"
LISTS = r"/api/datasets/tester/{}.*"


def push_pets(hub, tmp_path, name: str) -> str:
    """A data set of which most bytes are those of images; returns its fingerprint."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    noise = [Image.effect_noise((64, 64), 50) for _ in range(6)]
    pets = datasets.Dataset.from_dict({"image": noise, "label": [0, 1] * 3}, features=features)
    pets.to_parquet(tmp_path / "test.parquet")
    hub.add_dataset(f"tester/{name}", tmp_path)
    return LabelledImages(pets).fingerprint


@pytest.mark.parametrize("what", [{"status": 500}, {"reset": True}, {"truncate": 100}, {"corrupt": True}], ids=str)
@pytest.mark.parametrize("path", [FILES, LISTS], ids=["file", "list"])
def test_a_data_set_that_does_not_come_at_once_is_tried_again(hub, no_pauses, tmp_path, path, what, request):
    name = f"pets-{zlib.crc32(request.node.name.encode())}"
    expected = push_pets(hub, tmp_path, name)
    with hub.fault(path.format(name), times=1, **what) as happening:
        images = load_images(DataArguments(f"tester/{name}", "test"))
    assert happening.happened == 1
    assert images.fingerprint == expected


@pytest.mark.parametrize(
    ("path", "what", "words"),
    [
        (LISTS, {"status": 503}, "the Hub cannot serve .* now .it answered 503.: try again later"),
        (LISTS, {"reset": True}, "the connection to the Hub broke while .* was read: try again"),
        (FILES, {"truncate": 100}, "the connection to the Hub broke while .* was read: try again"),
        (FILES, {"corrupt": True}, "a file of .* arrived damaged"),
    ],
    ids=["503", "reset", "truncated", "corrupted"],
)
def test_a_data_set_that_does_not_come_is_named_and_comes_later(hub, no_pauses, tmp_path, path, what, words, request):
    name = f"pets-{zlib.crc32(request.node.name.encode())}"
    expected = push_pets(hub, tmp_path, name)
    with hub.fault(path.format(name), **what):
        with pytest.raises(PertinenceError, match=f"^data set 'tester/{name}' cannot be loaded: {words}"):
            load_images(DataArguments(f"tester/{name}", "test"))
    images = load_images(DataArguments(f"tester/{name}", "test"))
    assert images.fingerprint == expected


def test_split_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    save_image_folder(tmp_path)
    with pytest.raises(PertinenceError, match=r"no split 'valid'.*train.*test"):
        load_images(DataArguments(str(tmp_path), "valid"))


@pytest.mark.parametrize("name", ["/no/such/folder", "nobody/nothing"])
def test_unknown_data_set_is_named(name):
    with pytest.raises(PertinenceError, match=f"data set '{name}' cannot be loaded"):
        load_images(DataArguments(name, "test"))


def test_same_files_have_the_same_fingerprint_and_others_another(tmp_path):
    make_dataset().to_parquet(tmp_path / "test.parquet")
    first, second = (load_images(DataArguments(str(tmp_path), "test")).fingerprint for _ in range(2))
    make_dataset(5).to_parquet(tmp_path / "test.parquet")
    assert first == second != load_images(DataArguments(str(tmp_path), "test")).fingerprint


@pytest.mark.parametrize("folder", ["val", "valid", "validation", "dev"])
def test_a_validation_split_is_found_by_any_of_its_names(tmp_path, folder, caplog):
    save_image_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / folder)
    for name in ("val", "valid", "validation", "validation[:2]"):
        assert len(load_images(DataArguments(str(tmp_path), name))) == (2 if "[" in name else 6)
    assert "calls its split 'val' 'validation'" in caplog.text
    with pytest.raises(PertinenceError, match="no split 'test'"):
        load_images(DataArguments(str(tmp_path), "test"))


def test_without_a_split_those_that_there_are_are_listed(tmp_path):
    save_image_folder(tmp_path)
    with pytest.raises(PertinenceError, match="has the splits train, test: name one with --split"):
        load_images(DataArguments(str(tmp_path)))
    with pytest.raises(PertinenceError, match="no images were named: give --dataset and --split"):
        load_images(DataArguments())


def test_images_without_labels_are_told_how_to_search(tmp_path):
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    with pytest.raises(PertinenceError, match="no label column .* or search without labels, --labels agree"):
        load_images(DataArguments(str(tmp_path), "train"))


def test_the_only_split_needs_no_name(tmp_path, caplog):
    make_dataset().to_parquet(tmp_path / "test.parquet")
    assert len(load_images(DataArguments(str(tmp_path)))) == 6
    assert "has one split, 'test', which is taken." in caplog.text
