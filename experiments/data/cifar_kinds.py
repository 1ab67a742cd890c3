"""CIFAR-10 and CIFAR-100: names and sizes of their files."""

from dataclasses import dataclass

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
PIXELS = 3 * 32 * 32
SITE = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Version:
    """One of the two official archives: binary files, or Python's pickles."""

    archive: str
    md5: str
    folder: str
    """Name of the folder in the archive."""
    train: tuple[str, ...]
    """Names of the files with training images."""
    test: str
    """Name of the file with test images."""
    names: str
    """Name of the file with the classes' names."""

    @property
    def images(self) -> tuple[str, ...]:
        """Names of all files with images."""
        return (*self.train, self.test)


@dataclass(frozen=True)
class Kind:
    """CIFAR-10 or CIFAR-100."""

    name: str
    classes: int
    train_records: int
    """Number of images in each file with training images."""
    test_records: int
    """Number of test images."""
    labels: int
    """Number of labels in a binary record, of which the last is used."""
    labels_key: bytes
    """Key of the labels in the pickles."""
    names_key: bytes
    """Key of the classes' names in the pickles."""
    binary: Version
    python: Version


KINDS = {
    "cifar10": Kind(
        name="CIFAR-10",
        classes=10,
        train_records=10_000,
        test_records=10_000,
        labels=1,
        labels_key=b"labels",
        names_key=b"label_names",
        binary=Version(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
        ),
        python=Version(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test="test_batch",
            names="batches.meta",
        ),
    ),
    "cifar100": Kind(
        name="CIFAR-100",
        classes=100,
        train_records=50_000,
        test_records=10_000,
        labels=2,
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
        binary=Version(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            names="fine_label_names.txt",
        ),
        python=Version(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test="test",
            names="meta",
        ),
    ),
}
