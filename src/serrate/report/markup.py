"""HTML that is escaped by construction, and numbers as people read them."""

import html
import math
from collections.abc import Iterable

_VOID = {"meta", "br", "line", "rect", "circle", "path", "polygon"}  # elements that hold nothing


class Html(str):
    """Text that is markup already. Any other string is escaped on its way into the page."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return the element `name` with its children, escaped unless they are `Html`.

    Children may be nested iterables; None is left out. Attribute names lose a trailing underscore and turn
    inner ones into hyphens (`class_`, `text_anchor`), but for `viewBox`, which is as it is; None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Html(f"<{name}{written}>" if name in {"meta", "br"} else f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Return the children one after another, escaped unless they are `Html`."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str | int | float):
            parts.append(html.escape(_plain(child)))
        elif isinstance(child, Iterable):
            parts.append(join(child))
        elif child is not None:
            raise TypeError(f"cannot write {type(child).__name__} into a page")
    return Html("".join(parts))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], caption: object) -> Html:
    """Return a table under its caption, in a box that scrolls by itself.

    The first cell of each row is its header. Cells are texts, or whole `th` (in the head) and `td` elements.
    """
    columns = tag("tr", [cell if _is_cell(cell) else tag("th", cell, scope="col") for cell in head])
    body = tag("tbody", [_row(row) for row in rows])
    # The caption stays outside of what scrolls; the keyboard can scroll what takes the focus.
    box = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": caption}
    scrolls = tag("div", tag("table", tag("thead", columns), body, aria_label=caption), **box)
    return tag("div", tag("h3", caption), scrolls, class_="table")


def count(value: float | None) -> str:
    """Return a whole number with thousands apart: `1,000,209`."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """Return a share as a percentage of two or three digits: `62 %`, `0.4 %`."""
    if share is None or not math.isfinite(share):
        return "–"
    value = 100 * share
    return f"{value:.1f} %" if 0 < abs(value) < 10 else f"{value:.0f} %"


def decimal(value: float | None, *, digits: int = 4, sign: bool = False) -> str:
    """Return a number with fixed digits and a true minus sign, `–` when there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _row(cells: Iterable[object]) -> Html:
    first, *others = cells
    written = (cell if _is_cell(cell) else tag("td", cell) for cell in others)
    return tag("tr", tag("th", first, scope="row"), written)


def _is_cell(value: object) -> bool:
    return isinstance(value, Html) and value.startswith(("<td", "<th"))


def _plain(value: object) -> str:
    """Return the text of a plain value: floats of coordinates in at most one decimal."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
