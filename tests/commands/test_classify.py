"""`pertinence classify`: every kind of input, every kind of output, bad images, kills, several processes."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from warm_processes import run_python

import pertinence
from pertinence import (
    Budget,
    ClassificationArguments,
    InputArguments,
    PertinenceError,
    PertinenceForImageClassification,
    PertinenceImageProcessor,
)
from pertinence.commands.main import main, parse


COUNT = 10
LAUNCHER = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def model(tiny_experts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "cascade"
    PertinenceForImageClassification.from_experts(tiny_experts, 0.5).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(images, tmp_path_factory) -> Path:
    """A folder with subfolders of ten image files of three formats, and files that are no images."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(images(COUNT, 40, seed=1)):
        place = folder / ("a", "b")[index % 2] / f"{index}{('.png', '.JPG', '.webp')[index % 3]}"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[:, : 30 + index].permute(1, 2, 0).numpy()).save(place)
    for name in ("notes.txt", ".hidden.png", "a/labels.csv"):
        (folder / name).write_text("no image")
    return folder


@pytest.fixture(scope="module")
def files(pictures) -> list[str]:
    """The image files in the order of a folder."""
    found = [str(path) for path in sorted(pictures.rglob("*")) if path.suffix in (".png", ".JPG", ".webp")]
    return [path for path in found if not Path(path).name.startswith(".")]


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory) -> Path:
    """The same images in shards of parquet and tar."""
    folder = tmp_path_factory.mktemp("shards")
    contents = [Path(path).read_bytes() for path in files]
    rows = datasets.Dataset.from_dict({"id": list(range(COUNT)), "picture": [{"bytes": one} for one in contents]})
    rows.cast_column("picture", datasets.Image()).to_parquet(folder / "images.parquet")
    pq.write_table(pa.table({"jpeg": contents, "n": range(COUNT)}), folder / "bytes.parquet", row_group_size=4)
    shutil.copytree(Path(files[0]).parents[1], folder / "beside")
    relative = [os.path.relpath(path, Path(files[0]).parents[1]) for path in files]
    pq.write_table(pa.table({"file": [f"beside/{path}" for path in relative]}), folder / "paths.parquet")
    with tarfile.open(folder / "images.tar", "w") as archive:
        for index, (path, content) in enumerate(zip(files, contents, strict=True)):
            for name, data in ((f"{index:03}.json", b"{}"), (f"{index:03}{Path(path).suffix}", content)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def expected(model, files) -> list[dict[str, Any]]:
    """What the model answers when it is called on all images at once."""
    loaded = PertinenceForImageClassification.from_pretrained(model)
    out = loaded(PertinenceImageProcessor()(files)["images"])
    scores, indices = out.logits.softmax(1).topk(5)
    names = loaded.config.expert_names
    assert 0 < out.experts_run[:, 1].sum() < COUNT
    return [
        {
            "label": loaded.config.id2label[indices[row, 0].item()],
            "score": scores[row, 0].item(),
            "top_labels": [loaded.config.id2label[index] for index in indices[row].tolist()],
            "top_scores": scores[row].tolist(),
            "expert": names[out.expert_indices[row]],
            "experts_run": [name for name, ran in zip(names, out.experts_run[row], strict=True) if ran],
            "gmacs": out.gmacs[row].item(),
            "operating_point": "cascade",
            "confidence": None,
            "abstained": False,
            "ood_p_value": None,
            "error": None,
        }
        for row in range(COUNT)
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def assert_same(output: Path, other: Path) -> None:
    """Every bit of every row."""
    assert pq.read_schema(output) == pq.read_schema(other)
    for row, same in zip(rows_of(output), rows_of(other), strict=True):
        assert row == same


def assert_answers(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same answers; scores may differ in the last bits, as other batches do."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        found = {key: value for key, value in row.items() if key != "input"}
        scores, wanted = ({**one, "score": None, "top_scores": None} for one in (found, other))
        assert scores == {**wanted, "gmacs": pytest.approx(other["gmacs"])}
        assert found["score"] == pytest.approx(other["score"], abs=1e-4)
        assert found["top_scores"] == pytest.approx(other["top_scores"], abs=1e-4)


def only_error(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def command(model: Path, *words: Any) -> list[str]:
    return ["classify", "--device", "cpu", "--batch-size", "4", str(model), *map(str, words)]


# Inputs


def test_a_folder_a_pattern_and_files_are_the_same_rows(model, pictures, files, expected, tmp_path):
    pattern = str(pictures / "**" / "[0-9]*")
    for number, inputs in enumerate(([pictures], [pattern], files)):
        assert main(command(model, *inputs, "--output", tmp_path / f"{number}.parquet")) == 0
        rows = rows_of(tmp_path / f"{number}.parquet")
        assert [row["input"] for row in rows] == files
        assert_answers(rows, expected)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{number}.parquet{suffix}" for number in range(3) for suffix in ("", ".run.json")
    }


def test_a_list_on_standard_input(model, files, expected, tmp_path):
    words = command(model, "-", "--output", "out.parquet")
    finished = subprocess.run(
        [sys.executable, "-m", "pertinence", *words], input="\n".join([*files[:3], "", *files[3:], ""]), cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    rows = rows_of(tmp_path / "out.parquet")
    assert [row["input"] for row in rows] == files
    assert_answers(rows, expected)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["images.parquet", "bytes.parquet", "paths.parquet", "images.tar"])
def test_shards(name, workers, model, shards, files, expected, tmp_path):
    column = ["--image-column", "file"] if name == "paths.parquet" else []
    words = command(model, shards / name, *column, "--num-workers", workers, "--output", tmp_path / "out.parquet")
    assert main(words) == 0
    rows = rows_of(tmp_path / "out.parquet")
    members = [f"{index:03}{Path(path).suffix}" for index, path in enumerate(files)]
    keys = members if name == "images.tar" else range(COUNT)
    assert [row["input"] for row in rows] == [f"{shards / name}:{key}" for key in keys]
    assert_answers(rows, expected)


def test_a_folder_of_shards_in_order_and_a_limit(model, shards, expected, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("b.tar", "a.parquet", "c.tar"):
        shutil.copy(shards / f"images{Path(name).suffix}", folder / name)
    output = folder / "out.parquet"  # and its parts are no inputs
    assert main(command(model, folder, "--limit", 25, "--output", output)) == 0
    rows = rows_of(output)
    assert_answers(rows, [*expected, *expected, *expected[:5]])
    assert [Path(row["input"].split(":")[0]).name for row in rows] == ["a.parquet"] * 10 + ["b.tar"] * 10 + [
        "c.tar"
    ] * 5
    assert main(command(model, folder, "--limit", 25, "--output", output)) == 0, "it is finished"


def test_a_data_set_on_the_hub(model, files, expected, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    images = datasets.Dataset.from_dict({"image": files, "n": list(range(COUNT))}).cast_column(
        "image", datasets.Image()
    )
    images.push_to_hub("tester/unlabelled", split="test")
    images.push_to_hub("tester/unlabelled", split="train")
    commit = hub.commits("tester/unlabelled", "dataset")[-1]
    for name in ("tester/unlabelled", f"tester/unlabelled@{commit}"):
        output = tmp_path / f"{len(name)}.parquet"
        assert main(command(model, name, "--split", "test", "--output", output)) == 0
        assert [row["input"] for row in rows_of(output)] == [f"{name}:test:{row}" for row in range(COUNT)]
        assert_answers(rows_of(output), expected)
    assert main(command(model, "tester/unlabelled", "--output", tmp_path / "x.parquet")) == 1
    assert "has the splits test, train: name one with --split" in only_error(capsys).replace(
        "train, test", "test, train"
    )


def test_in_python_a_data_set_and_a_loaded_model(model, files, expected, tmp_path):
    loaded = PertinenceForImageClassification.from_pretrained(model)
    images = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    args = ClassificationArguments(device="cpu", batch_size=4, top_k=2)
    found = pertinence.classify(loaded, images, tmp_path / "out.jsonl", args, data=InputArguments(limit=6))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    short = [{**row, **{key: row[key][:2] for key in ("top_labels", "top_scores")}} for row in expected[:6]]
    assert_answers(rows, short)
    assert (found.images, found.errors, found.classified) == (6, 0, 6)
    assert found.gmacs == pytest.approx(sum(row["gmacs"] for row in expected[:6]) / 6)
    assert sum(found.expert_shares.values()) == pytest.approx(1)
    again = pertinence.classify(model, images, tmp_path / "out.jsonl", args, data=InputArguments(limit=6))
    assert again.is_old, "the saved model is the loaded one"


def test_an_operating_point_of_a_budget(searched, data, tmp_path):
    run = searched / "runs" / "digits"
    front = PertinenceForImageClassification.from_pretrained(run).front
    for flags, budget in (
        (["--operating-point", front[0].name], {"operating_point": front[0].name}),
        (["--saving", "0.3"], {"saving": 0.3}),
        (["--max-accuracy-loss", "0.01"], {"max_accuracy_loss": 0.01}),
        (["--gmacs", str(1.01 * front[0].select.gmacs)], {"gmacs": 1.01 * front[0].select.gmacs}),
    ):
        chosen = PertinenceForImageClassification.from_pretrained(run).set_budget(**budget).name
        output = tmp_path / f"{flags[0]}.parquet"
        assert main(command(run, data / "test.parquet", "--limit", "8", *flags, "--output", output)) == 0
        assert {row["operating_point"] for row in rows_of(output)} == {chosen}
    with pytest.raises(PertinenceError, match="give one budget at most, got accuracy and saving"):
        Budget(accuracy=0.9, saving=0.5)


def test_which_milliseconds_a_budget_means_is_another_flag_than_what_the_model_runs_on(model, files):
    flags = ["--latency-ms", "3", "--latency-device", "NVIDIA H200", "--latency-batch-size", "32"]
    _, (_, _, budget, _, args, _) = parse(command(model, *files, *flags))
    assert budget == Budget(latency_ms=3.0, device="NVIDIA H200", batch_size=32)
    assert (args.device, args.batch_size) == ("cpu", 4)


# Outputs


def test_csv_and_jsonl_hold_what_parquet_holds(model, files, tmp_path):
    odd = tmp_path / 'a "quoted", name\nof two lines é.png'
    shutil.copy(files[0], odd)
    for suffix in ("parquet", "csv", "jsonl"):
        assert main(command(model, odd, *files, "--output", tmp_path / f"all.{suffix}")) == 0
    rows = rows_of(tmp_path / "all.parquet")
    assert rows[0]["input"] == str(odd)
    assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["input"] for row in read] == [row["input"] for row in rows]
    for row, other in zip(read, rows, strict=True):
        for key in ("top_labels", "experts_run"):
            assert json.loads(row[key]) == other[key]
        assert json.loads(row["top_scores"]) == other["top_scores"]
        assert float(row["score"]) == pytest.approx(other["score"], rel=1e-6)
        assert row["error"] == ""


def test_the_last_lines_say_what_was_written(model, files, tmp_path, capsys):
    words = command(model, *files, "--output", tmp_path / "out.parquet")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"10 images in {tmp_path / 'out.parquet'}, by the operating point cascade"
    assert lines[-1] == f"Next: pertinence info {model}"
    assert "GMACs an image" in "\n".join(lines)
    assert main(words) == 0
    assert "nothing to do (--no-resume runs it again)" in capsys.readouterr().out.splitlines()[0]
    assert main([*words, "--no-resume"]) == 0
    assert "10 images were classified now" in capsys.readouterr().out


# Bad images


@pytest.fixture
def spoilt(files, tmp_path) -> Path:
    """Ten images of which three cannot be read."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for index, path in enumerate(files):
        shutil.copy(path, folder / f"{index}{Path(path).suffix}")
    (folder / f"2{Path(files[2]).suffix}").write_bytes(Path(files[2]).read_bytes()[:60])
    (folder / f"5{Path(files[5]).suffix}").write_bytes(b"")
    (folder / f"7{Path(files[7]).suffix}").unlink()
    Image.new("RGB", (1, 60_000)).save(folder / "7.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_in_their_rows(model, spoilt, expected, workers, tmp_path, capsys):
    output = tmp_path / "out.parquet"
    assert main(command(model, spoilt, "--num-workers", workers, "--output", output)) == 0
    assert "3 of them could not be read: see the column `error`" in capsys.readouterr().out
    rows = rows_of(output)
    for index, row in enumerate(rows):
        if index in (2, 5, 7):
            assert row["error"].startswith(f"'{row['input']}' cannot be read as an image (")
            assert all(value is None for key, value in row.items() if key not in ("input", "error"))
    kept = [index for index in range(COUNT) if index not in (2, 5, 7)]
    assert_answers([rows[index] for index in kept], [expected[index] for index in kept])


def test_a_bad_image_stops_the_run_if_it_must_and_what_is_finished_is_kept(model, spoilt, tmp_path, capsys, caplog):
    words = command(model, spoilt, "--part-size", 2, "--batch-size", 2, "--output", tmp_path / "out.csv")
    assert main([*words, "--on-bad-image", "stop"]) == 1
    assert only_error(capsys).endswith("remove it, or skip such images with --on-bad-image skip")
    assert [path.name for path in (tmp_path / "out.csv.parts").glob("*.parquet")] == ["part-00000.parquet"]
    assert not (tmp_path / "out.csv").exists()
    assert main(words) == 0
    assert "continues at image 3 of 10: 1 of 5 parts are finished." in caplog.text
    assert "8 images were classified now" in capsys.readouterr().out


def test_only_bad_images(model, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert main(command(model, tmp_path, "--output", tmp_path / "out.parquet", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["gmacs"], found["expert_shares"]) == (1, None, {})


def test_a_parquet_file_that_is_damaged_in_the_middle_loses_only_that(model, shards, expected, tmp_path):
    content = bytearray((shards / "bytes.parquet").read_bytes())
    column = pq.read_metadata(shards / "bytes.parquet").row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 60] = b"\xff" * 60
    (tmp_path / "damaged.parquet").write_bytes(content)
    assert main(command(model, tmp_path / "damaged.parquet", "--output", tmp_path / "out.parquet")) == 0
    rows = rows_of(tmp_path / "out.parquet")
    assert [index for index, row in enumerate(rows) if row["error"]] == [4, 5, 6, 7]
    assert rows[4]["input"] == f"{tmp_path / 'damaged.parquet'}:4"
    assert_answers(rows[:4] + rows[8:], expected[:4] + expected[8:])


# Refusals


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.png", "--output", "out.xlsx"], "names no format by its suffix: expected one of .parquet, .csv, .jsonl"),
        (["a.png"], "there is no place for the answers: give --output"),
        (["gone.png", "--output", "out.csv"], "there is no file gone.png"),
        (["./gone/folder", "--output", "out.csv"], "there is no folder ./gone/folder here"),
        (["gone*.png", "--output", "out.csv"], "no file matches gone*.png"),
        (["empty", "--output", "out.csv"], "the folder empty holds no images, and no parquet or tar files"),
        (["list.txt", "--output", "out.csv"], "list.txt is no image, by its suffix .txt"),
        (["a.tar.gz", "--output", "out.csv"], "is compressed, so it cannot be read from the middle"),
        (["bad.tar", "--output", "out.csv"], "cannot be read as a tar archive"),
        (
            ["cut.tar", "--output", "out.csv"],
            "'cut.tar' cannot be read as a tar archive (ReadError: ",
        ),
        (["none.tar", "--output", "out.csv"], "the archive none.tar holds no images, by the suffixes of its members"),
        (["bad.parquet", "--output", "out.csv"], "bad.parquet cannot be read as parquet"),
        (
            ["two.parquet", "--output", "out.csv"],
            "two.parquet has several image columns (a, b): name one with --image-co",
        ),
        (["two.parquet", "--image-column", "c", "--output", "o.csv"], "two.parquet has no column 'c'"),
        (
            ["two.parquet", "--image-column", "n", "--output", "o.csv"],
            "column 'n' of two.parquet holds no images, but",
        ),
        (
            ["a.png", "--split", "test", "--output", "out.csv"],
            "--split has no use here: no input is a data set on the",
        ),
        (["a.png", "--image-column", "x", "--output", "o.csv"], "--image-column has no use here"),
        (["a.png", "--top-k", "11", "--output", "out.csv"], "top_k=11 is too many: the model has 10 labels"),
        (["a.png", "--operating-point", "x", "--output", "out.csv"], "there is no operating point 'x'"),
        (
            ["a.png", "--gmacs", "1", "--saving", "0.5", "--output", "o.csv"],
            "give one budget at most, got saving and gm",
        ),
        (["a.png", "--output", "there.csv"], "there.csv exists, and not from such a run: choose another --output"),
        (["there.parquet", "--output", "there.parquet"], "there.parquet is the output: it cannot be an input, too"),
        (["a.png", "--output", "empty/sub.csv/"], "sub.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_in_one_sentence(words, sentence, model, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[0], "a.png")
    Path("empty").mkdir()
    for name in ("list.txt", "a.tar.gz", "bad.tar", "bad.parquet", "there.csv"):
        Path(name).write_text("something else " * 100)
    with tarfile.open("none.tar", "w") as archive:
        archive.add("list.txt")
    Path("cut.tar").write_bytes(Path("none.tar").read_bytes()[:900])
    pq.write_table(pa.table({"a": [b"x"], "b": [b"x"], "n": [1]}), "two.parquet")
    shutil.copy("two.parquet", "there.parquet")
    if words[-1] == "empty/sub.csv/":
        Path("empty/sub.csv").mkdir()
    before = sorted(Path().rglob("*"))
    assert main(["classify", str(model), *words, "--device", "cpu"]) == 1
    assert sentence in only_error(capsys)
    assert sorted(Path().rglob("*")) == before


def test_the_output_of_another_run_is_refused(model, files, tmp_path, capsys):
    words = command(model, *files, "--output", tmp_path / "out.parquet")
    assert main(words) == 0
    content = (tmp_path / "out.parquet").read_bytes()
    for other, why in (
        (
            command(model, *files[:5], "--output", tmp_path / "out.parquet"),
            "it has other images, or they were changed",
        ),
        ([*words, "--top-k", "3"], "its top k is 5, not 3"),
        ([*words, "--batch-size", "8", "--no-resume"], "its batch size is 4, not 8"),
    ):
        assert main(other) == 1
        error = only_error(capsys)
        assert f"out.parquet is that of another run ({why})" in error
        assert "choose another --output, or remove it" in error
    (tmp_path / "out.parquet").write_bytes(content + b" ")
    assert main(words) == 1
    assert "was changed after it was written" in only_error(capsys)


def test_parts_of_another_run_are_refused(model, spoilt, files, tmp_path, capsys):
    words = command(model, spoilt, "--part-size", 2, "--batch-size", 2, "--output", tmp_path / "out.csv")
    assert main([*words, "--on-bad-image", "stop"]) == 1
    capsys.readouterr()
    os.utime(spoilt / f"0{Path(files[0]).suffix}")
    assert main(words) == 1
    error = only_error(capsys)
    assert "the unfinished output" in error
    assert (
        "(it has other images, or they were changed): choose another --output, or remove it with out.csv.parts"
        in error
    )


def test_two_runs_at_once_are_refused(model, files, tmp_path, capsys, monkeypatch):
    from pertinence.utils import locks

    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    parts = tmp_path / "out.parquet.parts"
    with locks.locked(parts, "", ""):
        assert main(command(model, *files, "--output", tmp_path / "out.parquet")) == 1
    assert "another process is writing" in only_error(capsys)


# Long runs


@pytest.fixture(scope="module")
def many(images, tmp_path_factory) -> Path:
    """Four shards of 75 small images."""
    folder = tmp_path_factory.mktemp("many")
    for shard in range(4):
        encoded = []
        for pixels in images(75, 24, seed=shard):
            stream = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG")
            encoded.append(stream.getvalue() if shard != 1 or len(encoded) != 7 else b"bad")
        pq.write_table(pa.table({"image": encoded}), folder / f"{shard}.parquet", row_group_size=20)
    return folder


@pytest.fixture(scope="module")
def undisturbed(model, many, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out.parquet"
    assert main(long_command(model, many, output)) == 0
    return output


def long_command(model: Path, many: Path, output: Path) -> list[str]:
    words = ["classify", str(model), str(many), "--output", str(output), "--device", "cpu"]
    return [*words, "--batch-size", "4", "--part-size", "12"]


def test_killed_again_and_again_each_row_is_there_once(model, many, undisturbed, tmp_path):
    """With a worker and without, in turn: itself alone, or with its worker."""
    output = tmp_path / "out.parquet"
    words = long_command(model, many, output)
    rng, kept, kills = random.Random(0), 0, 0
    parts = tmp_path / "out.parquet.parts"
    while kills < 2:
        process = subprocess.Popen(
            [sys.executable, "-m", "pertinence", *words, "--num-workers", str(kills % 2)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        wanted = kept + rng.randint(1, 4)  # parts: 25 in all
        while process.poll() is None and len(list(parts.glob("part-*.parquet"))) < wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, process.communicate()
        if rng.random() < 0.5:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        assert not output.exists()
        kept = len(list(parts.glob("part-*.parquet")))
        for part in parts.glob("part-*.parquet"):
            assert len(rows_of(part)) == 12
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    assert before
    finished = run_python("-m", "pertinence", *words)
    assert finished.returncode == 0, finished.stderr
    assert f"{kept} of 25 parts are finished" in finished.stderr
    assert f"{300 - 12 * kept} images were classified now" in finished.stdout
    assert_same(output, undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "out.parquet.run.json"}


@pytest.mark.parametrize(
    "moment",
    ["recorded", *(pytest.param(moment, marks=pytest.mark.nightly) for moment in ("joined", "cleared"))],
)
def test_killed_at_the_end(moment, model, many, undisturbed, tmp_path):
    """Just before the record, before the parts are removed, and while they are."""
    stops = {
        "joined": "from pertinence.evaluation import parts; replaced = parts.replaced\n"
        "def stop(path, *args):\n    os._exit(9) if path.name.endswith('.run.json') else None\n"
        "    return replaced(path, *args)\nparts.replaced = stop",
        "recorded": "from pertinence.evaluation.parts import Parts; Parts.clear = lambda self: os._exit(9)",
        "cleared": "from pathlib import Path; unlink = Path.unlink\ndef stop(self, **options):\n"
        "    unlink(self, **options); os._exit(9) if self.name == 'manifest.json' else None\nPath.unlink = stop",
    }
    words = long_command(model, many, tmp_path / "out.parquet")
    code = f"import os, sys\nfrom pertinence.commands.main import main\n{stops[moment]}\nsys.exit(main({words!r}))"
    finished = run_python("-c", code)
    assert finished.returncode == 9, finished.stderr
    assert main(words) == 0
    assert_same(tmp_path / "out.parquet", undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "out.parquet.run.json"}


def test_two_processes_write_what_one_writes(model, many, undisturbed, tmp_path):
    words = long_command(model, many, tmp_path / "out.parquet")
    finished = subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "pertinence", *words], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Next: ") == 1
    assert_same(tmp_path / "out.parquet", undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "out.parquet.run.json"}


@pytest.mark.nightly
def test_two_processes_fail_with_one_sentence(model, tmp_path):
    words = command(model, tmp_path, "--output", tmp_path / "out.parquet")
    finished = subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "pertinence", *words], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode != 0
    assert finished.stderr.count("error: the folder") == 1


MEASURE = """
import resource, sys
from pertinence.commands.main import main, parse
assert main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_images(tiny_experts, many, tmp_path):
    peaks, model = [], tmp_path / "model"
    PertinenceForImageClassification.from_experts(tiny_experts, 0.0).save_pretrained(model)  # the first one alone
    for repeats in (2, 10):  # 600 and 3,000 images
        words = command(model, *[many] * repeats, "--batch-size", "32", "--output", tmp_path / f"{repeats}.csv")
        finished = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        peaks.append(float(finished.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 40, peaks


def test_torch_is_as_it_was(model, files, tmp_path):
    """A run in Python changes neither threads nor the point of a model."""
    loaded, threads = PertinenceForImageClassification.from_pretrained(model), torch.get_num_threads()
    point = loaded.config.operating_point
    args = ClassificationArguments(device="cpu")
    pertinence.classify(loaded, files, tmp_path / "out.csv", args, Budget(operating_point="cascade"))
    assert (loaded.config.operating_point, torch.get_num_threads()) == (point, threads)


def test_the_page_says_what_works(model, pictures, files, tmp_path, monkeypatch):
    """The Python of docs/classifying.md, where its model and its images are."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/cifar10").symlink_to(model)
    Path("photos").symlink_to(pictures)
    Path("more").mkdir()
    Image.open(files[0]).convert("RGB").save("more/one.jpg")
    page = (Path(__file__).resolve().parents[2] / "docs" / "classifying.md").read_text()
    call, mapped = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names: dict[str, Any] = {}
    exec(
        call.replace("num_workers=4", "num_workers=1").replace("max_accuracy_loss=0.005", "operating_point='cascade'"),
        names,
    )
    assert names["found"].images == COUNT + 1
    names["images"] = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    exec(mapped, names)
    answered = names["answered"]
    rows = rows_of(Path("answers.parquet"))[:COUNT]
    assert answered["label"][:] == [row["label"] for row in rows]
    assert answered["gmacs"][:] == pytest.approx([row["gmacs"] for row in rows])
