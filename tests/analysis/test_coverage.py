"""How much of a vocabulary is needed, from ranks that are made up."""

import numpy as np

from dvp_jax.analysis.coverage import coverage_rows, coverage_table
from dvp_jax.analysis.tokens import TokenTable


def test_the_needed_size_is_found_once_for_each_p():
    ranks = np.stack([np.arange(100), np.arange(100) // 10], axis=1)
    table = TokenTable(np.arange(100), np.zeros(100, int), np.zeros(100, int), ranks, {})
    rows = coverage_rows(table, [2, 1, 2], vocab_size=500)
    assert [(row["prune_layer"], row["prune_size"]) for row in rows] == [(1, 99), (2, 10)]
    assert all((row["vocab_size"], row["tokens"], row["coverage"]) == (500, 100, 0.99) for row in rows)
    assert coverage_table({"squad": rows}).markdown().splitlines()[2] == "| squad | 1 | 99 | 500 | 100 |"
