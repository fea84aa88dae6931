"""The tokenizer of a stream, learnt from the first text that arrives; later runs find it in the stream's folder."""

from collections.abc import Callable

from filelock import FileLock

from picogpt.config import DataConfig
from picogpt.data.sources.datasets import OFFLINE, is_offline
from picogpt.data.streaming.plan import Plan
from picogpt.data.token_folder import TOKENIZER, read_tokenizer, write_tokenizer
from picogpt.errors import UserError
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import DEFAULT_SIZE
from picogpt.tokenizers.registry import TOKENIZERS


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
            from picogpt.data.streaming.row_groups import first_text  # the hub's library takes a while to load

            texts = list(first_text(plan, notify))  # before the library runs, which Ctrl-C could not end
            learnt = TOKENIZERS[data.tokenizer_name].from_corpus(texts, data.tokenizer_size or DEFAULT_SIZE)
            write_tokenizer(plan.folder, learnt)
            notify(f"a tokenizer of {learnt.vocab_size:,} tokens is learnt")
    return read_tokenizer(plan.folder)
