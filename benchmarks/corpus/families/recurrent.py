"""Recurrences: a scan forward, and a scan backward from the last step to the first."""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.corpus.declare import fault, normal, operation, uniform


@jax.custom_vjp
def linear_recurrence(a, x):
    """h_t = a_t h_{t−1} + x_t, from h = 0; all the h."""
    step = lambda h, inputs: (inputs[0] * h + inputs[1],) * 2
    return lax.scan(step, jnp.zeros_like(x[0]), (a, x))[1]


def linear_recurrence_fwd(a, x):
    """Keep the decays and the states."""
    step = lambda h, inputs: (inputs[0] * h + inputs[1],) * 2
    states = lax.scan(step, jnp.zeros_like(x[0]), (a, x))[1]
    return states, (a, states)


def linear_recurrence_bwd(residuals, states_bar):
    """h̄_t = ȳ_t + a_{t+1} h̄_{t+1}; x̄_t = h̄_t; ā_t = h̄_t h_{t−1}."""
    a, states = residuals
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

    def step(carry_bar, inputs):
        a_t, before_t, state_bar = inputs
        h_bar = state_bar + carry_bar
        return a_t * h_bar, (h_bar * before_t, h_bar)

    a_bar, x_bar = lax.scan(step, jnp.zeros_like(states[0]), (a, before, states_bar), reverse=True)[
        1
    ]
    return a_bar, x_bar


linear_recurrence.defvjp(linear_recurrence_fwd, linear_recurrence_bwd)

LINEAR_RECURRENCE = operation(
    linear_recurrence,
    lambda rng: (uniform(rng, 0.3, 0.95, 6, 4), normal(rng, 6, 4)),
    fault(("off by one", "wrong operand"), "a", "return states, (a, states)",
          "return states, (a, jnp.roll(states, -1, axis=0))"),
    fault(("wrong operand", "off by one"), "a", "(a, before, states_bar)",
          "(a, states, states_bar)"),
    fault(("other", "reversal", "missing term"), ("a", "x"), "reverse=True", "reverse=False"),
    fault(("missing factor", "missing term"), ("a", "x"), "return a_t * h_bar,", "return h_bar,"),
    fault("missing term", ("a", "x"), "h_bar = state_bar + carry_bar", "h_bar = state_bar"),
    fault("sign", ("a", "x"), "state_bar + carry_bar", "state_bar - carry_bar"),
    fault(("off by one", "wrong operand"), ("a", "x"), "(a, before, states_bar), reverse",
          "(jnp.roll(a, -1, axis=0), before, states_bar), reverse"),
    fault(("border", "entries"), "a", "jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])",
          "jnp.concatenate([states[-1:], states[:-1]])"),
    fault("second order", "a", "a, states = residuals",
          "a, states = residuals[0], lax.stop_gradient(residuals[1])", order=2),
    also={
        "long": lambda rng: (uniform(rng, 0.9, 0.999, 3000, 2), normal(rng, 3000, 2)),
        "decaying fast": lambda rng: (uniform(rng, 1e-12, 1e-8, 6, 4), normal(rng, 6, 4)),
    },
)


@jax.custom_vjp
def elman(w, u, x):
    """h_t = tanh(w h_{t−1} + u x_t); the last h."""
    step = lambda h, x_t: (jnp.tanh(w @ h + u @ x_t), None)
    return lax.scan(step, jnp.zeros(w.shape[0], w.dtype), x)[0]


def elman_fwd(w, u, x):
    """Keep the operands and the states before each step and after."""
    step = lambda h, x_t: (jnp.tanh(w @ h + u @ x_t), h)
    last, before = lax.scan(step, jnp.zeros(w.shape[0], w.dtype), x)
    after = jnp.concatenate([before[1:], last[None]])
    return last, (w, u, x, before, after)


def elman_bwd(residuals, last_bar):
    """Backpropagation through time."""
    w, u, x, before, after = residuals

    def step(carry, inputs):
        h_bar, w_bar, u_bar = carry
        x_t, before_t, after_t = inputs
        inner_bar = h_bar * (1.0 - after_t**2)
        w_bar = w_bar + jnp.outer(inner_bar, before_t)
        u_bar = u_bar + jnp.outer(inner_bar, x_t)
        return (w.T @ inner_bar, w_bar, u_bar), u.T @ inner_bar

    start = (last_bar, jnp.zeros_like(w), jnp.zeros_like(u))
    (_, w_bar, u_bar), x_bar = lax.scan(step, start, (x, before, after), reverse=True)
    return w_bar, u_bar, x_bar


elman.defvjp(elman_fwd, elman_bwd)

