"""Probabilistic, differential and linear models of other libraries, for ``test_libraries``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from library_models import Model, draws, mean_squares


def numpyro_density() -> Model:
    """Log density of a hierarchical model (eight schools, both parametrizations in one)."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer.util import log_density

    def schools(errors: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        freedom = numpyro.sample("freedom", dist.Gamma(2, 0.1))
        correlations = numpyro.sample("correlations", dist.LKJCholesky(2, 1.5))
        with numpyro.plate("schools", y.size):
            theta = numpyro.sample("theta", dist.StudentT(freedom, mu, tau))
            numpyro.sample("y", dist.Normal(theta * correlations[1, 1], errors), obs=y)

    def loss(free: Any, errors: Any, y: Any) -> Any:
        values = {**free, "tau": jnp.exp(free["tau"]), "freedom": jnp.exp(free["freedom"])}
        transform = dist.transforms.CorrCholeskyTransform()
        values["correlations"] = transform(free["correlations"])
        density, _ = log_density(schools, (errors, y), {}, values)
        return density, None

    free = {"mu": draws(), "tau": draws(seed=1), "freedom": draws(seed=2) + 1, "theta": draws(8)}
    return Model(loss, {**free, "correlations": draws(1)}, (1 + draws(8) ** 2, draws(8, seed=3)))


def numpyro_elbo() -> Model:
    """One Monte Carlo estimate of the evidence bound: reparametrized and implicit gradients."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal

    def regression(x: Any, y: Any) -> None:
        scale = numpyro.sample("scale", dist.Gamma(2.0, 3.0))
        weights = numpyro.sample("weights", dist.Normal(0, scale).expand([3]).to_event())
        rate = numpyro.sample("rate", dist.Beta(2.0, 3.0))
        numpyro.sample("y", dist.Normal(x @ weights, 0.1 + rate), obs=y)

    guide = AutoMultivariateNormal(regression)
    svi = SVI(regression, guide, numpyro.optim.Adam(0.1), Trace_ELBO(num_particles=2))
    key, x, y = jax.random.key(0), draws(6, 3), draws(6, seed=1)
    free = svi.optim.get_params(svi.init(key, x, y).optim_state)

    def loss(free: Any, x: Any, y: Any) -> Any:
        return svi.loss.loss(key, svi.constrain_fn(free), regression, guide, x, y), None

    return Model(loss, free, (x, y))


def neural_ode(adjoint: Any) -> Model:
    """An equation with parameters, solved with adaptive steps under one of diffrax's adjoints."""
    import diffrax as dfx

    def loss(p: Any, start: Any) -> Any:
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, p: jnp.tanh(p["w"] @ y) + p["b"] * jnp.sin(t)),
            dfx.Tsit5(), 0.0, 1.5, 0.1, p["y"] + start, p,
            saveat=dfx.SaveAt(ts=jnp.array([0.3, 0.8, 1.5])), max_steps=64, adjoint=adjoint,
            stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-6),
        )  # fmt: skip
        return jnp.sum(solution.ys**2), solution.stats["num_steps"]

    parameters = {"w": draws(3, 3), "b": draws(3, seed=1), "y": draws(3, seed=2)}
    return Model(loss, parameters, (draws(3, seed=3),))


def diffrax_recursive_checkpoint() -> Model:
    """Discretise, then differentiate, with ten states kept."""
    import diffrax as dfx

    return neural_ode(dfx.RecursiveCheckpointAdjoint(checkpoints=10))


def diffrax_direct() -> Model:
    """Discretise, then differentiate through bounded loops."""
    import diffrax as dfx

    return neural_ode(dfx.DirectAdjoint())


def diffrax_backsolve() -> Model:
    """Differentiate, then discretise: the adjoint equation, solved backwards in time."""
    import diffrax as dfx

    return neural_ode(dfx.BacksolveAdjoint())


def diffrax_implicit() -> Model:
    """A stiff equation: an implicit solver with a root finder inside every step."""
    import diffrax as dfx

    def loss(rates: Any, start: Any) -> Any:
        def field(t: Any, y: Any, k: Any) -> Any:
            flow = k[0] * y[0] - k[1] * y[1] * y[2]
            return jnp.stack([-flow, flow - k[2] * y[1] ** 2, k[2] * y[1] ** 2])

        solution = dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Kvaerno3(), 0.0, 1.0, 0.01, start, rates, max_steps=128,
            stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-7),
        )  # fmt: skip
        return jnp.sum(solution.ys * draws(3)), solution.ys

    return Model(loss, jnp.array([0.5, 10.0, 30.0]), (jnp.array([1.0, 0.0, 0.0]),))


