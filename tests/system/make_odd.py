"""Files that people have and no specification loves, a folder of them.

    make_odd.py FOLDER
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
random = np.random.default_rng(3)
noise = Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8))


def jpeg(image=noise, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


whole = jpeg()
video = b"\0\0\0\x18ftypmp42" + bytes(random.integers(0, 255, 4000, dtype=np.uint8)) + b"\xff\xda\0\x0c\x03\xff\xd9\xff\xda"
files = {
    # Read.
    "good.jpg": whole,
    "no-end.jpg": whole[:-2],
    "motion.jpg": whole + video,
    "second-cut.jpg": whole + whole[: len(whole) // 2],
    "behind.jpg": whole + b"\0\xff\xda",
    # Read with a remark.
    "rows-missing.jpg": whole[: len(whole) * 3 // 4],
    # Refused.
    "cut.jpg": whole[: len(whole) // 4],
    "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "photo.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "paper.png": b"%PDF-1.7\n",
    # Passed over.
    "one.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "two.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "notes.txt": b"notes",
    "@eaDir/good.jpg/thumb.jpg": whole,
    "__MACOSX/._good.jpg": whole,
    ".Trash-1000/good.jpg": whole,
}
for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 4096
Image.fromarray(grey).save(folder / "twelve-bits.png")
Image.fromarray((random.random((64, 64)) * 3 - 7).astype(np.float32)).save(folder / "floats.tif")
noise.save(folder / "big.tif", big_tiff=True)
