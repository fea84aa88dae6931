"""The tokenizer of a stream, learnt from the first text that arrives; later runs find it in the stream's folder."""

import time
from collections.abc import Callable, Iterator

from filelock import FileLock

from picogpt.config import DataConfig
from picogpt.data.sources.formats import DamagedFileError
from picogpt.data.sources.hub import OFFLINE, is_offline
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.data.streaming.plan import Plan
from picogpt.data.streaming.row_groups import RowGroups
from picogpt.data.token_folder import TOKENIZER, read_tokenizer, write_tokenizer
from picogpt.errors import UserError
from picogpt.tokenizers.base import Mark, Tokenizer
from picogpt.tokenizers.bpe import DEFAULT_SIZE
from picogpt.tokenizers.registry import TOKENIZERS

_ENOUGH_BYTES, _ENOUGH_SECONDS = 5_000_000, 60.0  # of text, and since the first of it arrived


def stream_tokenizer(plan: Plan, data: DataConfig, notify: Callable[[str], None]) -> Tokenizer:
    """Return the tokenizer of a stream's folder. Where it is to be learnt, wait for enough text to learn it from.

    notify: gets a line about what it waits for. Raises UserError where no text can arrive.
    """
    if (plan.folder / TOKENIZER).exists():
        return read_tokenizer(plan.folder)
    if is_offline():
        raise UserError(f"{OFFLINE}, so the tokenizer of {plan.dataset} cannot be learnt: unset it")
    notify(f"waiting for the first text of {plan.dataset}: its tokenizer is learnt from that")
    with FileLock(plan.folder / "tokenizer.lock"):  # another run may be learning it already
        if not (plan.folder / TOKENIZER).exists():
            texts = list(_first_text(plan, notify))  # before the library runs, which Ctrl-C could not end
            learnt = TOKENIZERS[data.tokenizer_name].from_corpus(texts, data.tokenizer_size or DEFAULT_SIZE)
            write_tokenizer(plan.folder, learnt)
            notify(f"a tokenizer of {learnt.vocab_size:,} tokens is learnt")
    return read_tokenizer(plan.folder)


def _first_text(plan: Plan, notify: Callable[[str], None]) -> Iterator[str]:
    """Yield the first documents that will be trained on, until it is enough. Raises UserError where there are none."""
    groups, done, size, began = RowGroups(plan, notify), list[tuple[str, int]](), 0, 0.0
    while source := groups.draw(done):
        try:
            for document, validates in groups.documents(source, len(done)):
                began = began or time.monotonic()
                for part in document:
                    if not validates and not isinstance(part, Mark):
                        size += len(part.encode(errors="replace"))
                        yield part
                if size >= _ENOUGH_BYTES or time.monotonic() - began > _ENOUGH_SECONDS:
                    return
        except MissingError:  # the next draw finds that it has no row groups
            groups.forget(source[0])
            continue
        except (DamagedFileError, ChangedError) as error:
            notify(f"{error}: left out")
            groups.forget(source[0])
        done.append(source)
