from pathlib import Path

import pytest

from scripts.mistakes import __main__ as mistakes


DOCUMENT = Path(__file__).parents[3] / mistakes.DOCUMENT


def test_the_table_is_what_is_said_today():
    """Every kind is provoked anew; `python -m scripts.mistakes` writes the table."""
    assert DOCUMENT.read_text(encoding="utf-8") == mistakes.page()


def test_an_answer_is_the_error_the_doubts_or_what_came_of_it():
    def refuse(bench):
        raise ValueError(f"{bench.folder}/depth.png: no\n  depth")

    def stop(_):
        raise SystemExit("bifusion-predict: error: nothing")

    assert mistakes.answer(("", refuse)) == "refused: depth.png: no depth"
    assert mistakes.answer(("", stop)) == "refused: bifusion-predict: error: nothing"
    assert mistakes.answer(("", lambda bench: bench.frame(depth=bench.metres * 4))).startswith("warned: ")
    assert mistakes.answer(("", lambda bench: bench.frame())) == "taken without a word"
    assert mistakes.answer(("", lambda _: "runs")) == "runs"
    with pytest.raises(KeyError):
        mistakes.answer(("", lambda _: {}["a fault of the program"]))
