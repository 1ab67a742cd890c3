"""Runs the originals of airbench94 and ResNet-20 on a CPU in float64, and stores what they compute.

Command: python -m tests.experiments.originals.make AIRBENCH_CHECKOUT RESNET_CHECKOUT

The arguments are folders with these repositories. The stored arrays come from these commits, and
from PyTorch 2.13.0 and torchvision:

- https://github.com/KellerJordan/cifar10-airbench at f1c599c4af24aca803e3e65a6a7e52a502e09d0e,
  `legacy/airbench94.py`, the uncompiled script of https://arxiv.org/abs/2404.00498.
- https://github.com/akamaster/pytorch_resnet_cifar10 at d5489e8995e81e91ce6b1d69dcc98ad579b0b153,
  `trainer.py` and `resnet.py`.

Each original runs its own `main` from start to end. Four things are changed: all that asks for a
GPU does nothing; 16 and 32 bits become 64; the images are few and not augmented; initial weights
are rounded, so that they take little space and are exact in every dtype.
"""

import contextlib
import copy
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from tests.experiments.originals import Original, sample, save

torch: Any = importlib.import_module("torch")

Data = tuple[np.ndarray, np.ndarray]
"""Images and labels."""

AIRBENCH: dict[str, Any] = {
    "opt": {
        "train_epochs": 4.5,
        "batch_size": 8,
        "lr": 184.0,
        "weight_decay": 0.2448,
        "whiten_bias_epochs": 2,
    },
    "aug": {"flip": False, "translate": 0},
    "net": {"widths": {"block1": 8, "block2": 12, "block3": 16}},
}
"""Settings of airbench94 that the stored run changes. Batches are small, so rates are larger."""

RESNET = {"epochs": 8, "batch_size": 4}
"""Settings of ResNet-20 that the stored run changes."""

RESNET_SETTINGS = (
    *("arch", "epochs", "batch_size", "lr", "momentum", "weight_decay", "milestones", "padding"),
)
"""Settings of ResNet-20 that are stored."""


def main(airbench: Path, resnet: Path) -> None:
    """Runs both originals and stores their runs."""
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    save("airbench94", run_airbench(airbench, make_images(26, 32), make_images(6, 32, seed=1)))
    save("resnet20", run_resnet(resnet, make_images(8, 12), make_images(6, 12, seed=1)))


def make_images(count: int, size: int, seed: int = 0) -> Data:
    """Returns images `[count, size, size, 3]` and labels.

    An image is the pattern of its class and noise. Its pixels have four values, so it takes little
    space.
    """
    patterns = np.random.RandomState(2).randint(0, 3, (10, 4, 4, 3))
    random = np.random.RandomState(seed)
    labels = random.randint(0, 10, count)
    pattern = patterns[labels].repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    noise = random.randint(0, 2, pattern.shape)
    return (85 * (pattern + noise)).astype(np.uint8), labels


class Recorder:
    """Records the losses and the learning rates of all training steps while it is entered."""

    def __init__(self):
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records every loss whose gradient is asked for, and every step of an optimizer."""
        criterion = torch.nn.CrossEntropyLoss
        forward = criterion.forward
        hooks = importlib.import_module("torch.optim.optimizer")

        def record_loss(module, *args):
            loss = forward(module, *args)
            if torch.is_grad_enabled():
                self.losses.append(loss.detach().sum().item())
            return loss

        def record_rates(optimizer, *_):
            self.rates.append([group["lr"] for group in optimizer.param_groups])

        handle = hooks.register_optimizer_step_pre_hook(record_rates)
        with mock.patch.object(criterion, "forward", record_loss):
            yield
        handle.remove()

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what was recorded."""
        return {"losses": np.array(self.losses), "rates": np.array(self.rates)}