ELMAN = operation(
    elman,
    lambda rng: (normal(rng, 4, 4, scale=0.5), normal(rng, 4, 4, scale=0.5), normal(rng, 5, 4)),
    fault("transpose", ("w", "u", "x"), "w.T @ inner_bar", "w @ inner_bar"),
    fault("transpose", "x", "u.T @ inner_bar", "u @ inner_bar"),
    fault("transpose", "w", "jnp.outer(inner_bar, before_t)", "jnp.outer(before_t, inner_bar)"),
    fault(("off by one", "wrong operand"), "w", "jnp.outer(inner_bar, before_t)",
          "jnp.outer(inner_bar, after_t)"),
    fault(("wrong operand", "off by one"), ("w", "u", "x"), "1.0 - after_t**2",
          "1.0 - before_t**2"),
    fault(("missing term", "missing sum"), "u", "u_bar = u_bar + jnp", "u_bar = jnp"),
    fault(("missing factor", "wrong function"), ("w", "u", "x"), "(1.0 - after_t**2)",
          "(1.0 - after_t)"),
    fault("wrong operand", ("w", "u", "x"), "w.T @ inner_bar, w_bar", "w.T @ h_bar, w_bar"),
    fault(("reversal", "permutation"), "x", "return w_bar, u_bar, x_bar",
          "return w_bar, u_bar, x_bar[::-1]"),
    fault(("sign", "transpose"), ("w", "x"), "w_bar + jnp.outer(inner_bar, before_t)",
          "w_bar - jnp.outer(inner_bar, before_t)", ("u.T @ inner_bar", "u @ inner_bar")),
)


@jax.custom_vjp
def gated_step(h, x, w):
    """One minimal gated unit: f = σ(w₀[h, x]), c = tanh(w₁[f h, x]), h′ = (1 − f) h + f c."""
    f = jax.nn.sigmoid(w[0] @ jnp.concatenate([h, x]))
    c = jnp.tanh(w[1] @ jnp.concatenate([f * h, x]))
    return (1.0 - f) * h + f * c


def gated_step_fwd(h, x, w):
    """Keep the operands, the gate and the candidate."""
    f = jax.nn.sigmoid(w[0] @ jnp.concatenate([h, x]))
    c = jnp.tanh(w[1] @ jnp.concatenate([f * h, x]))
    return (1.0 - f) * h + f * c, (h, x, w, f, c)


def gated_step_bwd(residuals, new_bar):
    """h reaches the output by four paths: directly, through f, through f h, and f through c."""
    h, x, w, f, c = residuals
    size = h.shape[0]
    inner_bar = new_bar * f * (1.0 - c**2)
    joined_bar = w[1].T @ inner_bar
    f_bar = new_bar * (c - h) + joined_bar[:size] * h
    gate_bar = f_bar * f * (1.0 - f)
    both_bar = w[0].T @ gate_bar
    h_bar = new_bar * (1.0 - f) + joined_bar[:size] * f + both_bar[:size]
    x_bar = joined_bar[size:] + both_bar[size:]
    gate_w_bar = jnp.outer(gate_bar, jnp.concatenate([h, x]))
    candidate_w_bar = jnp.outer(inner_bar, jnp.concatenate([f * h, x]))
    return h_bar, x_bar, jnp.stack([gate_w_bar, candidate_w_bar])


gated_step.defvjp(gated_step_fwd, gated_step_bwd)

GATED_STEP = operation(
    gated_step,
    lambda rng: (normal(rng, 3), normal(rng, 3), normal(rng, 2, 3, 6)),
    fault("missing term", ("h", "x", "w"), " + joined_bar[:size] * h\n", "\n"),
    fault("missing term", "h", " + both_bar[:size]\n", "\n"),
    fault("missing term", "x", "joined_bar[size:] + both_bar[size:]", "joined_bar[size:]"),
    fault(("entries", "wrong operand"), "w", "jnp.outer(inner_bar, jnp.concatenate([f * h, x]))",
          "jnp.outer(inner_bar, jnp.concatenate([h, x]))"),
    fault(("entries", "permutation"), "w", "jnp.concatenate([f * h, x]))\n    return h_bar",
          "jnp.concatenate([x, f * h]))\n    return h_bar"),
    fault("sign", ("h", "x", "w"), "new_bar * (c - h)", "new_bar * (c + h)"),
    fault("missing factor", ("h", "x", "w"), "f_bar * f * (1.0 - f)", "f_bar * f"),
    fault("permutation", "w", "[gate_w_bar, candidate_w_bar]", "[candidate_w_bar, gate_w_bar]"),
    fault(("wrong operand", "missing factor"), "h", "joined_bar[:size] * f",
          "joined_bar[:size] * c"),
    fault(("off by one", "wrong operand"), "x", "joined_bar[size:] + both_bar[size:]",
          "joined_bar[size:] + both_bar[size - 1 : -1]"),
)


@jax.custom_vjp
def exponential_average(x, alpha):
    """y_t = α y_{t−1} + (1 − α) x_t, from y = x_0; one α."""
    step = lambda y, x_t: (alpha * y + (1.0 - alpha) * x_t,) * 2
    rest = lax.scan(step, x[0], x[1:])[1]
    return jnp.concatenate([x[:1], rest])


def exponential_average_fwd(x, alpha):
    """Keep x, α and the averages."""
    step = lambda y, x_t: (alpha * y + (1.0 - alpha) * x_t,) * 2
    rest = lax.scan(step, x[0], x[1:])[1]
    y = jnp.concatenate([x[:1], rest])
    return y, (x, alpha, y)


