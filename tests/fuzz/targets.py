"""What is fuzzed: each parser with valid inputs to begin from. Anything but the errors it may raise is a finding."""

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console

from picogpt.config import DataConfig, GenerateConfig, ModelConfig, RunConfig, TrainConfig
from picogpt.config.presets import PRESETS
from picogpt.data.shards import reader
from picogpt.data.shards.index import INDEX, write_index
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.datasets import dataset_named
from picogpt.data.sources.formats import Columns, documents, open_parquet, row_group, size_of
from picogpt.data.streaming.plan import StreamStatus, read_status
from picogpt.data.token_folder import read_tokenizer
from picogpt.data.unknown import Unknown, read_unknown
from picogpt.errors import UserError
from picogpt.inference.onnx.checksums import append_checksum, check_checksum
from picogpt.inference.onnx.metadata import read_metadata
from picogpt.reports.page import page
from picogpt.reports.run_view import run_view
from picogpt.reports.summary import Summary
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.layout import CHECKPOINTS
from picogpt.runs.log import Evaluation, RunLog, read_log
from picogpt.system.checksums import with_checksum, without_checksum
from picogpt.tensorfiles.pickle_reader import loads
from picogpt.tensorfiles.torch_files import read_torch
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer
from picogpt.tokenizers.registry import from_dict
from tests.fuzz import interop
from tests.fuzz.hub import headers, listing, listings
from tests.fuzz.target import Target, as_json, parsed, watched
from tests.support import vocabularies
from tests.support.vocabularies import small_bpe

# Pickles and seals


def unpickle(folder: Path, data: bytes) -> None:
    watched(lambda: loads(data))


def log(folder: Path, data: bytes) -> None:
    path = folder / "log.pkl"
    path.write_bytes(data)
    found = read_log(path)
    Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80).print(run_view(Summary("name", found)))
    assert page([Summary("name", found), Summary("other", found)])
    RunLog.open(path, {}).save()


def logs(folder: Path) -> list[bytes]:
    made = RunLog.open(folder / "seed.pkl", RunConfig().to_dict())
    for step in range(3):
        made.evaluation(Evaluation(step, 2.5, 3.0 if step else None, tokens=5, sample="text é"))
    made.notice("something")
    made.save()
    content = pickle.loads(without_checksum((folder / "seed.pkl").read_bytes()))
    small = {"losses": content["losses"], "evaluations": content["evaluations"][:1], "notices": content["notices"]}
    pickles = [pickle.dumps(value, protocol) for value in (content, small) for protocol in range(6)]
    return [*pickles, with_checksum(pickles[-1])]


def seal(folder: Path, data: bytes) -> None:
    assert without_checksum(with_checksum(data)) == data
    path = folder / "file"
    path.write_bytes(data)
    with suppress(ValueError):
        check_checksum(path)
    append_checksum(path)
    check_checksum(path)
    without_checksum(data)


# Settings and tokenizers


def config(folder: Path, data: bytes) -> None:
    value = parsed(data)
    for kind in (RunConfig, ModelConfig):
        with suppress(UserError):
            kind.from_dict(value)
    if isinstance(value, dict):
        for kind in (DataConfig, TrainConfig, GenerateConfig):
            with suppress(UserError, TypeError):  # the second for names that are none
                kind(**value)


def configs(folder: Path) -> list[bytes]:
    runs = [preset.to_dict() for preset in PRESETS.values()]
    return as_json(*runs, runs[0]["model"], runs[0]["data"], runs[0]["train"], asdict(GenerateConfig()))


