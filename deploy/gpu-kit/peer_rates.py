"""Rates of a PyTorch program on the same pictures, and of the bare network on a batch that stays on the device.

    peer_rates.py IMAGES ARCH SIZE BATCH DEVICE     prints one JSON object: images a second
"""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import time
import types

import torch
import torch.nn.functional as F

images, arch, size, batch, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), torch.device(sys.argv[5])
# Clustering is not measured here, and need not be installed.
for package, modules in {"faiss": ["faiss"], "sklearn": ["sklearn", "sklearn.metrics"]}.items():
    if importlib.util.find_spec(package) is None:
        for name in modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name].normalized_mutual_info_score = None
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms as T

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here / "peer"))
from deepcluster_torch import MEAN, STD, Net

torch.backends.cudnn.benchmark = True
sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
cast = lambda: torch.autocast(device.type, dtype=torch.bfloat16)
if arch == "resnet50":
    net = models.resnet50(num_classes=1000)
    embed = forward = net
else:
    net = Net(arch, True, size)
    net.head = torch.nn.Linear(4096, 1000)
    embed, forward = net.embed, net
net = net.to(device).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD([weight for weight in net.parameters() if weight.requires_grad], 0.001, 0.9)


def extract(x):
    with torch.inference_mode(), cast():
        return embed(x).float().cpu()


def step(x, y):
    with cast():
        loss = F.cross_entropy(forward(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def rate(batches, work, seconds=6.0):
    """Images a second over whole batches, after two to warm up."""
    done, start = 0, None
    for n, arguments in enumerate(batches):
        if n == 2:
            sync()
            start = time.perf_counter()
        work(*arguments)
        if start is not None:
            done += len(arguments[0])
            if time.perf_counter() - start > seconds:
                break
    sync()
    return done / (time.perf_counter() - start) if done else float("nan")


def resident():
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(1000, (batch,), device=device)
    for _ in range(1000):
        yield x, y


def loaded(transform):
    data = datasets.ImageFolder(images, transform)
    workers = min(16, torch.get_num_threads())
    for x, y in DataLoader(data, batch_size=batch, num_workers=workers, pin_memory=device.type == "cuda", drop_last=True):
        yield x.to(device, non_blocking=True).to(memory_format=torch.channels_last), y.to(device, non_blocking=True)


norm = T.Normalize(MEAN, STD)
plain = T.Compose([T.Resize(size * 256 // 224), T.CenterCrop(size), T.ToTensor(), norm])
augment = T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ToTensor(), norm])
found = {}
net.eval()
found["bare forward in PyTorch"] = rate(resident(), lambda x, y: extract(x))
found["extraction from JPEGs by the PyTorch program"] = rate(loaded(plain), lambda x, y: extract(x))
net.train()
found["bare step in PyTorch"] = rate(resident(), step)
found["training from JPEGs by the PyTorch program"] = rate(loaded(augment), step)
print(json.dumps({name: value if value == value else "too few pictures" for name, value in found.items()}))
