"""Licences: which is the most restrictive of several, and which forbid copies."""

import json
import shutil

import pytest

from pertinence.experts.expert import load_expert
from pertinence.experts.reference import ExpertReference, LoadOptions
from pertinence.hub.licences import forbids_copies, most_restrictive


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["mit"], {"license": "mit"}),
        (["mit", "apache-2.0", "bsd-3-clause"], {"license": "apache-2.0"}),
        (["apache-2.0", "gpl-3.0", "mpl-2.0"], {"license": "gpl-3.0"}),
        (["agpl-3.0", "cc-by-nc-4.0"], {"license": "cc-by-nc-4.0"}),
        (["cc-by-nc-sa-4.0", "CC-BY-NC-ND-4.0"], {"license": "cc-by-nc-nd-4.0"}),
        (["mit, gpl-2.0", "mit"], {"license": "gpl-2.0"}),
        (["mit", "DINOv3 License"], {"license": "other", "license_name": "dinov3-license"}),
        (["mine", "yours"], {"license": "other", "license_name": "several"}),
        (["mit", None, "mine"], {"license": "unknown"}),
        (["mit", "unknown"], {"license": "unknown"}),
        ([], {}),
    ],
    ids=str,
)
def test_the_most_restrictive_is_that_of_the_whole(licences, expected):
    assert most_restrictive(licences) == expected


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("all-rights-reserved", True),
        ("All Rights Reserved", True),
        ("proprietary", True),
        ("acme-no-redistribution-1.0", True),
        ("non-distributable", True),
        ("cc-by-nc-nd-4.0", False),  # whole and unchanged it may be passed on, and a copy is
        ("apache-2.0", False),
        ("dinov3-license", False),
        (None, False),
    ],
)
def test_licences_that_forbid_copies(licence, forbids):
    assert forbids_copies(licence) is forbids


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: mit", "mit"),
        ("license: other\nlicense_name: mine", "mine"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license: {a: b}", None),
        ("license: &a [*a]", None),
        ("license: !!bool maybe", None),
    ],
)
def test_a_card_states_its_licence_at_its_head(tiny_experts, tmp_path, head, licence):
    """However long it is, and whatever it holds."""
    folder = shutil.copytree(tiny_experts[0], tmp_path / "expert")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"].pop("license", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(f"---\n{head}\n---\n# Card\n" + "x" * 2**20)
    assert load_expert(ExpertReference.parse(folder), LoadOptions()).entry.licence == licence
