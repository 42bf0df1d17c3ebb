"""`python -m experiments.generate` on a tiny random model."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

from tests.launching import PIECES, ROOT, SENTENCES, call, check_error, launch, run_launcher, start


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


def generate(checkpoint, *flags):
    prompt = f"--prompt=translate English to German: {SENTENCES[0]}"
    return launch("generate", f"--model={checkpoint.folder}", prompt, "--max_new_tokens=12", *flags)


@pytest.mark.parametrize(("text", "depths"), [("2", {1, 3, 4}), ("3,", {3, 4})])
def test_generate_exits_at_the_given_depths_only(checkpoint, text, depths):
    first = "--min_exit_layer=1", "--prune_layer=1", "--prune_size=33", "--threshold=0.2"
    run = generate(checkpoint, *first, f"--exit_depths={text}")
    assert run.returncode == 0, run.stderr
    exits = {int(line.split()[1]) for line in run.stdout.splitlines()[3:-1]}
    assert exits <= depths and len(exits) > 1


@pytest.mark.parametrize("text", ["x", "2,,3", "0", "5,1", "3,3", "1,"])
def test_generate_refuses_impossible_exit_depths(checkpoint, text):
    check_error(generate(checkpoint, f"--exit_depths={text}"), "exit_depths", "allowed: ")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("a \udcff", r"prompt has '\udcff', half a surrogate pair, as character 3"), (" ", "prompt is ' '")],
)
def test_generate_refuses_a_prompt_that_is_no_text_before_it_reads_the_model(prompt, message):
    check_error(launch("generate", "--model=no/such/folder", f"--prompt={prompt}"), message)


def test_generate_shows_pieces_that_cannot_be_seen_or_are_missing(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint.folder, folder)
    prompt = f"translate English to German: {SENTENCES[0]}"
    steering, missing = list(dict.fromkeys(checkpoint.decode(prompt, method="full", max_new_tokens=12).tokens))[:2]
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    del vocabulary[PIECES[missing]]
    vocabulary["\x1b[31m\u2028"] = vocabulary.pop(PIECES[steering])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    run = launch("generate", f"--model={folder}", f"--prompt={prompt}", "--max_new_tokens=12", "--method=full")
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout and "\u2028" not in run.stdout
    text, _, _, first, second, *_ = run.stdout.split("\n")
    assert text.startswith("\\x1b[31m\\u2028 ")
    assert first.split()[0] == "\\x1b[31m\\u2028" and second.startswith(f"<id {missing}> ")


def test_generate_says_how_long_the_first_text_took_when_asked_to(checkpoint):
    quiet, verbose = generate(checkpoint), generate(checkpoint, "--verbosity=1")
    assert verbose.returncode == 0 and verbose.stdout == quiet.stdout
    pattern = r"load (\d+\.\d\d) s, compile (\d+\.\d\d) s, first text (\d+\.\d\d) s"
    (seconds,) = re.findall(pattern, verbose.stderr)
    assert float(seconds[0]) > 0.0
    assert not re.search(pattern, quiet.stderr)
    assert "Finished XLA compilation" not in verbose.stderr  # JAX's own log


@pytest.mark.slow
def test_a_second_start_prints_no_warnings_about_the_programs_it_loads(checkpoint, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TF_CPP"))}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "experiments.generate", f"--model={checkpoint.folder}", "--prompt=bagu"]
    for _ in range(2):
        run = subprocess.run(
            [*command, "--max_new_tokens=2"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert all("loading:" in line for line in run.stderr.splitlines() if line), run.stderr


def test_prompts_of_a_file_or_pipe_give_a_line_of_json_each(checkpoint, tmp_path):
    prompts = [f"translate English to German: {sentence}" for sentence in SENTENCES[:2]]
    path = tmp_path / "prompts.txt"
    os.mkfifo(path)
    threading.Thread(target=path.write_text, args=("\n".join(prompts) + "\n",), daemon=True).start()
    flags = f"--prompts={path}", "--json", "--method=full", "--max_new_tokens=6"
    done = launch("generate", f"--model={checkpoint.folder}", *flags)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == prompts, done.stderr
    for row in rows:
        expected = checkpoint.decode(row["prompt"], method="full", max_new_tokens=6)
        assert (row["tokens"], row["text"]) == (expected.tokens, checkpoint.text(expected.tokens))


def test_several_texts_of_a_prompt_are_drawn_with_different_seeds(checkpoint):
    def drawn(*flags):
        done = generate(checkpoint, "--temperature=2", "--json", *flags)
        return [json.loads(line)["tokens"] for line in done.stdout.splitlines()]

    one, other = drawn("--seed=3"), drawn("--seed=4")
    assert drawn("--seed=3", "--num_return_sequences=2") == one + other
    assert one != other


def run_generate_on_a_terminal() -> None:
    sys.stdout.isatty = lambda: True
    run_launcher("generate")


@pytest.mark.parametrize(("flags", "has_colours"), [((), True), (("--plain",), False)])
def test_a_terminal_shows_exit_layers_by_colour_unless_asked_not_to(checkpoint, monkeypatch, flags, has_colours):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    prompt = f"--prompt=translate English to German: {SENTENCES[0]}"
    fixed = f"--model={checkpoint.folder}", prompt, "--max_new_tokens=6", "--method=full"
    done = call(run_generate_on_a_terminal, *fixed, *flags)
    assert done.returncode == 0, done.stderr
    assert ("\033[38;5;196m" in done.stdout) == has_colours  # red: the last layer
    assert re.sub(r"\033\[[\d;]*m", "", done.stdout) == launch("generate", *fixed).stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "of prompt and prompts none is given; allowed: one of them"),
        (("--prompt=a", "--prompts=b"), "of prompt and prompts both are given"),
        (("--prompts=nowhere.txt",), "nowhere.txt"),
        (("--prompt=a", "--num_return_sequences=2"), "num_return_sequences is 2; allowed: 1 with temperature 0"),
        (("--prompt=a", "--thresholds_per_depth=0.5,x"), "thresholds_per_depth is 0.5,x; allowed: numbers from 0"),
        (("--prompt=a", "--temperature=-1"), "temperature is -1.0; allowed: a number of at least 0"),
        (("--prompt=a", "--temperature=1", "--top_p=0"), "top_p is 0.0; allowed: a number above 0, to 1"),
    ],
)
def test_bad_prompts_and_settings_are_refused(checkpoint, flags, message):
    check_error(launch("generate", f"--model={checkpoint.folder}", *flags), message)


def test_the_generation_config_of_a_checkpoint_counts_where_no_flag_is_given(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "no_repeat_ngram_size": 1}))
    flags = f"--model={folder}", "--prompt=translate", "--json"
    runs = [launch("generate", *flags, *more) for more in ([], ["--max_new_tokens=5"])]
    said = [[line for line in run.stderr.splitlines() if line.startswith("warning")] for run in runs]
    assert said == [
        ["warning: taken from generation_config.json: max_new_tokens 3, no_repeat_ngram_size 1"],
        ["warning: taken from generation_config.json: no_repeat_ngram_size 1"],
    ]
    for run, most in zip(runs, (3, 5), strict=True):
        tokens = json.loads(run.stdout)["tokens"]
        assert len(tokens) == len({0, *tokens}) - 1 <= most
