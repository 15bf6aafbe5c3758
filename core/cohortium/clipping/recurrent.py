"""Recurrent layers step by step, from operations that `torch.func.vmap` maps.

Torch computes an LSTM or a GRU as one operation, which has no rule for `vmap`.  The functions here
take the arguments of that operation and return its results.

Sources: Hochreiter and Schmidhuber 1997 and Gers et al. 2000 for the LSTM with a forget gate.  Sak
et al. 2014 (arXiv 1402.1128) for its projection.  Cho et al. 2014 (arXiv 1406.1078) for the GRU, in
the form of torch.

Shapes: T steps, N sequences, D inputs, H units.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    State = tuple[Tensor, ...]
    Cell = Callable[[Tensor, State, Sequence[Tensor | None]], State]
    """Function of the input's share of the gates, (N, gates·H), and a state to the next state.

    It also takes the weights of one layer and direction, except those of the input.
    """


def mappable(operation: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """Return a function that gives the same results under `vmap`, or None.

    Args:
        operation: An operation of torch.
        args: Its arguments.
    """
    found = _SUBSTITUTES.get(operation)
    # A packed batch has its lengths as the second argument.  They are values, not a shape.
    is_packed = found is not None and len(args) > _WEIGHTS and torch.is_tensor(args[_WEIGHTS])
    is_cell = operation == torch.lstm_cell
    return None if is_packed and not is_cell else found


_WEIGHTS = 2
"""Position of the list of weights among the arguments of an operation."""


@frozen
class _Options:
    """The last arguments of an operation.

    Attributes:
        has_bias: Whether there are biases.
        num_layers: Number of layers.
        dropout: Probability with which an output between layers is dropped.
        is_training: Whether outputs are dropped at all.
        is_bidirectional: Whether each layer reads the sequence in both directions.
        is_batch_first: Whether sequences are the first axis.
    """

    has_bias: bool
    num_layers: int
    dropout: float
    is_training: bool
    is_bidirectional: bool
    is_batch_first: bool


def _layers(
    cell: Cell, x: Tensor, state: Tensor | State, weights: Sequence[Tensor], *options: Any
) -> State:
    """Return the output of the last layer, and the last state of each layer and direction.

    Args:
        cell: One step of one layer.
        x: Input, (T, N, D), or (N, T, D) if sequences are the first axis.
        state: First hidden state (layers·directions, N, H), or a tuple of such states.
        weights: Weights of each layer and direction, one after the other: of the input, of the
            hidden state, the biases of both, and a projection.
        *options: The values of `_Options`.
    """
    own = _Options(*options)
    states = (state,) if isinstance(state, torch.Tensor) else state
    directions = 2 if own.is_bidirectional else 1
    size = len(weights) // (own.num_layers * directions)
    x = x.transpose(0, 1) if own.is_batch_first else x
    last: list[State] = []
    for layer in range(own.num_layers):
        outputs = []
        for direction in range(directions):
            place = len(last)
            found, end = _steps(
                cell, x, tuple(s[place] for s in states), weights[place * size :][:size],
                has_bias=own.has_bias, is_reversed=direction == 1,
            )  # fmt: skip
            outputs.append(found)
            last.append(end)
        x = torch.cat(outputs, -1)
        if own.is_training and own.dropout and layer + 1 < own.num_layers:
            x = functional.dropout(x, own.dropout)
    x = x.transpose(0, 1) if own.is_batch_first else x
    return x, *(torch.stack(values) for values in zip(*last, strict=True))


def _steps(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], *, has_bias: bool,
    is_reversed: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    """Return the hidden states (T, N, H) in the order of `x`, and the last state."""
    of_input, of_hidden, *rest = weights
    biases, projection = (rest[:2], rest[2:]) if has_bias else ([None, None], rest)
    gates = functional.linear(x, of_input, biases[0])  # (T, N, gates·H), all steps at once
    hidden = []
    for step in gates.flip(0) if is_reversed else gates:
        state = cell(step, state, (of_hidden, biases[1], *projection))
        hidden.append(state[0])
    found = torch.stack(hidden)
    return found.flip(0) if is_reversed else found, state


def _lstm_cell(step: Tensor, state: State, weights: Sequence[Any]) -> State:
    hidden, memory = state
    of_hidden, bias, *projection = weights
    gates = step + functional.linear(hidden, of_hidden, bias)
    entry, forget, candidate, out = gates.chunk(4, -1)
    memory = forget.sigmoid() * memory + entry.sigmoid() * candidate.tanh()
    hidden = out.sigmoid() * memory.tanh()
    if projection:
        hidden = functional.linear(hidden, projection[0])
    return hidden, memory


def _gru_cell(step: Tensor, state: State, weights: Sequence[Any]) -> State:
    (hidden,) = state
    reset, update, candidate = step.chunk(3, -1)
    own = functional.linear(hidden, *weights).chunk(3, -1)
    keep = (update + own[1]).sigmoid()
    candidate = (candidate + (reset + own[0]).sigmoid() * own[2]).tanh()
    return (candidate + keep * (hidden - candidate),)


def _plain_cell(
    activation: Callable[[Tensor], Tensor], step: Tensor, state: State, weights: Sequence[Any]
) -> State:
    return (activation(step + functional.linear(state[0], *weights)),)


def _one_lstm_step(x: Tensor, state: State, *weights: Any) -> State:
    """Return the next hidden state and memory of `nn.LSTMCell`."""
    of_input, of_hidden, bias, hidden_bias = (*weights, None, None)[:4]
    return _lstm_cell(functional.linear(x, of_input, bias), state, (of_hidden, hidden_bias))


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    torch.lstm: partial(_layers, _lstm_cell),
    torch.gru: partial(_layers, _gru_cell),
    torch.rnn_tanh: partial(_layers, partial(_plain_cell, torch.tanh)),
    torch.rnn_relu: partial(_layers, partial(_plain_cell, torch.relu)),
    torch.lstm_cell: _one_lstm_step,
}
"""Substitutes by operation.  Other cells have rules for `vmap` in torch."""
