"""Many texts in one batch, each as far as it is: continuous batching (Orca, OSDI 2022, section 3.2).

A text has a row of the KV cache while it is written, and its token at position p lies in slot p of that row. `admit`
reads a prompt into a row and draws the first token, `step` draws the next token of every row. What a row draws depends
on its own text, settings and seed: each program has one shape, whoever else is there.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zerotollm.decoding.sample import Choice, draw
from zerotollm.model.config import TransformerConfig, round_up
from zerotollm.model.layers import KVCache
from zerotollm.model.transformer import Transformer, head_logits

SHORTEST = 32
"""Prompts are padded to this many tokens, or twice, four times, ... as many."""
ALTERNATIVES = 20
"""Likeliest tokens that are told of each draw."""


class Slots(NamedTuple):
    """R rows of S slots each."""

    last_RN: jax.Array
    """the newest token, which no cache holds yet, behind the `token_shift` tokens before it"""
    position_R: jax.Array
    """of the newest token"""
    choice: Choice
    caches: tuple[KVCache, ...]


class Drawn(NamedTuple):
    """A token for each row, and how likely the model held it and others, before temperature and filters."""

    token_R: jax.Array
    log_p_R: jax.Array
    likeliest_RA: jax.Array
    """the A = ALTERNATIVES likeliest tokens, the best first; zeros, as are the log-probabilities, if nobody asks"""
    likeliest_log_p_RA: jax.Array


def empty_slots(model: TransformerConfig, rows: int) -> Slots:
    """Rows without texts, for `model`, which has been through `resolve`."""
    return Slots(
        last_RN=jnp.zeros((rows, model.token_shift + 1), jnp.int32),
        position_R=jnp.zeros(rows, jnp.int32),
        choice=jax.tree.map(
            lambda x_1: jnp.repeat(x_1, rows, axis=0), Choice.row(0.0, 0, 1.0, 0.0, jnp.uint32(0), 0)
        ),
        caches=_empty_caches(model, rows, round_up(model.max_length, 16)),
    )


def prompt_widths(model: TransformerConfig) -> list[int]:
    """The lengths to which prompts are padded, each a program: a prompt takes the first that holds it."""
    widths, most = [], round_up(model.max_length, 16)
    while not widths or widths[-1] < most:
        widths.append(min(most, 2 * widths[-1] if widths else SHORTEST))
    return widths


@partial(jax.jit, static_argnames=("model", "num_tokens"), donate_argnames="slots")
def admit(
    params: Any,
    slots: Slots,
    row: jax.Array,
    prompt_T: jax.Array,
    length: jax.Array,
    settings: tuple[Any, ...],
    alternatives: jax.Array,
    *,
    model: TransformerConfig,
    num_tokens: int,
) -> tuple[Slots, Drawn]:
    """Reads a prompt of `length` tokens, padded on the right to one of `prompt_widths`, into a row; the first draw.

    `settings` are the arguments of `Choice.row`; with `alternatives` the likeliest tokens are told. Ids from
    `num_tokens` on, which only round the matrix up, are never drawn.
    """
    T, choice = prompt_T.shape[0], Choice.row(*settings)
    positions_T = jnp.arange(T)
    (x_BTD, head_DV), filled = Transformer(model).apply(
        {"params": params},
        prompt_T[None],
        positions_BT=positions_T[None],
        mask_BTS=(positions_T[None] <= positions_T[:, None])[None],
        caches=_empty_caches(model, 1, T),
        with_logits=False,
    )
    # Keys of the padding are overwritten before anything looks at them.
    caches = jax.tree.map(
        lambda all_RKSC, own_BKTC: jax.lax.dynamic_update_slice(all_RKSC, own_BKTC, (row, 0, 0, 0)),
        slots.caches,
        filled,
    )
    x_BTD = jax.lax.dynamic_slice_in_dim(x_BTD, length - 1, 1, axis=1)
    logits_BV = head_logits(model, x_BTD, head_DV)[:, 0]
    drawn = _draw(logits_BV, choice, length[None], alternatives, num_tokens)
    longer = jnp.concatenate([jnp.zeros(model.token_shift, jnp.int32), prompt_T])
    before_N = jax.lax.dynamic_slice_in_dim(longer, length, model.token_shift)
    own = Slots(jnp.append(before_N, drawn.token_R)[None], length[None], choice, ())
    put = lambda all_R, own_1: all_R.at[row].set(own_1[0])  # noqa: E731
    return jax.tree.map(put, slots._replace(caches=()), own)._replace(caches=caches), drawn


@partial(jax.jit, static_argnames=("model", "num_tokens"), donate_argnames="slots")
def step(
    params: Any,
    slots: Slots,
    active_R: jax.Array,
    alternatives: jax.Array,
    *,
    model: TransformerConfig,
    num_tokens: int,
) -> tuple[Slots, Drawn]:
    """The next token of every row; of those that are not `active_R` it means nothing."""
    positions_R1 = slots.position_R[:, None]
    slots_S = jnp.arange(slots.caches[0].keys_BKSC.shape[2])
    logits_RTV, caches = Transformer(model).apply(
        {"params": params},
        slots.last_RN[:, -1:],
        positions_BT=positions_R1,
        mask_BTS=(slots_S[None] <= positions_R1)[:, None],
        caches=slots.caches,
        slot=slots.position_R,
        before_BN=slots.last_RN[:, :-1],
    )
    # Settings of a text that is gone must cost nothing.
    choice = slots.choice._replace(temperature_B=jnp.where(active_R, slots.choice.temperature_B, 0))
    position_R = slots.position_R + active_R
    drawn = _draw(logits_RTV[:, 0], choice, position_R, alternatives, num_tokens)
    last_RN = jnp.concatenate([slots.last_RN[:, 1:], drawn.token_R[:, None]], axis=1)
    return Slots(last_RN, position_R, slots.choice, caches), drawn


def _draw(logits_RV, choice, positions_R, alternatives, num_tokens) -> Drawn:
    R, V = logits_RV.shape
    logits_RV = jnp.where((jnp.arange(V) < num_tokens)[None], logits_RV, -jnp.inf)
    token_R = draw(logits_RV, choice, positions_R)
    A = min(ALTERNATIVES, num_tokens)

    def tell(logits_RV):
        log_p_RV = jax.nn.log_softmax(logits_RV)
        best_RA, ids_RA = jax.lax.top_k(log_p_RV, A)
        return jnp.take_along_axis(log_p_RV, token_R[:, None], axis=1)[:, 0], ids_RA, best_RA

    def nothing(logits_RV):
        return jnp.zeros(R), jnp.zeros((R, A), jnp.int32), jnp.zeros((R, A))

    return Drawn(token_R, *jax.lax.cond(alternatives, tell, nothing, logits_RV))


def _empty_caches(model: TransformerConfig, rows: int, slots: int) -> tuple[KVCache, ...]:
    lead = (rows, model.num_kv_heads, slots)
    return tuple(
        KVCache(jnp.zeros((*lead, model.key_width)), jnp.zeros((*lead, model.head_width)))
        for _ in range(model.num_layers)
    )
