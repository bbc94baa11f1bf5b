"""For mkdocs: no page may load anything from elsewhere. Readers have no connection, or do not want to be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
LOADING = {"dns-prefetch", "icon", "manifest", "modulepreload", "preconnect", "prefetch", "preload", "stylesheet"}
"""Relations of links that a browser follows by itself."""


class Loads(HTMLParser):
    """Collects what a browser fetches for a page by itself, as opposed to what it goes to when told."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        sources = [values.get("src", ""), values.get("srcset", ""), values.get("poster", ""), values.get("data", "")]
        if tag == "link" and LOADING.intersection(values.get("rel", "").lower().split()):
            sources.append(values.get("href", ""))
        self.found += [source for source in sources if ELSEWHERE.match(source.strip())]


def loaded_from_elsewhere(html: str) -> list[str]:
    """Addresses on other hosts that a browser fetches when it shows this page."""
    parser = Loads()
    parser.feed(html)
    return parser.found + IN_STYLES.findall(html)


def _broken(site: Path) -> Iterator[str]:
    for path in sorted(site.rglob("*.html")):
        yield from (f"{path.relative_to(site)} loads {one}" for one in loaded_from_elsewhere(path.read_text()))
    for path in sorted(site.rglob("*.css")):
        yield from (f"{path.relative_to(site)} loads {one}" for one in IN_STYLES.findall(path.read_text()))


def on_post_build(config: Any) -> None:
    """Called by mkdocs when the site is written."""
    broken = list(_broken(Path(config["site_dir"])))
    if broken:
        from mkdocs.exceptions import PluginError

        raise PluginError("the site is not on its own:\n" + "\n".join(broken))