@contextlib.contextmanager
def on_cpu_in_float64() -> Iterator[None]:
    """Keeps tensors and modules on the CPU, and turns requests for 16 or 32 bits into 64."""
    with contextlib.ExitStack() as stack:
        for kind in (torch.Tensor, torch.nn.Module):
            for name in ("half", "float"):
                stack.enter_context(mock.patch.object(kind, name, kind.double))
            stack.enter_context(mock.patch.object(kind, "cuda", lambda self: self))
        yield


@contextlib.contextmanager
def in_empty_folder() -> Iterator[Path]:
    """Works in a new folder, which is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield Path(folder)


def load_module(name: str, path: Path) -> ModuleType:
    """Imports a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def arrays_of(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns copies of the floating point tensors of a `state_dict`."""
    return {k: v.numpy().copy() for k, v in tensors.items() if v.is_floating_point()}


def named(kind: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the kind to the names."""
    return {f"{kind}/{name}": array for name, array in arrays.items()}


class Torch(SimpleNamespace):
    """PyTorch as airbench94 sees it, which names devices and dtypes of its own."""

    half = float = torch.float64

    def __init__(self):
        self.orders: list[np.ndarray] = []
        event = SimpleNamespace(record=lambda: None, elapsed_time=lambda _: 0.0)
        self.cuda = SimpleNamespace(Event=lambda **_: event, synchronize=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, *_) -> Any:
        """Returns the CPU."""
        return torch.device("cpu")

    def randperm(self, *args, **options) -> Any:
        """Returns and records a random order."""
        order = torch.randperm(*args, **options)
        self.orders.append(order.numpy())
        return order


def run_airbench(checkout: Path, train: Data, test: Data) -> Original:
    """Runs airbench94 and returns its run."""
    module: Any = load_module("airbench94", checkout / "legacy" / "airbench94.py")
    published = copy.deepcopy(module.hyp)
    for part, settings in AIRBENCH.items():
        module.hyp[part].update(settings)
    module.torch = Torch()
    made: dict[str, Any] = {}
    make_net, lookahead = module.make_net, module.LookaheadState
    initialize = module.init_whitening_conv

    def make_rounded_net():
        net = make_net()
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(torch.float16))
        made.update(net=net, initial=arrays_of(net.state_dict()))
        return net

    def initialize_and_record(layer, *args):
        initialize(layer, *args)
        made["whitening"] = layer.weight.detach().numpy().copy()

    class Lookahead(lookahead):
        def update(self, net, decay):
            made.update(fast=arrays_of(net.state_dict()), slow=self.net_ema)
            super().update(net, decay)

    module.make_net, module.LookaheadState = make_rounded_net, Lookahead
    module.init_whitening_conv = initialize_and_record
    recorder = Recorder()
    torch.manual_seed(0)
    with in_empty_folder(), on_cpu_in_float64():
        os.mkdir("cifar10")
        for name, (images, labels) in (("train", train), ("test", test)):
            content = {"images": torch.tensor(images), "labels": torch.tensor(labels)}
            torch.save({**content, "classes": list("0123456789")}, f"cifar10/{name}.pt")
        with recorder.recording():
            module.main(run=0)
        loader = module.CifarLoader("cifar10", train=False)
        logits = {
            name: module.infer(made["net"], loader, level).numpy()
            for level, name in enumerate(("plain", "mirror", "mirror_shift"))
        }
    size, steps = module.hyp["opt"]["batch_size"], len(recorder.losses)
    orders = [order[: len(order) // size * size].reshape(-1, size) for order in module.torch.orders]
    return Original(
        published,
        module.hyp,
        {
            "images": train[0],
            "labels": train[1],
            "test_images": test[0],
            "mean": module.CIFAR_MEAN.numpy(),
            "std": module.CIFAR_STD.numpy(),
            "batches": np.concatenate(orders)[:steps],
            **recorder.arrays(),
            **named("initial", {k: v.astype(np.float16) for k, v in made["initial"].items()}),
            **named("fast", made["fast"]),
            **named("slow", arrays_of(made["slow"])),
            "whitening": made["whitening"],
            **named("logits", logits),
        },
    )


class Images:
    """A data set of PyTorch, which records the indices that it is asked for."""

    def __init__(self, content: Data, transform: Any):
        self.images, self.labels = content
        self.transform = transform
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.asked.append(index)
        return self.transform(self.images[index]), int(self.labels[index])


def round_weights(net: Any) -> None:
    """Rounds kernels to a few multiples of a power of two, and other weights to 16 bits."""
    for tensor in net.state_dict().values():
        if tensor.ndim > 1:
            unit = 2.0 ** torch.log2(tensor.std()).ceil()
            tensor.copy_((tensor / unit).round() * unit)
        elif tensor.is_floating_point():
            tensor.copy_(tensor.to(torch.float16))


def run_resnet(checkout: Path, train: Data, test: Data) -> Original:
    """Runs ResNet-20 and returns its run.

    The learning rate drops at the same shares of the run as in the original.
    """
    sys.path.insert(0, str(checkout))
    trainer: Any = importlib.import_module("trainer")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in RESNET.items()]
    published = vars(trainer.parser.parse_args(["--arch=resnet20"]))
    made: dict[str, Any] = {}
    schedules, transforms = torch.optim.lr_scheduler, trainer.transforms
    make_net = trainer.resnet.resnet20
    multi_step, normalize = schedules.MultiStepLR, transforms.Normalize

    def make_rounded_net():
        net = make_net()
        round_weights(net)
        made.update(net=net, initial=arrays_of(net.state_dict()))
        return net

    def scaled_schedule(optimizer, milestones, **options):
        published["milestones"] = milestones
        share = RESNET["epochs"] / published["epochs"]
        made["milestones"] = [round(share * milestone) for milestone in milestones]
        return multi_step(optimizer, milestones=made["milestones"], **options)

    def recorded_normalize(mean, std):
        made.update(mean=np.array(mean), std=np.array(std))
        return normalize(mean, std)

    def data_set(transform, **options):
        kind, content = ("train", train) if options["train"] else ("test", test)
        made[kind] = Images(content, transform)
        return made[kind]

    def no_flip():
        return lambda image: image

    def no_crop(_, padding):
        published["padding"] = padding
        return lambda image: image

    recorder = Recorder()
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_empty_folder())
        stack.enter_context(on_cpu_in_float64())
        for place, name, replacement in (
            (trainer.resnet, "resnet20", make_rounded_net),
            (schedules, "MultiStepLR", scaled_schedule),
            (transforms, "Normalize", recorded_normalize),
            (transforms, "RandomHorizontalFlip", no_flip),
            (transforms, "RandomCrop", no_crop),
            (trainer.datasets, "CIFAR10", data_set),
            (sys, "argv", ["trainer.py", "--arch=resnet20", "--workers=0", *options]),
        ):
            stack.enter_context(mock.patch.object(place, name, replacement))
        stack.enter_context(recorder.recording())
        trainer.main()
    net, size = made["net"], RESNET["batch_size"]
    net.eval()
    with torch.no_grad():
        x = torch.stack([made["test"][index][0] for index in range(len(test[1]))])
        logits = net(x).numpy()
    final = arrays_of(net.state_dict())
    used = {**vars(trainer.args), "milestones": made["milestones"], "padding": 0}
    published, used = ({k: full[k] for k in RESNET_SETTINGS} for full in (published, used))
    return Original(
        published,
        used,
        {
            "images": train[0],
            "labels": train[1],
            "test_images": test[0],
            "mean": made["mean"],
            "std": made["std"],
            "batches": np.array(made["train"].asked).reshape(-1, size),
            **recorder.arrays(),
            **named("initial", {k: v.astype(np.float16) for k, v in made["initial"].items()}),
            **named("fast", {k: sample(v) for k, v in final.items()}),
            "logits/plain": logits,
        },
    )


if __name__ == "__main__":
    main(*(Path(argument).absolute() for argument in sys.argv[1:]))