def exponential_average_bwd(residuals, y_bar):
    """s̄_t = ȳ_t + α s̄_{t+1}; x̄_t = (1 − α) s̄_t but x̄_0 = s̄_0; ᾱ = Σ s̄_t (y_{t−1} − x_t)."""
    x, alpha, y = residuals
    step = lambda s_bar, y_bar_t: (y_bar_t + alpha * s_bar,) * 2
    s_bar = lax.scan(step, jnp.zeros_like(x[0]), y_bar, reverse=True)[1]
    x_bar = ((1.0 - alpha) * s_bar).at[0].set(s_bar[0])
    alpha_bar = jnp.sum(s_bar[1:] * (y[:-1] - x[1:]))
    return x_bar, alpha_bar


exponential_average.defvjp(exponential_average_fwd, exponential_average_bwd)

EXPONENTIAL_AVERAGE = operation(
    exponential_average,
    lambda rng: (normal(rng, 7, 2), uniform(rng, 0.6, 0.9)),
    fault(("border", "entries"), "x", ".at[0].set(s_bar[0])", ""),
    fault(("border", "off by one", "entries"), "x", "at[0].set(s_bar[0])", "at[-1].set(s_bar[-1])"),
    fault(("off by one", "wrong operand"), "alpha", "(y[:-1] - x[1:])", "(y[1:] - x[1:])"),
    fault("sign", "alpha", "y[:-1] - x[1:]", "y[:-1] + x[1:]"),
    fault(("missing factor", "wrong operand"), "x", "((1.0 - alpha) * s_bar)", "(alpha * s_bar)"),
    fault("reversal", ("x", "alpha"), "y_bar, reverse=True)[1]", "y_bar[::-1])[1]"),
    fault("wrong operand", "alpha", "jnp.sum(s_bar[1:] *", "jnp.sum(y_bar[1:] *"),
    fault(("missing factor", "missing term"), ("x", "alpha"), "y_bar_t + alpha * s_bar",
          "y_bar_t + s_bar"),
    also={"long": lambda rng: (normal(rng, 5000, 2), uniform(rng, 0.99, 0.995))},
)


@jax.custom_vjp
def viterbi_soft(scores, transitions):
    """log Σ over paths of exp(path score): the forward algorithm."""
    step = lambda a, s: (s + jax.nn.logsumexp(a[:, None] + transitions, axis=0), None)
    return jax.nn.logsumexp(lax.scan(step, scores[0], scores[1:])[0])


def viterbi_soft_fwd(scores, transitions):
    """Keep the transitions and every step's logarithms of path weights."""

    def step(a, s):
        new = s + jax.nn.logsumexp(a[:, None] + transitions, axis=0)
        return new, new

    last, rest = lax.scan(step, scores[0], scores[1:])
    return jax.nn.logsumexp(last), (transitions, jnp.concatenate([scores[:1], rest]))


def viterbi_soft_bwd(residuals, total_bar):
    """Marginals from the last step back: each state's is shared out over its predecessors."""
    transitions, alphas = residuals

    def step(state_bar, before):
        shares = jax.nn.softmax(before[:, None] + transitions, axis=0)
        pair_bar = shares * state_bar[None, :]
        return jnp.sum(pair_bar, axis=1), (pair_bar, state_bar)

    last_bar = total_bar * jax.nn.softmax(alphas[-1])
    first_bar, (pair_bars, later_bars) = lax.scan(step, last_bar, alphas[:-1], reverse=True)
    scores_bar = jnp.concatenate([first_bar[None], later_bars])
    return scores_bar, jnp.sum(pair_bars, axis=0)


viterbi_soft.defvjp(viterbi_soft_fwd, viterbi_soft_bwd)

VITERBI_SOFT = operation(
    viterbi_soft,
    lambda rng: (normal(rng, 5, 4), normal(rng, 4, 4)),
    fault(("axis", "transpose"), ("scores", "transitions"),
          "jax.nn.softmax(before[:, None] + transitions, axis=0)",
          "jax.nn.softmax(before[:, None] + transitions, axis=1)"),
    fault(("transpose", "axis"), ("scores", "transitions"), "shares * state_bar[None, :]",
          "shares * state_bar[:, None]"),
    fault(("axis", "transpose"), "scores", "jnp.sum(pair_bar, axis=1)",
          "jnp.sum(pair_bar, axis=0)"),
    fault("mean or sum", "transitions", "jnp.sum(pair_bars, axis=0)",
          "jnp.mean(pair_bars, axis=0)"),
    fault(("off by one", "wrong operand"), ("scores", "transitions"), "last_bar, alphas[:-1]",
          "last_bar, alphas[1:]"),
    fault("cotangent ignored", ("scores", "transitions"), "total_bar * jax.nn.softmax",
          "jax.nn.softmax"),
    fault(("transpose", "wrong operand"), ("scores", "transitions"),
          "softmax(before[:, None] + transitions, axis=0)",
          "softmax(before[:, None] + transitions.T, axis=0)"),
    fault(("off by one", "permutation"), "scores", "[first_bar[None], later_bars]",
          "[later_bars, first_bar[None]]"),
)