def diffrax_sde() -> Model:
    """A stochastic equation along a virtual Brownian tree."""
    import diffrax as dfx

    def loss(parameters: Any, start: Any) -> Any:
        path = dfx.VirtualBrownianTree(0.0, 1.0, tol=1e-2, shape=(2,), key=jax.random.key(0))
        drift = dfx.ODETerm(lambda t, y, p: -p["k"] * y)
        noise = dfx.ControlTerm(lambda t, y, p: jnp.diag(p["s"] * jnp.cos(y)), path)
        solution = dfx.diffeqsolve(
            dfx.MultiTerm(drift, noise), dfx.EulerHeun(), 0.0, 1.0, 0.1, start, parameters
        )
        return jnp.sum(solution.ys**2), None

    return Model(loss, {"k": draws(2), "s": draws(2, seed=1)}, (draws(2, seed=2),))


def optimistix_solves() -> Model:
    """Implicit differentiation of a root, a minimum, a fixed point and a least-squares fit."""
    import optimistix as optx

    def loss(p: Any, x: Any) -> Any:
        root = optx.root_find(
            lambda y, p: jnp.tanh(p["w"] @ y) + y - p["b"], optx.Newton(1e-10, 1e-10), x, p
        ).value
        fit = optx.least_squares(
            lambda y, p: p["w"] @ y - jnp.cos(y) * p["b"],
            optx.LevenbergMarquardt(1e-10, 1e-10), x, p
        ).value  # fmt: skip
        fixed = optx.fixed_point(
            lambda y, p: jnp.cos(p["b"] * y) / 2, optx.FixedPointIteration(1e-12, 1e-12), x, p
        ).value
        minimum = optx.minimise(
            lambda y, p: jnp.sum((y - p["b"]) ** 2 + jnp.cosh(y)), optx.BFGS(1e-8, 1e-8), x, p
        ).value
        return jnp.sum(root * fit + jnp.sin(fixed) * minimum), root

    return Model(loss, {"w": draws(3, 3) / 4, "b": draws(3, seed=1)}, (draws(3, seed=2),))


def lineax_solves() -> Model:
    """Direct and iterative solvers, square and least-squares, of operators with structure."""
    import lineax as lx

    def loss(p: Any, tall: Any) -> Any:
        square = lx.MatrixLinearOperator(p["a"] + 4 * jnp.eye(3))
        definite = lx.MatrixLinearOperator(
            p["a"] @ p["a"].T + jnp.eye(3), lx.positive_semidefinite_tag
        )
        function = lx.FunctionLinearOperator(
            lambda x: 5 * x + jnp.tanh(p["a"]) @ x, jax.eval_shape(lambda: p["b"])
        )
        rectangle = lx.MatrixLinearOperator(tall * p["a"][0])
        solves = [
            lx.linear_solve(square, p["b"]),
            lx.linear_solve(square.T, p["b"], lx.QR()),
            lx.linear_solve(definite, p["b"], lx.Cholesky()),
            lx.linear_solve(definite, p["b"], lx.CG(1e-12, 1e-12)),
            lx.linear_solve(function, p["b"], lx.GMRES(1e-12, 1e-12)),
            lx.linear_solve(rectangle, tall[:, 0], lx.AutoLinearSolver(well_posed=None)),
            lx.linear_solve(rectangle, tall[:, 1], lx.SVD()),
        ]
        return sum(jnp.sum(jnp.sin(s.value)) for s in solves), None

    return Model(loss, {"a": draws(3, 3), "b": draws(3, seed=1)}, (draws(5, 3, seed=2),))


def distrax_flow() -> Model:
    """A masked coupling with splines under a mixture, and a sample through it."""
    import distrax

    def loss(p: Any, x: Any) -> Any:
        coupling = distrax.MaskedCoupling(
            mask=jnp.array([True, False]),
            conditioner=lambda x: jnp.tanh(x @ p["w"]).reshape(*x.shape, 13),
            bijector=lambda q: distrax.RationalQuadraticSpline(q, -3.0, 3.0),
        )
        base = distrax.MixtureSameFamily(
            distrax.Categorical(p["logits"]),
            distrax.MultivariateNormalDiag(p["means"], jnp.exp(p["means"])),
        )
        flow = distrax.Transformed(base, coupling)
        sample = flow.sample(seed=jax.random.key(0), sample_shape=3)
        return jnp.mean(flow.log_prob(x)) + jnp.sum(sample**2), None

    parameters = {"w": draws(2, 26), "logits": draws(3), "means": draws(3, 2, seed=1)}
    return Model(loss, parameters, (draws(4, 2, seed=2),))


