"""The steps of check.sh: each has its own time limit, and one that fails keeps none of the others from running."""

import array
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

KIT, WORK, PROGRAMS, OUT = (pathlib.Path(os.environ[name]) for name in ("KIT", "WORK", "PROGRAMS", "OUT"))
DEVICE, SMALL = os.environ["DEVICE"], bool(os.environ.get("SMALL"))
ON_GPU = DEVICE != "cpu"
PRECISION = "bf16" if ON_GPU else "auto"
rows = []


def row(what, value, note=""):
    rows.append({"step": step_name, "what": what, "value": value, "note": note})
    print(f"  {what}: {value}{'  ' + note if note else ''}", flush=True)


def run(command, limit, **environment):
    """Standard output of a command, which must end well within its limit (seconds), and within the time that is left of all."""
    limit = max(1, min(limit, deadline - time.monotonic()))
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise RuntimeError(f"took longer than {limit} s: {' '.join(map(str, command))}")
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {(err or out).strip()[-600:]}")
    return out


def deepcluster(*arguments, limit):
    return run([PROGRAMS / "deepcluster", *arguments], limit)


def pictures(name, count, size, *flags):
    folder = WORK / name
    if not folder.is_dir():
        deepcluster("demo-images", folder, "--count", count, "--size", size, *flags, limit=120)
    return folder


def train_flags(images, volume, device, epochs, *more):
    shutil.rmtree(volume, ignore_errors=True)
    return ["train", images, "--out", volume, "--epochs", str(epochs), "--device", device, *more]


def events(volume, kind):
    lines = (volume / "runs/run-0001/events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def series(epochs, name):
    return " ".join("-" if epoch.get(name) is None else f"{epoch[name]:.3f}" for epoch in epochs)


def parity(limit):
    tests = ["the_sobel_filter", "three_training_steps"] if SMALL else ["embeddings_of", "the_sobel_filter", "three_training_steps", "a_checkpoint"]
    kinds = [("f32", "f32", {"NVIDIA_TF32_OVERRIDE": "0"})]
    if ON_GPU:
        kinds.append(("f32 with TF32 allowed", "f32", {}))
    if ON_GPU or not SMALL:
        kinds.append(("bf16", "bf16", {}))
    failed = []
    for name, precision, environment in kinds:
        command = [PROGRAMS / "parity-network", "--nocapture", "--test-threads=1", *tests]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=limit / len(kinds),
            env={**os.environ, "PARITY_DIR": str(KIT / "parity"), "PARITY_DEVICE": DEVICE, "PARITY_PRECISION": precision, **environment},
        )
        for case, error in re.findall(r"^(\S.*?): (\d[\d.]*e-?\d+)$", done.stdout, re.M):
            row(f"{name}, {case}", error, "of the largest value")
        for loss in re.findall(r"^(?:.*\.\.\. )?(loss \d: .*)$", done.stdout, re.M):
            row(f"{name}, {loss.split(':')[0]}", loss.split(": ")[1])
        good, bad = re.findall(r"(\d+) passed; (\d+) failed", done.stdout)[-1]
        row(f"{name}: cases that are PyTorch's", f"{good} of {int(good) + int(bad)}")
        if int(bad):
            failed += re.findall(r"panicked at .*\n(.*)", done.stderr) or [done.stderr[-300:]]
    if failed:
        raise RuntimeError("; ".join(failed))


def demo(limit):
    images = pictures("demo", 200 if SMALL else 2000, 64)
    for device in dict.fromkeys([DEVICE, "cpu"]):
        volume = WORK / "demo-volume"
        flags = train_flags(images, volume, device, 2 if SMALL else 8, "--image-size", "64", "--k", "20", "--seed", "31")
        start = time.monotonic()
        deepcluster(*flags, limit=limit if device == DEVICE else limit * 2)
        found = events(volume, "epoch")
        row(f"{device}: NMI with the classes", series(found, "nmi_classes"), "epoch by epoch")
        row(f"{device}: loss", series(found, "loss"), "epoch by epoch")
        row(f"{device}: seconds", round(time.monotonic() - start, 1), "the whole command")


def processes(program, volume):
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words and words[0].endswith(program) and any(str(volume) in word for word in words):
            yield int(folder.name)


def values(path):
    """Labels of an npy file, or all bytes after the header of a safetensors file as f32."""
    content = path.read_bytes()
    if path.suffix == ".npy":
        return array.array("i", content[10 + int.from_bytes(content[8:10], "little"):])
    return array.array("f", content[8 + int.from_bytes(content[:8], "little"):])


