"""`python -m experiments.generate` on a tiny random model."""

import pytest

from tests.launching import PIECES, SENTENCES, start


def test_generate_prints_the_text_and_the_exit_layer_of_each_token(checkpoint):
    prompt = "translate English to German: " + SENTENCES[0]
    settings = {"method": "dvp", "threshold": 0.4, "min_exit_layer": 2, "prune_layer": 1, "prune_size": 33}
    run = start(
        "-m",
        "experiments.generate",
        f"--model={checkpoint.folder}",
        f"--prompt={prompt}",
        "--max_new_tokens=12",
        *(f"--{name}={value}" for name, value in settings.items()),
    )
    assert run.returncode == 0, run.stderr
    expected = checkpoint.decode(prompt, max_new_tokens=12, **settings)
    assert len(set(expected.exit_layers)) > 1
    text, blank, head, *lines = run.stdout.splitlines()
    assert text == checkpoint.text(expected.tokens)
    assert blank == ""
    assert head.split() == ["token", "exit", "layer", "of", "4", "confidence"]
    cells = [line.split() for line in lines]
    assert [cell[0] for cell in cells] == [PIECES[token] for token in expected.tokens] + ["mean"]
    assert [int(cell[1]) for cell in cells[:-1]] == expected.exit_layers
    assert [float(cell[2]) for cell in cells[:-1]] == pytest.approx(expected.confidences, abs=1e-3)
    assert float(cells[-1][1]) == pytest.approx(sum(expected.exit_layers) / len(expected.exit_layers), abs=0.006)
