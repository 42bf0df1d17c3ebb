from dvp_jax.bench.bandwidth import read_bandwidth


def test_bandwidth_is_a_rate():
    assert 1e8 < read_bandwidth(megabytes=16, repeats=2) < 1e14
