"""Some thousand small pictures in every encoding that is at hand, and what Pillow makes of each, pixel by pixel.

    sweep_formats.py FOLDER    writes NAME.EXT and NAME.EXT.npy (uint8, RGB); needs cjpeg and tiffcp

Where Pillow refuses a file that is right, or reads another range, the expected pixels are computed here.
"""

import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
random = np.random.default_rng(5)
SIZES = [(1, 1), (7, 5), (16, 16), (17, 33), (61, 40)]


def picture(width, height):
    y, x = np.mgrid[0:height, 0:width] / 12
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-4, 4, (3, 3))]
    pixels = np.stack(waves, -1) * 100 + 128 + random.normal(0, 5, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def expect(path, pixels=None):
    if pixels is None:
        pixels = np.asarray(Image.open(path).convert("RGB"))
    np.save(f"{path}.npy", np.ascontiguousarray(pixels.astype(np.uint8)))


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, -1)


def stretched(values):
    values = np.asarray(values, np.float64)
    low, high = values.min(), values.max()
    return grey(np.rint((values - low) * (255 / (high - low) if high > low else 0)))


def jpegs():
    samplings = ["1x1,1x1,1x1", "2x1,1x1,1x1", "1x2,1x1,1x1", "2x2,1x1,1x1", "4x1,1x1,1x1", "4x2,1x1,1x1", "3x1,1x1,1x1", "2x2,2x1,2x1"]
    scans = ["", "0;\n1;\n2;\n", "0;\n1 2;\n", "0 1;\n2;\n"]
    restarts = [[], ["-restart", "1"], ["-restart", "3B"]]
    coders = [[], ["-optimize"], ["-arithmetic"], ["-progressive"], ["-progressive", "-arithmetic"]]
    script = folder / "scans.txt"
    number = 0
    for size in SIZES:
        source = folder / "source.ppm"
        picture(*size).save(source)
        for sampling, scan, restart, coder in itertools.product(samplings, scans, restarts, coders):
            if scan and "-progressive" in coder:
                continue
            command = ["cjpeg", "-quality", "90", "-sample", sampling, *restart, *coder]
            if scan:
                script.write_text(scan)
                command += ["-scans", str(script)]
            path = folder / f"jpeg-{number:05}.jpg"
            number += 1
            with open(path, "wb") as file:
                done = subprocess.run([*command, str(source)], stdout=file, stderr=subprocess.DEVNULL)
            if done.returncode:
                path.unlink()
            else:
                expect(path)
        for sampling, restart, coder in itertools.product(["1x1", "2x2", "3x1", "2x1"], restarts, coders):
            path = folder / f"grey-{number:05}.jpg"
            number += 1
            with open(path, "wb") as file:
                subprocess.run(["cjpeg", "-grayscale", "-sample", sampling, *restart, *coder, str(source)], stdout=file, check=True)
            expect(path)
        image = picture(*size)
        for mode, quality in itertools.product(["CMYK", "RGB", "L"], [30, 75, 100]):
            path = folder / f"pillow-{number:05}.jpg"
            number += 1
            image.convert(mode).save(path, quality=quality, keep_rgb=mode == "RGB" and quality == 100)
            expect(path)
    source.unlink()
    script.unlink()


def others():
    number = 0
    for size in SIZES:
        image = picture(*size)
        alpha = image.copy()
        alpha.putalpha(image.convert("L"))
        for mode, bits in itertools.product(["1", "L", "LA", "P", "RGB", "RGBA"], [1, 2, 4, 8]):
            if mode != "P" and bits != 8:
                continue
            changed = alpha.convert(mode) if mode in ("LA", "RGBA") else image.quantize(1 << bits) if mode == "P" else image.convert(mode)
            for ending, options in [("png", {}), ("png", {"optimize": True}), ("bmp", {}), ("gif", {}), ("gif", {"interlace": 0})]:
                if ending != "png" and mode in ("LA", "RGBA"):
                    continue
                path = folder / f"plain-{number:05}.{ending}"
                number += 1
                changed.save(path, **options)
                expect(path)
        for lossless, quality, source in itertools.product([True, False], [10, 60, 95], [image, alpha]):
            path = folder / f"webp-{number:05}.webp"
            number += 1
            source.save(path, lossless=lossless, quality=quality)
            expect(path)


def tiffs():
    number = 0
    for size in SIZES:
        image = picture(*size)
        alpha = image.copy()
        alpha.putalpha(image.convert("L"))
        values = np.asarray(image.convert("L"), np.float64)
        sources = {
            "1": (image.convert("1"), None),
            "L": (image.convert("L"), None),
            "LA": (alpha.convert("LA"), None),
            "P": (image.quantize(200), None),
            "RGB": (image, None),
            "RGBA": (alpha, None),
            "CMYK": (image.convert("CMYK"), None),
            "YCbCr": (image.convert("YCbCr"), None),
            "LAB": (image.convert("RGB"), None),
            "16": (Image.fromarray((values * 257).astype(np.uint16)), grey(values)),
            "i32": (Image.fromarray((values * 1000 - 50000).astype(np.int32)), stretched((values * 1000 - 50000).astype(np.int32))),
            "f32": (Image.fromarray((values / 7 - 3).astype(np.float32)), stretched((values / 7 - 3).astype(np.float32))),
        }
        compressions = [None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "group3", "group4", "tiff_lzma", "zstd", "webp"]
        for (mode, (source, pixels)), compression, big in itertools.product(sources.items(), compressions, [False, True]):
            if mode == "YCbCr" and compression != "jpeg":
                # Pillow calls these subsampled and does not subsample them.
                continue
            path = folder / f"tiff-{number:05}-{mode}-{compression}.tif"
            number += 1
            try:
                source.save(path, compression=compression, big_tiff=big)
                Image.open(path).load()
            except Exception:
                # Not a thing that is written, or that its writer reads.
                path.unlink(missing_ok=True)
                continue
            expect(path, pixels)
        # What libtiff's own tool makes of them.
        plain = [mode for mode in sources if mode not in ("LAB", "YCbCr")]
        changes = [["-p", "separate"], ["-t", "-w", "16", "-l", "16"], ["-B"], ["-L"], ["-8"], ["-r", "3"], ["-c", "none", "-f", "lsb2msb"], ["-c", "packbits", "-f", "lsb2msb"], ["-c", "lzw:2"], ["-c", "zip:2"], ["-c", "zstd"]]
        for mode, change in itertools.product(plain, changes):
            source, pixels = sources[mode]
            before, path = folder / "before.tif", folder / f"tiff-{number:05}-{mode}{''.join(change).replace(':', '-')}.tif"
            number += 1
            source.save(before)
            done = subprocess.run(["tiffcp", *change, str(before), str(path)], stderr=subprocess.DEVNULL)
            if done.returncode:
                path.unlink(missing_ok=True)
            else:
                # All of these changes keep the pixels, also where Pillow does not read what they make.
                expect(path, np.asarray(Image.open(before).convert("RGB")) if pixels is None else pixels)
            before.unlink()


# libtiff writes to standard error what it does not write to files.
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
jpegs()
others()
tiffs()
print(len(list(folder.glob("*.npy"))))
