"""`--config` files."""

import pytest

from pertinence.commands.main import main, parse


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("populatoin: 6", "has unknown settings: populatoin"),
        ("- a\n- b", "must hold settings"),
        ("a: [", "cannot be read"),
        ("population: [1, 2]", "population must be at least 2, a whole number"),
        ("learning_rate: [1]", "a setting is of the wrong type"),
        ("population: 1", "population must be at least 2"),
        ("seed: 2020-13-45", "cannot be read"),
        ("seed: !!bool maybe", "cannot be read"),
        ("seed: !!timestamp foo", "cannot be read"),
        ("seed: !!int ''", "cannot be read"),
        (f"seed: {'9' * 5000}", "cannot be read"),
        ("experts: &a [*a]", "an alias (*name) stands for something that contains it"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nexperts: [*b, *b]", "unknown settings: a, b"),
        ("experts: [" + "x, " * 300_000 + "x]", "more than 524,288 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_bad_config_gets_one_sentence(text, sentence, tmp_path, capsys):
    (tmp_path / "search.yaml").write_text(text)
    assert main(["search", "--config", str(tmp_path / "search.yaml"), "--output-dir", str(tmp_path / "run")]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def arguments_of(text: str, tmp_path, *words: str) -> dict:
    """The settings of a search that a file gives, by name."""
    (tmp_path / "search.yaml").write_text(text)
    parts = parse(["search", "--config", str(tmp_path / "search.yaml"), *words])[1]
    return {name: value for part in parts for name, value in vars(part).items()}


def test_text_in_a_file_is_read_as_a_flag_is(tmp_path):
    text = "learning-rate: 1e-3\nseed: '5'\nbaselines: 'no'\nsplit: 5\ndataset-config: 2024\nmixing: null\nresume: yes"
    values = arguments_of(text, tmp_path)
    assert (values["learning_rate"], values["seed"], values["baselines"]) == (0.001, 5, False)
    assert (values["split"], values["dataset_config"], values["mixing"], values["resume"]) == ("5", "2024", None, True)


def test_experts_in_a_file_are_text_or_mappings(tmp_path):
    text = "experts: [a, {repo_id: b, image_size: 28}]\nrecipe: paper\nstem: {repo_id: c}"
    values = arguments_of(text, tmp_path)
    assert values["experts"] == ["a", {"repo_id": "b", "image_size": 28}]
    assert values["stem"] == {"repo_id": "c"}
    assert arguments_of(text, tmp_path, "--experts", "d", "e")["experts"] == ["d", "e"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("population: many", "population must be at least 2, a whole number, got 'many'"),
        ("baselines: perhaps", "baselines must be true or false, got 'perhaps'"),
        ("seed: true", "seed must be at least 0, a whole number, got True"),
        ("dataset: [a, b]", "a setting is of the wrong type: dataset must be text, got ['a', 'b']"),
        ("dataset: {a: b}", "a setting is of the wrong type: dataset must be text"),
        ("cost: euros", "cost='euros' is not one of gmacs, latency"),
        ("cost: [gmacs]", "cost=['gmacs'] is not one of"),
        ("resume: [1]", "resume must be true or false"),
    ],
)
def test_a_wrong_value_in_a_file_gets_one_sentence(text, sentence, tmp_path, capsys):
    (tmp_path / "search.yaml").write_text(text)
    assert main(["search", "--config", str(tmp_path / "search.yaml"), "--output-dir", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_code_of_experts_that_a_file_allows_is_said(tmp_path, caplog):
    assert arguments_of("trust_remote_code: true", tmp_path)["trust_remote_code"] is True
    assert "allows experts to run code of their own (trust_remote_code)" in caplog.text
    caplog.clear()
    assert arguments_of("trust_remote_code: true", tmp_path, "--trust-remote-code")["trust_remote_code"] is True
    assert arguments_of("trust_remote_code: true", tmp_path, "--no-trust-remote-code")["trust_remote_code"] is False
    assert not caplog.records
