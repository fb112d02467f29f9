"""Labelled grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from training.names import shown

GRID_GAP = 8
GRID_FONT_SIZE = 15
GRID_LABEL_LINES = 3
GRID_ROW_LABEL_WIDTH = 200


def grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    cell_size: int = 256,
) -> Image.Image:
    """Pictures in rows and columns with a label beside each row and above each column.

    Args:
        rows: Pictures, each row as long as `column_labels`; any sizes, shown with their aspect kept.
        row_labels: One for each row.
        column_labels: One for each column.
        cell_size: Longer side of a shown picture in pixels. Small pictures are enlarged without smoothing.

    Raises:
        ValueError: nothing to show, or labels that do not fit the pictures.
    """
    if not rows or not column_labels:
        raise ValueError("grid: need 1 or more rows and columns, got none")
    if len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})}"
        raise ValueError(
            f"grid: need a label a row and a column, got {len(row_labels)}, {len(column_labels)} for {shape}"
        )
    cells = [[_fit(image, cell_size) for image in row] for row in rows]
    widths = [max(row[column].width for row in cells) for column in range(len(column_labels))]
    heights = [max(image.height for image in row) for row in cells]

    font = ImageFont.load_default(GRID_FONT_SIZE)
    line_height = GRID_FONT_SIZE + 4
    label_width = min(GRID_ROW_LABEL_WIDTH, max(int(font.getlength(shown(label))) + 1 for label in row_labels))
    left = label_width + 2 * GRID_GAP
    column_texts = [_wrap(label, font, width) for label, width in zip(column_labels, widths, strict=True)]
    top = GRID_GAP + line_height * max(len(text) for text in column_texts)
    size = (left + sum(widths) + GRID_GAP * len(widths), top + sum(heights) + GRID_GAP * len(heights))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    x = left
    for text, width in zip(column_texts, widths, strict=True):
        pen.multiline_text((x, GRID_GAP // 2), "\n".join(text), fill="black", font=font, spacing=4)
        x += width + GRID_GAP
    y = top
    for row, label, height in zip(cells, row_labels, heights, strict=True):
        text = _wrap(label, font, label_width, max(1, height // line_height))
        pen.multiline_text((GRID_GAP, y), "\n".join(text), fill="black", font=font, spacing=4)
        x = left
        for image, width in zip(row, widths, strict=True):
            sheet.paste(image, (x, y))
            x += width + GRID_GAP
        y += height + GRID_GAP
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, resampling)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int = 0) -> list[str]:
    """Text broken into lines at most `width` pixels long; what does not fit ends in an ellipsis."""
    lines = lines or GRID_LABEL_LINES
    wrapped = [""]
    for word in map(shown, text.split()):  # fonts know neither escape sequences nor lone surrogates
        joined = f"{wrapped[-1]} {word}".strip()
        if wrapped[-1] and font.getlength(joined) > width:
            wrapped.append(word)
        else:
            wrapped[-1] = joined
    fitting = wrapped[:lines]
    if len(wrapped) > lines:
        fitting[-1] += " ..."
    return [_shorten(line, font, width) for line in fitting]


def _shorten(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."
