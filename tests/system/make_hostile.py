"""Files that break image readers, in a folder: what must be skipped lies in `bad/`, what is odd and yet an image in `odd/`.

Every file is named after what is wrong with it. Prints how many of each there are.
"""

import io
import os
import pathlib
import random
import struct
import sys
import zlib

import numpy as np
from PIL import Image

root = pathlib.Path(sys.argv[1])
bad, odd = root / "bad", root / "odd"
bad.mkdir(parents=True)
odd.mkdir()
random.seed(7)
pixels = np.random.default_rng(7).integers(0, 256, (48, 64, 3), dtype=np.uint8)
picture = Image.fromarray(pixels)


def encoded(format, image=picture, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


jpeg, png, webp, bmp, tiff, gif = (encoded(f) for f in ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
whole = {"jpg": jpeg, "png": png, "webp": webp, "bmp": bmp, "tif": tiff, "gif": gif}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, data=b"", depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bmp_of(width, height):
    return bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]


# Cut short, at the beginning, in the middle, and within the pixels. Of a JPEG the rows that are there are read.
for ending, content in whole.items():
    for share in [0.02, 0.5, 0.9]:
        folder = odd if ending == "jpg" and share >= 0.5 else bad
        (folder / f"cut-{int(share * 100)}.{ending}").write_bytes(content[: max(1, int(len(content) * share))])
    (bad / f"empty.{ending}").write_bytes(b"")
    (bad / f"one-byte.{ending}").write_bytes(content[:1])
    (bad / f"zeros.{ending}").write_bytes(bytes(2000))
# What is no image at all.
texts = {"text.jpg": b"this is a text\n" * 40, "page.png": b"<!DOCTYPE html><html></html>", "archive.gif": b"PK\x03\x04" + bytes(99)}
programs = {"program.webp": b"\x7fELF" + bytes(500), "noise.bmp": random.randbytes(3000), "signature.png": png[:8]}
for name, content in {**texts, **programs}.items():
    (bad / name).write_bytes(content)
# Headers that promise what no memory holds, or nothing.
(bad / "bomb-30000.png").write_bytes(png_of(30000, 30000))
(bad / "bomb-huge.png").write_bytes(png_of(2**31 - 1, 2**31 - 1))
(bad / "bomb-real.png").write_bytes(png_of(20000, 20000, bytes(1_000_000), 1, 0))
(bad / "bomb.bmp").write_bytes(bmp_of(60000, 60000))
(bad / "bomb.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 65535, 65535) + gif[10:])
(bad / "no-pixels.png").write_bytes(png_of(0, 7))
(bad / "negative.bmp").write_bytes(bmp_of(-5, 5))
(bad / "thin-1x20000.png").write_bytes(encoded("PNG", Image.new("RGB", (1, 20000))))
(bad / "too-few-rows.png").write_bytes(png_of(64, 48, bytes(500)))
(bad / "bad-checksum.png").write_bytes(png[:40] + bytes([png[40] ^ 255]) + png[41:])
(bad / "wrong-depth.png").write_bytes(png_of(8, 8, bytes(300), depth=3))
# What is no file.
os.mkfifo(bad / "pipe.jpg")
(bad / "device.png").symlink_to("/dev/zero")
(bad / "endless.jpg").symlink_to("/dev/random")
(bad / "loop.jpg").symlink_to("loop.jpg")
(bad / "ping.png").symlink_to("pong.png")
(bad / "pong.png").symlink_to("ping.png")
(bad / "dangling.gif").symlink_to("nowhere")
# A folder with the name of an image is a folder, a link to the folder above ends.
(odd / "folder.jpg").mkdir()
(odd / "folder.jpg" / "inside.png").write_bytes(png)
(odd / "again").symlink_to(root)

# Odd, and yet an image.
(odd / "1x1.png").write_bytes(encoded("PNG", Image.new("RGB", (1, 1))))
(odd / "1x150.png").write_bytes(encoded("PNG", Image.new("RGB", (1, 150))))
(odd / "really-png.jpg").write_bytes(png)
(odd / "really-jpeg.png").write_bytes(jpeg)
(odd / "really-webp.GIF").write_bytes(webp)
(odd / "trailing.jpg").write_bytes(jpeg + b"and more" * 100)
exif = Image.Exif()
exif[0x010E] = "x" * 60_000
(odd / "exif.jpg").write_bytes(encoded("JPEG", exif=exif))
comment = b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)
(odd / "megabyte-of-comments.jpg").write_bytes(jpeg[:2] + comment * 17 + jpeg[2:])
(odd / "broken-profile.jpg").write_bytes(encoded("JPEG", icc_profile=b"this is no profile" * 50))
(odd / "broken-profile.png").write_bytes(encoded("PNG", icc_profile=b"nor is this"))
(odd / "animated.gif").write_bytes(encoded("GIF", save_all=True, append_images=[picture.rotate(90)] * 30))
(odd / "animated.webp").write_bytes(encoded("WEBP", save_all=True, append_images=[picture.rotate(90)] * 5))
(odd / "animated.png").write_bytes(encoded("PNG", save_all=True, append_images=[picture.rotate(90)] * 5))
(odd / "one-colour.png").write_bytes(encoded("PNG", Image.new("RGB", (64, 48), (9, 9, 9))))
(odd / ("long" * 60 + ".png")).write_bytes(png)
os.link(odd / "1x1.png", odd / "hard-link.png")

count = lambda folder: sum(1 for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir())
print(count(bad), count(odd) - 1)
