"""One smooth, noisy picture in every format and mode that users have, and what Pillow makes of each: the centre crop."""

import pathlib
import sys

import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
width, height, size = 376, 263, 224
y, x = np.mgrid[0:height, 0:width] / 100
random = np.random.default_rng(1)
waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-4, 4, (3, 3))]
pixels = np.stack(waves, -1) * 90 + 128 + random.normal(0, 6, (height, width, 3))
picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
exif = Image.Exif()
exif[0x0112] = 6  # rotated by 90 degrees: ignored, as Pillow does
alpha = Image.fromarray((x * 60).clip(0, 255).astype(np.uint8))
with_alpha = picture.copy()
with_alpha.putalpha(alpha)
sixteen = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
tall = picture.rotate(90, expand=True)

files = {
    "plain.jpg": (picture, dict(quality=90)),
    "small.JPEG": (picture.resize((61, 97)), dict(quality=95)),
    "tall.jpeg": (tall, dict(quality=80)),
    "grey.jpg": (picture.convert("L"), {}),
    "cmyk.jpg": (picture.convert("CMYK"), dict(quality=95)),
    "progressive.JPG": (picture, dict(progressive=True, quality=85)),
    "exif.jpg": (picture, dict(exif=exif.tobytes())),
    "plain.png": (picture, {}),
    "palette.png": (picture.quantize(64), {}),
    "palette-alpha.png": (picture.quantize(64), dict(transparency=3)),
    "alpha.PNG": (with_alpha, {}),
    "grey-alpha.png": (with_alpha.convert("LA"), {}),
    "one-bit.png": (picture.convert("1"), {}),
    "lossy.webp": (picture, dict(quality=90)),
    "lossless.webp": (picture, dict(lossless=True)),
    "alpha.webp": (with_alpha, dict(lossless=True)),
    "plain.bmp": (picture, {}),
    "plain.tif": (picture, {}),
    "packed.tiff": (picture, dict(compression="tiff_lzw")),
    "first-frame.gif": (picture.quantize(128), dict(save_all=True, append_images=[tall.resize(picture.size).quantize(8)])),
}
for name, (image, options) in files.items():
    image.save(folder / name, **options)
# Pillow clips 16-bit grey instead of scaling it, so what it makes of the 8-bit original is the truth here.
sixteen.save(folder / "sixteen.png")

for path in sorted(folder.iterdir()):
    image = (picture.convert("L") if path.name == "sixteen.png" else Image.open(path)).convert("RGB")
    long, short = 256 * max(image.size) // min(image.size), 256
    image = image.resize((long, short) if image.width >= image.height else (short, long), Image.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    crop = image.crop((left, top, left + size, top + size))
    np.save(folder / (path.name + ".npy"), np.asarray(crop))
print(len(files) + 1)
