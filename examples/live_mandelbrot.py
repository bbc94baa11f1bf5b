"""Compute the Mandelbrot set in tiles, by a pool with a live view. Each tile reports its progress.

    python examples/live_mandelbrot.py                        mandelbrot.png, 1600 x 1200
    python examples/live_mandelbrot.py -o sea.png --width 4000 --height 3000 --centre -0.7453 0.1127 --span 0.004

Tiles need very different times, because points of the set itself take the full number of iterations. Watch how the
workers share the tiles. The program needs numpy. It writes the PNG with the standard library.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pairpool
from pairpool import Pool

Counts = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

TILE_PIXELS = 200
"""Width and height of a tile."""

REPORTS = 20
"""How often a tile reports its progress."""


@dataclass(frozen=True)
class View:
    """The part of the plane that the picture shows, and the size of the picture."""

    width: int
    height: int
    centre: complex
    span: float
    """Width of the picture in the plane."""
    iterations: int


@dataclass(frozen=True, repr=False)
class Tile:
    """A rectangle of pixels, which begins at `left`, `top`."""

    view: View
    left: int
    top: int
    width: int
    height: int

    def __repr__(self) -> str:
        """Return a short text, which the live view shows."""
        return f"Tile at {self.left}, {self.top}"

    def points(self) -> npt.NDArray[np.complex128]:
        """Return the points of the plane for all pixels, of shape (height, width)."""
        view = self.view
        scale = view.span / view.width
        x = (np.arange(self.left, self.left + self.width) - view.width / 2) * scale + view.centre.real
        y = (view.height / 2 - np.arange(self.top, self.top + self.height)) * scale + view.centre.imag
        return x[np.newaxis, :] + 1j * y[:, np.newaxis]


def tiles(view: View) -> list[Tile]:
    """Return the tiles of the whole picture, row by row."""
    return [
        Tile(view, left, top, min(TILE_PIXELS, view.width - left), min(TILE_PIXELS, view.height - top))
        for top in range(0, view.height, TILE_PIXELS)
        for left in range(0, view.width, TILE_PIXELS)
    ]


def compute(tile: Tile) -> Counts:
    """Return for each pixel the iterations of z² + c until it escaped (smoothed), or 0 if it did not escape."""
    c = tile.points().ravel()
    z = np.zeros_like(c)
    counts = np.zeros(c.size, np.float32)
    inside = np.arange(c.size)
    iterations = tile.view.iterations
    for iteration in range(1, iterations + 1):
        z = z * z + c
        escaped = z.real**2 + z.imag**2 > 1e6
        if escaped.any():
            size = np.log(np.abs(z[escaped]))
            counts[inside[escaped]] = iteration + 1 - np.log2(size / np.log(1e3))
            stays = ~escaped
            inside, z, c = inside[stays], z[stays], c[stays]
        if iteration % max(1, iterations // REPORTS) == 0 or not inside.size:
            pairpool.progress(iteration, iterations, f"{inside.size:,} pixels left")
        if not inside.size:
            break
    return counts.reshape(tile.height, tile.width)


def colour(counts: Counts) -> Pixels:
    """Return colours from dark blue over white to ochre, and black for the set, of shape (height, width, 3)."""
    stops = np.array([(0, 7, 60), (32, 107, 203), (237, 255, 255), (255, 170, 0), (70, 2, 0), (0, 7, 60)], float)
    place = (np.log2(np.maximum(counts, 1.0)) * 0.9) % 5
    low = place.astype(int)
    share = (place - low)[..., np.newaxis]
    pixels = stops[low] * (1 - share) + stops[low + 1] * share
    pixels[counts == 0] = 0
    return np.asarray(pixels, np.uint8)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a PNG with 8 bits per channel: header, one block of rows, end (source: PNG specification, W3C)."""
    height, width, _channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * 3)], axis=1)

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", header)
        + block(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + block(b"IEND", b"")
    )


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description="Compute the Mandelbrot set in tiles, with a live view.")
    parser.add_argument("-o", "--output", type=Path, default=Path("mandelbrot.png"), metavar="FILE")
    parser.add_argument("--width", type=at_least_one, default=1600, metavar="PIXELS")
    parser.add_argument("--height", type=at_least_one, default=1200, metavar="PIXELS")
    parser.add_argument("--centre", type=float, nargs=2, default=(-0.65, 0.0), metavar=("X", "Y"))
    parser.add_argument(
        "--span", type=float, default=3.2, metavar="WIDTH", help="width of the picture in the plane (3.2)"
    )
    parser.add_argument("--iterations", type=at_least_one, default=5000, metavar="N")
    parser.add_argument("--workers", type=at_least_one, metavar="N", help="processes of the pool (as many as cores)")
    arguments = parser.parse_args()
    view = View(arguments.width, arguments.height, complex(*arguments.centre), arguments.span, arguments.iterations)
    picture = np.zeros((view.height, view.width, 3), np.uint8)
    parts = tiles(view)
    with Pool(arguments.workers, name="mandelbrot", live=True) as pool:
        for tile, counts in zip(parts, pool.imap(compute, parts), strict=True):
            picture[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = colour(counts)
    write_png(arguments.output, picture)
    print(f"{arguments.output}: {view.width} x {view.height} pixels in {len(parts)} tiles")
    print(pool.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
