"""The names of the folders and files of a run."""

from pathlib import Path

LOGS, DATASET = Path("logs"), Path("dataset")
ONNX = "model.onnx"
LOG, PICTURE = "log.pkl", "log.png"
CHECKPOINTS = "checkpoints"
LOCK, OWNER = ".lock", ".owner.json"
TENSORBOARD = "tensorboard"  # folder of a run


def onnx_path(place: Path) -> Path:
    """Return the ONNX file of a checkpoint: in its run's folder, or in its own folder where it is in no run."""
    return (place.parent.parent if place.parent.name == CHECKPOINTS else place) / ONNX
