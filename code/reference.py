"""The reference that bench.py measures against: how the earlier course project loads and trains.

It walks the folder's tree, opens every file with Pillow, divides by 255 in float64, transforms it on its
own (ToTensor, Normalize) and stacks all as float32 in memory; batches are fixed once, each epoch
permutes them and the pictures within each; the network ends in a sigmoid, the loss is BCELoss. Same
network, pictures and number of steps as ours. Nothing else uses this.

    python code/reference.py train FOLDER LIST EPOCHS WEIGHTS     LIST: paths in FOLDER, one a line
    python code/reference.py test FOLDER LIST WEIGHTS

The last line printed is the result, as JSON.
"""
import json
import os
import random
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from files import Parser, command_line, user_path, whole_number
from sources import require_readable

Batch = tuple[torch.Tensor, torch.Tensor]
TRANSFORM = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])


class ReferenceNet(nn.Module):
    """The same layers as CIFAKE_CNN, in the usual order, giving a probability."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, 1), nn.Sigmoid())

    def forward(self, x):
        return self.layers(x)


def find_files(folder: str) -> list[tuple[str, float]]:
    """(path, 1.0 where its folder is called FAKE) of every file below `folder`."""
    return [(os.path.join(place, name), float(os.path.basename(place).upper() == "FAKE"))
            for place, _, names in os.walk(folder) for name in names]


def load_batches(folder: str, list_file: str, batch_size: int = 32) -> list[Batch]:
    with open(list_file) as file:
        wanted = {line.rstrip("\n") for line in file}
    items = [item for item in find_files(folder) if item[0] in wanted]
    random.Random(11).shuffle(items)
    batches = []
    for start in range(0, len(items), batch_size):
        part = items[start:start + batch_size]
        pictures = [TRANSFORM(np.array(Image.open(path)) / 255).float() for path, _ in part]
        batches.append((torch.stack(pictures), torch.tensor([label for _, label in part])))
    return batches


def permuted(batches: list[Batch]) -> Iterator[Batch]:
    for pictures, labels in batches:
        order = torch.randperm(len(labels))
        yield pictures[order], labels[order]


def train(folder: str, list_file: str, epochs: int, weights: str) -> dict:
    start = time.perf_counter()
    batches = load_batches(folder, list_file)
    loaded = time.perf_counter()
    network = ReferenceNet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    criterion, total = nn.BCELoss(), 0.0
    for _ in range(epochs):
        random.shuffle(batches)
        total = 0.0
        for pictures, labels in permuted(batches):
            optimizer.zero_grad()
            loss = criterion(network(pictures).squeeze(1), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    torch.save(network.state_dict(), weights)
    return {"load": loaded - start, "seconds": time.perf_counter() - start, "loss": total / len(batches)}


def test(folder: str, list_file: str, weights: str) -> dict:
    start = time.perf_counter()
    batches = load_batches(folder, list_file)
    network = ReferenceNet()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    scores, labels = [], []
    with torch.no_grad():
        for pictures, truth in permuted(batches):
            scores += network(pictures).squeeze(1).tolist()
            labels += truth.tolist()
    verdicts = np.array(scores) >= 0.5
    rates = precision_recall_fscore_support(labels, verdicts, average=None, zero_division=0)
    return {"seconds": time.perf_counter() - start, "accuracy": accuracy_score(labels, verdicts),
            "f1": rates[2].tolist()}


def parser() -> Parser:
    flags = Parser(description=__doc__)
    actions = flags.add_subparsers(dest="action", required=True, parser_class=Parser)
    training = actions.add_parser("train", help="train on the pictures of LIST, save to WEIGHTS")
    testing = actions.add_parser("test", help="score the pictures of LIST with WEIGHTS")
    for action in (training, testing):
        action.add_argument("folder", metavar="FOLDER", help="with pictures in folders REAL and FAKE")
        action.add_argument("list", metavar="LIST", help="a file of paths, one a line: those to take")
    training.add_argument("epochs", metavar="EPOCHS", type=whole_number(0))
    for action in (training, testing):
        action.add_argument("weights", metavar="WEIGHTS", help="a file of torch.save")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    require_readable(user_path(args.list))
    if args.action == "train":
        result = train(args.folder, args.list, args.epochs, args.weights)
    else:
        result = test(args.folder, args.list, str(require_readable(user_path(args.weights))))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    command_line(main)
