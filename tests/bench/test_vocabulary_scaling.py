"""The cost of confidence, from times that are made up."""

import dataclasses

import pytest

from dvp_jax.bench import vocabulary_scaling
from dvp_jax.bench.cases import Benchmark
from dvp_jax.bench.vocabulary_scaling import scaling_benchmarks, scaling_rows, scaling_table, time_confidence
from dvp_jax.t5.config import T5Config

CONFIG = T5Config(d_model=10, num_layers=2, num_decoder_layers=6, vocab_size=1000)
TIMED = [
    {"method": method, "depth": 3, "prune_size": 7, "int8_unembedding": False, "ms_per_token": ms}
    for method, ms in (("calm", 5.0), ("static", 2.0), ("dvp", 2.5))
]


def test_confidence_takes_what_a_method_takes_beyond_static():
    calm, dvp = scaling_rows(TIMED, CONFIG)
    assert (calm["method"], calm["confidence_ms_per_token"], calm["ms_per_token"]) == ("calm", 3.0, 5.0)
    assert (dvp["method"], dvp["confidence_ms_per_token"], dvp["ms_per_token"]) == ("dvp", 0.5, 2.5)


@pytest.mark.parametrize(("vocab_sizes", "timed"), [((500, 32_128), True), ((500, 4_000), False)])
def test_the_copy_is_timed_where_dvp_would_read_that_of_the_largest(vocab_sizes, timed):
    fields = {"exit_layer": None, "prune_size": 64, "batch": 1}
    for benchmark in scaling_benchmarks(shape="t5-base", vocab_sizes=vocab_sizes, **fields):
        assert ("int8" in [case.unembedding for case in benchmark.cases]) is timed


def test_a_method_that_reads_an_int8_copy_is_named_so():
    rows = scaling_rows([*TIMED, {**TIMED[2], "int8_unembedding": True, "ms_per_token": 1.5}], CONFIG)
    assert [row["method"] for row in rows] == ["calm", "dvp", "dvp, int8 copy"]
    assert rows[2]["confidence_ms_per_token"] == -0.5  # it spares itself the product that `static` reads from W
    assert rows[2]["confidence_flops_per_token"] == rows[1]["confidence_flops_per_token"]


def test_flops_grow_with_the_vocabulary_at_every_depth_or_only_up_to_p():
    for size in (1000, 3000):
        calm, dvp = scaling_rows(TIMED, dataclasses.replace(CONFIG, vocab_size=size))
        assert calm["vocab_size"] == dvp["vocab_size"] == size
        # Depths 0 to 3 as the paper counts; candidates 2 and 3, of which `static` computes one.
        assert calm["confidence_flops_per_token"] == 19 * 4 * size
        assert dvp["confidence_flops_per_token"] == 19 * (3 * size + 7)
        assert calm["unembedding_flops_per_token"] == 20 * size
        assert dvp["unembedding_flops_per_token"] == 20 * 7


def test_the_table_has_a_line_for_each_row():
    lines = scaling_table(scaling_rows(TIMED, CONFIG)).markdown().splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 1,000 | calm | 5.00 | 3.00 |")


def test_nothing_can_be_taken_off_without_static():
    with pytest.raises(ValueError, match="static"):
        scaling_rows([TIMED[0]], CONFIG)


def test_a_method_that_cannot_run_is_named(monkeypatch):
    rows = [TIMED[1], {"method": "calm", "error": "RuntimeError: out of memory"}]
    monkeypatch.setattr(vocabulary_scaling, "measure", lambda benchmark, rounds: iter(rows))
    with pytest.raises(ValueError, match="vocab_sizes has 1000; calm fails: RuntimeError: out of memory"):
        time_confidence([Benchmark("t5-small", (), vocab_size=1000)], 1)
