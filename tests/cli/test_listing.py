"""Lists and pages: complete, light, readable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli.complete import KINDS, catalogue

HEAVY = ("torch", "sklearn", "matplotlib", "pandas", "scipy")


@pytest.mark.parametrize("kind", KINDS)
def test_lists_every_name(expunge, kind):
    result = expunge("list", kind)
    assert result.code == 0
    assert all(name in result.out for name in catalogue(kind).names())
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("kind", KINDS)
def test_json_holds_the_same(expunge, kind):
    loaded = json.loads(expunge("list", kind, "--json").out)
    assert [item["name"] for item in loaded] == catalogue(kind).names()
    assert all(item["summary"] for item in loaded)


@pytest.mark.parametrize("width", [80, 100])
def test_methods_have_one_line_each_with_needs_and_venue(expunge, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = expunge("list", "methods").out.splitlines()
    assert max(map(len, lines)) <= width
    for name in catalogue("methods").names():
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    scrub = next(line for line in lines if line.split()[:1] == ["scrub"])
    assert scrub.split()[1:5] == ["F", "Ry", "NeurIPS", "2023"]


def names(expunge, *options):
    return {card["name"] for card in json.loads(expunge("list", "methods", "--json", *options).out)}


def test_methods_are_filtered_by_purpose_and_needs(expunge):
    everything = names(expunge)
    for_class = names(expunge, "--for", "class", "--without-retain")
    assert {"delete", "pour-p", "esc", "neggrad"} <= for_class
    assert not for_class & {"ssd", "finetune", "l2ul", "confidence-masking"}
    assert not names(expunge, "--for", "samples") & {"delete", "pour-p", "potion"}
    unlabelled = names(expunge, "--without-labels")
    assert {"lfssd", "jit", "laf"} <= unlabelled < everything
    assert not unlabelled & {"laf+r", "ssd"}
    refused = expunge("list", "models", "--without-retain")
    assert refused.code == 2
    assert "narrow the list of methods" in refused.err


def test_the_page_of_methods_is_what_the_command_prints(expunge):
    """After a change of the catalogue: expunge list methods --markdown > docs/methods.md"""
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert page.read_text() == expunge("list", "methods", "--markdown").out
    assert expunge("list", "models", "--markdown").code == 2
    assert expunge("list", "methods", "--markdown", "--json").code == 2


def test_show_tells_where_presets_are_from(expunge):
    page = expunge("show", "method", "ssd").out
    assert "preset ssd/authors" in page
    assert "presets are from: `authors`: the reference's values" in " ".join(page.split())


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in catalogue(k).names()])
def test_shows_every_name(expunge, kind, name):
    result = expunge("show", kind.removesuffix("s"), name)
    assert result.code == 0, result.err
    assert name in result.out


def test_show_method_has_equation_bounds_presets_and_citation(expunge):
    page = expunge("show", "method", "scrub").out
    for part in ("KL(", ">= 0", "scrub/small-rb", "NeurIPS 2023", "arXiv:2302.09880", "inputs only"):
        assert part in page


def test_show_method_json_has_the_options(expunge):
    page = json.loads(expunge("show", "method", "scrub", "--json").out)
    alpha = next(option for option in page["options"] if option["name"] == "alpha")
    assert alpha["default"] == 0.5
    assert alpha["bounds"] == ">= 0"


def test_show_recipe_lists_what_train_help_names(expunge):
    from expunge.cli.work import TRAIN

    page = json.loads(expunge("show", "recipe", "--json").out)
    assert all(option["name"] in TRAIN for option in page["options"])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("list", "methodes"), "did you mean `methods`?"),
        (("show", "method", "scrbu"), "did you mean `scrub`?"),
        (("show", "method", "scrub/small-rbb"), "small-rb"),
        (("show", "method"), "expunge list method"),
        (("unlern",), "unlearn"),
    ],
)
def test_unknown_names_are_usage_errors(expunge, arguments, hint):
    result = expunge(*arguments)
    assert result.code == 2
    assert hint in result.err
    assert len(result.err.splitlines()) == 1


def test_help_documents_exit_codes_and_examples(expunge):
    page = " ".join(expunge("--help").out.split())
    for part in ("Exit codes: 0 done, 1 failed, 2", "130 interrupted", "expunge demo", "--install-completion"):
        assert part in page


@pytest.mark.parametrize(
    "command", ["train", "unlearn", "evaluate", "audit", "memorise", "repair", "compare", "list", "show"]
)
def test_every_command_has_help_with_an_example(expunge, command):
    result = expunge(command, "--help")
    assert result.code == 0
    assert "Example" in result.out


def test_version(expunge):
    from expunge.core.version import __version__

    assert expunge("--version").out.strip() == f"expunge {__version__}"


@pytest.mark.parametrize("arguments", [["--help"], *(["list", kind] for kind in KINDS)])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys; from expunge.cli.main import main; code = main(sys.argv[1:]);"
        f"heavy = [m for m in {HEAVY} if m in sys.modules]; sys.exit(str(heavy) if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_completion_offers_methods():
    from expunge.cli.complete import kinds, names_of

    assert names_of("methods")("scr") == ["scrub"]
    assert kinds("me") == ["methods", "metrics"]


def test_shell_completion_of_an_option_value():
    import os

    environment = {**os.environ, "_EXPUNGE_COMPLETE": "complete_bash", "COMP_WORDS": "expunge unlearn --method scr",
                   "COMP_CWORD": "3"}  # fmt: skip
    code = "import sys; from expunge.cli.main import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "scrub" in done.stdout.split()


def test_show_tells_which_options_follow_the_problem(expunge):
    shown = expunge("show", "method", "scrub").out
    assert "these follow the problem: epochs, forget_batch_size, lr, msteps." in shown
    assert "these follow" not in expunge("show", "method", "retrain").out
