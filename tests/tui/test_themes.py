"""Themes: each can be read, high contrast by the strictest rule, and where nothing may be coloured nothing is."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult
from textual.color import Color
from textual.theme import Theme
from textual.widgets import Button, Input, OptionList

from mistral_mlx.errors import InputError
from tui.themes import THEMES, choose

MODERN = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
COLOURED = [theme for theme in THEMES if not theme.ansi]
TEXTS = ("foreground", "foreground-muted", "text", "text-muted", "text-disabled", "link-color", "footer-key-foreground")
SIGNS = ("primary", "secondary", "accent", "warning", "error", "success", "border")
TINTS = tuple(f"text-{name}" for name in SIGNS[:-1])


def variables(theme: Theme) -> dict[str, str]:
    return theme.to_color_system().generate() | theme.variables


def contrast(front: str, back: str) -> float:
    """WCAG's ratio of two colours' relative luminance."""

    def luminance(color: Color) -> float:
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    ground = Color.parse(back)
    dark, light = sorted((luminance(ground), luminance(ground + Color.parse(front))))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", COLOURED, ids=lambda theme: theme.name)
def test_text_stands_out_from_every_ground(theme: Theme) -> None:
    v, strict = variables(theme), theme.name == "high-contrast"
    for ground in ("background", "surface", "panel"):
        for name in (*TEXTS, *TINTS):
            least = 7 if strict else 4.5
            assert contrast(v[name], v[ground]) >= least, (name, ground)
        for name in SIGNS:
            assert contrast(v[name], v[ground]) >= (4.5 if strict else 3), (name, ground)
    pairs = [("block-cursor-foreground", "block-cursor-background"), ("button-color-foreground", "primary")]
    pairs += [("input-cursor-foreground", "input-cursor-background")]
    if strict:
        pairs += [("input-selection-foreground", "input-selection-background")]
        pairs += [("screen-selection-foreground", "screen-selection-background")]
        pairs += [("link-color-hover", "link-background-hover")]
        assert contrast(v["scrollbar"], v["scrollbar-background"]) >= 4.5
        assert contrast(v["border-blurred"], v["background"]) >= 4.5
    for front, back in pairs:
        assert contrast(v[front], v[back]) >= (7 if strict else 4.5), (front, back)


class Sample(App[None]):
    """Something chosen, something focused, something disabled."""

    CSS = "OptionList { height: 5; }"

    def compose(self) -> ComposeResult:
        yield Input("asked")
        yield OptionList("one", "two")
        yield Button("Send", variant="primary")
        yield Button("Away", disabled=True)


async def test_without_colours_what_is_chosen_is_told_by_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Sample(ansi_color=True)
    for theme in THEMES:
        app.register_theme(theme)
    app.theme = choose("mistral-dark", app.no_color, {})
    async with app.run_test(size=(40, 20)) as pilot:
        app.query_one(OptionList).focus()
        await pilot.press("down")
        await pilot.pause()
        rows = app.screen._compositor.render_strips()
        segments = [segment for row in rows for segment in row if segment.text.strip() and segment.style]
    colours = {colour for s in segments for colour in (s.style.color, s.style.bgcolor) if colour is not None}
    assert {colour.name for colour in colours} == {"default"}
    chosen = next(s.style for s in segments if s.text.startswith("two"))
    assert (chosen.bold, chosen.underline) == (True, True)
    assert not next(s.style for s in segments if s.text.startswith("one")).underline


@pytest.mark.parametrize(
    ("name", "no_color", "environ", "chosen"),
    [
        ("", False, MODERN, "mistral-dark"),
        ("", False, MODERN | {"COLORFGBG": "0;15"}, "mistral-light"),
        ("", False, MODERN | {"COLORFGBG": "15;default;0"}, "mistral-dark"),
        ("", False, {"TERM": "xterm-kitty"}, "mistral-dark"),
        ("nord", False, MODERN, "nord"),
        ("high-contrast", False, MODERN, "high-contrast"),
        ("mistral-light", False, {"TERM": "linux"}, "ansi-light"),
        ("", False, {"TERM": "xterm"}, "ansi-dark"),
        ("ansi-light", False, {}, "ansi-light"),
        ("mistral-light", True, MODERN, "no-color"),
    ],
)
def test_a_theme_suits_the_terminal(name: str, no_color: bool, environ: dict[str, str], chosen: str) -> None:
    assert choose(name, no_color, environ) == chosen


def test_an_unknown_theme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="There is no theme 'pink'") as error:
        choose("pink", False, MODERN)
    assert "mistral-dark" in error.value.hint
