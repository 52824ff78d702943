"""The training log as an SVG: loss and accuracy over the epochs, without a plotting library."""

from __future__ import annotations

import csv
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 50, 50, 24, 40
LOSS, ACCURACY = "#8a8a8a", "#1f6feb"

Point = tuple[float, float]


def write_curve(log: Path, path: Path) -> None:
    """Draw `training_log.csv` as an SVG file."""
    with log.open() as file:
        rows = list(csv.DictReader(file))
    losses = [(float(i + 1), float(row["loss"])) for i, row in enumerate(rows)]
    accuracies = [
        (i + 1.0, 100 * float(row["validation_top1"])) for i, row in enumerate(rows) if row["validation_top1"]
    ]
    starts = [i for i, row in enumerate(rows) if i and row["phase"] != rows[i - 1]["phase"]]
    path.write_text(_picture(len(rows), losses, accuracies, starts), encoding="utf-8")


def _picture(epochs: int, losses: list[Point], accuracies: list[Point], starts: list[int]) -> str:
    low, high = (extreme(loss for _, loss in losses) for extreme in (min, max))
    parts = [_line(losses, epochs, low, high, LOSS), _line(accuracies, epochs, 0, 100, ACCURACY)]
    parts += [_rule(_x(start + 0.5, epochs)) for start in starts]
    parts += [_text(LEFT - 6, _y(value, 0, 100) + 4, f"{value}", ACCURACY, "end") for value in range(0, 101, 20)]
    parts += [
        _text(WIDTH - RIGHT + 6, _y(value, low, high) + 4, f"{value:.1f}", LOSS, "start") for value in (low, high)
    ]
    parts += [_text(_x(epoch, epochs), HEIGHT - 22, f"{epoch}", "#444", "middle") for epoch in range(0, epochs + 1, 20)]
    parts.append(_text(LEFT, 14, "validation top-1 of the averaged weights, %", ACCURACY, "start"))
    parts.append(_text(WIDTH - RIGHT, 14, "training loss", LOSS, "end"))
    parts.append(_text(WIDTH / 2, HEIGHT - 6, "epoch", "#444", "middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _x(epoch: float, epochs: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * epoch / epochs


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low or 1)


def _line(points: list[Point], epochs: int, low: float, high: float, colour: str) -> str:
    coordinates = " ".join(f"{_x(epoch, epochs):.1f},{_y(value, low, high):.1f}" for epoch, value in points)
    return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{coordinates}"/>'


def _rule(x: float) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ccc" stroke-dasharray="4"/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{text}</text>'
