"""absl launchers, one per question. Run from the root of the repository: `python -m experiments.NAME`."""
