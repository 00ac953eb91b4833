"""What cannot be private is refused with one sentence, before a picture is decoded and before anything is written."""

import dataclasses
import fcntl
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from tfbig.data import images
from tfbig.data.splits import Splits
from tfbig.errors import UsageError
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.pipelines._command_line import parse
from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK
from tfbig.training import privacy
from tfbig.training.assembly import assemble
from tfbig.training.task import Task

NOISE = ["--dp.noise_multiplier", "1"]
HEAD = ["--adapt.mode", "head", *NOISE]
SHUFFLE = ["--dp.sampling", "shuffle"]
BATCH_NORM = ["--model.backbone", "keras:{batch_norm}", *NOISE]


@pytest.fixture(scope="module")
def batch_norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with weights and a BatchNorm."""
    path = tmp_path_factory.mktemp("backbone") / "norm.keras"
    keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(8), keras.layers.BatchNormalization()]
    ).save(path)
    return path


@pytest.fixture
def nothing_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a command fail that comes as far as decoding a picture."""
    monkeypatch.setattr(images, "decode_and_resize", lambda *_: pytest.fail("a picture was decoded"))


def _refusal(
    arguments: list[str], run_dir: Path, capsys: pytest.CaptureFixture, task: Task = TASK
) -> tuple[int, str]:
    words = ["--data.limit", "60", "--data.batch_size", "20", "--train.epochs", "1", "--run_dir", str(run_dir)]
    code = main(task, [*words, *arguments])
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith(("error:", "unexpected error:"))]
    assert not out and "Traceback" not in err and len(errors) == 1, err
    return code, errors[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*NOISE, "--dp.target_epsilon", "3"], "give one of dp.target_epsilon and dp.noise_multiplier, got 3 and 1"),
        (["--config", "cifar10_private", *NOISE], "a recipe's is taken back with --dp.target_epsilon null"),
        (["--dp.target_epsilon", "0"], "dp.target_epsilon must be above 0"),
        (["--dp.target_epsilon", "-1"], "dp.target_epsilon must be above 0"),
        (["--dp.target_epsilon", "inf"], "--dp.target_epsilon must be a finite NUMBER"),
        (["--dp.noise_multiplier", "0"], "dp.noise_multiplier must be above 0 (0.5 to 10"),
        (["--dp.noise_multiplier", "nan"], "--dp.noise_multiplier must be a finite NUMBER"),
        (["--dp.noise_multiplier", "much"], "--dp.noise_multiplier must be NUMBER"),
        ([*NOISE, "--dp.delta", "0"], "dp.delta must be above 0 and below 1 (1e-5"),
        ([*NOISE, "--dp.delta", "1"], "dp.delta must be above 0 and below 1"),
        ([*NOISE, "--dp.delta", "nan"], "--dp.delta must be a finite NUMBER"),
        ([*NOISE, "--dp.l2_norm_clip", "0"], "dp.l2_norm_clip must be above 0 (0.1 to 10"),
        ([*NOISE, "--dp.l2_norm_clip", "-1"], "dp.l2_norm_clip must be above 0 (0.1 to 10"),
        ([*NOISE, "--dp.clip_quantile", "0"], "dp.clip_quantile must be above 0 and below 1"),
        ([*NOISE, "--dp.clip_quantile", "1"], "dp.clip_quantile must be above 0 and below 1"),
        ([*NOISE, "--dp.physical_batch_size", "0"], "dp.physical_batch_size must be at least 1"),
        ([*NOISE, "--dp.max_epsilon", "0"], "dp.max_epsilon must be above 0"),
        ([*NOISE, "--dp.sampling", "random"], "--dp.sampling must be poisson|shuffle"),
        ([*NOISE, "--dp.ledger", ""], "dp.ledger must be not empty"),
        ([*NOISE, "--dp.ledger_epsilon", "3"], "give --dp.ledger PATH with it"),
        ([*NOISE, "--dp.ledger", "l.json", "--dp.ledger_epsilon", "-3"], "dp.ledger_epsilon must be above 0"),
        ([*NOISE, "--options.augment", "flip,mixup"], "mixup and cutmix put two examples into one"),
        ([*NOISE, "--options.augment", "cutmix"], "mixup and cutmix put two examples into one"),
        ([*NOISE, "--data.class_weights", "balanced"], "--data.class_weights balanced counts the private labels"),
        ([*NOISE, "--train.clip_norm", "1"], "Leave --train.clip_norm out"),
        ([*NOISE, "--dp.mechanism", "tree"], "give --dp.sampling shuffle with it"),
        ([*NOISE, *SHUFFLE, "--dp.mechanism", "tree", "--dp.accountant", "pld"], "leave --dp.accountant"),
        ([*NOISE, *SHUFFLE, "--dp.mechanism", "tree", "--dp.clip_quantile", "0.5"], "no moving clipping norm"),
        ([*NOISE, *SHUFFLE, "--dp.clip_quantile", "0.5"], "leave one of them out"),
        ([*NOISE, "--train.profile_steps", "[1, 2]"], "profile the same run without --dp"),
        (["--dp.delta", "1e-6"], "--dp flags have no effect without one of --dp.target_epsilon"),
        (["--dp.l2_norm_clip", "2"], "--dp flags have no effect without one of --dp.target_epsilon"),
        (["--dp.max_epsilon", "2"], "--dp flags have no effect without one of --dp.target_epsilon"),
        ([*NOISE, "--runtime.precision", "float16"], "--runtime.precision must be float32|bfloat16"),
        # Neither head nor lora changes a backbone's statistics, in private training or out of it.
        ([*HEAD, "--adapt.statistics", "updated"], "--adapt.statistics updated changes a backbone"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_data_is_read(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = dataclasses.replace(TASK, load=lambda config: pytest.fail("the data was read"))
    monkeypatch.chdir(tmp_path)
    code, sentence = _refusal(arguments, tmp_path / "run", capsys, unread)
    assert code == 2 and words in sentence, sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--dp.target_epsilon", "1001"], 2, "at most 1000"),
        (["--dp.target_epsilon", "1e-3", "--dp.accountant", "rdp", "--dp.delta", "1e-12"], 2,
         "No noise multiplier up to 1e+06 keeps 3 steps"),
        ([*NOISE, "--dp.delta", "1e-13"], 2, "resolves delta down to 1e-12"),
        (["--dp.noise_multiplier", "1e-4"], 2, "promises nothing"),
        ([*NOISE, "--dp.max_epsilon", "0.1"], 6, "is spent before the first step"),
        (BATCH_NORM + ["--adapt.statistics", "updated"], 2, "--adapt.statistics frozen, --adapt.mode head, or --model"),
        (["--model.backbone", "apps:MobileNetV3Small", "--model.weights", "none", "--data.image_size", "32", *NOISE],
         2, "is a BatchNormalization that trains, so each example changes all others' gradients"),
        ([*NOISE, "--model.norm", "group"], 2, "model.norm group builds a network anew"),
        (BATCH_NORM + ["--model.norm", "group"], 2, "model.norm group builds a network anew"),
        ([*HEAD, "--dp.clip_quantile", "0.5", "--data.batch_size", "10"], 2,
         "dp.clip_quantile needs data.batch_size of at least 11"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("nothing_decoded")
def test_what_only_data_and_network_tell_is_refused_before_a_picture_is_decoded(
    arguments: list[str], exit_code: int, words: str, batch_norm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [word.format(batch_norm=batch_norm) for word in arguments]
    code, sentence = _refusal(arguments, tmp_path / "run", capsys)
    assert code == exit_code and words in sentence, sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--dry_run"]])
@pytest.mark.parametrize(("arguments", "allowed"), [(NOISE, False), ([], True)])
def test_a_private_run_multiplies_in_float32_and_not_in_tf32(
    arguments: list[str], allowed: bool, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    is_enabled = tf.config.experimental.tensor_float_32_execution_enabled
    seen = []

    def load(config: object) -> Splits:
        seen.append(is_enabled())
        raise UsageError("seen")

    _refusal([*arguments, *more], tmp_path / "run", capsys, dataclasses.replace(TASK, load=load))
    assert seen == [allowed] and is_enabled()


def test_devices_share_each_physical_batch_evenly() -> None:
    config = parse(TASK, [*NOISE, "--dp.physical_batch_size", "7", "--data.limit", "60"])
    with pytest.raises(UsageError, match=r"--dp\.physical_batch_size 7 must be a multiple of the 2 devices"):
        assemble(TASK, config, TASK.load(config), SimpleNamespace(num_replicas_in_sync=2))


@pytest.mark.usefixtures("nothing_decoded")
def test_an_objective_that_compares_examples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    task = dataclasses.replace(
        TASK, objective=lambda config, splits: dataclasses.replace(TASK.objective(config, splits), separable=False)
    )
    code, sentence = _refusal(HEAD, tmp_path / "run", capsys, task)
    assert code == 2 and "whose loss for one example depends on that example alone" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_decoded")
def test_an_objective_that_only_claims_to_take_examples_alone_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def centred(config: object, splits: Splits) -> object:
        plain = TASK.objective(config, splits)

        def losses(network: keras.Model, batch: object, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
            values, outputs = plain.losses(network, batch, training=training)
            return values - 0.5 * tf.reduce_mean(values), outputs

        return dataclasses.replace(plain, losses=losses)

    code, sentence = _refusal(HEAD, tmp_path / "run", capsys, dataclasses.replace(TASK, objective=centred))
    assert code == 2 and "depends on the other examples of its batch" in sentence


@pytest.mark.parametrize("said", [59, 6000])
def test_examples_are_counted_and_not_believed(said: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def load(config: object) -> Splits:
        splits = TASK.load(config)
        return dataclasses.replace(splits, spec=dataclasses.replace(splits.spec, num_train=said))

    ledger = tmp_path / "ledger.json"
    code, sentence = _refusal(
        [*HEAD, "--dp.ledger", str(ledger), "--dp.ledger_epsilon", "9"], tmp_path / "run", capsys,
        dataclasses.replace(TASK, load=load),
    )  # fmt: skip
    assert code == 2 and f"says {said} training examples, but there are 60" in sentence and "num_train" in sentence
    assert not ledger.exists() and not list((tmp_path / "run").rglob("*.npz"))


def test_a_recipes_epsilon_is_taken_back() -> None:
    dp = parse(TASK, ["--config", "cifar10_private", "--dp.target_epsilon", "null", *NOISE]).dp
    assert (dp.target_epsilon, dp.noise_multiplier) == (None, 1.0)


def _corrupt(path: Path) -> None:
    path.write_text('{"version": 1, "data')


def _foreign(path: Path) -> None:
    path.write_text("dear diary")


@pytest.mark.parametrize(
    ("make", "exit_code", "words"),
    [
        (_corrupt, 6, "is damaged"),
        (_foreign, 6, "is damaged"),
        (Path.mkdir, 4, "must be a file"),
        (lambda path: path.write_bytes(b""), 6, "is damaged"),
    ],
)
def test_a_ledger_that_cannot_be_read_stops_a_run_and_stays_as_it_is(
    make: Callable[[Path], None], exit_code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ledger = tmp_path / "ledger.json"
    make(ledger)
    before = ledger.read_bytes() if ledger.is_file() else None
    code, sentence = _refusal(
        [*HEAD, "--dp.ledger", str(ledger), "--dp.ledger_epsilon", "9"], tmp_path / "run", capsys
    )
    assert code == exit_code and words in sentence and str(ledger) in sentence, sentence
    assert before == (ledger.read_bytes() if ledger.is_file() else None)
    assert not list((tmp_path / "run").rglob("*.npz"))


def test_a_locked_ledger_stops_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy, "BudgetLedger", functools.partial(BudgetLedger, lock_timeout_s=0.2))
    ledger = tmp_path / "ledger.json"
    with (tmp_path / ".ledger.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, sentence = _refusal(
            [*HEAD, "--dp.ledger", str(ledger), "--dp.ledger_epsilon", "9"], tmp_path / "run", capsys
        )
    assert code == 4 and "locked by another process" in sentence
    assert not ledger.exists() and not list((tmp_path / "run").rglob("*.npz"))


def test_a_new_dataset_needs_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ledger = tmp_path / "ledger.json"
    code, sentence = _refusal([*HEAD, "--dp.ledger", str(ledger)], tmp_path / "run", capsys)
    assert code == 2 and "its limit must be given with --dp.ledger_epsilon" in sentence and not ledger.exists()


def test_noise_that_spans_steps_is_not_drawn_on_another_number_of_devices(tmp_path: Path) -> None:
    from tfbig.pipelines._stages import refuse_other_replicas
    from tfbig.training.run_directory import RunDirectory

    run = RunDirectory(tmp_path)
    private = ["--dp.noise_multiplier", "1", "--dp.sampling", "shuffle"]
    tree, usual = parse(TASK, [*private, "--dp.mechanism", "tree"]), parse(TASK, private)
    refuse_other_replicas(tree, 2, run)
    run.write_json("environment.json", {"num_replicas": 1})
    refuse_other_replicas(tree, 1, run)
    refuse_other_replicas(usual, 2, run)
    with pytest.raises(UsageError, match="on 1 devices, not 2"):
        refuse_other_replicas(tree, 2, run)
