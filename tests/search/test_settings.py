"""Settings of a search as a file: they mean the same in another folder and tomorrow."""

from pertinence import PertinenceConfig
from pertinence.search.settings import anchored


def test_experts_from_the_hub_are_written_at_the_commit_that_was_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    entries = [("user/small", "a" * 40), (str(tmp_path / "local"), f"sha256:{'b' * 64}"), ("user/twice", "c" * 40),
               ("user/twice", "d" * 40)]  # fmt: skip
    known = {"gmacs": 1.0, "parameters": 1, "features": 1, "transform": {"library": "timm", "size": [8, 8]}}
    pool = [{"name": f"{i}", "repo_id": repo, "revision": at, **known} for i, (repo, at) in enumerate(entries)]
    stem = {"name": "stem", "repo_id": "user/stem", "revision": "e" * 40, **known}
    config = PertinenceConfig(experts=pool, stem=stem)
    experts = [
        "user/small",
        "user/twice@v1",
        "local",
        {"repo_id": "user/small", "revision": "main", "label_map": [1, 0]},
        {"repo_id": "local", "name": "mine"},
    ]
    settings = anchored({"experts": experts, "stem": "user/stem@main", "dataset": "user/data", "seed": 3}, config)
    assert settings == {
        "experts": [
            f"user/small@{'a' * 40}",
            "user/twice@v1",
            str(tmp_path / "local"),
            {"repo_id": "user/small", "revision": "a" * 40, "label_map": [1, 0]},
            {"repo_id": str(tmp_path / "local"), "name": "mine"},
        ],
        "stem": f"user/stem@{'e' * 40}",
        "dataset": "user/data",
        "seed": 3,
    }