def tfp_densities() -> Model:
    """Densities and implicitly reparametrized samples of TensorFlow Probability on JAX."""
    from tensorflow_probability.substrates import jax as tfp

    tfd, tfb = tfp.distributions, tfp.bijectors

    def loss(p: Any, x: Any) -> Any:
        a, b = jnp.exp(p["a"]), jnp.exp(p["b"])
        kernel = tfp.math.psd_kernels.MaternFiveHalves(a[0], b[0])
        process = tfd.GaussianProcess(kernel, x[:, None], observation_noise_variance=0.1)
        joint = tfd.JointDistributionSequential(
            [tfd.Gamma(a, b), tfd.StudentT(a + 2, p["b"], b), tfd.VonMises(p["a"], b)]
        )
        draw = joint.sample(seed=jax.random.key(0))
        matrix = tfb.FillTriangular().forward(draw[0])
        density = jnp.sum(joint.log_prob(draw)) + process.log_prob(jnp.sin(x))
        return density + jnp.sum(matrix), None

    return Model(loss, {"a": draws(3), "b": draws(3, seed=1)}, (draws(5, seed=2),))


def optax_losses() -> Model:
    """Connectionist temporal classification and its like."""
    import optax

    def loss(p: Any, labels: Any) -> Any:
        logits, scores = p["logits"], p["logits"][:, 0]
        values = [
            optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), labels, (labels == 0) * 1.0),
            optax.softmax_cross_entropy(scores, jax.nn.softmax(scores[::-1])),
            optax.sigmoid_focal_loss(scores, (labels > 1) * 1.0),
            optax.huber_loss(scores), optax.log_cosh(scores),
            optax.cosine_similarity(scores, scores[::-1] ** 2),
            optax.hinge_loss(scores, 1.0), optax.kl_divergence(scores, jax.nn.softmax(scores)),
        ]  # fmt: skip
        return sum(jnp.sum(v) for v in values), None

    return Model(loss, {"logits": draws(2, 7, 4)}, (jnp.array([[1, 2, 2, 0], [3, 1, 0, 0]]),))


def optax_updates() -> Model:
    """The gradient of a loss after steps of an optimizer, each with a gradient inside."""
    import optax

    def loss(start: Any, x: Any) -> Any:
        rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1), optax.lion(0.01))
        objective = lambda w: mean_squares(jnp.tanh(x @ w), 1.0)

        def step(carry: Any, _: Any) -> Any:
            weights, state = carry
            value, found = jax.value_and_grad(objective)(weights)
            updates, state = rule.update(found, state, weights)
            return (optax.apply_updates(weights, updates), state), value

        (weights, _), values = lax.scan(step, (start, rule.init(start)), length=4)
        return objective(weights), values

    return Model(loss, draws(3), (draws(6, 3, seed=1),))


def scipy_matrix_functions() -> Model:
    """``funm`` and ``sqrtm``: a Schur form, which JAX cannot differentiate, and loops over it.

    The reference has sin A = Im exp(iA) of a real A, and the root by Denman and Beavers' iteration
    X ← (X + Y⁻¹)/2, Y ← (Y + X⁻¹)/2 from A and 1, which converges quadratically.
    """
    from jax.scipy.linalg import expm, funm, sqrtm

    def sum_of(sine: Any, root: Any) -> Any:
        weights = jnp.arange(1.0, 17.0).reshape(4, 4)
        return jnp.sum(weights * jnp.real(sine)) + jnp.sum(jnp.real(root) ** 3), None

    def reference(a: Any) -> Any:
        x, y = a, jnp.eye(4)
        for _ in range(12):
            x, y = (x + jnp.linalg.inv(y)) / 2, (y + jnp.linalg.inv(x)) / 2
        return sum_of(jnp.imag(expm(1j * a)), x)

    loss = lambda a: sum_of(funm(a, jnp.sin), sqrtm(a))
    return Model(loss, draws(4, 4) + 5 * jnp.eye(4), reference=reference, max_steps=4)
