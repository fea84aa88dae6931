"""`picogpt bench data`: how fast text becomes token shards, and token shards become batches."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from picogpt.config import RunConfig
from picogpt.data.loader import Loader
from picogpt.data.prepare import prepare
from picogpt.data.shards.index import INDEX, SHARD_TOKENS, write_index
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.corpora import Corpus, open_corpus
from picogpt.errors import UserError
from picogpt.rng import generator
from picogpt.system import hardware

BATCHES = 10_000


def measure(config: RunConfig, megabytes: int, seconds: float, dataset_dir: Path) -> dict[str, object]:
    """Make token shards of the corpus, repeated up to so many megabytes of text, then read batches for so many seconds.

    prepare: reading, tokenizing, writing and verifying, all that happens before the first step. encode: the tokenizer
    alone, on text in memory. loader: batches in training order. rss_growth_mb: resident memory of the process at the
    end, minus that before it opened the text. `dataset_dir`: where a corpus is downloaded to.
    Raises UserError for what is wrong with the text or the options.
    """
    if megabytes < 0:
        raise UserError(f"megabytes must not be negative, not {megabytes}")
    if not seconds > 0:
        raise UserError(f"seconds must be positive, not {seconds}")
    corpus = open_corpus(config.data, dataset_dir)
    # After a failure the token files may still be open, and Windows cannot delete them: the failure is reported.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        text = _repeated(corpus, megabytes, Path(folder) / "text.txt")
        config = replace(config, data=replace(config.data, data=str(text)))
        return {**_measure(config, text, seconds, Path(folder)), "machine": hardware.machine()}


def _repeated(corpus: Corpus, megabytes: int, path: Path) -> Path:
    """Write the corpus to `path` as one file of at least so many megabytes of UTF-8. Returns the path."""
    with path.open("wb") as file:
        while not file.tell() or file.tell() < megabytes << 20:
            for piece in corpus.text():
                file.write(piece.encode(errors="replace"))
    return path


def _measure(config: RunConfig, text: Path, seconds: float, dataset_dir: Path) -> dict[str, object]:
    """Measure on a text file; the shards are written to `dataset_dir`."""
    resident = hardware.resident_memory()
    began = time.perf_counter()
    data = prepare(config.data, dataset_dir, lambda _: None)
    preparing = time.perf_counter() - began

    encoding, characters, encoded = 0.0, 0, 0
    for piece in data.corpus.text():
        began = time.perf_counter()
        data.tokenizer.encode(piece)
        encoding += time.perf_counter() - began
        characters, encoded = characters + len(piece), encoded + len(piece.encode(errors="replace"))

    loader, sequences = Loader(data.train, config.context, config.train.seed), 0
    began = time.perf_counter()
    while sequences == 0 or time.perf_counter() - began < seconds:
        loader.batch(sequences, config.train.batch_size)
        sequences += config.train.batch_size
    loading = time.perf_counter() - began
    return {
        "text_mb": round(text.stat().st_size / 2**20, 2),
        "tokens": len(data.train) + len(data.val),
        "prepare_mb_per_second": round(encoded / 2**20 / preparing, 2),
        "prepare_tokens_per_second": round(characters / preparing),
        "encode_mb_per_second": round(encoded / 2**20 / encoding, 1),
        "encode_tokens_per_second": round(characters / encoding),
        "loader_sequences_per_second": round(sequences / loading, 1),
        "loader_tokens_per_second": round(sequences * config.context / loading),
        "rss_growth_mb": round((hardware.resident_memory() - resident) / 2**20, 1),
        "tokenizer": data.tokenizer.name,
        "batch_size": config.train.batch_size,
        "context": config.context,
    }


def measure_large(config: RunConfig, gigabytes: int) -> dict[str, object]:
    """Read batches from shards of so many GB: random ids, one shard on the disk with many names.

    large_rss_growth_mb: peak of the process's resident memory, minus that after its first batch. Raises UserError for
    less than a gigabyte.
    """
    if gigabytes < 1:
        raise UserError(f"gigabytes must be positive, not {gigabytes}")
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        shards = _many_names(Path(name) / "train", gigabytes * 10**9)
        loader, count = Loader(shards, config.context, config.train.seed), config.train.batch_size
        loader.batch(0, count)
        resident, most = hardware.resident_memory(), 0
        began = time.perf_counter()
        for batch in range(BATCHES):
            # As far apart as in a run of BATCHES steps that reads everything once.
            loader.batch(batch * (loader.windows_per_epoch // BATCHES), count)
            most = max(most, hardware.resident_memory() - resident) if batch % 100 == 0 else most
        seconds = time.perf_counter() - began
    return {
        "large_gb": gigabytes,
        "large_batches_per_second": round(BATCHES / seconds, 1),
        "large_rss_growth_mb": round(most / 2**20, 1),
    }


def _many_names(folder: Path, tokens: int) -> Shards:
    """Make a full shard of random ids, with as many names as make so many tokens."""
    with ShardWriter(folder, np.uint8, "random", "random") as writer:
        writer.append(generator(0, "shard").integers(0, 88, SHARD_TOKENS, dtype=np.uint8))
    index = json.loads((folder / INDEX).read_bytes())
    [entry] = index["shards"]
    names = [f"{number:05d}.bin" for number in range(max(1, tokens // SHARD_TOKENS))]
    for name in names[1:]:
        os.link(folder / entry["file"], folder / name)
    del index["sha256"]
    write_index(folder, {**index, "shards": [{**entry, "file": name} for name in names]})
    return Shards(folder, "random")
