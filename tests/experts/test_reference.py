"""Where an expert comes from, as the user writes it."""

import pytest

from pertinence import PertinenceError
from pertinence.experts.reference import ExpertReference


@pytest.mark.parametrize(
    "text", ["C:\\models\\vit", "D:/models/vit", "models\\vit", "\\\\server\\vit", "/models/vit@main"]
)
def test_a_path_of_any_operating_system_is_no_id_of_the_hub(text):
    for reference in (text, {"repo_id": text}):
        with pytest.raises(
            PertinenceError, match="there is no folder .* here, and no repository on the Hub can have this name"
        ):
            ExpertReference.parse(reference)
