"""A stage of training: where it goes on from, when it saves, and when it must not go on."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from toyllm.base import devices, files
from toyllm.base.errors import InputError, RunError, Stopped, tell
from toyllm.lm.training import State
from toyllm.lm.transformer import Params
from toyllm.runs import checkpoints
from toyllm.runs.stopping import Stop

STAGES = ("pretrain", "align", "narrow")


def finished(folder: Path, stage: str) -> dict | None:
    """What a done stage measured; None where it is not done or that cannot be read."""
    try:
        facts = files.read_json(folder / stage / "stage.json")
    except InputError:
        return None
    needed = ("seconds", "tokens_per_second") if stage == "pretrain" else ("seconds",)
    return facts if all(isinstance(facts.get(key), int | float) for key in needed) else None


class StageCheckpointer:
    """The checkpoints of a training stage.

    step, state, facts: where the stage goes on from; 0, None and {} where it has not begun.
    """

    def __init__(
        self,
        folder: Path,
        params: Params,
        optimizer: optax.GradientTransformation,
        stop: Stop,
        steps: int,
        seconds: float,
    ):
        """Read the newest good checkpoint; from now on save every so many steps and seconds.

        params: their shapes.
        """
        self.folder, self.stop, self.steps, self.seconds = folder, stop, steps, seconds
        self.abstract = State(params, jax.eval_shape(optimizer.init, params))
        try:
            found, complaints = checkpoints.resume(folder / "checkpoints", self.wanted)
        except InputError as error:
            fresh = shlex.quote(str(files.unused(folder.parent)))
            raise InputError(f"{error}; to begin anew beside it: --run {fresh}") from error
        self.step, self.facts = (found.step, found.facts) if found else (0, {})
        if not all(
            isinstance(self.facts.get(key, 0), int | float) for key in ("seconds", "tokens")
        ):
            raise InputError(f"{folder}: found odd facts beside step {self.step}")
        self.state = State(**found.items) if found else None
        if devices.first() and not self.done:  # or it was, before its end was damaged
            (folder / "stage.json").unlink(missing_ok=True)
        self.time = time.time()
        if devices.first():
            for complaint in complaints:
                tell(f"{complaint}; going back to step {self.step}")

    def wanted(self, record: dict) -> dict:
        """What to load of a checkpoint."""
        return self.abstract._asdict()

    @property
    def done(self) -> bool:
        """Whether the stage has come to its end."""
        return self.facts.get("done", False)

    def save(self, step: int, state: State, facts: dict, last: bool, now: bool = False) -> None:
        """Save where it is time to, or now; then leave, if a signal has asked for that.

        facts: what is to be known when the stage goes on from here; of the last, its `stage.json`.
        """
        due = (
            last or now or step - self.step >= self.steps or time.time() - self.time >= self.seconds
        )
        signal, due = divmod(devices.together(2 * self.stop.asked + due), 2)
        if signal or due:
            self._check_finite(step, state)
            plain = {k: None if v != v or v in (np.inf, -np.inf) else v for k, v in facts.items()}
            facts = plain | {"done": last}  # as JSON has them
            checkpoints.save(self.folder / "checkpoints", step, state._asdict(), facts)
            self.step, self.state, self.facts, self.time = step, state, facts, time.time()
        if signal:
            raise Stopped(signal, f"{self.folder.name}: saved at step {step} and stopped")

    def _check_finite(self, step: int, state: State) -> None:
        """The last update of the steps before may have gone wrong with no loss to show it yet."""
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        if not all(np.isfinite(devices.whole(x)).all() for x in floats):
            raise RunError(
                f"{self.folder.name}: step {step}: parameters or optimizer state are not finite; "
                "what was saved before is kept; try a lower learning rate in a new --run"
            )

    def finish(self) -> Params:
        """Say that the stage is done; the parameters that it ended with."""
        files.write_json(self.folder / "stage.json", self.facts)
        return devices.fetch(self.state.params)


def check_finite(stage: str, step: int, logs: dict, say: Callable[[int], str], advice: str) -> None:
    """Raise RunError where a loss or gradient of the steps [K] up to `step` is not finite.

    To be called before anything of these steps is saved. say(step): batch and learning rate.
    """
    bad_K = ~(np.isfinite(logs["loss"]) & np.isfinite(logs["grad_norm"]))
    if bad_K.any():
        k = int(bad_K.argmax())
        at = step - len(bad_K) + k
        raise RunError(
            f"{stage}: step {at}: loss {logs['loss'][k]:g}, norm of its gradient "
            f"{logs['grad_norm'][k]:g}, on {say(at)}; what was saved before is kept; "
            f"try a lower rate: {advice}"
        )
