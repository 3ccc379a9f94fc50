"""Train a network; the epoch and the threshold of highest balanced validation accuracy are kept.

    python code/train.py -ep 10 -mf base_model                   the course project's network
    python code/train.py -ep 10 -mf attn_model --attn            with style-based attention
    python code/train.py -ep 10 -mf base_model --seeds 10        ten runs, one a core; seeds-NAME.csv
    python code/train.py -ep 10 -mf base_model --resume          go on where a killed run stopped
    python code/train.py --model Compact -mf compact_model       our own network for 32 pixels
    python code/train.py --model Wide --heads fake object -mf wide         its wider form
    python code/train.py --model Compact --heads fake object --recipe fast -mf fast      97 % in minutes
    python code/train.py --model Compact --recipe robust -ep 5 -mf robust     half of the pictures degraded
    python code/train.py --model ResNet18 --heads fake object -mf dual10     verdict and object class at once
    python code/train.py --model efficientnet_b0 --from-scratch --size 64 -mf effnet     any network of timm
    python code/train.py --from effnet --data FOLDER -mf tuned   fine-tune on real/ and fake/ pictures
    python code/train.py --from 'wide-s{seed}' --recipe strong -ep 12 -lr 0.2 -mf wide28     our strongest
    torchrun --nproc_per_node 8 code/train.py --model Compact -mf compact_model          eight GPUs

Measured on CIFAKE's 90,000 training pictures: paper/results/ (accuracy) and bench.csv (time).
"""
import io
import os
from argparse import Namespace
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, replace

import numpy as np
import torch

import calibration
import checkpoints
from cache import OBJECTS
from classes import NETWORKS, build, freeze, parameters, pick_device
from datasets import ImageSet, banner, describe, load, set_name
from devices import Device, open_device
from files import (
    Parser,
    TellError,
    command_line,
    folder,
    number_between,
    remove,
    require_writable,
    shown,
    whole_number,
    write_csv,
)
from fitting import Recipe, fit
from resume import finished_run, keep, unfinished_run, unfinished_state
from scoring import accuracy_name, logits

SMOKE_PICTURES = 640
STRONG = Recipe(epochs=16, batch_size=256, lr=0.4, nesterov=True, weight_decay=5e-4, schedule="one-cycle",
                label_smoothing=0.1, augment=("flip", "shift"), average=150, precision="bf16")
RECIPES = {
    "course": Recipe(),
    "strong": STRONG,
    "fast": replace(STRONG, epochs=5),
    "robust": replace(STRONG, augment=(*STRONG.augment, "degrade")),
    "finetune": Recipe(epochs=30, batch_size=32, lr=0.01, nesterov=True, weight_decay=1e-4,
                       schedule="plateau", augment=("flip", "shift")),
}
RECIPE_OF = {"CIFAKE_CNN": "course"}
NEW_NETWORK = {"model": "CIFAKE_CNN", "heads": ["fake"], "weights": "hub"}  # defaults, without --from


# --- one run from the command line -------------------------------------------------------------

def run(args, data: dict, seed: int, name: str | None, say=print) -> dict:
    """Train once as `args` say; save under `name` unless it is None. Returns what was reached."""
    recipe = recipe_of(args)
    device = open_device(args.device, recipe.precision)
    torch.manual_seed(seed)
    network, made_by = network_of(args, seed)
    facts = made_by | recorded(recipe, data["train"]) | facts_of(args, data, seed, device)
    if args.resume and (reached := finished_run(name, facts, say)):
        return reached
    unfinished = unfinished_run(name) if name else None
    state = unfinished_state(unfinished, facts) if args.resume else None
    if args.resume:
        say(f"resuming after epoch {state['epoch']}" if state else
            f"{name}: no epoch is finished yet; starting with the first")
    if unfinished and not state and not device.rank:
        keep(unfinished, facts)

    def after_epoch(state: dict) -> None:
        if device.rank:
            return
        if unfinished:
            keep(unfinished, facts, state)
        say(epoch_line(state["history"][-1], recipe.epochs, accuracy_name(data["val"].labels)))

    state = fit(network, data["train"], data["val"], recipe, seed=seed, device=device, state=state,
                after_epoch=after_epoch)
    reached = {"seed": seed, **state["best"]["row"],
               "seconds": sum(row["seconds"] for row in state["history"])}
    if name and not device.rank:
        save(name, network, facts, data, state, reached)
        remove(unfinished)
    return reached


