"""Tables and sections as Markdown, written out by hand."""

from pathlib import Path

import pytest

from dvp_jax.report.table import Section, Table, print_report

SCORES = Table(["method", "F1", "exit"], [["full", "89.25", "8.00 of 8"], ["calm", "88.5", ""]])
SCORES_AS_MARKDOWN = (
    "| method | F1 | exit |\n| --- | ---: | ---: |\n| full | 89.25 | 8.00 of 8 |\n| calm | 88.5 |  |"
)


def test_markdown_aligns_columns_of_numbers_to_the_right():
    assert SCORES.markdown() == SCORES_AS_MARKDOWN


def test_a_range_of_numbers_with_commas_is_a_number():
    assert Table(["rows"], [["38,912 to 38,980"], ["7 to 9"]]).markdown().splitlines()[1] == "| ---: |"
    assert Table(["rows"], [["38,912 to many"]]).markdown().splitlines()[1] == "| --- |"


def test_bars_and_line_breaks_do_not_end_a_cell():
    table = Table(["a | b", "c"], [["x | y", "first\nsecond"], ["", "2"]])
    assert table.markdown() == "| a \\| b | c |\n| --- | --- |\n| x \\| y | first\\nsecond |\n|  | 2 |"


UNSEEN = ["\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[31m", "\0", "\x7f", "\t", "\u202e", "\ud83d"]


@pytest.mark.parametrize("text", UNSEEN)
def test_what_breaks_lines_or_steers_a_terminal_is_shown_as_python_writes_it(text):
    written = f"a{text}b".encode("unicode_escape").decode()
    section = Section("", (Table(["id"], [[f"a{text}b"]]), f"a{text}b\nc"))
    assert section.markdown() == f"| id |\n| --- |\n| {written} |\n\n{written}\nc"


def test_letters_of_any_script_stay_as_they_are():
    text = "Ünï \u00a0 日本\u3000語 สวัสดี \u200f עברית 👩\u200d🚀 ❤\ufe0f \\n"
    assert Table(["a"], [[text]]).markdown().splitlines()[2] == f"| {text} |"


def test_a_table_without_rows_is_its_head():
    assert Table(["a", "b"], []).markdown() == "| a | b |\n| --- | --- |"


def test_a_row_that_does_not_fit_its_head_is_refused():
    with pytest.raises(ValueError, match=r"rows\[1\] has 1 cells; allowed: 2, as in head"):
        Table(["a", "b"], [["1", "2"], ["3"]])


def test_a_section_is_its_title_and_its_content_in_order():
    section = Section("squad", ("Before.", SCORES, "After."), (("a plot", Path("plot.svg")),))
    assert section.markdown() == f"squad:\n\nBefore.\n\n{SCORES_AS_MARKDOWN}\n\nAfter."


def test_a_section_without_a_title_is_its_content():
    assert Section("", (SCORES,)).markdown() == SCORES_AS_MARKDOWN


def test_a_printed_report_ends_with_its_path(capsys):
    print_report([Section("", (SCORES,)), Section("samsum", ("Text.",))], Path("runs/new") / "report.html")
    assert capsys.readouterr().out == (
        f"{SCORES_AS_MARKDOWN}\n\nsamsum:\n\nText.\n\nreport: runs/new/report.html\n"
    )
