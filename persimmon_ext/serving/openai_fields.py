"""The fields of OpenAI's completions and chat completions, checked and made into orders.

Beside OpenAI's, the sampling fields `top_k`, `min_p` and `repetition_penalty` are known, with generate's meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from persimmon_ext.chat import beginning_of_a_turn
from persimmon_ext.generation.sampling import row_seeds
from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.fields import Fields, refuse, shown
from persimmon_ext.serving.row import Order, Sampling
from persimmon_ext.serving.service import MOST_TEXTS, Service

_DEFAULT_COMPLETION_TOKENS = 16
#: OpenAI's default is the rest of the context, for which room in the cache would have to be kept.
_DEFAULT_CHAT_TOKENS = 1024
_MOST_STOPS = 4


@dataclass(frozen=True)
class OpenAIRequest:
    """A checked request: `choices` orders for each prompt, side by side."""

    orders: list[Order]
    choices: int
    stream: bool
    include_usage: bool
    echo: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(order.prompt) for order in self.orders[:: self.choices])


def read_completion(service: Service, body: dict[str, Any]) -> OpenAIRequest:
    """Checks the body of ``POST /v1/completions``; RequestError for the first mistake."""
    fields = Fields(body)
    _check_model(service, fields)
    prompts = _prompts(service, fields.take("prompt"))
    asked = fields.integer("max_tokens", None, 0)
    echo = fields.boolean("echo")
    if asked == 0 and not echo:
        raise RequestError("max_tokens is 0, which makes sense only with echo; echo is false.", param="max_tokens")
    top = fields.integer("logprobs", None, 0, 5)
    if (suffix := fields.text("suffix")) is not None:
        raise RequestError(
            f"suffix is not supported: this model only continues texts; got {shown(suffix)}.", param="suffix"
        )
    stops = _stops(fields)
    common = _Common.read(fields, len(prompts))
    if (best_of := fields.integer("best_of", None, 1)) not in (None, common.choices):
        raise RequestError(f"best_of must be n, {common.choices}, or be left out; got {best_of}.", param="best_of")
    if echo and common.stream:
        raise RequestError("echo is true and stream too; a stream holds only what is new.", param="echo")
    fields.finish()
    orders = [
        Order(
            prompt=tuple(prompt),
            max_new_tokens=service.new_tokens(len(prompt), asked, _DEFAULT_COMPLETION_TOKENS, "max_tokens"),
            sampling=common.sampling,
            ends=service.ends,
            stops=stops,
            top=top,
            scores_prompt=asked == 0 or (echo and top is not None),
            streams=common.stream,
        )
        for prompt in prompts
    ]
    return common.request(service, orders, echo)


def read_chat(service: Service, body: dict[str, Any]) -> OpenAIRequest:
    """Checks the body of ``POST /v1/chat/completions``; RequestError for the first mistake."""
    fields = Fields(body)
    _check_model(service, fields)
    prompt = _conversation(service, fields.take("messages"))
    tokens = {name: fields.integer(name, None, 1) for name in ("max_tokens", "max_completion_tokens")}
    if None not in tokens.values():
        raise RequestError("max_tokens and max_completion_tokens were both given; leave out one.", param="max_tokens")
    asked_by = "max_tokens" if tokens["max_tokens"] is not None else "max_completion_tokens"
    wants_logprobs = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", None, 0, 20)
    if top is not None and not wants_logprobs:
        raise RequestError(f"top_logprobs is {top}, which needs logprobs to be true.", param="top_logprobs")
    form = fields.take("response_format", {"type": "text"})
    if form != {"type": "text"}:
        refuse("response_format", 'absent or {"type": "text"}', form)
    stops = _stops(fields)
    if next_turn := beginning_of_a_turn(service.tokenizer):
        stops = (*stops, next_turn)
    common = _Common.read(fields, 1)
    fields.finish()
    order = Order(
        prompt=tuple(prompt),
        max_new_tokens=service.new_tokens(len(prompt), tokens[asked_by], _DEFAULT_CHAT_TOKENS, asked_by),
        sampling=common.sampling,
        ends=service.ends,
        stops=stops,
        top=(top or 0) if wants_logprobs else None,
        streams=common.stream,
    )
    return common.request(service, [order])


@dataclass(frozen=True)
class _Common:
    """What both kinds of requests have."""

    sampling: Sampling
    seed: int | None
    choices: int
    stream: bool
    include_usage: bool

    @classmethod
    def read(cls, fields: Fields, prompts: int) -> _Common:
        sampling = Sampling(
            temperature=fields.number("temperature", 1.0, 0, 2),
            top_p=fields.number("top_p", 1.0, 0, 1, exclusive=True),
            top_k=fields.integer("top_k", 0, 0) or 0,
            min_p=fields.number("min_p", 0.0, 0, 1),
            presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
            frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
            repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 100),
            bias=fields.take("logit_bias", {}),
        )
        fields.text("user")  # names whom the client serves; nothing here depends on it
        choices = fields.integer("n", 1, 1, MOST_TEXTS) or 1
        if choices * prompts > MOST_TEXTS:
            raise RequestError(f"n is {choices}, for {prompts} prompts: at most {MOST_TEXTS} texts.", param="n")
        stream = fields.boolean("stream")
        options = fields.take("stream_options", {})
        if options and not stream:
            raise RequestError(
                f"stream_options is {shown(options)}, which needs stream to be true.", param="stream_options"
            )
        if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
            refuse("stream_options", 'an object such as {"include_usage": true}', options)
        usage = Fields(options).boolean("include_usage")
        return cls(sampling, fields.integer("seed", None, -(2**63), 2**63 - 1), choices, stream, usage)

    def request(self, service: Service, orders: list[Order], echo: bool = False) -> OpenAIRequest:
        """The request, with each order repeated for the choices, and a random stream for each text."""
        sampling = replace(self.sampling, bias=_bias(service, self.sampling.bias))
        seeds = iter(row_seeds(service.seed(self.seed), len(orders) * self.choices))
        repeated = [
            replace(order, sampling=replace(sampling, seed=next(seeds)))
            for order in orders
            for _ in range(self.choices)
        ]
        return OpenAIRequest(repeated, self.choices, self.stream, self.include_usage, echo)


def _check_model(service: Service, fields: Fields) -> None:
    name = fields.text("model")
    if name is not None and name != service.name:
        raise unknown_model(service, name)


def unknown_model(service: Service, name: str) -> RequestError:
    """The error of a request for another model than the one that is served."""
    message = f"There is no model {shown(name)} here; this server has {shown(service.name)}."
    return RequestError(message, status=404, param="model", code="model_not_found")


def _prompts(service: Service, prompt: Any) -> list[list[int]]:
    """Each prompt's ids: of a text, a list of texts, a list of ids, or a list of such lists."""
    if isinstance(prompt, str) or _is_ids(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        refuse("prompt", "a text, a list of texts, a list of token ids or a list of such lists, and not empty", prompt)
    if len(prompt) > MOST_TEXTS:
        raise RequestError(f"prompt holds {len(prompt)} texts; at most {MOST_TEXTS}.", param="prompt")
    rows = []
    for index, entry in enumerate(prompt):
        if not isinstance(entry, str) and not _is_ids(entry):
            refuse(f"prompt[{index}]", "a text or a list of token ids", entry)
        ids = service.encode(entry, "prompt") if isinstance(entry, str) else entry
        service.check_prompt(ids, "prompt")
        rows.append(ids)
    return rows


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(entry) is int for entry in value)


