"""What a score is worth: is 0.9 nine in ten, and when is the honest verdict "cannot tell"?

    python code/calibration.py -mf base_model              fit on the validation pictures it was trained with
    python code/calibration.py -mf NAME --data FOLDER      the same where it was not trained on CIFAKE

train.py gives every new checkpoint its calibration; the command adds one to a checkpoint without, or
replaces it, and leaves the weights as they are. Everything is at even odds: each class weighs half, however
many pictures of it there are, so P(fake) answers for a world where real and fake are equally likely.
"""
from argparse import Namespace

import numpy as np

import checkpoints
from classes import pick_device
from files import Parser, TellError, command_line, shown
from scoring import Z95, logits, ratio, sigmoid, wilson

ALPHA = 0.05  # share of each class that may get the other's verdict
FALSE_ALARMS = (0.01, 0.05)
BINS = 15  # of equal width over P(fake)
DRAWS = 1000  # of a bootstrap
STEPS = 100  # of Newton's method, which needs about 8
MEASURES = {"balanced_ece": "ECE", "balanced_nll": "NLL", "balanced_brier": "Brier"}


def rate(name: str, hits: int, n: int) -> dict[str, float]:
    """{name, name_low, name_high}: a share and its 95 % interval (Wilson); nan for n = 0."""
    low, high = wilson(int(hits), int(n)) if n else (float("nan"),) * 2
    return {name: ratio(float(hits), float(n)), f"{name}_low": low, f"{name}_high": high}


