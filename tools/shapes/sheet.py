"""Contact sheets: rows of frames in one PNG."""

import numpy as np
from PIL import Image


def write_sheet(path, rows):
    """`rows`: equally long lists of [H, W, 3] float arrays in [0, 1]; one row of the picture each."""
    lines = [np.concatenate([np.asarray(f) for f in row], axis=1) for row in rows]
    picture = np.concatenate(lines, axis=0).clip(0, 1)
    Image.fromarray((picture * 255 + 0.5).astype("uint8")).save(path)
