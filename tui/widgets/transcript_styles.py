"""How the transcript's parts look: each has a name, which a theme can style, and no state is told by colour alone."""

from __future__ import annotations

from rich.style import Style
from textual.widget import Widget

STYLES = (
    *("text", "title", "error-title", "error", "muted", "thinking", "bar", "mark", "more", "match", "current"),
    *("h1", "h2", "h3", "strong", "em", "strike", "code", "link", "url", "marker", "quote", "quoted"),
    *("frame", "label", "block", "head"),
    *("keyword", "string", "number", "comment", "function", "builtin", "deleted"),
)

CSS = """
Transcript {
    height: 1fr;
    overflow-x: hidden;
    overflow-y: scroll;
    scrollbar-size-vertical: 1;
    background: $background;
    & > .transcript--title { text-style: bold; }
    & > .transcript--error-title { color: $text-error; text-style: bold; }
    & > .transcript--error { color: $text-error; }
    & > .transcript--muted { color: $text-muted; }
    & > .transcript--thinking { color: $text-muted; }
    & > .transcript--bar { color: $primary; }
    & > .transcript--mark { color: $accent; text-style: bold; }
    & > .transcript--h1 { color: $text-primary; text-style: bold underline; }
    & > .transcript--h2 { color: $text-primary; text-style: bold underline; }
    & > .transcript--h3 { text-style: bold; }
    & > .transcript--strong { text-style: bold; }
    & > .transcript--em { text-style: italic; }
    & > .transcript--strike { text-style: strike; }
    & > .transcript--code { color: $text-accent; background: $boost; }
    & > .transcript--link { color: $text-primary; text-style: underline; }
    & > .transcript--url { color: $text-muted; text-style: none; }
    & > .transcript--marker { color: $text-primary; text-style: bold; }
    & > .transcript--quote { color: $text-muted; }
    & > .transcript--quoted { text-style: italic; }
    & > .transcript--frame { color: $foreground 35%; text-style: none; }
    & > .transcript--label { color: $text-muted; }
    & > .transcript--head { text-style: bold; }
    & > .transcript--keyword { color: $text-primary; text-style: bold; }
    & > .transcript--string { color: $text-success; }
    & > .transcript--number { color: $text-warning; }
    & > .transcript--comment { color: $text-muted; text-style: italic; }
    & > .transcript--function { color: $text-accent; }
    & > .transcript--builtin { color: $text-secondary; }
    & > .transcript--deleted { color: $text-error; }
    & > .transcript--match { text-style: reverse; }
    & > .transcript--current { text-style: reverse bold underline; }
    & > .transcript--more { text-style: reverse; }
}
"""


def theme_styles(widget: Widget) -> dict[str, Style]:
    """Of each name, what the theme says for it, without what it takes over from the text around it."""
    styles = {"text": widget.rich_style}
    for name in STYLES[1:]:
        rules = widget.get_component_styles(f"transcript--{name}")
        style = widget.get_component_rich_style(f"transcript--{name}")
        coloured = rules.has_rule("color") or rules.auto_color
        styles[name] = rules.text_style + Style(
            color=style.color if coloured else None,
            bgcolor=style.bgcolor if rules.has_rule("background") else None,
        )
    return styles
