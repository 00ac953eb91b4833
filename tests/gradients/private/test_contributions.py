"""A matrix's contribution is the same by its Gram matrices and by its products, and who shares inputs is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_batch, prepare
from keras import layers as kl

from tfbig.gradients.private import contributions
from tfbig.gradients.private.contributions import OuterProducts, prefer_gram_matrices

T, D, P = 16, 48, 48


@pytest.mark.parametrize("num_sharing", [1, 3])
def test_gram_matrices_and_products_agree(num_sharing: int) -> None:
    # Both ways are taken: by the Gram matrices where their inputs' one is shared.
    assert prefer_gram_matrices(T, D, P, num_sharing=num_sharing) == (num_sharing == 3)
    rng = np.random.default_rng(0)
    x, g, weights = rng.normal(size=(5, T, D)), rng.normal(size=(5, T, P)), rng.uniform(size=5)
    found = OuterProducts(tf.constant(x, "float32"), tf.constant(g, "float32"), num_sharing=num_sharing)
    products = np.einsum("btd,btp->bdp", x, g)
    np.testing.assert_allclose(found.squared_norms(), (products**2).sum((1, 2)), rtol=1e-5)
    total = found.weighted_sum(tf.constant(weights, "float32"))
    np.testing.assert_allclose(total, np.einsum("b,bdp->dp", weights, products), rtol=1e-4, atol=1e-4)


def test_queries_keys_and_values_are_known_to_share_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prefer(t: int, d: int, p: int, *, num_sharing: int = 1) -> bool:
        seen.append(num_sharing)
        return True

    monkeypatch.setattr(contributions, "prefer_gram_matrices", prefer)
    tokens = kl.Input((6, 12))
    hidden = kl.MultiHeadAttention(2, 6)(tokens, tokens)
    network = keras.Model(tokens, kl.Dense(5)(kl.GlobalAveragePooling1D()(hidden)))
    batch = make_batch(np.random.default_rng(1).normal(size=(6, 6, 12)).astype("f4"))
    prepared = prepare(network)
    seen.clear()
    prepared.clipped(batch, 1.0)
    # The kernels of queries, keys and values, and that of the outputs.
    assert sorted(seen) == [1, 3, 3, 3]
