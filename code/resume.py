"""A run that may be killed at any moment: what NAME.resume holds, and how --resume goes on with it.

From before the first epoch until the checkpoint is written, models/NAME.resume holds the facts that the
outcome depends on and the state after the last finished epoch (of fitting.fit).
"""
from pathlib import Path

import checkpoints
from files import TellError, shown

FLAGS = {"epochs": "ep", "batch_size": "bs", "architecture": "model", "start": "from"}
NAMED = 3  # differences in one line
BEFORE_ANY = {"epoch": 0, "history": [], "best": None}  # the state in which a run begins


def unfinished_run(name: str) -> Path:
    return checkpoints.path_of(name).with_suffix(".resume")


def keep(path: Path, facts: dict, state: dict = BEFORE_ANY) -> None:
    """Write the unfinished run, in place of the one before."""
    checkpoints.write(path, {"recipe": facts, "state": state})


def finished_run(name: str, facts: dict, say=print) -> dict | None:
    """What a finished run of these very facts reached; None where it is unfinished or not begun."""
    path = checkpoints.path_of(name)
    if unfinished_run(name).exists() or not path.exists():
        return None
    content = checkpoints.read(path)
    changed = differences(facts, content.get("recipe"))
    if changed:  # to go on would replace a finished network, perhaps for a mistyped flag
        raise TellError(f"{shown(path)}: a finished run with another {changed}; give the same flags, another "
                        "-mf, or start without --resume")
    say(f"{shown(path)} is finished already")
    return content["metrics"]


def unfinished_state(path: Path, facts: dict) -> dict | None:
    """The state after the last finished epoch of a run of these very facts; None before any."""
    if not path.exists():
        return None
    content = checkpoints.read(path)
    if not content.keys() >= {"recipe", "state"}:
        raise TellError(f"{path}: not an unfinished run; start without --resume")
    theirs, state = content["recipe"], content["state"]
    # A constant learning rate does not know how many epochs there will be: more may follow.
    if facts["schedule"] == "constant":
        theirs = theirs | {"epochs": facts["epochs"]}
    changed = differences(facts, theirs)
    if changed:
        raise TellError(f"{path}: that run had another {changed}; give the same flags, data and threads, "
                        "or start without --resume")
    if state["epoch"] > facts["epochs"]:
        raise TellError(f"{path}: that run has {state['epoch']} epochs already; "
                        f"-ep {facts['epochs']} is too few")
    return state if state["epoch"] else None


def differences(facts: dict, theirs) -> str:
    """Where `theirs` differ from `facts`: the first few, and how many more; "" where they do not."""
    theirs = theirs if isinstance(theirs, dict) else {}
    changed = [f"{FLAGS.get(key, key)} ({brief(theirs.get(key))}, not {brief(value)})"
               for key, value in facts.items() if theirs.get(key) != value]
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return ", ".join(changed[:NAMED]) + more


def brief(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
