"""Losses against what their authors published, where it is installed:

    pip install 'sparseshot-jax[reference]'   # topaz-em, and PyTorch with it
    pip install --no-deps ece-loss            # it asks for a PyTorch of 2021, and runs with one of today

topaz-em is that of Bepler et al. 2019: `topaz.methods` has GE-KL and non-negative PU. Its optimisers take a
step themselves; with plain gradient descent at rate 1 a step is the gradient. ece-loss is the loss of the
authors of exclusive cross-entropy.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax import losses

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install sparseshot-jax[reference]")


@pytest.fixture
def topaz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("topaz.methods", reason="topaz-em is not installed: the extra `reference`")


@pytest.fixture
def ece_loss():
    return pytest.importorskip("ece_loss", reason="not installed: pip install --no-deps ece-loss")


class Scores(torch.nn.Module):
    """A model whose output is its parameters."""

    def __init__(self, z):
        super().__init__()
        self.z = torch.nn.Parameter(torch.tensor(z, dtype=torch.float64))

    def forward(self, _):
        return self.z


def step_of_topaz(kind, z, annotated, **numbers):
    """What one step of topaz reports, and its gradient."""
    model = Scores(z)
    rate_one = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = kind(model, rate_one, torch.nn.BCEWithLogitsLoss(), **numbers)
    report = trainer.step(torch.zeros(len(z)), torch.tensor(annotated, dtype=torch.float64))
    return report, z - model.z.detach().numpy()


def ours(loss, z, *labels, **numbers):
    labels = [jnp.asarray(label) for label in labels]
    return jax.value_and_grad(lambda z: loss(z, *labels, **numbers))(jnp.asarray(z, jnp.float32))


def sample(shift, n=500, seed=0):
    rng = np.random.default_rng(seed)
    annotated = rng.random(n) < 0.1
    return rng.normal(0, 1.5, n) + np.where(annotated, shift, -shift), annotated


@pytest.mark.parametrize("shift", [0.0, 4.0], ids=["down the risk", "up the bracket"])
@pytest.mark.parametrize("beta", [0.0, 0.02])
def test_nnpu_is_that_of_topaz(topaz, shift, beta):
    z, annotated = sample(shift)
    report, expected = step_of_topaz(topaz.PU, z, annotated, pi=0.2, beta=beta)
    value, gradient = ours(losses.nnpu, z, annotated, prior=0.2, beta=beta)
    # float32 against float64
    np.testing.assert_allclose(value, report[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("shift", [0.0, 4.0])
@pytest.mark.parametrize(("prior", "slack"), [(0.02, 10.0), (0.3, 1.0)])
def test_ge_kl_is_that_of_topaz(topaz, shift, prior, slack):
    z, annotated = sample(shift)
    report, expected = step_of_topaz(topaz.GE_KL, z, annotated, pi=prior, slack=slack)
    value, gradient = ours(losses.ge_kl, z, annotated, prior=prior, weight=slack)
    np.testing.assert_allclose(value, report[0] + report[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def summed(loss, logits, *arguments):
    """The sum of their values and its gradient."""
    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = loss(logits, *arguments).sum()
    value.backward()
    return value.item(), logits.grad.numpy()


@pytest.mark.parametrize("epoch", [0, 50, 300])
def test_the_official_loss_is_that_of_ece_loss(ece_loss, epoch):
    """With every background element drawn: the draws of two libraries are not the same."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.5, (400, 4))
    labels = rng.integers(0, 4, 400) * rng.integers(0, 2, 400)
    all_drawn = ece_loss.ExclusiveCrossEntropyLoss(background_sampling_annealing=lambda *_: 1.0)
    expected = summed(all_drawn, logits, torch.tensor(labels), epoch)
    threshold = 0.5 / (1 + math.exp((50 - epoch) / 10))
    assert losses.schedules.official(epoch / 300) == pytest.approx(threshold)

    def loss(z, labels):
        return losses.official_exclusive_cross_entropy(z, labels, threshold=threshold).sum()

    found = ours(loss, logits, labels)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
    dropped = (expected[1] == 0).all(axis=1).mean()
    assert 0.1 < dropped < 0.7  # about 0.68 of them are unannotated


def test_the_official_binary_loss_is_that_of_ece_loss(ece_loss):
    z, annotated = sample(0.0)
    all_drawn = ece_loss.BECEWithLogitsLoss(background_sampling_annealing=lambda *_: 1.0)
    target = torch.tensor(annotated, dtype=torch.float64)
    expected = summed(all_drawn, z, target, 300, lambda target: target == 0)
    loss = losses.official_binary_exclusive_cross_entropy
    found = ours(lambda z, f: loss(z, f, threshold=0.5 / (1 + math.exp(-25))).sum(), z, annotated)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
