"""Schedules of thresholds against CALM's published one."""

import numpy as np

from dvp_jax.exits.thresholds import threshold_schedule


def test_each_depth_has_its_own_threshold_which_decays_as_one_alone():
    np.testing.assert_array_equal(threshold_schedule((0.25, 0.5), 3, 2), [[0.25, 0.5]] * 3)
    both = np.asarray(threshold_schedule((0.25, 0.5), 3, 2, decay_temperature=2.0))
    for depth, threshold in enumerate((0.25, 0.5)):
        alone = np.asarray(threshold_schedule(threshold, 3, 2, decay_temperature=2.0))
        np.testing.assert_array_equal(both[:, depth], alone[:, depth])


def test_thresholds_are_constant_or_decay_as_calm_published_it():
    np.testing.assert_array_equal(threshold_schedule(0.25, 3, 2), np.full((3, 2), 0.25))
    decayed = np.asarray(threshold_schedule(0.8, 4, 2, decay_temperature=2.0))
    for t in range(1, 5):
        np.testing.assert_allclose(decayed[t - 1], 0.72 + 0.08 * np.exp(-2.0 * t / 4), rtol=1e-6)