def facts_of(args, data: dict, seed: int, device: Device) -> dict:
    """What the outcome depends on besides network and recipe; --resume wants it unchanged."""
    return {"group": args.group, "leave_out": args.leave_out, "smoke": args.smoke, "seed": seed,
            "data": data["train"].fingerprint,
            # Threads, device and processes belong to it: with others the last bits differ.
            "threads": torch.get_num_threads(), "device": device.device.type, "processes": device.world}


def recorded(recipe: Recipe, data) -> dict:
    """The recipe as it acts on this set: any augmentation at natural size is natural.AUGMENTED."""
    if not recipe.augment or isinstance(data, ImageSet):
        return asdict(recipe)
    from natural import AUGMENTED
    return asdict(recipe) | {"augment": AUGMENTED}


def recipe_of(args) -> Recipe:
    """The named recipe with what the flags change of it."""
    given = {"epochs": args.ep, "batch_size": args.bs, "lr": args.lr, "momentum": args.momentum,
             "object_weight": args.object_weight, "precision": args.precision}
    named = RECIPES[args.recipe or ("finetune" if args.start else RECIPE_OF.get(args.model, "strong"))]
    return replace(named, **{key: value for key, value in given.items() if value is not None})


def network_of(args, seed: int) -> tuple[torch.nn.Module, dict]:
    """A new network, or the one of --from; and what makes it again."""
    start_name, weights = args.start and args.start.replace("{seed}", str(seed)), None
    if start_name:
        network, content = checkpoints.load(start_name)
        made_by = {key: content[key] for key in ("architecture", "arguments")}
        if args.size and not hasattr(network, "size"):
            raise TellError(f"--size is for networks of timm; {start_name} takes 32 pixels")
        if args.size:
            network.size = made_by["arguments"]["size"] = args.size
    else:
        made_by = dict(zip(("architecture", "arguments"), architecture_of(args), strict=True))
        weights = None if args.model in NETWORKS or args.from_scratch else args.weights
        start = {"weights": weights} if weights else {}
        network = build(made_by["architecture"], **made_by["arguments"], **start)
    freeze(network, args.freeze)
    return network, made_by | {"start": start_name, "weights": weights, "freeze": args.freeze}


def architecture_of(args) -> tuple[str, dict]:
    """Name and arguments of a network for classes.build."""
    if args.model == "CIFAKE_CNN":
        return args.model, {"attn": args.attn}
    if args.model in NETWORKS:
        return args.model, {"objects": len(OBJECTS) if "object" in args.heads else 0}
    small = set_name(args.data) in ("cifake", "sample")
    sizes = {"fake": 1, "object": len(OBJECTS) if small else 1000, "generator": 9}
    heads = {head: sizes[head] for head in args.heads}
    return "Backbone", {"name": args.model, "size": args.size or 224, "heads": heads}


def open_data(args, network: torch.nn.Module):
    """The set of --data as `network` takes it: at 32 pixels, or at natural size."""
    data = load(args.data, natural=hasattr(network, "size"))
    if data.objects.max(initial=-1) >= network.heads.get("object", 1000):
        raise TellError(f"{args.data}: its pictures have object class {data.objects.max()}, the "
                        f"network's head object knows 0 to {network.heads['object'] - 1}")
    if isinstance(data, ImageSet):
        if args.leave_out or args.group != "content":
            raise TellError(f"{args.data}: --leave-out and --group are for pictures at natural size")
        if "generator" in network.heads:
            raise TellError(f"{args.data}: a head generator needs pictures at natural size, as GenImage's; "
                            "take --heads fake object")
        return data
    from natural import leave_out, with_split
    if not (data.splits == "train").any():
        # Not args.seed: natural.held_part finds the same split again, and seeds are compared on one.
        data = with_split(data, seed=0, group=args.group, left_out=args.leave_out)
    elif args.group != "content":
        raise TellError(f"{args.data}: --group is for a folder without train/; this one is split already")
    return leave_out(data, args.leave_out)[0] if args.leave_out else data