def killed(limit):
    images = pictures("few", 200, 64)
    common = ["--image-size", "64", "--k", "10", "--batch", "32", "--shard-images", "64", "--seed", "5"]
    calm, volume = WORK / "calm-volume", WORK / "killed-volume"
    deepcluster(*train_flags(images, calm, DEVICE, 4, *common), limit=limit)
    plan = [(0, "extract", "deepcluster-extractor"), (1, "cluster", "deepcluster-clusterer"), (2, "train", "deepcluster-trainer"), (3, "train", "deepcluster-coordinator")]
    flags = [str(word) for word in train_flags(images, volume, DEVICE, 4, *common, "--json")]
    process = subprocess.Popen([PROGRAMS / "deepcluster", *flags], stdout=subprocess.PIPE, text=True, start_new_session=True)
    n_killed = 0
    # A run that hangs says nothing more that could be waited for.
    timer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    for line in process.stdout:
        event = json.loads(line)
        if plan and event["event"] == "phase" and (event["epoch"], event["phase"]) == plan[0][:2]:
            for pid in processes(plan.pop(0)[2], volume):
                os.kill(pid, signal.SIGKILL)
                n_killed += 1
    timer.cancel()
    if process.wait() or plan:
        raise RuntimeError(f"the run ended with {process.returncode} after {n_killed} kills")
    row("services killed with SIGKILL, and the run completes", n_killed)
    for name in ("labels.npy", "checkpoint.safetensors"):
        one, two = (folder / "runs/run-0001/epochs/0003" / name for folder in (calm, volume))
        if one.read_bytes() == two.read_bytes():
            row(f"{name} of the last epoch, undisturbed and killed", "the same bytes")
            continue
        one, two = values(one), values(two)
        if name == "labels.npy":
            row(f"{name}: equal labels", sum(a == b for a, b in zip(one, two)) / max(len(one), 1))
        else:
            row(f"{name}: largest difference", max((abs(a - b) for a, b in zip(one[::101], two[::101])), default=0.0), "of every 101st weight")


def gpu_memory():
    try:
        text = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10).stdout
    except OSError:
        return {}
    return {int(pid): int(mib) for pid, mib in re.findall(r"(\d+), (\d+)", text)}