def sizes(folder: Path, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with suppress(UserError):
        DataConfig(data_limit=text)
    with suppress(UserError):
        DataConfig(text, qa=text, text_field=text)
    dataset_named(text)


def tokenizer(folder: Path, data: bytes) -> None:
    with suppress(UserError):
        found = from_dict(parsed(data))
        found.decode(found.encode_marked("some text <Q> é"))
    (folder / "tokenizer.json").write_bytes(data)
    read_tokenizer(folder)


def bpe(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    use_bpe(BpeTokenizer.open(folder / "tokenizer.json"))


def bpe_tables(folder: Path, data: bytes) -> None:
    """vocab.json, a NUL, and merges.txt."""
    vocab, _, merges = data.partition(b"\0")
    (folder / "vocab.json").write_bytes(vocab)
    (folder / "merges.txt").write_bytes(merges)
    use_bpe(BpeTokenizer.open(folder))


def use_bpe(found: BpeTokenizer) -> None:
    text = "the shell <|endoftext|> é\ud800"
    ids = found.encode_marked(text)
    found.decode(ids)
    found.text_size(ids)
    marked = found.with_marks()
    assert marked.mark("<Q>") is not None and marked.encode_parts([text]).tolist() == found.encode(text).tolist()
    from_dict(found.to_dict())


def unknown(folder: Path, data: bytes) -> None:
    (folder / "unknown.json").write_bytes(data)
    found = read_unknown(folder)
    with suppress(UserError):
        found.require_little(PicoTokenizer(), is_given=False, is_allowed=False)


def vocabulary_files(folder: Path) -> list[bytes]:
    vocab, merges = vocabularies.tables()
    return [json.dumps(vocab).encode() + b"\0" + merges.encode()]


# Shards


IDS = np.arange(10, dtype=np.uint16)


def made_shards(folder: Path) -> Path:
    place = folder / "tokens"
    if not place.exists():
        with ShardWriter(place, np.uint16, "vocabulary", "corpus") as writer:
            writer.append(IDS, ("file", 3))
            writer.seal(("file", 3))
    return place


def index(folder: Path, data: bytes) -> None:
    place, value = made_shards(folder), parsed(data)
    if isinstance(value, dict):
        value.pop("sha256", None)
        write_index(place, value)
    else:
        (place / INDEX).write_bytes(data)
    found = reader.Shards(place, "vocabulary")
    found.read(0, len(found))


def shard(folder: Path, data: bytes) -> None:
    place = made_shards(folder)
    (place / "00000.bin").write_bytes(data)
    found = reader.Shards(place, "vocabulary")
    found.read(0, len(found))


# Weights


def weights(folder: Path, data: bytes) -> None:
    from tests.support.checkpoints import forge, save

    place = folder / "run"
    if not place.exists():
        save(place, 1)
    at = place / CHECKPOINTS / "00000001"
    forge(at, data)
    checkpoints.latest(place)
    checkpoints.load(at)


def containers(folder: Path) -> list[bytes]:
    import safetensors.numpy

    arrays = {"w": np.ones((2, 3), np.float32), "b": np.zeros(1, np.float32)}
    made = [
        safetensors.numpy.save(arrays),
        safetensors.numpy.save({}),
        safetensors.numpy.save(arrays, {"made": "here"}),
    ]
    return [*made, safetensors.numpy.save({"w": np.ones(2), "i": np.ones(3, np.int8)})]


def record(folder: Path, data: bytes) -> None:
    from tests.support.checkpoints import save

    place = folder / "run"
    if not place.exists():
        save(place, 1)
    at, value = place / CHECKPOINTS / "00000001", parsed(data)
    if isinstance(value, dict) and all(key in value for key in ("format", "step", "files", "meta")):
        with suppress(TypeError, ValueError, RecursionError):
            value["crc32"] = checkpoint._digest(value)
        data = json.dumps(value).encode()
    (at / checkpoint.META).write_bytes(data)
    checkpoints.best(place)
    checkpoints.load(at)


def records(folder: Path) -> list[bytes]:
    from tests.support.checkpoints import save

    return [(save(folder / "seed", 1) / checkpoint.META).read_bytes()]


def torch(folder: Path, data: bytes) -> None:
    (folder / "model.bin").write_bytes(data)
    for found in read_torch(folder / "model.bin").values():
        found.raw()


def torch_files(folder: Path) -> list[bytes]:
    from tests.support.torchfiles import save, tensor

    state = {"w": tensor(np.ones((2, 3), np.float32), transposed=True), "h": tensor(np.ones(4, np.float16))}
    packed = save(folder / "packed.bin", state, compression=zipfile.ZIP_DEFLATED)
    return [save(folder / "plain.bin", state).read_bytes(), packed.read_bytes()]


def modelfile(folder: Path, data: bytes) -> None:
    path = folder / "model.onnx"
    path.write_bytes(data)
    with suppress(ValueError):
        read_metadata(path)
    append_checksum(path)
    read_metadata(path)


def onnx_model(folder: Path, data: bytes) -> None:
    from picogpt.inference.onnx.session import OnnxModel, OnnxReader

    path = folder / "model.onnx"
    path.write_bytes(data)
    append_checksum(path)
    reader = OnnxReader(OnnxModel(path, 1))
    reader.read(np.array([[1, 2]]))
    reader.read(np.array([[1]]))


def described(folder: Path, data: bytes) -> None:
    """A sound graph that says other things of itself."""
    import onnx

    written, model = parsed(data), onnx.load_from_string(onnx_files(folder)[0])
    del model.metadata_props[:]
    if isinstance(written, dict):
        for key, value in written.items():
            with suppress(UnicodeEncodeError):
                model.metadata_props.add(key=key, value=json.dumps(value))
    onnx_model(folder, model.SerializeToString())


def descriptions(folder: Path) -> list[bytes]:
    path = folder / "seed.onnx"
    path.write_bytes(onnx_files(folder)[0])
    append_checksum(path)
    return as_json({key: json.loads(value) for key, value in read_metadata(path).items()})


@cache
def onnx_files(folder: Path) -> list[bytes]:
    from picogpt.inference.onnx.export import export
    from tests.support.models import lively_arrays

    model, found = ModelConfig(context_len=4, vocab_size=5, n_layer=1, n_head=1, n_embd=8), []
    for portable in (False, True):
        path = folder / "seed.onnx"
        export(path, model, lively_arrays(model), CharTokenizer("abcde"), portable=portable)
        found.append(path.read_bytes()[:-9])
    return found


# Text

SUFFIXES = ["", ".gz", ".bz2", ".xz", ".zst"]


def packed(suffix: str, raw: bytes) -> bytes:
    from tests.data.test_formats import COMPRESS

    return COMPRESS[suffix](raw)


def text(kind: str) -> Callable[[Path, bytes], None]:
    """Files of a kind; the first byte of an input says how it is packed."""

    def run(folder: Path, data: bytes) -> None:
        suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ""
        path = folder / f"file{kind}{suffix}"
        path.write_bytes(data[1:])
        for columns in (Columns(), Columns(qa=("text", "n"))):
            with suppress(UserError):
                for document in documents(path, columns):
                    for _ in document:
                        pass
        if kind == ".parquet" and not suffix:
            with path.open("rb") as file:
                table = open_parquet("name", file, Columns(), 8 << 20)
                for group in range(table.num_row_groups):
                    size_of(table, group)
                    for _ in row_group("name", table, group, Columns()):
                        pass

    return run


def packed_seeds(*raw: bytes) -> list[bytes]:
    return [bytes([i]) + packed(suffix, one) for i, suffix in enumerate(SUFFIXES) for one in raw]


def lines(folder: Path) -> list[bytes]:
    return packed_seeds(b'{"text": "one", "n": "two"}\n\n{"text": "three\\u00e9", "n": 5}\n', b'{"text": null}')


def tables(folder: Path) -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    found = []
    for options in (
        {},
        {"compression": "zstd", "use_dictionary": False},
        {"write_statistics": False, "version": "1.0"},
    ):
        table = pa.table({"n": ["a", "b", None], "text": ["one", "two", "three"], "l": [[1], [], [2, 3]]})
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink, row_group_size=2, **options)
        found.append(sink.getvalue().to_pybytes())
    return [b"\0" + one for one in found] + [b"\1" + packed(".gz", found[0])]


def status(folder: Path, data: bytes) -> None:
    (folder / "status.json").write_bytes(data)
    found = read_status(folder)
    assert found is None or (type(found.tokens) is int and "\n" not in found.text)


def seeds(*values: bytes) -> Callable[[Path], list[bytes]]:
    return lambda folder: list(values)


TARGETS = {
    "unpickle": Target(unpickle, logs, (ValueError,)),
    "log": Target(log, logs),
    "seal": Target(
        seal,
        seeds(with_checksum(b"text"), b"text\xfd\xff\xff\xff\x0f" + zlib.crc32(b"text").to_bytes(4, "little")),
        (ValueError,),
    ),
    "config": Target(config, configs, is_json=True),
    "sizes": Target(sizes, seeds(b"500MB", b"1.5 GiB", b"wiki:de", b"hf:a/b:c", b"question,response")),
    "tokenizer": Target(
        tokenizer,
        lambda _: as_json(
            PicoTokenizer().to_dict(), CharTokenizer("ab c").with_marks().to_dict(), IdsTokenizer(9, 8).to_dict()
        ),
        is_json=True,
    ),
    "bpe": Target(bpe, lambda _: [small_bpe().to_dict()["json"].encode()], is_json=True),
    "bpe-tables": Target(bpe_tables, vocabulary_files),
    "unknown": Target(unknown, lambda _: as_json(asdict(Unknown(0.25, "\ud800é"))), is_json=True),
    "index": Target(index, lambda folder: [(made_shards(folder) / INDEX).read_bytes()], is_json=True),
    "shard": Target(shard, lambda folder: [(made_shards(folder) / "00000.bin").read_bytes()]),
    "weights": Target(weights, containers),
    "record": Target(record, records, is_json=True),
    "torch": Target(torch, torch_files),
    "picogpt-log": Target(interop.picogpt_log, interop.picogpt_logs),
    "dat": Target(interop.dat_folder, interop.dat_properties),
    "safetensors": Target(interop.safetensors_file, interop.safetensors_files),
    "hf-config": Target(interop.huggingface_config, interop.huggingface_configs, is_json=True),
    "hf-index": Target(interop.huggingface_index, interop.huggingface_indexes, is_json=True),
    "modelfile": Target(modelfile, onnx_files, (ValueError, OSError)),
    "onnx": Target(onnx_model, onnx_files),
    "described": Target(described, descriptions, is_json=True),
    "text": Target(text(".txt"), lambda _: packed_seeds(b"some text\r\n\xc3\xa9", b"\xef\xbb\xbfmark")),
    "jsonl": Target(text(".jsonl"), lines),
    "parquet": Target(text(".parquet"), tables),
    "listing": Target(listing, listings, is_json=True),
    "headers": Target(
        headers,
        seeds(b"bytes 0-0/9", b"7", b"Wed, 21 Oct 2015 07:28:00 GMT", b'"api";r=0;t=55'),
    ),
    "status": Target(status, lambda _: as_json(asdict(StreamStatus("working", "text", 5, "mark"))), is_json=True),
}
