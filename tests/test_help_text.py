"""`--help`: short by default, everything or one section on request. That it fits one screen: tests/test_house.py.

.venv/bin/python -m pytest tests/test_help_text.py
"""

import pytest

import compare
import generate
import train


def shown(at_the_shell, *argv: str, main=train.main) -> list[str]:
    ended = at_the_shell(main, list(argv))
    assert (ended.code, ended.err) == (0, "")
    return ended.out.splitlines()


def test_the_short_help_has_the_options_one_needs_with_their_defaults_and_names_the_sections(at_the_shell):
    lines = shown(at_the_shell, "--help")
    assert any(line.split()[:2] == ["--run.steps", "2000"] for line in lines)
    assert any(line.split()[:2] == ["--model.position", "rope"] for line in lines)
    assert not any("--run.beta1" in line for line in lines)
    assert "model.rope" in lines[-1]
    assert lines == shown(at_the_shell, "-h")


def test_the_help_of_a_comparison_leaves_out_what_it_sets_for_each_run(at_the_shell):
    text = "\n".join(shown(at_the_shell, "--help", main=compare.main))
    assert "--run.steps" in text
    assert not [name for name in (*compare.SET_HERE, "run.init_from") if f"--{name}" in text]


@pytest.mark.parametrize("section", ["data", "model", "model.rope", "run"])
def test_a_section_shows_all_its_options_and_no_others(at_the_shell, section):
    lines = [line for line in shown(at_the_shell, "--help", section) if line.startswith("  --")]
    everything = [line for line in shown(at_the_shell, "--help", "all") if line.startswith("  --")]
    assert lines == [line for line in everything if line.startswith(f"  --{section}.")] != []


def test_all_sentences_are_there_when_everything_is_asked_for(at_the_shell):
    text = " ".join(" ".join(shown(at_the_shell, "--help", "all")).split())
    assert "A finished run is only verified." in text
    assert "--help all" in " ".join(shown(at_the_shell, "--help", main=generate.main))


def test_an_unknown_section_is_bad_input(at_the_shell):
    ended = at_the_shell(train.main, ["--help", "rope"])
    assert ended.code == 2
    assert "--help rope: there is no such section; choose all, data, model, model.rope" in ended.err
