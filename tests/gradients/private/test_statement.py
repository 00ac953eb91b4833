"""What is said about a run: recomputable by anyone, silent about nothing, and TF Privacy's figures."""

import importlib.util
import json
import math
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from tfbig.errors import UsageError
from tfbig.gradients.private.mechanism import Mechanism
from tfbig.gradients.private.record import NOT_PRIVATE_FILES, privacy_record
from tfbig.gradients.private.statement import privacy_figures, privacy_statement

POISSON = Mechanism(1.1, 50_000, 500, "poisson")
SHUFFLE = replace(POISSON, sampling="shuffle")
TREE = Mechanism(10.0, 50_000, 500, "shuffle", "tree")
SETTINGS = {"number_of_examples": 50_000, "batch_size": 500, "num_epochs": 20, "noise_multiplier": 1.1, "delta": 1e-5}


def _record(run: Mechanism, **changed: object) -> dict:
    given = {
        "num_steps": 1950, "planned_steps": 2000, "delta": 1e-5, "l2_norm_clip": 1.0, "accountant": run.accountants[0],
        "trained_variables": ["head/kernel", "head/bias"], "engine": "book-keeping",
    }  # fmt: skip
    return json.loads(json.dumps(privacy_record(run, **{**given, **changed}), allow_nan=False))


def _recomputed(record: dict) -> float:
    """From the fields of dp.json and dp-accounting alone, as a stranger would."""
    gaussian = dp_accounting.GaussianDpEvent(record["noise_multiplier"])
    per_epoch = -(-record["num_examples"] // record["batch_size"])
    if record["sampling"] == "poisson":
        step = dp_accounting.PoissonSampledDpEvent(record["sampling_probability"], gaussian)
        events = [dp_accounting.SelfComposedDpEvent(step, record["steps"])]
    elif record["noise"] == "gaussian":
        events = [dp_accounting.SelfComposedDpEvent(gaussian, math.ceil(record["steps"] / per_epoch))]
    else:
        whole, rest = divmod(record["steps"], per_epoch)
        steps = [per_epoch] * whole + ([rest] if rest else [])
        events = [dp_accounting.SingleEpochTreeAggregationDpEvent(record["noise_multiplier"], n) for n in steps]
    relation = dp_accounting.NeighboringRelation[record["adjacency"].upper()]
    known = {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}
    accountant = known[record["accountant"]](neighboring_relation=relation)
    for event in events:
        accountant.compose(event)
    return accountant.get_epsilon(record["delta"])


@pytest.mark.parametrize("run", [POISSON, SHUFFLE, TREE], ids=["poisson", "shuffle", "tree"])
def test_anyone_can_recompute_epsilon(run: Mechanism) -> None:
    for accountant in run.accountants:
        record = _record(run, accountant=accountant)
        assert record["epsilon"] == pytest.approx(_recomputed(record), rel=5e-4)
        assert record["epsilon"] == record[f"epsilon_{accountant}"]
        done = subprocess.run(
            [sys.executable, "-I", "-c", record["recompute"]], capture_output=True, text=True, check=True, timeout=60
        )
        assert float(done.stdout) == pytest.approx(record["epsilon"], rel=1e-9)
        assert "tfbig" not in record["recompute"]


def test_the_record_is_complete() -> None:
    record = _record(POISSON)
    promised = {"epsilon", "delta", "noise_multiplier", "l2_norm_clip", "sampling_probability", "steps", "accountant",
                "adjacency"}  # fmt: skip
    assert promised <= set(record)
    assert record["unit"] == "one training example"
    assert (record["steps"], record["planned_steps"]) == (1950, 2000)
    assert record["epsilon_pld"] < record["epsilon_rdp"]
    assert record["trained_variables"] == ["head/kernel", "head/bias"]
    assert set(record["not_private_files"]) == set(NOT_PRIVATE_FILES)
    assert {"audit.json", "audit.html",
            "metrics.jsonl", "tensorboard/", "checkpoints/", "evaluation.json", "predictions.csv", "report.html",
            "data_manifest.json"} == set(NOT_PRIVATE_FILES)  # fmt: skip
    with_ledger = _record(POISSON, ledger="budget.json")["not_private_files"]
    assert set(with_ledger) == {*NOT_PRIVATE_FILES, "budget.json"} and "hash" in with_ledger["data_manifest.json"]
    # The secret is erased at the end; the metrics stay.
    assert "exact metrics" in NOT_PRIVATE_FILES["checkpoints/"] and "until" in NOT_PRIVATE_FILES["checkpoints/"]
    assert record["clipping"] == "fixed"
    adaptive = _record(POISSON, adaptive_clipping={"target_quantile": 0.5})
    assert (adaptive["clipping"], adaptive["clipping_parameters"]) == ("adaptive", {"target_quantile": 0.5})
    assert "adapted" in adaptive["statement"] and "adapted" not in record["statement"]


def test_what_is_not_covered_depends_on_what_was_done() -> None:
    plain = " ".join(_record(POISSON)["not_covered"])
    assert "metrics on the training examples" in plain and "floating point" in plain and "50000" in plain
    assert "validation" not in plain and "backbone" not in plain and "compared to choose" in plain
    chosen = " ".join(_record(POISSON, chosen_on_validation=["early stopping"], public_parts=["the LoRA base"],
                              ledger="budget.json")["not_covered"])  # fmt: skip
    assert "Early stopping: chosen on a validation split that was given" in chosen
    assert "The LoRA base: not trained" in chosen
    assert "compared to choose" not in chosen and "outside of the ledger" in chosen
    assert "publishing one example outright" in " ".join(_record(POISSON, delta=2e-5)["not_covered"])
    assert "publishing one example outright" not in plain


def test_what_a_public_seed_drew_is_said_to_be_fixed() -> None:
    given = " ".join(_record(POISSON, chosen_on_validation=["the best epoch"])["not_covered"])
    assert "taken as fixed" not in given and "drawn from the private data" not in given
    drawn = " ".join(_record(POISSON, chosen_on_validation=["the best epoch"], drawn_splits=["validation", "test"],
                             is_limited=True)["not_covered"])  # fmt: skip
    assert "The draw of the validation split and the test split and what --data.limit keeps: taken as fixed" in drawn
    assert "The best epoch: chosen on a validation split that was drawn from the private data" in drawn


def test_without_noise_nothing_is_promised() -> None:
    record = _record(replace(POISSON, noise_multiplier=0.0))
    assert record["epsilon"] == "inf" and float(record["epsilon"]) == math.inf
    assert "No privacy is promised" in record["statement"] and "no noise" in record["not_covered"][0]


def test_a_delta_that_pld_cannot_resolve_is_given_by_rdp_alone() -> None:
    record = _record(POISSON, delta=1e-14, accountant="rdp")
    assert "epsilon_pld" not in record and record["epsilon"] == pytest.approx(_recomputed(record))
    with pytest.raises(UsageError, match="use accountant rdp"):
        _record(POISSON, delta=1e-14)


def test_the_words_round_up() -> None:
    record = _record(POISSON)
    said = float(re.search(r"is \(([\d.]+),", record["statement"]).group(1))
    assert record["epsilon"] <= said < record["epsilon"] + 1.1e-3


def _figures(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"epsilon, [^:]*: (inf|[\d.]+)", text)]


