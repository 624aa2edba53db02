"""How the chat looks: themes of its own, and one that suits the terminal it runs in."""

from __future__ import annotations

from collections.abc import Mapping

from textual.theme import BUILTIN_THEMES, Theme

from mistral_mlx.errors import InputError

_DARK = Theme(
    name="mistral-dark",
    primary="#ff8205",
    secondary="#ffb454",
    accent="#fa6a2a",
    warning="#ffd24a",
    error="#ff6b5e",
    success="#8cc98a",
    foreground="#e9e4dd",
    background="#131211",
    surface="#1b1a18",
    panel="#262421",
    variables={
        "text": "#e9e4dd",
        "text-muted": "#a39b90",
        "text-disabled": "#969086",
        "foreground-muted": "#a39b90",
        "block-cursor-foreground": "#131211",
        "border-blurred": "#3a3733",
        "button-color-foreground": "#131211",
        "footer-key-foreground": "#ff8205",
        "input-selection-background": "#ff8205 30%",
        "screen-selection-background": "#ff8205 30%",
        "markdown-h1-color": "#ff8205",
        "markdown-h2-color": "#ffb454",
        "markdown-h3-color": "#ffb454",
        "scrollbar": "#4a4640",
        "scrollbar-hover": "#6a645b",
        "scrollbar-active": "#ff8205",
        "scrollbar-background": "#131211",
        "scrollbar-background-hover": "#131211",
        "scrollbar-background-active": "#131211",
    },
)

_LIGHT = Theme(
    name="mistral-light",
    primary="#b03900",
    secondary="#8a5200",
    accent="#c23a00",
    warning="#8a5a00",
    error="#b3201c",
    success="#2b6e2f",
    foreground="#24211e",
    background="#fbf8f3",
    surface="#f3eee6",
    panel="#e9e2d7",
    dark=False,
    variables={
        "text": "#24211e",
        "text-muted": "#5f584f",
        "text-disabled": "#686158",
        "foreground-muted": "#5f584f",
        "block-cursor-foreground": "#fbf8f3",
        "border-blurred": "#cfc6b8",
        "button-color-foreground": "#fbf8f3",
        "footer-key-foreground": "#b03900",
        "input-selection-background": "#ff8205 30%",
        "screen-selection-background": "#ff8205 30%",
        "scrollbar": "#c9bfae",
        "scrollbar-hover": "#a89d8b",
        "scrollbar-active": "#b03900",
        "scrollbar-background": "#fbf8f3",
        "scrollbar-background-hover": "#fbf8f3",
        "scrollbar-background-active": "#fbf8f3",
    },
)

_YELLOW = "#ffe600"
_CONTRAST = Theme(
    name="high-contrast",
    primary=_YELLOW,
    secondary="#ffffff",
    accent=_YELLOW,
    warning=_YELLOW,
    error="#ffb0a8",
    success="#9dff9d",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#000000",
    boost="#000000",
    variables={
        "text": "#ffffff",
        "text-muted": "#e0e0e0",
        "text-disabled": "#c0c0c0",
        "foreground-muted": "#e0e0e0",
        "foreground-disabled": "#c0c0c0",
        **{f"text-{name}": _YELLOW for name in ("primary", "secondary", "accent", "warning")},
        "text-error": "#ffb0a8",
        "text-success": "#9dff9d",
        **{f"{name}-muted": "#000000" for name in ("primary", "secondary", "accent", "warning", "error", "success")},
        "block-cursor-foreground": "#000000",
        "block-cursor-blurred-foreground": "#ffffff",
        "block-cursor-blurred-background": "#000000",
        "block-cursor-blurred-text-style": "underline",
        "block-hover-background": "#303030",
        "border": _YELLOW,
        "border-blurred": "#ffffff",
        "button-color-foreground": "#000000",
        "input-selection-background": _YELLOW,
        "input-selection-foreground": "#000000",
        "screen-selection-background": _YELLOW,
        "screen-selection-foreground": "#000000",
        "link-color": _YELLOW,
        "link-background-hover": _YELLOW,
        "link-color-hover": "#000000",
        "scrollbar": "#ffffff",
        "scrollbar-hover": _YELLOW,
        "scrollbar-active": _YELLOW,
        "scrollbar-background": "#000000",
        "scrollbar-background-hover": "#000000",
        "scrollbar-background-active": "#000000",
    },
)

# Where nothing may be coloured, what is chosen or focused is told by bold, underline and reverse alone.
_NONE = "ansi_default"
_NO_COLOUR = Theme(
    name="no-color",
    ansi=True,
    primary=_NONE,
    secondary=_NONE,
    accent=_NONE,
    warning=_NONE,
    error=_NONE,
    success=_NONE,
    foreground=_NONE,
    background=_NONE,
    variables={
        "ansi-background": _NONE,
        "ansi-foreground": _NONE,
        "block-cursor-background": _NONE,
        "block-cursor-text-style": "bold underline",  # Textual's lists do not take reverse
        "block-cursor-blurred-text-style": "underline",
        "border": _NONE,
        "border-blurred": _NONE,
        "footer-key-foreground": _NONE,
        "input-selection-background": _NONE,
        "link-background-hover": _NONE,
        "link-color": _NONE,
        "link-color-hover": _NONE,
        "screen-selection-background": _NONE,
        "screen-selection-foreground": _NONE,
        "scrollbar": _NONE,
        "scrollbar-hover": _NONE,
        "scrollbar-active": _NONE,
        "scrollbar-background": _NONE,
        "scrollbar-background-hover": _NONE,
        "scrollbar-background-active": _NONE,
        **{f"markdown-h{level}-color": _NONE for level in range(1, 7)},
        "markdown-h1-text-style": "bold underline",
        "markdown-h2-text-style": "bold",
        "markdown-h3-text-style": "bold",
    },
)

THEMES = (_DARK, _LIGHT, _CONTRAST, _NO_COLOUR)


def choose(name: str, no_color: bool, environ: Mapping[str, str]) -> str:
    """The theme to begin with.

    Args:
        name: the one that was asked for; empty for what suits the terminal.
        no_color: nothing may be coloured. The app must then be made with ansi_color=True: Textual turns colours to
            greys otherwise.
        environ: where the terminal says what it is.

    Raises:
        InputError: there is no theme of that name.
    """
    known = {theme.name: theme for theme in (*THEMES, *BUILTIN_THEMES.values())}
    if name and name not in known:
        raise InputError(f"There is no theme {name!r}.", f"Themes: {', '.join(known)}.")
    if no_color:
        return _NO_COLOUR.name
    wanted = known[name] if name else (_LIGHT if _is_light(environ) else _DARK)
    if _has_many_colours(environ) or wanted.ansi:
        return wanted.name
    return "ansi-dark" if wanted.dark else "ansi-light"  # the nearest of 16 is often unreadable


def _is_light(environ: Mapping[str, str]) -> bool:
    """Whether the terminal says that its background is white, or light grey: "foreground;background", in 16 colours."""
    return environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")


def _has_many_colours(environ: Mapping[str, str]) -> bool:
    term = environ.get("TERM", "")
    return environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") or term.endswith(
        ("-256color", "-direct", "kitty", "ghostty", "alacritty", "foot")
    )