def _conversation(service: Service, messages: Any) -> list[int]:
    """The ids of a conversation in the model's format, which ends where the model is to answer."""
    if not isinstance(messages, list):
        refuse("messages", "a list of messages", messages)
    try:
        text = service.tokenizer.apply_chat_template(
            [_message(index, message) for index, message in enumerate(messages)],
            add_generation_prompt=True,
            tokenize=False,
        )
    except (ValueError, TypeError) as error:
        raise RequestError(f"messages: {error}", param="messages") from None
    ids = service.encode(text, "messages")
    service.check_prompt(ids, "messages")
    return ids


def _message(index: int, message: Any) -> dict[str, str]:
    name = f"messages[{index}]"
    if not isinstance(message, dict):
        refuse(name, "an object with role and content", message)
    content = message.get("content")
    if isinstance(content, list):  # of parts, of which only texts are known
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                refuse(f"{name}.content", 'a text, or a list of {"type": "text", "text": ...}', part)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        refuse(f"{name}.content", "a text", content)
    role = message.get("role")
    if not isinstance(role, str):
        refuse(f"{name}.role", "a text", role)
    if message.get("name") is not None and not isinstance(message["name"], str):  # tells speakers of a role apart, and
        refuse(f"{name}.name", "a text", message["name"])  # the form of the conversation has no place for it
    for key, value in message.items():
        if key not in ("role", "content", "name") and value is not None:  # replies that are sent back have nulls
            raise RequestError(
                f"{name}.{key} is not a field that this server knows; it was {shown(value)}.", param=name
            )
    return {"role": "system" if role == "developer" else role, "content": content}


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.take("stop", [])
    listed = [stops] if isinstance(stops, str) else stops
    wrong = not isinstance(listed, list) or not all(isinstance(stop, str) and stop for stop in listed)
    if wrong or len(listed) > _MOST_STOPS:
        refuse("stop", f"a text or a list of at most {_MOST_STOPS}, none of them empty", stops)
    return tuple(listed)


def _bias(service: Service, bias: Any) -> dict[int, float]:
    """`logit_bias`: from ids, which JSON writes as texts, to numbers."""
    kind = f"an object from token ids below {service.vocab_size} to numbers from -100 to 100"
    if not isinstance(bias, dict):
        refuse("logit_bias", kind, bias)
    checked = {}
    for token, value in bias.items():
        # Python refuses to read thousands of digits, and no vocabulary has ids of more than ten.
        is_id = len(token) <= 10 and token.isascii() and token.isdigit() and int(token) < service.vocab_size
        if not is_id or isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            refuse("logit_bias", kind, {token: value})
        checked[int(token)] = float(value)
    return checked
