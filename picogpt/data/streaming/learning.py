"""The tokenizer of a stream, which its process learns from the first text that arrives; later runs find it there."""

import time
from collections.abc import Callable
from contextlib import closing

from picogpt.data.sources.datasets import OFFLINE, is_offline
from picogpt.data.streaming.plan import Plan
from picogpt.data.streaming.process import StreamProcess
from picogpt.data.token_folder import TOKENIZER, read_tokenizer
from picogpt.errors import UserError
from picogpt.tokenizers.base import Tokenizer

_LOOK_SECONDS = 0.05  # between two looks at the process


def stream_tokenizer(plan: Plan, notify: Callable[[str], None]) -> Tokenizer:
    """Return the tokenizer of a stream's folder. Where it is to be learnt, start the stream and wait for that.

    notify: gets a line about what it waits for. Raises UserError where no text can arrive.
    """
    if (plan.folder / TOKENIZER).exists():
        return read_tokenizer(plan.folder)
    if is_offline():
        raise UserError(f"{OFFLINE}, so the tokenizer of {plan.dataset} cannot be learnt: unset it")
    notify(f"waiting for the first text of {plan.dataset}: its tokenizer is learnt from that")
    said = ""
    with closing(StreamProcess(plan)) as stream:
        stream.start()
        while not (plan.folder / TOKENIZER).exists():
            status = stream.status()
            if status.state == "failed":
                raise UserError(status.text)
            if status.state == "waiting" and status.text != said:
                said = status.text
                notify(said)
            time.sleep(_LOOK_SECONDS)
    tokenizer = read_tokenizer(plan.folder)
    notify(f"a tokenizer of {tokenizer.vocab_size:,} tokens is learnt")
    return tokenizer
