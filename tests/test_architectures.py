"""No causal architecture of the library gets other texts in batches than alone, or it does not load, with a reason."""

from __future__ import annotations

import pytest

from tests.architectures import Verdict, types, verdicts

ENOUGH = 90  # of all types, this number can be made small enough to be tried


@pytest.mark.models
@pytest.mark.soak
def test_texts_of_all_architectures_equal_plain_transformers(tmp_path):
    found = dict(verdicts(tmp_path, types()))
    tried = {name: verdict for name, verdict in found.items() if isinstance(verdict, Verdict)}
    assert {name: verdict for name, verdict in tried.items() if verdict.wrong} == {}
    assert len(tried) >= ENOUGH and all(verdict.loaded or verdict.said for verdict in tried.values())
    assert (
        sum(verdict.texts > 5 for verdict in tried.values()) >= ENOUGH
    )  # a model that always says the same proves nothing
