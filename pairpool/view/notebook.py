"""Frames in the output of a notebook's cell: one display, which is updated in place."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from pairpool.view.frame import Frame

__all__ = ["Notebook"]

PAGE_HTML = (
    "<pre style=\"white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,'DejaVu Sans Mono',"
    "consolas,'Courier New',monospace\">{code}</pre>"
)


class Notebook:
    """The output of the cell that is being run; what tasks print comes there by the program's own streams.

    Attributes:
        streams: those that write above the frame: none.
    """

    def __init__(self) -> None:
        self.streams: frozenset[str] = frozenset()
        self._display: Any = None
        self.draw(Frame([], 1))  # the display belongs to the cell that the view is begun in, whichever is run later

    def draw(self, frame: Frame) -> None:
        """Have this frame in place of the last one."""
        from IPython.display import display  # type: ignore[import-not-found]  # there is one, where this is called

        page = Console(file=io.StringIO(), record=True, width=frame.width, force_jupyter=False)
        page.print(frame, end="", soft_wrap=True)
        bundle = {"text/plain": frame.text, "text/html": page.export_html(code_format=PAGE_HTML, inline_styles=True)}
        if self._display is None:
            self._display = display(bundle, raw=True, display_id=True)
        else:
            self._display.update(bundle, raw=True)

    def close(self) -> None:
        """The last frame stays."""
