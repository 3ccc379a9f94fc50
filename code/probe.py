"""A linear probe: logistic regression on a frozen network's features, the baseline of any detector.

    python code/probe.py --model vit_base_patch16_clip_224.openai -mf probe_clip     any network of timm
    python code/probe.py --model tf_efficientnet_lite0 --weights FILE --size 64 -mf probe_lite0
    python code/probe.py --from base_model -mf probe_base             the last layer of ours, trained anew
    python code/probe.py --model NAME --data FOLDER --by-source      judges each source without having seen it

Saves an ordinary checkpoint, whose head is the regression: `test.py -mf probe_clip` scores it. Features are
kept in the cache. --by-source saves no checkpoint but paper/results/probe-NAME-DATA.csv, all sources at once,
and probe-NAME-DATA-by-source.csv. After Alain and Bengio, arXiv:1610.01644; for generated pictures Ojha, Li
and Lee, CVPR 2023.
"""
import hashlib
import json

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import calibration
import checkpoints
from classes import build, pick_device
from datasets import ImageSet, banner
from files import (
    Parser,
    TellError,
    atomic,
    command_line,
    folder,
    make_folder,
    save_result,
    shown,
    whole_number,
)
from metadata import baseline, print_baseline, read_headers
from scoring import accuracy_name, choose_threshold, outputs, score, sigmoid
from train import open_data, parts_of
from trust import by_source as rows_by_source
from trust import percent, print_sources, print_thresholds, report

STRENGTHS = np.logspace(-5, 1, 7)  # of C, scikit-learn's inverse weight of the L2 penalty


# --- a frozen network's features -----------------------------------------------------------------

def frozen_network(args) -> tuple[nn.Module, dict]:
    """The network of --from or --model, and the architecture and arguments that build it again."""
    if args.start:
        network, content = checkpoints.load(args.start)
        return network, {key: content[key] for key in ("architecture", "arguments")}
    arguments = {"name": args.model, "size": args.size, "heads": {"fake": 1}}
    network = build("Backbone", **arguments, weights=args.weights)
    return network, {"architecture": "Backbone", "arguments": arguments}


def head_of(network: nn.Module) -> tuple[str, nn.Linear]:
    """Name and layer of the last linear layer, which gives the logits."""
    name, layer = [found for found in network.named_modules() if isinstance(found[1], nn.Linear)][-1]
    if "fake" not in network.heads or layer.out_features != sum(network.heads.values()):
        raise TellError(f"a probe needs a network whose last layer gives the head fake; this one has "
                        f"{', '.join(network.heads)}")
    return name, layer


def features(network: nn.Module, data, device="cpu") -> np.ndarray:
    """What the last linear layer is given for each picture: float32 (n, d), kept in the cache.

    data: an ImageSet or PictureSet. With `mirror` the mean of picture and mirror image, as in scoring, which
    for a linear layer is the same as the mean of their logits.
    """
    path = make_folder(folder("cache"), "TELL_CACHE") / f"features-{key_of(network, data)}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    name, layer = head_of(network)
    network.set_submodule(name, nn.Identity())
    try:
        found = outputs(network, data, device)
    finally:
        network.set_submodule(name, layer)
    with atomic(path) as file:
        np.save(file, found)
    return found


