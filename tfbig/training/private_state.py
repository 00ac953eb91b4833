"""What a private run must remember beside its checkpoints, and nobody else may read: the secret of its draws.

The secret decides which examples each step draws, and the noise. It lies in the checkpoints' folder, readable by
its owner alone, so that a resumed run makes the very draws that the interrupted one would have made; when the run
has ended it is erased, for whoever has it can take the noise away. Beside it lies what the accountant was told of
the run: going on with other data or settings would be counted wrongly; and how noise is drawn from the secret: a run
that another release began would go on with other draws.
Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.gradients.private.mechanism import NOISE_LAYOUT, Mechanism

_NAME = "private_state.json"
_LAYOUT = "noise_layout"
_SECRET_BITS = 128
_NOTICE = "Keep to yourself: with the secret, the noise of this run's training can be taken away."


@dataclass(frozen=True)
class PrivateState:
    """Drawn once a run.

    Args:
        run_id: Names the run in a ledger.
        secret: 128 random bits, of all draws of the run; None when it has been erased.
        mechanism: What the run began as, its calibrated noise included; None until then.
    """

    run_id: str
    secret: int | None
    mechanism: Mechanism | None = None

    def __repr__(self) -> str:
        """Without the secret, which must not appear in logs."""
        return f"PrivateState({self.run_id})"


def fresh() -> PrivateState:
    """A new run's state, from the operating system's randomness."""
    return PrivateState(secrets.token_hex(16), draw_secret())


def draw_secret() -> int:
    """A secret from the operating system's randomness."""
    return secrets.randbits(_SECRET_BITS)


def read(folder: Path) -> PrivateState | None:
    """The state of the run whose checkpoints lie in a folder; None where no run has begun.

    Raises:
        EnvironmentFault: There are checkpoints, but their state is missing, damaged, or does not hold the mechanism; or
            the run has not ended, and its noise was drawn in another way.
    """
    path = folder / _NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        secret, mechanism = content["secret"], None
        if not (secret is None or (type(secret) is int and 0 < secret < 2**_SECRET_BITS)):
            raise ValueError("no secret")
        if content["mechanism"] is not None:
            mechanism = Mechanism(**content["mechanism"])
            if not mechanism.noise_multiplier:
                raise ValueError("no noise multiplier")
        state, layout = PrivateState(str(content["run_id"]), secret, mechanism), content.get(_LAYOUT)
    except FileNotFoundError:
        if any(folder.glob("*.npz")):
            raise EnvironmentFault(
                f"{path} is missing, without which this private run cannot go on as it began; put it back, or train "
                "anew with --resume never."
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise EnvironmentFault(
            f"{path} is damaged ({type(error).__name__}), so this private run cannot go on as it began; put a copy "
            "back, or train anew with --resume never."
        ) from error
    # Without a secret nothing is drawn any more.
    if secret is not None and (type(layout) is not int or layout != NOISE_LAYOUT):
        raise EnvironmentFault(
            f"{path} is of a private run that another release of tfbig began, which draws its noise otherwise "
            f"({_LAYOUT} {layout} then, {NOISE_LAYOUT} now), so it cannot go on as it began; go on with that release, "
            "or train anew with --resume never."
        )
    return state


def erase(folder: Path) -> None:
    """Takes the secret out of a folder of checkpoints that nobody trains on; there may be none.

    Raises:
        EnvironmentFault: The folder cannot be written.
    """
    try:
        state = read(folder)
    except EnvironmentFault:
        (folder / _NAME).unlink(missing_ok=True)
        return
    if state is not None and state.secret is not None:
        write(folder, replace(state, secret=None))


def write(folder: Path, state: PrivateState) -> None:
    """Keeps a state, readable by its owner alone; whole or not at all.

    Raises:
        EnvironmentFault: The folder cannot be written.
    """
    partial = folder / f".{_NAME}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"notice": _NOTICE, _LAYOUT: NOISE_LAYOUT, **asdict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / _NAME)
    except OSError as error:
        raise EnvironmentFault(f"{folder / _NAME} cannot be written ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