def label(made_by: dict, heads: dict[str, int]) -> str:
    """What a network is called in a line."""
    name = made_by["arguments"].get("name", made_by["architecture"])
    attention = " with attention" if made_by["arguments"].get("attn") else ""
    return name + attention + (f" with heads {', '.join(heads)}" if len(heads) > 1 else "")


def parts_of(data, smoke: bool) -> dict:
    """The training and validation parts; a few hundred pictures of each in a smoke run."""
    parts = {split: data.split(split) for split in ("train", "val")}
    for part in parts.values():
        part.require_both_classes()
    if smoke:
        parts = {split: part.head(SMOKE_PICTURES) for split, part in parts.items()}
    return parts


def epoch_line(row: dict, epochs: int, kind: str) -> str:
    heads = "".join(f", {head} {row[key]:.2%}" for head in ("object", "generator")
                    if np.isfinite(row.get(key := f"val_{head}_accuracy", np.nan)))
    return (f"epoch {row['epoch']:>2}/{epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:.2%} at 0.5, "
            f"{kind.removesuffix('accuracy')}{row['val_accuracy_at_threshold']:.2%} at "
            f"{row['threshold']:.3f}{heads}  "
            f"{row['seconds']:.1f} s")


def save(name: str, network: torch.nn.Module, facts: dict, data: dict, state: dict, reached: dict) -> None:
    val = data["val"]
    path, source = checkpoints.path_of(name), f"{len(val):,} validation pictures of {val.name}"
    found = logits(network, val, next(network.parameters()).device)
    checkpoints.write(path, checkpoints.pack(
        network, facts["architecture"], facts["arguments"], threshold=reached["threshold"],
        threshold_source=f"highest {accuracy_name(val.labels)} on {source}",
        **calibration.kept(val.labels, found, source),
        data=val.name, fingerprint=val.fingerprint,
        pictures={split: len(part) for split, part in data.items()}, smoke=facts["smoke"],
        seed=reached["seed"], recipe=facts, epochs=facts["epochs"], metrics=reached,
        history=state["history"], **checkpoints.surroundings()))
    history = folder("results") / f"history-{name}.csv"
    write_csv(history, state["history"])
    print(f"checkpoint: {shown(path)}\nhistory:    {shown(history)}")


# --- several seeds -----------------------------------------------------------------------------

def run_seeds(args) -> list[dict]:
    """args.seeds runs, as many at once as there are cores, each with one thread of its own."""
    import joblib  # a fifth of a second, so only where it is needed
    workers = min(args.seeds, joblib.cpu_count()) if pick_device(args.device).type == "cpu" else 1
    settings = {key: value for key, value in os.environ.items() if key.startswith("TELL_")}
    if workers > 1:
        settings["LOCAL_WORLD_SIZE"] = str(workers)  # as torchrun sets it: each decodes on its share of cores
    jobs = (joblib.delayed(run_one_seed)(args, seed, settings, os.getpid())
            for seed in range(args.seed, args.seed + args.seeds))
    results = joblib.Parallel(n_jobs=workers)(jobs)
    if args.mf:
        path = folder("results") / f"seeds-{args.mf}.csv"
        write_csv(path, results)
        print(f"seeds:      {shown(path)}")
    return results