def key_of(network: nn.Module, data) -> str:
    """A hash of all that features depend on: the network without its head, and the pictures."""
    head = head_of(network)[0]
    settings = [network.normalisation, getattr(network, "size", 32), getattr(network, "mirror", False)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for key, value in sorted(network.state_dict().items()):
        if not key.startswith(f"{head}."):
            digest.update(f"{key} {tuple(value.shape)}".encode() + value.cpu().contiguous().numpy().tobytes())
    pictures = data.pixels[data.rows] if isinstance(data, ImageSet) else data.sha256
    digest.update(np.ascontiguousarray(pictures).tobytes())
    return digest.hexdigest()[:32]


# --- the regression ----------------------------------------------------------------------------

def regression(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """(weights float64 (d,), bias) of the logit features @ weights + bias, for features (n, d), labels (n,).

    Fitted on standardised features with C = strength; the standardisation is folded into the result. Both
    classes weigh the same: else what is left without a source would tell which class that source has most of.
    """
    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    spread[spread < 1e-6] = 1.0  # a feature that never moves
    scaled = ((features - mean) / spread).astype(np.float32)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit(scaled, labels)
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - mean @ weights)


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean -log P(label), nats, of logits (n,) and labels (n,), fake = 1."""
    return float((np.logaddexp(0, logits) - labels * logits).mean())


def fit(train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
        ) -> tuple[np.ndarray, float, float]:
    """(weights, bias, C) of the regression on train (n, d) that has the least NLL on val (m, d)."""
    found = []
    for strength in STRENGTHS.tolist():
        weights, bias = regression(train, labels, strength)
        found.append((nll(val @ weights + bias, val_labels), weights, bias, strength))
    return min(found, key=lambda one: one[0])[1:]


def set_head(network: nn.Module, weights: np.ndarray, bias: float) -> None:
    """Make the regression the network's logit of FAKE; other heads stay as they are."""
    layer, heads = head_of(network)[1], list(network.heads)
    column = sum(network.heads[head] for head in heads[:heads.index("fake")])
    with torch.no_grad():
        layer.weight[column] = torch.from_numpy(weights)
        layer.bias[column] = bias


# --- sources that a probe has not seen --------------------------------------------------------------

def without_each(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, strength: float) -> np.ndarray:
    """The logit of each picture from a probe that was fitted without its source, float64 (n,).

    features (n, d), labels (n,), groups (n,); TellError where the other sources lack a class.
    """
    found = np.empty(len(labels))
    for group in np.unique(groups):
        rest = groups != group
        if not 0 < labels[rest].sum() < rest.sum():
            raise TellError(f"without the source {group} there are no real or no fake pictures to learn from")
        weights, bias = regression(features[rest], labels[rest], strength)
        found[~rest] = features[~rest] @ weights + bias
    return found


def unseen_sources(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """without_each, its C chosen anew for each source among the others, by leaving out one more of them.

    So neither weights nor C of a picture's logit, float64 (n,), know its source.
    """
    found = np.empty(len(labels))
    for group in np.unique(groups):
        rest = groups != group
        inner = features[rest], labels[rest], groups[rest]
        strength = min(STRENGTHS.tolist(), key=lambda c, inner=inner: nll(without_each(*inner, c), inner[1]))
        weights, bias = regression(features[rest], labels[rest], strength)
        found[~rest] = features[~rest] @ weights + bias
    return found


def by_source(args, network: nn.Module, data) -> dict:
    """Score every picture of a set by a probe that never saw its source; print and write the table."""
    groups = getattr(data, "groups", np.array([]))
    if len(np.unique(groups)) < 3:
        raise TellError(f"{data.source}: --by-source needs pictures of three sources or more at natural "
                        "size, named by a manifest or by folders below real/ and fake/")
    output = unseen_sources(features(network, data, pick_device(args.device)), data.labels, groups)
    scores = sigmoid(output)
    numbers = score(data.labels, scores, 0.5) | report(data.labels, output, 0.5, None)
    rows = rows_by_source(data.labels, scores, 0.5, groups)
    print(f"n = {numbers['n']:,}, majority baseline {numbers['majority']:.2%}, accuracy "
          f"{percent(numbers, 'accuracy')}")
    print_thresholds(numbers)
    print_baseline(baseline(data, read_headers(data)))
    print_sources(rows)
    name = args.model or checkpoints.model_name(args.start)
    save_result(f"probe-{name}-{data.name}", [numbers])
    save_result(f"probe-{name}-{data.name}-by-source", rows)
    return {"rows": rows, **numbers}


# --- command line ------------------------------------------------------------------------------

def train_probe(args, network: nn.Module, made_by: dict, data) -> dict:
    """Fit the head on training pictures, choose C and threshold on validation, save the checkpoint."""
    device, parts = pick_device(args.device), parts_of(data, args.smoke)
    if args.pictures:
        parts["train"] = parts["train"].head(args.pictures)
    found = {split: features(network, part, device) for split, part in parts.items()}
    labels = {split: part.labels for split, part in parts.items()}
    weights, bias, strength = fit(found["train"], labels["train"], found["val"], labels["val"])
    set_head(network, weights, bias)
    logits = {split: values @ weights + bias for split, values in found.items()}
    kind = accuracy_name(labels["val"])
    threshold, accuracy = choose_threshold(labels["val"], sigmoid(logits["val"]))
    reached = {"C": strength, "threshold": threshold, "val_accuracy_at_threshold": accuracy,
               **{f"{split}_loss": nll(logits[split], labels[split]) for split in parts}}
    counts = {split: len(part) for split, part in parts.items()}
    print(f"{len(weights):,} features, {counts['train']:,} training pictures: C = {strength:g}, train loss "
          f"{reached['train_loss']:.4f}, validation loss {reached['val_loss']:.4f}, {kind} {accuracy:.2%} "
          f"of {counts['val']:,} at {threshold:.3f}")
    path, source = checkpoints.path_of(args.mf), f"{counts['val']:,} validation pictures of {data.name}"
    checkpoints.write(path, checkpoints.pack(
        network, **made_by, threshold=threshold, data=data.name, fingerprint=data.fingerprint,
        threshold_source=f"highest {kind} on {source}",
        **calibration.kept(labels["val"], logits["val"], source),
        pictures=counts, seed=None, smoke=args.smoke, metrics=reached,
        recipe={"probe": True, "group": args.group, "leave_out": args.leave_out, "start": args.start},
        **checkpoints.surroundings()))
    print(f"checkpoint: {shown(path)}")
    return reached


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add, source = flags.add_argument, flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a network of timm, by its name")
    source.add_argument("--from", dest="start", metavar="NAME", help="a checkpoint of ours")
    add("--weights", default="hub", metavar="hub|FILE", help="pretrained weights of --model (hub)")
    add("--size", type=whole_number(32, 1024), default=224, help="pixels a side for --model (224)")
    add("-mf", "--modelfile", dest="mf", type=checkpoints.name_to_save, metavar="NAME",
        help="save to models/NAME.pth")
    flags.add_data()
    add("--pictures", type=whole_number(2), help="at most so many training pictures, by lot (all)")
    add("--by-source", action="store_true", help="leave one source out at a time, in place of saving a probe")
    add("--group", choices=["content", "set"], default="content",
        help="what stays on one side when a folder without train/ is split: equal files, or its sets")
    add("--leave-out", metavar="GENERATOR", help="fit without this generator's pictures")
    flags.add_device()
    add("--smoke", action="store_true", help="640 pictures only: does it run?")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    if bool(args.mf) == args.by_source:
        raise TellError("give -mf NAME to save a probe, or --by-source to judge each source without it")
    network, made_by = frozen_network(args)
    data = open_data(args, network)
    banner(data)
    return by_source(args, network, data) if args.by_source else train_probe(args, network, made_by, data)


if __name__ == "__main__":
    command_line(main)
