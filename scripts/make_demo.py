"""Makes the demo in dvp_jax/demo: texts, tokenizer and model. Needs nothing but this repository.

    python scripts/make_demo.py --workdir=runs/make_demo

Draws the texts (scripts/demo_text.py), trains on them (experiments/configs/finetune_demo.py) and writes the model
and the test sets to --output. With --only_data it stops after the texts; --resume continues a training that was
interrupted. The shipped model was trained in two parts, of 3,600 steps by a schedule of as many and of 2,000 by
the end of one of 5,600: 96 minutes on two CPU cores that had other work. This script takes 5,600 steps in one.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import string
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ and scripts/ are not installed

import jax
import jax.numpy as jnp
from absl import flags
from transformers import T5Tokenizer

from dvp_jax.data import make_task
from dvp_jax.runs import launch
from dvp_jax.runs.files import prepare_workdir, write_whole
from dvp_jax.t5.load import Model, load_model, save_model
from dvp_jax.train.finetune import finetune
from experiments.configs import finetune_demo
from scripts.demo_text import samsum_rows, sentences, squad_json

_WORKDIR = flags.DEFINE_string("workdir", "runs/make_demo", "The folder for the texts and the training run.")
_OUTPUT = flags.DEFINE_string("output", "dvp_jax/demo", "The folder for the model and the test sets.")
_ONLY_DATA = flags.DEFINE_bool("only_data", False, "Draw the texts and stop.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue a training that was interrupted.")

NUM_TEST = 200
"""The number of questions in a test set, and of dialogues."""

SPLITS = {"test": (1, 80, NUM_TEST), "validation": (2, 120, 400), "train": (3, 32_000, 32_000)}
"""Seed, paragraphs and dialogues of each split. The test set is first: others may share no sentence with it."""


def write_texts(folder: Path, last: str = "train") -> None:
    """Draws the splits up to the last and writes them into a folder, in the formats of SQuAD and SamSum."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for split, (seed, paragraphs, dialogues) in SPLITS.items():
        squad = squad_json(seed, paragraphs, frozenset(taken))
        rows = samsum_rows(seed, dialogues, frozenset(taken))
        if split == "test":
            squad = first_questions(squad, NUM_TEST)
        if split != "train":
            contexts = [paragraph["context"] for article in squad["data"] for paragraph in article["paragraphs"]]
            texts = contexts + [text for row in rows for text in (row["dialogue"], row["summary"])]
            taken.update(sentence for text in texts for sentence in sentences(text))
        write_whole(folder / f"squad_{split}.json", [json.dumps(squad, indent=1)])
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["id", "dialogue", "summary"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(folder / f"samsum_{split}.csv", [table.getvalue()])
        if split == last:
            return


def word_tokenizer(folder: Path, vocab_size: int) -> T5Tokenizer:
    """Makes a tokenizer whose pieces are the commonest words of the training texts, and letters for other words.

    A tokenizer that `dvp_jax.train.scratch` trains would cut the names, each of which is rare, into syllables.
    """
    counts: Counter[str] = Counter()
    for name, suffix in (("squad", "json"), ("samsum", "csv")):
        for example in make_task(name, path=str(folder / f"{name}_train.{suffix}")).load():
            for text in (example.prompt, *example.references):
                counts.update(text.split())
    pieces: Counter[str] = Counter()
    for word, count in counts.items():
        for piece in re.findall(r"▁?\w+|[^\w▁]", f"▁{word}"):
            pieces[piece] += count
    special = ["<pad>", "</s>", "<unk>"]
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    common = [piece for piece, _ in pieces.most_common() if piece not in letters]
    common = common[: vocab_size - len(special) - len(letters)]
    # A text is cut so that the sum of its pieces' scores is the highest.
    scores = {**dict.fromkeys(special, 0.0), **dict.fromkeys(common, -10.0), **dict.fromkeys(letters, -15.0)}
    return T5Tokenizer(list(scores.items()), extra_ids=0)


def first_questions(squad: dict, count: int) -> dict:
    """Cuts a data set in the format of SQuAD after its first `count` questions."""
    paragraphs = []
    for paragraph in squad["data"][0]["paragraphs"]:
        questions = paragraph["qas"][:count]
        count -= len(questions)
        if questions:
            paragraphs.append({**paragraph, "qas": questions})
    return {**squad, "data": [{**squad["data"][0], "paragraphs": paragraphs}]}


def main() -> None:
    """Makes the demo."""
    workdir = prepare_workdir(_WORKDIR.value)
    output = prepare_workdir(_OUTPUT.value)
    data = workdir / "data"
    write_texts(data)
    word_tokenizer(data, finetune_demo.VOCAB_SIZE).save_pretrained(data / "tokenizer")
    if _ONLY_DATA.value:
        return
    trained = load_model(finetune(finetune_demo.get_config(str(data)).to_dict(), workdir, resume=_RESUME.value))
    # Half the size; the measurements in the README are of this model.
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained.params)
    shutil.rmtree(output / "model", ignore_errors=True)
    save_model(output / "model", Model(trained.config, params, trained.tokenizer))
    for name in ("squad_test.json", "samsum_test.csv"):
        shutil.copy(data / name, output / name)
    print(f"the demo is in {output}")


if __name__ == "__main__":
    launch.run(main, compile_cache=False, interrupted=launch.TRAINED)
