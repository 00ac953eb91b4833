"""The noise: of the right spread, drawn once for each (step, variable, replica), and along a tree where asked for."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfbig.gradients.private.mechanism import NOISE_LAYOUT
from tfbig.gradients.private.noise import MAX_STEPS, GaussianNoise, Noise, TreeNoise

SECRET = 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF


def _draw(noise: Noise, step: int, shape: tuple[int, ...] = (50,)) -> np.ndarray:
    return np.asarray(noise([shape], tf.constant(step))[0], np.float64)


@pytest.mark.parametrize("jit", [False, True])
def test_draws_are_standard_normal_with_sane_tails(jit: bool) -> None:
    noise = GaussianNoise(SECRET)
    draw = tf.function(lambda step: noise([(1000, 1000), (3, 7)], step), jit_compile=jit)
    numbers = draw(tf.constant(5, tf.int64))[0].numpy().ravel().astype(np.float64)
    assert abs(numbers.mean()) < 5 / 1000
    assert abs(numbers.std() - 1) < 5e-3
    assert stats.kstest(numbers, "norm").pvalue > 1e-4
    for far in (2, 3, 4):
        expected = len(numbers) * 2 * stats.norm.sf(far)
        assert abs((np.abs(numbers) > far).sum() - expected) < 5 * expected**0.5
    # Neighbours, and the two halves that one pair of random numbers gives, are independent.
    half = len(numbers) // 2
    for one, other in ((numbers[:-1], numbers[1:]), (numbers[:half], numbers[half:])):
        for transformed in (lambda x: x, np.abs):
            assert abs(np.corrcoef(transformed(one), transformed(other))[0, 1]) < 5 / half**0.5
    np.testing.assert_array_equal(numbers, draw(tf.constant(5, tf.int64))[0].numpy().ravel())


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 5), (2, 1, 4)])
def test_any_shape_is_drawn(shape: tuple[int, ...]) -> None:
    many = np.stack([_draw(GaussianNoise(SECRET), step, shape) for step in range(300)])
    assert many.shape == (300, *shape) and np.isfinite(many).all()
    assert abs(many.std() - 1) < 0.2 and abs(many.mean()) < 0.3


@pytest.mark.parametrize(
    ("noise", "drawn"),
    [
        (GaussianNoise(SECRET), (1.782349, -0.10587, -1.140965, -0.418707, 1.25189, 0.179395, 0.348524)),
        (TreeNoise(SECRET, 8), (2.602371, 1.306502, -0.834121, -1.955163, 1.63236, 0.471574, 1.328519)),
    ],
)
def test_what_a_secret_gives_does_not_change_without_another_layout(noise: Noise, drawn: tuple[float, ...]) -> None:
    # Digits, for once: a run that goes on under a later release must draw what it would have drawn. Where they change,
    # NOISE_LAYOUT goes up by one, and a run of before is refused.
    one, large, none, larger = noise([(2, 3), (20_000,), (), (70_000,)], tf.constant(13))
    numbers = [one[0, 0], one[1, 2], large[0], large[-1], none, larger[0], larger[-1]]
    np.testing.assert_allclose([float(number) for number in numbers], drawn, atol=1e-4)
    assert NOISE_LAYOUT == 3


def _tensors(noise: Noise, steps: Sequence[int], *, jit: bool = False) -> dict[tuple[int, int], np.ndarray]:
    draw = tf.function(lambda step: noise([(40,)] * 3, step), jit_compile=jit)
    return {
        (step, index): tensor.numpy()
        for step in steps
        for index, tensor in enumerate(draw(tf.constant(step, tf.int64)))
    }


def _assert_nothing_shared(tensors: dict[tuple[int, ...], np.ndarray]) -> None:
    for (_, one), (_, other) in itertools.combinations(tensors.items(), 2):
        # A few of 2**23 different numbers may meet by chance; a shared stream would meet all along.
        assert np.isin(one, other).sum() <= 2
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.85


def test_variables_of_any_size_share_no_draw() -> None:
    """A draw of several parts: variables within one, beginning at odd places, across two, and larger than any."""
    shapes = [(7, 3), *[(2**13,)] * 8, (), (1100, 1000), (5,), (2**14,), (2, 2**20)]
    drawn = GaussianNoise(SECRET)(shapes, tf.constant(3))
    assert [tuple(tensor.shape) for tensor in drawn] == shapes
    numbers = np.concatenate([tensor.numpy().ravel() for tensor in drawn])
    # Some of the many float32 numbers meet by chance; those of a shared stream would all meet.
    assert len(numbers) - len(np.unique(numbers)) < 0.05 * len(numbers)
    again = GaussianNoise(SECRET)(shapes, tf.constant(3))
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(one, other)


# Every bit of a step counts: a generator that drops some repeats its noise.
STEPS = (0, *(2**bit for bit in range((MAX_STEPS - 1).bit_length())), MAX_STEPS - 1)


@pytest.mark.parametrize("jit", [False, True])
def test_no_two_steps_or_variables_share_a_draw(jit: bool) -> None:
    _assert_nothing_shared(_tensors(GaussianNoise(SECRET), STEPS, jit=jit))


@pytest.mark.parametrize("jit", [False, True])
def test_another_secret_is_other_noise_and_the_same_is_the_same(jit: bool) -> None:
    noise = {secret: _tensors(GaussianNoise(secret), (0, 7), jit=jit) for secret in (SECRET, SECRET ^ 1 << 62)}
    for key, tensor in _tensors(GaussianNoise(SECRET), (0, 7), jit=jit).items():
        np.testing.assert_array_equal(tensor, noise[SECRET][key])
    _assert_nothing_shared({(secret, *key): t for secret, found in noise.items() for key, t in found.items()})


@pytest.mark.parametrize("bit", [0, 62, 63, 64, 127])
def test_each_bit_of_the_secret_counts(bit: int) -> None:
    one, other = (_draw(GaussianNoise(secret), 0) for secret in (SECRET, SECRET ^ 1 << bit))
    assert not np.isin(one, other).any()


def test_the_key_in_the_graph_shows_nothing_of_the_secret() -> None:
    for noise in (GaussianNoise(SECRET), TreeNoise(SECRET, 8)):
        assert noise._key not in {(SECRET >> shift) % 2**bits for shift in range(128) for bits in (63, 64)}


def test_xla_draws_the_same() -> None:
    compiled = _tensors(GaussianNoise(SECRET), STEPS[::5], jit=True)
    for key, tensor in _tensors(GaussianNoise(SECRET), STEPS[::5]).items():
        np.testing.assert_allclose(tensor, compiled[key], atol=1e-5)


@pytest.mark.parametrize("noise", [GaussianNoise(SECRET), TreeNoise(SECRET, 8)])
@pytest.mark.parametrize(
    ("step", "num_replicas", "word"), [(MAX_STEPS, 1, "steps"), (0, 2**10 + 1, "replicas")]
)
def test_where_draws_would_share_random_numbers_there_is_none(
    noise: Noise, step: int, num_replicas: int, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = SimpleNamespace(num_replicas_in_sync=num_replicas, replica_id_in_sync_group=0)
    monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: replica)
    with pytest.raises(ValueError, match=f"at most [0-9]+ {word}, got "):
        noise([()], tf.constant(step, tf.int64))


def test_a_resumed_run_draws_what_the_interrupted_one_would_have() -> None:
    for noise in (GaussianNoise(SECRET), TreeNoise(SECRET, 8)):
        whole, resumed = _tensors(noise, range(10)), _tensors(noise, range(6, 10))
        for key, tensor in resumed.items():
            np.testing.assert_array_equal(tensor, whole[key])
    _assert_nothing_shared(_tensors(GaussianNoise(SECRET), range(3)) | _tensors(GaussianNoise(SECRET), range(6, 9)))


def _nodes(t: int) -> list[int]:
    """The last steps, from 1, of the nodes that cover steps 1 to t: t's binary digits, each taken as a block."""
    ends, end = [], 0
    for bit in reversed(range(t.bit_length())):
        if t >> bit & 1:
            end += 1 << bit
            ends.append(end)
    return ends


