"""Export a run as one ONNX file that generates anywhere, or in another program's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from picogpt.commands.options import parse
from picogpt.config import Precision
from picogpt.errors import UserError
from picogpt.evaluation.quantization import quantization_loss
from picogpt.inference.engines import export_checkpoint
from picogpt.inference.onnx.metadata import external_files
from picogpt.inference.onnx.session import why_unavailable
from picogpt.interop.export_model import Format, export_model
from picogpt.runs.find import newest_run, use_checkpoint
from picogpt.system.terminal import to_stderr


@dataclass(frozen=True)
class ExportArgs:
    """Export a run as one ONNX file that generates anywhere, logs/RUN/model.onnx, or in another program's format."""

    run: str = ""
    """A run in logs/, or its path. Default: the newest run."""
    format: Literal["onnx", Format] = "onnx"
    """huggingface: config.json and model.safetensors, as GPT-2 or GPT-Neo; dat: a folder for demo-gpt-java;
    picogpt: a log.pkl for PicoGPT; compact: a checkpoint in a quarter of the bytes, to hand on or to fine-tune.
    A model that the format cannot hold is refused."""
    out: str = ""
    """Where to write a format other than ONNX: a new folder, or for picogpt a new file."""
    precision: Precision = "fp32"
    """Precision of the weight matrices. For int8 and int4, the loss of quality is measured."""
    portable: bool = False
    """Use only standard operators, for runtimes other than ONNX Runtime, in which it is then slower."""


def run(argv: Sequence[str]) -> None:
    """Export the run that the options name. Raises UserError for a problem the user can solve."""
    args = parse(ExportArgs, "picogpt export", argv)
    if args.format != "onnx":
        _export_foreign(args, args.format)
        return
    if args.out:
        raise UserError("--out is for other formats, an ONNX file goes to logs/RUN/model.onnx: leave it out")

    place, path = use_checkpoint(
        args.run or newest_run(),
        lambda place: (place, export_checkpoint(place, args.precision, args.portable)),
        to_stderr,
    )
    files = [path, *external_files(path)]
    size = sum(file.stat().st_size for file in files) / 1e6
    beside = f" in {len(files)} files, {files[1].name} beside it" if files[1:] else ""
    print(f"wrote {path}: {args.precision}{', portable' * args.portable}, {size:,.1f} MB{beside}")
    if args.precision != "fp32":
        reason = why_unavailable()
        print(f"the loss of quality was not measured: {reason}" if reason else quantization_loss(place, path, print))


def _export_foreign(args: ExportArgs, form: Format) -> None:
    if args.precision != "fp32" or args.portable:
        raise UserError("--precision and --portable are for ONNX files: leave them out, or --format")
    if not args.out:
        raise UserError(f"--format {form} needs a place to write to: give --out PATH")
    run = args.run or newest_run()
    export_model(run, form, Path(args.out), to_stderr)
    print(f"wrote {args.out}: run {run} in the format {form}")
