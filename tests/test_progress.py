import io

import pytest

from pdutils._utils import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(screen: io.StringIO, **options) -> str:
    with progress_bar(total=3, unit="image", file=screen, **options) as bar:
        bar.update(3)
    return screen.getvalue()


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def test_a_terminal_has_a_bar_and_a_log_file_none():
    assert "3/3" in drawn(Terminal())
    assert drawn(io.StringIO()) == ""


def test_it_is_shown_and_hidden_on_demand():
    assert "3/3" in drawn(io.StringIO(), shown=True)
    assert drawn(Terminal(), shown=False) == ""


def test_a_run_without_a_screen_hides_it_but_not_on_demand(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert drawn(Terminal()) == ""
    assert "3/3" in drawn(Terminal(), shown=True)