def both_classes(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """labels as bool (n,), values as float64 (n,); TellError unless both classes occur and all is finite."""
    labels, values = np.asarray(labels).astype(bool), np.asarray(values, np.float64)
    if labels.shape != values.shape or labels.ndim != 1:
        raise TellError(f"as many labels as scores are needed, not {labels.shape} and {values.shape}")
    if not np.isfinite(values).all():
        raise TellError(f"{(~np.isfinite(values)).sum():,} of {len(values):,} scores are not finite")
    if not 0 < labels.sum() < len(labels):
        raise TellError(f"real and fake pictures are needed, not {(~labels).sum():,} real and "
                        f"{labels.sum():,} fake ones")
    return labels, values


# --- fit on validation -------------------------------------------------------------------------

def fit(labels: np.ndarray, logits: np.ndarray, source: str) -> dict:
    """The rule that a checkpoint keeps, from labels (n,) and logits of FAKE (n,) of VALIDATION pictures.

    temperature, bias: see calibrated(). real_bound, fake_bound, alpha: see verdicts().
    false_alarm_bounds: {0.01: ..., 0.05: ...}, the logit above which at most this share of new real
    pictures lies. n, source: how many pictures, and which. TellError for one class, or where the logits
    do not rise from real to fake.
    """
    labels, logits = both_classes(labels, logits)
    temperature, bias = fit_temperature(labels, logits)
    return {"temperature": temperature, "bias": bias, "n": len(labels), "source": source, "alpha": ALPHA,
            "real_bound": upper_bound(logits[~labels], ALPHA),
            "fake_bound": -upper_bound(-logits[labels], ALPHA),
            "false_alarm_bounds": {share: upper_bound(logits[~labels], share) for share in FALSE_ALARMS}}


def kept(labels: np.ndarray, logits: np.ndarray, source: str) -> dict:
    """fit() as a part of a checkpoint, {"calibration": ...}; of one that learnt nothing {}, and a line."""
    try:
        return {"calibration": fit(labels, logits, source)}
    except TellError as error:
        print(f"no calibration: {error}")
        return {}


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """(temperature, bias) of the least balanced NLL of sigmoid((logits - bias) / temperature).

    Guo et al., ICML 2017, with a bias, and with the targets of Platt 1999, a little inside 0 and 1, so
    that classes which do not overlap give a finite answer too. Newton's method with halved steps.
    """
    fakes = labels.sum()
    reals, spread = len(labels) - fakes, logits.std() or 1.0
    targets = np.where(labels, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
    weights = np.where(labels, 0.5 / fakes, 0.5 / reals)
    x = np.stack((logits / spread, np.ones(len(logits))))

    def loss(line: np.ndarray) -> float:
        z = line @ x
        return weights @ (np.logaddexp(0, z) - targets * z)

    line = np.zeros(2)
    for _ in range(STEPS):
        p = sigmoid(line @ x)
        step = np.linalg.lstsq((x * weights * p * (1 - p)) @ x.T, x @ (weights * (p - targets)))[0]
        while loss(line - step) > loss(line):
            step = step / 2
        line = line - step
        if abs(step).max() < 1e-10:
            break
    if line[0] < 1e-6:
        raise TellError("the logits of validation do not rise from real to fake: nothing to calibrate")
    return float(spread / line[0]), float(-line[1] * spread / line[0])


def upper_bound(values: np.ndarray, alpha: float) -> float:
    """What a new value like these exceeds with probability alpha at most: split conformal prediction.

    The ceil((n + 1)(1 - alpha))-th smallest of values (n,), infinite where n is too small to say. Vovk,
    Gammerman and Shafer 2005; Angelopoulos and Bates, arXiv:2107.07511, section 1.
    """
    rank = len(values) + 1 - int(np.floor(alpha * (len(values) + 1) + 1e-9))
    return float(np.sort(values)[rank - 1]) if rank <= len(values) else float("inf")


# --- apply -------------------------------------------------------------------------------------

def scaled(logits: np.ndarray, rule: dict) -> np.ndarray:
    """Calibrated logits, float64 (n,)."""
    return (np.asarray(logits, np.float64) - rule["bias"]) / rule["temperature"]


def calibrated(logits: np.ndarray, rule: dict) -> np.ndarray:
    """P(fake) at even odds, float64 (n,): sigmoid((logits - bias) / temperature), rule as fit() gave it."""
    return sigmoid(scaled(logits, rule))


def prediction_sets(logits: np.ndarray, rule: dict) -> tuple[np.ndarray, np.ndarray]:
    """Whether REAL and whether FAKE is a possible class of each picture: bool (n,), bool (n,)."""
    return np.asarray(logits) <= rule["real_bound"], np.asarray(logits) >= rule["fake_bound"]


def verdicts(logits: np.ndarray, rule: dict) -> np.ndarray:
    """"FAKE", "REAL" or "cannot tell" for logits (n,), by the rule of a checkpoint: str (n,).

    A class is possible where the picture is not among the alpha most extreme of that class on validation
    (class-conditional split conformal prediction). One possible class is the verdict; two, or none, is
    "cannot tell". Of new pictures of a class, like those of validation, at most alpha miss their class.
    """
    real, fake = prediction_sets(logits, rule)
    return np.select([fake & ~real, real & ~fake], ["FAKE", "REAL"], "cannot tell")


def coverage(labels: np.ndarray, logits: np.ndarray, rule: dict) -> list[dict]:
    """A row for REAL and for FAKE pictures, of any set with labels (n,) and logits (n,).

    coverage: share whose own class is among the possible ones, 1 - alpha for pictures like validation's;
    cannot_tell: share without verdict; wrong: share with the other class's verdict. With Wilson intervals.
    """
    labels = np.asarray(labels).astype(bool)
    possible, said = prediction_sets(logits, rule), verdicts(logits, rule)
    rows = []
    for label, (name, other) in enumerate((("REAL", "FAKE"), ("FAKE", "REAL"))):
        mine = labels == label
        rows.append({"label": name, "n": int(mine.sum()),
                     **rate("coverage", possible[label][mine].sum(), mine.sum()),
                     **rate("cannot_tell", (said[mine] == "cannot tell").sum(), mine.sum()),
                     **rate("wrong", (said[mine] == other).sum(), mine.sum())})
    return rows


# --- how well calibrated -----------------------------------------------------------------------

def binned(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin 0..BINS-1 of each picture, and its weight: each class adds up to a half."""
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return place, 0.5 / np.where(labels, labels.sum(), (~labels).sum())


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    """The points of a reliability diagram, one for each bin with pictures: labels (n,), P(fake) (n,).

    probability: mean P(fake); fakes: share of fakes at even odds, with its Wilson interval; weight: the
    bin's part of everything; n. Balanced ECE is the sum of weight * |probability - fakes|.
    """
    labels, probabilities = both_classes(labels, probabilities)
    place, weights = binned(labels, probabilities)
    odds, rows = (~labels).sum() / labels.sum(), []
    for mine in (place == i for i in np.unique(place)):
        shares = rate("fakes", labels[mine].sum(), mine.sum())
        even = {key: share * odds / (share * odds + 1 - share) for key, share in shares.items()}
        rows.append({"probability": float(np.average(probabilities[mine], weights=weights[mine])), **even,
                     "weight": float(weights[mine].sum()), "n": int(mine.sum())})
    return rows


def errors(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Balanced ECE, NLL (nats) and Brier score of labels (n,) and logits (n,), with 95 % intervals.

    Binary ECE over P(fake), bins of equal width; as B-Free (Guillaro et al., CVPR 2025, dmetrics.py) has
    it. NLL and Brier (1950): means of the classes' means, normal intervals.
    """
    labels, logits = both_classes(labels, logits)
    probabilities = sigmoid(logits)
    return {**ece(labels, probabilities),
            **mean_of_classes("balanced_nll", labels, np.logaddexp(0, np.where(labels, -logits, logits))),
            **mean_of_classes("balanced_brier", labels, (probabilities - labels) ** 2)}


def mean_of_classes(name: str, labels: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    parts = losses[~labels], losses[labels]
    middle = sum(part.mean() for part in parts) / 2
    half = Z95 * np.sqrt(sum(part.var() / len(part) for part in parts)) / 2
    return {name: float(middle), f"{name}_low": float(middle - half), f"{name}_high": float(middle + half)}


def ece(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Balanced ECE, 0..1, with a 95 % interval: labels bool (n,), P(fake) (n,).

    The basic bootstrap (Davison and Hinkley 1997, 5.2) turns the bias round: noise within bins raises ECE,
    and once more in each resample. Where noise alone could give this ECE, the interval starts at 0. Of
    simulated sets of 300 to 20,000 pictures 90 to 98 % had the true ECE in theirs.
    """
    place, weights = binned(labels, probabilities)
    gaps = np.bincount(place, weights * (probabilities - labels), BINS)
    noise, found = gap_noise(labels, probabilities, place), float(abs(gaps).sum())
    low, high = 2 * found - np.quantile(abs(gaps + noise).sum(axis=1), (0.975, 0.025))
    if found <= np.quantile(abs(noise).sum(axis=1), 0.975):
        low = 0.0
    return {"balanced_ece": found, "balanced_ece_low": max(0.0, float(low)), "balanced_ece_high": float(high)}


def gap_noise(labels: np.ndarray, probabilities: np.ndarray, place: np.ndarray) -> np.ndarray:
    """How far the gap of each bin moves in resamples of each class: float64 (DRAWS, BINS).

    Drawn are the counts of the bins and, by their normal limit, the sums within: 5 ms for 20,000 pictures.
    """
    random, noise = np.random.default_rng(0), np.zeros((DRAWS, BINS))
    for label in (False, True):
        mine, p = place[labels == label], probabilities[labels == label]
        n = np.bincount(mine, minlength=BINS)
        mean = np.bincount(mine, p, BINS) / np.maximum(n, 1)
        variance = np.maximum(np.bincount(mine, p ** 2, BINS) / np.maximum(n, 1) - mean ** 2, 0)
        counts = random.multinomial(len(p), n / len(p), DRAWS)
        within = np.sqrt(counts * variance) * random.standard_normal(counts.shape)
        noise += ((counts - n) * (mean - label) + within) / (2 * len(p))
    return noise


def errors_line(row: dict, prefix: str = "") -> str:
    """"ECE 0.0123 [0.0101, 0.0150], NLL ..., Brier ..." of what errors() gave."""
    found = {name: [row[f"{prefix}{key}{end}"] for end in ("", "_low", "_high")]
             for key, name in MEASURES.items()}
    return ", ".join(f"{name} {value:.4f} [{low:.4f}, {high:.4f}]"
                     for name, (value, low, high) in found.items())


# --- command line ------------------------------------------------------------------------------

def validation_pictures(name: str, network, facts: dict, data: str):
    """Those which chose epoch and threshold of a checkpoint; TellError where `data` is another set."""
    from train import open_data, parts_of  # train imports this module
    recipe = facts.get("recipe", {})
    whole = open_data(Namespace(data=data, group=recipe.get("group", "content"),
                                leave_out=recipe.get("leave_out")), network)
    if whole.fingerprint != facts.get("fingerprint"):
        raise TellError(f"{name} was trained on {facts['data']}, and {whole.source} is not that set; "
                        "give it as --data")
    return parts_of(whole, facts.get("smoke", False))["val"]


def calibrate(name: str, data: str, device) -> dict:
    """Fit the rule of one checkpoint, keep it there and print what it changes; returns both errors."""
    network, facts = checkpoints.load(name, device)
    val = validation_pictures(name, network, facts, data)
    found = logits(network, val, device)
    rule = fit(val.labels, found, f"{len(val):,} validation pictures of {val.name}")
    path = checkpoints.add(name, calibration=rule)
    before, after = errors(val.labels, found), errors(val.labels, scaled(found, rule))
    print(f"\n{shown(path)}: temperature {rule['temperature']:.4f}, bias {rule['bias']:+.4f}; "
          f"REAL possible up to logit {rule['real_bound']:.4f}, FAKE from {rule['fake_bound']:.4f}")
    print(f"on the {rule['source']}, which it was fitted on:")
    print(f"before   {errors_line(before)}\nafter    {errors_line(after)}")
    return {"model": checkpoints.model_name(name), **rule, "before": before, "after": after}


def parser() -> Parser:
    flags = Parser(description=__doc__)
    flags.add_argument("-mf", "--modelfile", dest="mf", nargs="+", required=True, metavar="NAME",
                       help="checkpoints: models/NAME.pth, or paths")
    flags.add_argument("--data", default="auto", metavar="SET",
                       help="the set that they were trained on (CIFAKE)")
    flags.add_device()
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    device = pick_device(args.device)
    return {"models": [calibrate(name, args.data, device) for name in args.mf]}


if __name__ == "__main__":
    command_line(main)