def run_one_seed(args, seed: int, settings: dict[str, str], starter: int) -> dict:
    os.environ.update(settings)  # the process may be left from an earlier call with others
    torch.set_num_threads(1)
    name = f"{args.mf}-s{seed}" if args.mf else None

    def say(line: str) -> None:
        if starter not in (os.getpid(), os.getppid()):
            raise SystemExit("the run of several seeds was killed")  # else this process would go on alone
        print(f"seed {seed}: {line}", flush=True)

    return run(args, parts_of(open_data(args, network_of(args, seed)[0]), args.smoke), seed, name, say)


def print_seeds(results: list[dict]) -> None:
    for key, name in (("val_accuracy", "at 0.5"), ("val_accuracy_at_threshold", "at chosen threshold")):
        values = np.array([result[key] for result in results])
        deviation = f" ± {values.std(ddof=1):.2%} (sd)" if len(values) > 1 else ""
        print(f"validation accuracy {name}: {values.mean():.2%}{deviation}, "
              f"min {values.min():.2%}, max {values.max():.2%}, {len(values)} seeds")


# --- command line ------------------------------------------------------------------------------

def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("-bs", "--batch_size", dest="bs", type=whole_number(1), help="batch size (32; strong: 256)")
    add("-ep", "--epochs", dest="ep", type=whole_number(1), help="epochs (5; strong: 16)")
    add("-mf", "--modelfile", dest="mf", type=checkpoints.name_to_save, metavar="NAME",
        help="save to models/NAME.pth; without it nothing is saved")
    add("--model", help="CIFAKE_CNN (default), Compact, Wide, Plain (Compact, its first layer learnt), "
        "ResNet18, or one of timm")
    add("--attn", action="store_true", help="CIFAKE_CNN with the SRM attention layer")
    add("--heads", nargs="+", choices=["fake", "object", "generator"],
        help="what the network answers (fake)")
    add("--recipe", choices=list(RECIPES), help="course for CIFAKE_CNN, finetune with --from, else strong")
    add("-lr", type=number_between(1e-8, 10), help="learning rate (0.001; strong: 0.4 at its peak)")
    add("--momentum", type=number_between(0, 0.9999), help="momentum of SGD (0.9)")
    add("--object-weight", type=number_between(0, 100),
        help="of the object class's loss, beside 1 for the verdict's (0.3)")
    add("--from", dest="start", metavar="NAME",
        help="go on from the weights of this checkpoint; {seed} in NAME stands for the seed")
    add("--freeze", nargs="+", default=[], metavar="PART", help="parts that stay as they are, such as body")
    add("--weights", metavar="hub|FILE", help="pretrained weights of a network of timm (hub)")
    add("--from-scratch", action="store_true", help="a network of timm without pretrained weights")
    add("--size", type=whole_number(32, 1024), help="pixels a side for a network of timm (224)")
    flags.add_data()
    add("--group", choices=["content", "set"], default="content",
        help="what stays on one side when a folder without train/ is split: equal files, or its sets")
    add("--leave-out", metavar="GENERATOR", help="train without this generator's pictures")
    add("--seed", type=whole_number(0), default=0, help="of weights and order, not of a folder's split (0)")
    add("--seeds", type=whole_number(1), metavar="N", help="N runs, seeds --seed, --seed + 1, ...")
    flags.add_device()
    add("--precision", choices=["fp32", "bf16"],
        help="bf16: autocast (fp32; strong: bf16, but for networks of timm on a CPU, where depthwise "
        "convolutions in bf16 take twice as long)")
    add("--resume", action="store_true", help="go on with the unfinished run of this -mf")
    add("--smoke", action="store_true", help=f"{SMOKE_PICTURES} pictures only: does it run?")
    return flags


