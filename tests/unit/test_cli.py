"""Command lines: options and `key value` pairs in any order, errors as one line."""

from argparse import ArgumentParser

import pytest

from generations import cli
from generations.errors import UserError


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--image", nargs="+")
    parser.add_argument("--caption", nargs="+")


@pytest.mark.parametrize(
    "words",
    [
        "exp_id x --image a.jpg b.jpg seed 7",
        "--image a.jpg b.jpg exp_id x seed 7",
        "exp_id x seed 7 --local-rank=0 --image a.jpg b.jpg",
        "--local_rank 0 --image a.jpg b.jpg exp_id x seed 7",
    ],
)
def test_pairs_stand_anywhere(words):
    arguments, cfg = cli.parse("", words.split(), options)
    assert (cfg.exp_id, cfg.seed, arguments.image) == ("x", 7, ["a.jpg", "b.jpg"])


def test_a_caption_may_be_the_name_of_a_key():
    arguments, cfg = cli.parse("", ["--caption", "seed", "seed", "3"], options)
    assert (arguments.caption, cfg.seed) == (["seed"], 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [("sed 7", "did you mean 'seed'"), ("exp_id x seed", "has no value")],
)
def test_mistakes_are_named(words, said):
    with pytest.raises(UserError, match=said):
        cli.parse("", words.split())


def test_user_errors_end_in_one_line(capsys):
    def main():
        raise UserError("wrong\nhere")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: wrong here\n"
