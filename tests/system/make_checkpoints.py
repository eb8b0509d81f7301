"""Files as torch.save writes them, of the weights of a safetensors file, without torch: the same pickles and archives.

    make_checkpoints.py WEIGHTS.safetensors FOLDER
"""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
from safetensors.numpy import load_file

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


def module(name, **members):
    made = types.ModuleType(name)
    for key, value in members.items():
        value.__module__ = name
        value.__qualname__ = key
        setattr(made, key, value)
    sys.modules[name] = made


def _rebuild_tensor_v2(*arguments):
    raise AssertionError("only named, never called")


def _rebuild_parameter(*arguments):
    raise AssertionError("only named, never called")


def system(*arguments):
    raise AssertionError("only named, never called")


module("torch._utils", _rebuild_tensor_v2=_rebuild_tensor_v2, _rebuild_parameter=_rebuild_parameter)
module("torch", **{name: type(name, (), {}) for name in STORAGES.values()})


class Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


class Tensor:
    def __init__(self, array, is_parameter=False, transposed=False):
        self.array, self.is_parameter, self.transposed = array, is_parameter, transposed


class Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.arrays = []

    def persistent_id(self, value):
        if isinstance(value, Storage):
            kind = getattr(sys.modules["torch"], STORAGES[str(value.array.dtype)])
            return ("storage", kind, value.key, "cpu", value.array.size)
        return None

    def reducer_override(self, value):
        if not isinstance(value, Tensor):
            return NotImplemented
        array = np.ascontiguousarray(value.array)
        stride = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
        if value.transposed:
            # The same values, stored with the first axis last, as channels-last and t() leave them.
            stored = np.ascontiguousarray(np.moveaxis(array, 0, -1))
            strides = [int(np.prod(stored.shape[axis + 1 :])) for axis in range(stored.ndim)]
            array_shape, stride, array = array.shape, tuple([strides[-1], *strides[:-1]]), stored
        else:
            array_shape = array.shape
        key = str(len(self.arrays))
        self.arrays.append(array)
        arguments = (Storage(array, key), 0, tuple(array_shape), stride, False, collections.OrderedDict())
        if value.is_parameter:
            return _rebuild_parameter, (Tensor(value.array), True, collections.OrderedDict())
        return _rebuild_tensor_v2, arguments


def save(path, value):
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", buffer.getvalue())
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, array in enumerate(pickler.arrays):
            archive.writestr(f"{path.stem}/data/{key}", array.tobytes())
        archive.writestr(f"{path.stem}/version", "3\n")


weights = {name: array for name, array in load_file(sys.argv[1]).items() if array.dtype == np.float32}
folder = pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)


def tensors(prefix="", **how):
    named = collections.OrderedDict((prefix + name, Tensor(array, **how)) for name, array in weights.items())
    named[prefix + "bn1.num_batches_tracked"] = Tensor(np.array(7, dtype=np.int64))
    return named


noise = collections.OrderedDict((f"module.encoder_k.{name}", Tensor(array * 0 + 1)) for name, array in weights.items())
head = {"module.encoder_q.fc.0.weight": Tensor(np.zeros((2, 3), np.float32))}
save(folder / "plain.pth", tensors())
save(folder / "channels-last.pt", tensors(transposed=True))
save(folder / "moco.pth.tar", {"epoch": 200, "arch": "resnet18", "state_dict": {**noise, **tensors("module.encoder_q."), **head}, "optimizer": {"state": {0: {"momentum_buffer": Tensor(np.zeros(3, np.float32))}}, "param_groups": [{"lr": 0.03, "params": [0, 1]}]}})
save(folder / "dino.pth", {"student": {"module.backbone." + name: Tensor(array * 0) for name, array in weights.items()}, "teacher": tensors("backbone."), "epoch": 3})
save(folder / "lightly.ckpt", {"state_dict": tensors("backbone.", is_parameter=True), "pytorch-lightning_version": "2.0"})
save(folder / "nothing.pth", {"epoch": 3, "metrics": [0.5, 0.75]})
with zipfile.ZipFile(folder / "script.pt", "w") as archive:
    archive.writestr("script/data.pkl", b"\x80\x02}.")
    archive.writestr("script/constants.pkl", b"\x80\x02).")
(folder / "old.pth").write_bytes(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.")
(folder / "cut.pth").write_bytes((folder / "plain.pth").read_bytes()[:5000])
