"""Licences, by their identifiers on the Hub: which one is the most restrictive, and which ones forbid copies.

This is a guide for cards, not legal advice. Licences that are not listed here count as the licensor's own terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


_FROM_FREE_TO_RESTRICTIVE = (
    # no conditions
    "cc0-1.0 pddl unlicense wtfpl",
    # notices must be kept
    "zlib isc mit ncsa postgresql bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear artistic-2.0 afl-3.0 "
    "ecl-2.0 ms-pl cdla-permissive-1.0 cdla-permissive-2.0 odc-by openmdw-1.0 openmdw-1.1 apache-2.0 apple-ascl "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0",
    # changes must be shared alike
    "mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 lgpl lgpl-2.1 lgpl-3.0 cdla-sharing-1.0 odbl cc-by-sa-3.0 cc-by-sa-4.0 "
    "osl-3.0 gfdl gpl gpl-2.0 gpl-3.0 agpl-3.0",
    # some uses are excluded
    "openrail openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m",
    # non-commercial use, or research only
    "c-uda cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 apple-amlr "
    "intel-research h-research fair-noncommercial-research-license deepfloyd-if-license",
    # no derivatives
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
)
_RANKS = {name: rank for rank, name in enumerate(" ".join(_FROM_FREE_TO_RESTRICTIVE).split())}
_FORBIDDING = re.compile(
    r"proprietary|confidential|all-rights-reserved|(no|non|not)-(re-?)?(distribut)|do-not-(re-?)?distribute|internal-use"
)
UNKNOWN, OTHER = "unknown", "other"


def forbids_copies(licence: str | None) -> bool:
    """Whether a licence, by its name, forbids redistribution."""
    return _FORBIDDING.search(re.sub(r"[^a-z0-9.+]+", "-", (licence or "").lower())) is not None


def most_restrictive(licences: Iterable[str | None]) -> dict[str, str]:
    """The licence of a model from those of its parts, as metadata of a model card.

    A part without a stated licence makes the whole "unknown"; a part under its owner's own terms makes it "other",
    with the name of that licence. If there are no parts, the metadata is empty.

    Args:
        licences: licence of each part, with several licences of one part separated by commas; None if not stated.
    """
    parts = [part for licence in licences for part in (licence.split(", ") if licence else [UNKNOWN])]
    if not parts:
        return {}
    if UNKNOWN in parts:
        return {"license": UNKNOWN}
    own = sorted({part for part in parts if part.lower() not in _RANKS})
    if own:
        name = re.sub(r"[^a-z0-9.]+", "-", own[0].lower()).strip("-") if len(own) == 1 else "several"
        return {"license": OTHER, "license_name": name}
    return {"license": max((part.lower() for part in parts), key=_RANKS.__getitem__)}
