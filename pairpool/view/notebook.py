"""Show frames in the output of a notebook cell: one display, which is updated in place."""

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
    """The output of the running cell. Output of tasks appears there through the program's own streams.

    Attributes:
        streams: the names of the streams that write above the frame: none.
    """

    def __init__(self) -> None:
        self.streams: frozenset[str] = frozenset()
        self._display: Any = None
        self.draw(Frame([], 1))  # the display belongs to the cell that starts the view, even if other cells run later

    def draw(self, frame: Frame) -> None:
        """Replace the last frame by this one."""
        from IPython.display import display  # type: ignore[import-not-found]  # this is called only in a notebook, which has IPython

        page = Console(file=io.StringIO(), record=True, width=frame.width, force_jupyter=False)
        page.print(frame, end="", soft_wrap=True)
        bundle = {"text/plain": frame.text, "text/html": page.export_html(code_format=PAGE_HTML, inline_styles=True)}
        if self._display is None:
            self._display = display(bundle, raw=True, display_id=True)
        else:
            self._display.update(bundle, raw=True)

    def close(self) -> None:
        """Leave the last frame in place."""
