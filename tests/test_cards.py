"""The data cards, and the published figures that go with them."""

from pathlib import Path

import pytest

from r1lite.bands import REFERENCES, Published, load_published
from r1lite.problems import resolve
from r1lite.strict_yaml import load_yaml

CARDS = sorted(path for path in Path("data").glob("*.yaml") if path != REFERENCES)
SPLITS = [f"{path}#{split}" for path in CARDS for split in load_yaml(path)["splits"]]
FIGURES = load_published()


def test_every_card_names_a_split():
    assert {reference.partition("#")[0] for reference in SPLITS} == {str(path) for path in CARDS}


@pytest.mark.parametrize("reference", SPLITS)
def test_a_card_is_valid_and_says_what_its_users_need(reference):
    source, card = resolve(reference)
    assert card.description.strip() and card.license.strip()
    if source.hub is not None:
        assert source.rows
        assert card.columns.answer is None or (card.samples and card.answers)


@pytest.mark.parametrize("path", CARDS, ids=str)
def test_options_and_letters_go_together(path):
    _, card = resolve(f"{path}#{next(iter(load_yaml(path)['splits']))}")
    assert bool(card.columns.wrong) == (card.answers is not None and card.answers.kind == "choice")


def name(figure: Published) -> tuple[str, str, str]:
    return figure.model, figure.problems, figure.metric


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: " ".join(name(figure)))
def test_a_band_holds_what_was_published(figure):
    assert set(figure.protocol) == {"temperature", "top_p", "max_tokens"}
    resolve(figure.problems)
    low, high = figure.band
    assert figure.published and 0 <= low < high <= 1
    assert all(low <= value <= high for value in figure.published.values())


def test_no_figure_stands_twice():
    assert len({name(figure) for figure in FIGURES}) == len(FIGURES)