def check(args) -> None:
    """Refuse what cannot work before any work is done."""
    if args.seeds and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise TellError("--seeds under torchrun: each seed is a process of its own; give --seeds to plain "
                        "python, or one --seed to torchrun")
    if args.resume and not args.mf:
        raise TellError("--resume needs -mf NAME, the run to go on with")
    if args.model in ("Backbone", "General"):
        raise TellError(f"--model {args.model}: a frame for others; give a name of timm, as efficientnet_b0")
    if args.attn and args.bs == 1:
        raise TellError("--attn needs -bs 2 or more: its BatchNorm has no spread over one picture")
    if args.attn and args.model != "CIFAKE_CNN":
        raise TellError(f"--attn is a layer of CIFAKE_CNN; {args.model} has none")
    if args.size and args.model in NETWORKS and not args.start:
        raise TellError(f"--size is for networks of timm; {args.model} takes 32 pixels")
    if args.model in NETWORKS and "fake" not in args.heads:
        raise TellError(f"{args.model} needs the head fake; without it: a network of timm")
    others = {*args.heads} & ({"object", "generator"} if args.model == "CIFAKE_CNN" else {"generator"})
    if args.model in NETWORKS and others:
        raise TellError(f"{args.model} has no head {min(others)}; a network of timm has it")
    if {*args.heads} == {"object"}:
        raise TellError("--heads object: tells no fake from real; add fake or generator")


def check_network(args) -> None:
    """Refuse flags of a new network that would change nothing; fill in the others."""
    given = [flag for flag in (*NEW_NETWORK, "attn", "from_scratch") if getattr(args, flag)]
    if args.start and given:
        raise TellError(f"--{given[0].replace('_', '-')} is for a new network; --from {args.start} goes on "
                        "with that one as it is")
    for flag, value in NEW_NETWORK.items():
        setattr(args, flag, getattr(args, flag) or value)
    if not args.start and args.model in NETWORKS and {"weights", "from_scratch"} & {*given}:
        raise TellError(f"--weights and --from-scratch are for networks of timm; {args.model} has no others")
    if {"weights", "from_scratch"} <= {*given}:
        raise TellError("--weights and --from-scratch exclude each other; give one")
    if args.weights != "hub" and not os.path.isfile(args.weights):
        raise TellError(f"--weights {args.weights}: no such file")


def warn_about_saving(args) -> None:
    """Say what is not saved or will be replaced; TellError where nothing can be written."""
    if not args.mf:
        print("nothing will be saved: give -mf NAME to save to models/NAME.pth")
        return
    for name in ("models", "results"):
        require_writable(folder(name), f"TELL_{name.upper()}")
    path = checkpoints.path_of(args.mf)
    if path.exists() and not args.seeds:
        print(f"note: {shown(path)} will be replaced when training has finished")
    if unfinished_run(args.mf).exists() and not args.resume:
        print(f"note: an unfinished run of {args.mf} is dropped; --resume would go on with it")


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    check_network(args)
    check(args)
    # Of several processes, which all come here, the first one speaks.
    with redirect_stdout(io.StringIO()) if int(os.environ.get("RANK", 0)) else nullcontext():
        return train(args)


def train(args) -> dict:
    """What `args` say, from the set of pictures to the line about what was reached."""
    # Without weights, which `run` fetches: a wrong --data is noticed first.
    network, made_by = network_of(Namespace(**vars(args) | {"from_scratch": True}), args.seed)
    if not args.precision and hasattr(network, "size") and pick_device(args.device).type == "cpu":
        args.precision = "fp32"
    if args.object_weight is not None and "object" not in network.heads:
        raise TellError("--object-weight is for networks with the head object; this one has none")
    data = open_data(args, network)
    banner(data)
    print(", ".join(f"{key} {count:,}" for key, count in describe(data).items()))
    warn_about_saving(args)
    print(f"{label(made_by, network.heads)}: {parameters(network):,} parameters, {checkpoints.machine()}")
    parts = parts_of(data, args.smoke)
    if args.seeds:
        results = run_seeds(args)
        print_seeds(results)
        return {"runs": results}
    reached = run(args, parts, args.seed, args.mf)
    print(f"kept epoch {reached['epoch']}: validation accuracy {reached['val_accuracy']:.2%} at 0.5, "
          f"{accuracy_name(parts['val'].labels)} {reached['val_accuracy_at_threshold']:.2%} at the chosen "
          f"threshold {reached['threshold']:.3f}")
    return reached


if __name__ == "__main__":
    command_line(main)
