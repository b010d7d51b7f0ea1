"""Settings: what their fields say, and what is refused."""

from dataclasses import dataclass, field

import pytest

from pertinence import PertinenceError, SearchArguments
from pertinence.utils.settings import Settings, check_settings, setting, settings_of


@dataclass
class Oven(Settings):
    heat: int = setting(180, "Degrees.", group="search", least=50, most=300)
    fan: bool = setting(False, "Whether air moves.", group="search")
    share: float = setting(0.5, "Of the oven.", group="search", above=0, below=1)
    speed: float = setting(1.0, "Of the fan.", group="search", above=0)
    slope: float = setting(0.0, "Of the tray.", group="search")
    dish: str | None = setting(None, "What is baked.", group="data")
    where: str = setting("middle", "The rack.", group="data", choices=["top", "middle"])
    times: list[int] = setting([5, 10], "Minutes.", group="search", least=1)
    parts: list[str | dict[str, int]] | None = setting(None, "Of the dish.", group="data")


def test_what_a_field_says():
    settings = {one.name: one for one in settings_of(Oven)}
    assert [settings[name].type for name in ("heat", "fan", "share", "dish", "times", "parts")] == [
        int, bool, float, str, int, str,
    ]  # fmt: skip
    assert [name for name, one in settings.items() if one.is_list] == ["times", "parts"]
    assert [name for name, one in settings.items() if one.is_optional] == ["dish", "parts"]
    assert [name for name, one in settings.items() if one.takes_mapping] == ["parts"]
    assert settings["times"].default == [5, 10]
    assert Oven().times is not Oven().times


@pytest.mark.parametrize(
    "values",
    [
        {"heat": 50}, {"heat": 300}, {"fan": True}, {"share": 0.1}, {"speed": 3}, {"slope": -2}, {"dish": "pie"},
        {"where": "top"}, {"times": [1]}, {"parts": ["crust", {"apple": 3}]}, {"dish": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_taken(values):
    assert vars(Oven(**values)) == vars(Oven()) | values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"heat": 49}, "heat must be at least 50, a whole number, got 49"),
        ({"heat": 301}, "heat must be at most 300, got 301"),
        ({"heat": 60.0}, "heat must be at least 50, a whole number, got 60.0"),
        ({"heat": True}, "heat must be at least 50, a whole number, got True"),
        ({"heat": None}, "heat must be at least 50, a whole number, got None"),
        ({"heat": "60"}, "heat must be at least 50, a whole number, got '60'"),
        ({"fan": "yes"}, "a setting is of the wrong type: fan must be true or false, got 'yes'"),
        ({"fan": 2}, "a setting is of the wrong type: fan must be true or false, got 2"),
        ({"share": 0}, "share must lie between 0 and 1, got 0"),
        ({"share": 1.0}, "share must lie between 0 and 1, got 1.0"),
        ({"share": float("nan")}, "share must lie between 0 and 1, got nan"),
        ({"share": [0.5]}, "a setting is of the wrong type: share must lie between 0 and 1, got [0.5]"),
        ({"speed": -1}, "speed must be a positive number, got -1"),
        ({"speed": float("inf")}, "speed must be a positive number, got inf"),
        ({"slope": float("nan")}, "slope must be a number, got nan"),
        ({"slope": "up"}, "a setting is of the wrong type: slope must be a number, got 'up'"),
        ({"dish": ["pie"]}, "a setting is of the wrong type: dish must be text, got ['pie']"),
        ({"dish": {"pie": 1}}, "a setting is of the wrong type: dish must be text, got {'pie': 1}"),
        ({"where": "door"}, "where='door' is not one of top, middle"),
        ({"where": ["top"]}, "where=['top'] is not one of top, middle"),
        ({"times": [5, 0]}, "times must be at least 1, a whole number, got [5, 0]"),
        ({"times": []}, "times must be at least 1, a whole number, got []"),
        ({"times": 5}, "a setting is of the wrong type: times must be at least 1, a whole number, got 5"),
    ],
    ids=str,
)
def test_what_is_refused(values, sentence):
    with pytest.raises(PertinenceError) as caught:
        Oven(**values)
    assert str(caught.value) == sentence


def test_values_of_files_are_read_as_flags_are():
    settings = {one.name: one for one in settings_of(Oven)}
    assert settings["heat"].convert("60") == 60
    assert settings["speed"].convert("1e-3") == 0.001
    assert [settings["fan"].convert(text) for text in ("yes", "No", "1", "false")] == [True, False, True, False]
    assert [settings["dish"].convert(value) for value in (5, 0.5, "pie", None)] == ["5", "0.5", "pie", None]
    assert settings["times"].convert([1]) == [1]
    with pytest.raises(PertinenceError, match="fan must be true or false, got 'perhaps'"):
        settings["fan"].convert("perhaps")


def test_a_plain_dataclass_has_settings_too():
    @dataclass
    class Plain:
        count: int = field(default=1, metadata={"least": 1})
        name: str = "x"
        private: int = field(default=0, init=False)

    assert [one.name for one in settings_of(Plain)] == ["count", "name"]
    with pytest.raises(PertinenceError, match="count must be at least 1"):
        check_settings(Plain(count=0))


def test_what_no_flag_can_give_is_refused():
    @dataclass
    class Mapped:
        values: dict[str, int] = field(default_factory=dict)

    @dataclass
    class Needed:
        values: int

    with pytest.raises(PertinenceError, match="'values' is of a type that no flag gives"):
        settings_of(Mapped)
    with pytest.raises(PertinenceError, match="'values' has no default"):
        settings_of(Needed)


def test_docstrings_say_what_settings_do():
    assert SearchArguments.__doc__.count("    folds: Folds for out-of-fold estimates.") == 1
    assert "Examples:" in SearchArguments.__doc__
    assert Settings.__doc__.startswith("Base of dataclasses of settings")