def test_shuffled_batches_are_never_reported_with_poissons_epsilon() -> None:
    drawn, shuffled = _record(POISSON), _record(SHUFFLE)
    poissons = {drawn["epsilon_pld"], drawn["epsilon_rdp"]}
    figures = {value for value in shuffled.values() if isinstance(value, float)}
    assert not any(abs(figure - poisson) < 0.01 for figure in figures for poisson in poissons)
    assert shuffled["epsilon"] > 10 * drawn["epsilon"] and shuffled["adjacency"] == "replace_special"
    assert "no amplification" in shuffled["statement"] and "no amplification" not in drawn["statement"]
    both = privacy_figures(**SETTINGS, max_examples_per_user=2)
    alone = privacy_figures(**SETTINGS, max_examples_per_user=2, sampling="shuffle")
    assert (alone.poisson, alone.user_poisson) == (None, None)
    assert (alone.once_per_epoch, alone.user_once_per_epoch) == (both.once_per_epoch, both.user_once_per_epoch)
    text = privacy_statement(**SETTINGS, max_examples_per_user=2, sampling="shuffle")
    assert _figures(text) == pytest.approx([both.once_per_epoch, both.user_once_per_epoch], abs=1.1e-3)
    assert len(_figures(privacy_statement(**SETTINGS, max_examples_per_user=2))) == 4


def test_a_user_costs_more_than_an_example_and_one_example_the_same() -> None:
    one, three = (privacy_figures(**SETTINGS, max_examples_per_user=count) for count in (1, 3))
    assert one.user_poisson == one.poisson and three.user_poisson > 3 * three.poisson
    assert privacy_figures(**SETTINGS).user_poisson is None
    with pytest.raises(UsageError, match="at least 1"):
        privacy_figures(**SETTINGS, max_examples_per_user=0)
    with pytest.raises(UsageError, match="num_epochs must be above 0"):
        privacy_figures(**{**SETTINGS, "num_epochs": 0})


@pytest.mark.slow
def test_figures_are_tf_privacys(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    subprocess.run([*command, "tensorflow-privacy==0.9.0"], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    name = "tensorflow_privacy/privacy/analysis/compute_dp_sgd_privacy_lib.py"
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(name, tmp_path))
    # Without its package, whose __init__ needs Keras 2.
    spec = importlib.util.spec_from_file_location("compute_dp_sgd_privacy_lib", source)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    cases = [
        {},
        {"max_examples_per_user": 2},
        {"max_examples_per_user": 5, "noise_multiplier": 2.5},
        {"used_microbatching": True},
        {"num_epochs": 2.5, "batch_size": 333, "delta": 1e-7},
        {"number_of_examples": 1000, "batch_size": 1000, "noise_multiplier": 4.0},
        {"accountant": "pld"},
        {"accountant": "pld", "noise_multiplier": 0.7, "max_examples_per_user": 3},
        {"max_examples_per_user": 50, "noise_multiplier": 0.5},
    ]
    for case in cases:
        settings = {**SETTINGS, "used_microbatching": False, **case}
        kind = theirs.AccountantType[settings.pop("accountant", "rdp").upper()]
        text = theirs.compute_dp_sgd_privacy_statement(**settings, accountant_type=kind)
        expected = [float(value) for value in re.findall(r":\s+(inf|[\d.]+)(?: \(\*\*\))?$", text, re.MULTILINE)]
        ours = _figures(privacy_statement(**{**SETTINGS, **case}))
        assert len(ours) in (2, 4)
        assert ours == pytest.approx(expected, rel=5e-4, abs=1.1e-3), case
