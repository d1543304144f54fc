"""What the models return: dataclasses that also behave as transformers' outputs do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.utils import _pytree

from persimmon_ext.cache import Cache

Output = TypeVar("Output", bound="ModelOutput")


class ModelOutput(dict[str, Any]):
    """Base of the outputs: attributes, and a dictionary of those that are not None, in the order of the fields.

    ``output["logits"]``, ``output[0]`` and ``output[:2]`` work; iteration and ``**output`` are a dictionary's, so
    unpack into variables with ``output.to_tuple()``. A subclass is a dataclass whose fields all default to None.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Lets torch.func, export and DistributedDataParallel's static graph see the tensors inside.
        _pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output.keys())),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __post_init__(self) -> None:
        # Libraries that map a function over an output rebuild it as type(output)({name: value}).
        names = list(self.__dataclass_fields__)
        first = getattr(self, names[0])
        if isinstance(first, Mapping) and all(getattr(self, name) is None for name in names[1:]):
            setattr(self, names[0], None)
            for name, value in first.items():
                self[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in self.__dataclass_fields__:
            return
        if value is not None:
            super().__setitem__(name, value)
        else:
            super().pop(name, None)

    def __setitem__(self, name: str, value: Any) -> None:
        names = list(self.__dataclass_fields__)
        if name not in names:
            raise KeyError(f"{type(self).__name__} has no field {name!r}; its fields are {', '.join(names)}.")
        setattr(self, name, value)

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __delitem__(self, name: str) -> None:
        self._refuse("del")

    def pop(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("pop")

    def popitem(self) -> Any:
        self._refuse("popitem")

    def clear(self) -> None:
        self._refuse("clear")

    def setdefault(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("setdefault")

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._refuse("update")

    def _refuse(self, operation: str) -> None:
        raise TypeError(f"{type(self).__name__} does not support {operation}; assign to its fields instead.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        return tuple(self.values())

    def as_asked(self: Output, return_dict: bool | None, default: bool) -> Output | tuple[Any, ...]:
        """Returns itself, or its tuple where `return_dict`, or where that is None `default`, is False."""
        return self if (default if return_dict is None else return_dict) else self.to_tuple()


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state` [B, T, C]; `hidden_states` L + 1 of [B, T, C]; `attentions` L of [B, H, T, S + T]."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """`loss` 0-d; `logits` [B, T or the kept positions, V]; the rest as in `BaseModelOutputWithPast`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """`loss` 0-d; `logits` [B, labels]; the rest as in `BaseModelOutputWithPast`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class TokenClassifierOutput(ModelOutput):
    """`loss` 0-d; `logits` [B, T, labels]; the rest as in `BaseModelOutputWithPast`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """`sequences` int64 [B, prompt + new]; `scores` and `logits` one [B, V] a new token, after and before processing.

    `hidden_states` and `attentions`: one tuple over the layers a new token.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None


@dataclass(eq=False)
class SpeculativeGenerateOutput(GenerateOutput):
    """`speculation`: how many tokens were drafted and accepted; the rest as in `GenerateOutput`."""

    speculation: Speculation | None = None


@dataclass(eq=False)
class GenerateBeamOutput(ModelOutput):
    """Of beam search: `sequences_scores` [B] (with scores only) and `beam_indices` int64 [B, new], the row of `scores`
    that each token came from (-1: after the end); the rest as in `GenerateOutput`."""

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None


@dataclass(frozen=True)
class Speculation:
    """How drafting went: a step of the model gives one token of its own besides the accepted ones."""

    drafted: int
    accepted: int
    steps: int

    def __add__(self, other: Speculation) -> Speculation:
        """Of several texts together."""
        return Speculation(self.drafted + other.drafted, self.accepted + other.accepted, self.steps + other.steps)

    @property
    def acceptance_rate(self) -> float:
        """The share of drafted tokens that stayed; 0 without drafts."""
        return self.accepted / self.drafted if self.drafted else 0.0
