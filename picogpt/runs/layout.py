"""The names of the folders and files of a run."""

from pathlib import Path

LOGS, DATASET = Path("logs"), Path("dataset")
ONNX = "model.onnx"
LOG, PICTURE = "log.pkl", "log.png"
CHECKPOINTS = "checkpoints"
LOCK, OWNER = ".lock", ".owner.json"
TENSORBOARD = "tensorboard"  # folder of a run
BASE = "base"  # the model that comes with picogpt
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"


def onnx_path(place: Path) -> Path:
    """Return the ONNX file of a checkpoint: in its run's folder, or in its own folder where it is in no run.

    That of a model that comes with picogpt is in the folder that a run of its name has: a program writes nothing beside
    its own source.
    """
    if place.resolve().parent == PRETRAINED:
        return LOGS / place.name / ONNX
    return (place.parent.parent if place.parent.name == CHECKPOINTS else place) / ONNX