@pytest.mark.parametrize("steps_per_epoch", [1, 5, 8])
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_running_sum_is_that_of_the_nodes_that_cover_it(steps_per_epoch: int, jit: bool) -> None:
    tree, plain = TreeNoise(SECRET, steps_per_epoch), GaussianNoise(SECRET)
    shapes = [(30,), (2, 3)]
    draw = tf.function(lambda step: tree(shapes, step), jit_compile=jit)
    draw_plain = tf.function(lambda step: plain(shapes, step), jit_compile=jit)
    running = [np.zeros(shape) for shape in shapes]
    of_past_epochs = [np.zeros(shape) for shape in shapes]
    for step in range(2 * steps_per_epoch + 1):
        epoch, in_epoch = divmod(step, steps_per_epoch)
        running = [total + more for total, more in zip(running, draw(tf.constant(step, tf.int64)), strict=True)]
        # A node is what plain noise draws at its last step.
        lasts = [epoch * steps_per_epoch + end - 1 for end in _nodes(in_epoch + 1)]
        nodes = [draw_plain(tf.constant(last, tf.int64)) for last in lasts]
        cover = [sum(np.asarray(node[i], np.float64) for node in nodes) for i in range(len(shapes))]
        for total, past, covered in zip(running, of_past_epochs, cover, strict=True):
            np.testing.assert_allclose(total, past + covered, atol=1e-4)
        if in_epoch == steps_per_epoch - 1:
            of_past_epochs = [past + covered for past, covered in zip(of_past_epochs, cover, strict=True)]


def test_the_running_sum_grows_with_the_number_of_nodes_and_begins_anew_each_epoch() -> None:
    size, steps_per_epoch = 20_000, 8
    tree = TreeNoise(SECRET, steps_per_epoch)
    draw = tf.function(lambda step: tree([(size,)], step)[0])
    running, of_past_epochs = np.zeros(size), np.zeros(size)
    for step in range(2 * steps_per_epoch):
        running = running + draw(tf.constant(step, tf.int64)).numpy()
        in_epoch = step % steps_per_epoch + 1
        assert np.var(running - of_past_epochs) == pytest.approx(in_epoch.bit_count(), rel=0.06)
        if in_epoch == steps_per_epoch:
            of_past_epochs = running
    # Independent noise a step would have 16 times the variance of one; two trees of 8 steps have twice.
    assert np.var(running) == pytest.approx(2, rel=0.06)
