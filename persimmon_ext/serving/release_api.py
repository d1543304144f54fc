"""``PUT /api`` as in the authors' release: the fields, their limits and messages, and the reply.

Source of the interface: Persimmon's inference server, github.com/persimmon-ai-labs/adept-inference,
megatron/text_generation_server.py. What differs: mistakes have the status 400 (some had 200 there), fields that it did
not know are refused, and a text does not go on after its end or because another prompt is longer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

from persimmon_ext.generation.sampling import row_seeds
from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.fields import Fields, shown
from persimmon_ext.serving.row import Order, Row, Sampling
from persimmon_ext.serving.service import MOST_TEXTS, Service
from persimmon_ext.vocabulary import SPACE_SYMBOL

_DEFAULT_TOKENS = 64
_TEMPERATURE = "temperature must be a positive number less than or equal to 100.0"


@dataclass(frozen=True)
class ReleaseRequest:
    """A checked request. `no_log`: leave it out of the log."""

    orders: list[Order]
    logprobs: bool
    no_log: bool


def read_request(service: Service, body: dict[str, Any]) -> ReleaseRequest:
    """Checks `body` in the release's order; RequestError with its message for the first mistake."""
    if "prompts" not in body:
        _refuse("prompts argument required")
    if "max_len" in body:
        _refuse("max_len is no longer used.  Replace with tokens_to_generate")
    if "sentences" in body:
        _refuse("sentences is no longer used.  Replace with prompts")
    prompts = body["prompts"] if isinstance(body["prompts"], list) else [body["prompts"]]
    if len(prompts) > MOST_TEXTS:
        _refuse(f"Maximum number of prompts is {MOST_TEXTS}")
    fields = Fields({name: value for name, value in body.items() if name != "prompts"})
    tokens = _tokens_to_generate(fields)
    logprobs = _boolean(fields, "logprobs")
    if tokens == 0 and not logprobs:
        _refuse("tokens_to_generate=0 implies logprobs should be True")
    sampling = _sampling(fields)
    add_bos = _boolean(fields, "add_BOS")
    seed = _random_seed(fields)
    no_log = _boolean(fields, "no_log")
    _check_prompts(prompts, add_bos)
    fields.finish()

    seeds = row_seeds(service.seed(seed), len(prompts))
    orders = []
    for prompt, row_seed in zip(prompts, seeds, strict=True):
        bos = [_bos(service)] if add_bos else []
        ids = (*bos, *service.encode(prompt, "prompts", special=False))
        room = service.context - len(ids)
        if room < min(tokens, 1):
            _refuse("Length of subsequence prompt exceeds sequence length.")
        order = Order(
            prompt=ids,
            max_new_tokens=min(tokens, room),
            sampling=replace(sampling, seed=row_seed),
            ends=service.ends,
            top=0 if logprobs else None,
            scores_prompt=logprobs,
        )
        orders.append(order)
    return ReleaseRequest(orders, logprobs, no_log)


def reply(service: Service, request: ReleaseRequest, rows: list[Row]) -> dict[str, Any]:
    """The release's reply: whole texts, log-probabilities of all tokens but the first, what was generated, and its
    tokens."""
    generations, pieces = [], []
    for row in rows:
        if row.tokens:
            made = row.tokens[:-1] if row.tokens[-1] in row.order.ends else row.tokens
            generations.append(service.tokenizer.decode(made, skip_special_tokens=True))
            pieces.append(_readable(service.tokenizer.tokenize(generations[-1])))
    logprobs = [[entry.logprob for entry in [*row.prompt_scored[1:], *row.scored]] for row in rows]
    return {
        "text": [row.prompt_text + row.text for row in rows],
        "logprobs": logprobs if request.logprobs else None,
        "generations": generations,
        "human_readable_tokens": pieces,
    }


def _tokens_to_generate(fields: Fields) -> int:
    tokens = fields.take("tokens_to_generate", _DEFAULT_TOKENS)
    if not _is_integer(tokens):
        _refuse("tokens_to_generate must be an integer greater than 0")
    if tokens < 0:
        _refuse("tokens_to_generate must be an integer greater than or equal to 0")
    return int(tokens)


def _sampling(fields: Fields) -> Sampling:
    temperature = fields.take("temperature", 1.0)
    if not _is_number(temperature) or not 0 < temperature <= 100:
        _refuse(_TEMPERATURE)
    top_k = fields.take("top_k", 0)
    if not _is_integer(top_k):
        _refuse("top_k must be an integer equal to or greater than 0 and less than or equal to 1000")
    if not 0 <= top_k <= 1000:
        _refuse("top_k must be equal to or greater than 0 and less than or equal to 1000")
    top_p = fields.take("top_p", 0.0)
    if not _is_number(top_p):
        _refuse("top_p must be a positive float less than or equal to 1.0")
    if top_p > 0 and top_k > 0:
        _refuse("cannot set both top-k and top-p samplings.")
    if not 0 <= top_p <= 1:
        _refuse("top_p must be less than or equal to 1.0")
    if top_k == 1:
        return Sampling()
    return Sampling(temperature=float(temperature), top_k=top_k, top_p=float(top_p) or 1.0)


def _random_seed(fields: Fields) -> int | None:
    seed = fields.take("random_seed")
    if seed is None:
        return None
    if not _is_integer(seed):
        _refuse("random_seed must be integer")
    if seed < 0:
        _refuse("random_seed must be a positive integer")
    return int(seed)


def _boolean(fields: Fields, name: str) -> bool:
    value = fields.take(name, False)
    if not isinstance(value, bool):
        _refuse(f"{name} must be a boolean value")
    return bool(value)


def _check_prompts(prompts: list[Any], add_bos: bool) -> None:
    if not prompts:
        _refuse("prompts must hold at least one prompt, got [].")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            _refuse(f"prompts must be texts, and entry {index} is {shown(prompt)}.")
    if not add_bos and not all(prompts):
        _refuse("Empty prompts require add_BOS=true")


def _bos(service: Service) -> int:
    """What the release puts first: the token between documents, as in training; here, that of the checkpoint."""
    bos = service.tokenizer.bos_token_id
    if bos is None:
        _refuse("add_BOS is true, and the tokenizer of this model has no such token.")
    return bos


def _readable(pieces: list[str]) -> list[str]:
    return [
        (piece.removeprefix(SPACE_SYMBOL) if index == 0 else piece).replace(SPACE_SYMBOL, " ")
        for index, piece in enumerate(pieces)
    ]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(message: str) -> NoReturn:
    raise RequestError(message)