def memory(limit):
    run([PROGRAMS / "deepcluster-trainer", "--check-device", DEVICE], 60)
    row(f"--check-device {DEVICE}", "is there")
    images, volume = pictures("few", 200, 64), WORK / "memory-volume"
    flags = [str(word) for word in train_flags(images, volume, DEVICE, 2, "--image-size", "64", "--k", "10", "--batch", "32")]
    process = subprocess.Popen([PROGRAMS / "deepcluster", *flags], stdout=subprocess.DEVNULL, start_new_session=True)
    resident, on_gpu, end = {}, {}, time.monotonic() + limit
    while process.poll() is None:
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"took longer than {limit} s")
        in_use = gpu_memory() if ON_GPU else {}
        for program in ("coordinator", "extractor", "clusterer", "trainer"):
            for pid in processes(f"deepcluster-{program}", volume):
                on_gpu[program] = max(on_gpu.get(program, 0), in_use.get(pid, 0))
                try:
                    status = pathlib.Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                peak = re.search(r"VmHWM:\s+(\d+)", status)
                resident[program] = max(resident.get(program, 0), int(peak[1]) // 1024 if peak else 0)
        time.sleep(0.2)
    for program, mib in resident.items():
        row(f"{program}: peak resident memory, MiB", mib, f"on the GPU {on_gpu[program]} MiB" if ON_GPU else "")
    folder = WORK / "metric-volume"
    folder.mkdir()
    service = subprocess.Popen([PROGRAMS / "deepcluster-trainer", "--volume", folder, "--listen", "127.0.0.1:17373", "--metrics", "127.0.0.1:17374"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(8 if ON_GPU else 3)
        text = urllib.request.urlopen("http://127.0.0.1:17374/metrics", timeout=10).read().decode()
    finally:
        service.kill()
        service.wait()
    found = re.findall(r"^deepcluster_gpu_memory_bytes\S* (\S+)", text, re.M)
    row("metric deepcluster_gpu_memory_bytes", found[0] if found else "absent", "" if ON_GPU else "as it should be without a GPU")
    if ON_GPU and not found:
        raise RuntimeError("the metric of the GPU's memory is absent")


def large_pictures():
    folder = KIT / "photos"
    if not folder.is_dir():
        folder = pictures("large", 40 if SMALL else 200, 96 if SMALL else 512, "--jpeg")
    files, shown, many = sorted(path for path in folder.rglob("*") if path.is_file()), 40 if SMALL else 4000, WORK / "many"
    for n in range(shown):
        target = many / str(n % 10) / f"{n}{files[n % len(files)].suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(files[n % len(files)], target)
    return many, shown


def rates(limit):
    images, shown = large_pictures()
    size, batch = (64, 16) if SMALL else (224, 256)
    failed = []
    for arch in ["alexnet"] if SMALL else ["alexnet", "vgg16", "resnet50"]:
        volume = WORK / "rates-volume"
        flags = train_flags(images, volume, DEVICE, 2, "--image-size", size, "--k", "20", "--batch", batch, "--arch", arch, "--precision", PRECISION, "--pca", "64", "--lr", "0.01")
        try:
            deepcluster(*flags, limit=limit)
            first, second = events(volume, "epoch")
            row(f"{arch}: extraction from JPEGs, images a second", round(shown / first["extract_s"]))
            row(f"{arch}: extraction from the cache, images a second", round(shown / second["extract_s"]))
            row(f"{arch}: training from the cache, images a second", round(2 * shown / (first["train_s"] + second["train_s"])))
        except Exception as error:
            failed.append(f"{arch}: {error}")
        finally:
            shutil.rmtree(volume, ignore_errors=True)
        try:
            text = run([sys.executable, KIT / "peer_rates.py", images, arch, size, batch, DEVICE], limit)
            for name, rate in json.loads(text.splitlines()[-1]).items():
                row(f"{arch}, {name}, images a second", rate if isinstance(rate, str) else round(rate))
        except Exception as error:
            why = str(error).strip().splitlines()[-1][-200:]
            row(f"{arch}: the PyTorch program", "left out", why)
            if importlib.util.find_spec("torch"):
                failed.append(f"{arch}, the PyTorch program: {why}")
    if failed:
        raise RuntimeError("; ".join(failed))


def clustering(limit):
    rows_of, k = (3000, 30) if SMALL else (200_000, 10_000)
    text = run([PROGRAMS / "parity-clustering", "memory_stays_bounded", "--ignored", "--nocapture"], limit, ROWS=str(rows_of), K=str(k))
    for part, seconds, rate in re.findall(r"^(PCA|k-means): ([\d.]+) s, (\d+) GFLOP/s", text, re.M):
        row(f"{part} on the CPU of {rows_of} x 4096, k = {k}: seconds", float(seconds), f"{rate} GFLOP/s")
    row("the same by faiss's GPU half", "left out", "the clusterer of this kit is built without it: it does not fit")
    row("k-means of 1.28 million x 256, k = 10,000", "left out", "minutes without faiss's GPU half")


def together(limit):
    images, volume = pictures("few", 200, 64), WORK / "together-volume"
    flags = train_flags(images, volume, DEVICE, 2, "--image-size", "64", "--k", "10", "--batch", "32", "--shard-images", "32", "--extractors", "2")
    deepcluster(*flags, limit=limit)
    found = events(volume, "epoch")
    row("two extractors and the trainer on one device: epochs", len(found), f"loss {series(found, 'loss')}")


# Limits in seconds of each command of a step; the steps together take at most eight minutes where all goes well.
STEPS = [
    ("1 parity with PyTorch", parity, 90),
    ("2 demo", demo, 60),
    ("3 SIGKILL", killed, 60),
    ("4 device and memory", memory, 40),
    ("5 rates", rates, 60),
    ("6 clustering", clustering, 90),
    ("7 services together", together, 40),
]
EIGHT_MINUTES = 480

card = "no GPU"
try:
    card = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20).stdout.strip() or card
except (OSError, subprocess.TimeoutExpired):
    pass
start, failures = time.monotonic(), {}
# Without a GPU, nobody waits for a machine that is lent for minutes.
deadline = start + EIGHT_MINUTES * (1 if ON_GPU else 4)
for step_name, step, limit in STEPS:
    left = EIGHT_MINUTES - (time.monotonic() - start)
    print(f"{step_name} ({left:.0f} s left)", flush=True)
    try:
        if left < 10:
            raise RuntimeError("no time was left")
        step(min(limit * (4 if not ON_GPU else 1), left))
    except Exception as error:
        failures[step_name] = str(error)
        row("FAILED", str(error)[-600:])
OUT.mkdir(parents=True, exist_ok=True)
results = {"device": DEVICE, "card": card, "seconds": round(time.monotonic() - start), "failed": failures, "rows": rows}
(OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
print(f"\n{card}, {DEVICE}, {results['seconds']} s\n\n| step | measure | value | |\n|---|---|---|---|")
for found in rows:
    print(f"| {found['step']} | {found['what']} | {found['value']} | {found['note']} |")
print(f"\n{len(failures)} of {len(STEPS)} steps failed" if failures else f"\nall {len(STEPS)} steps passed")
sys.exit(1 if failures else 0)
