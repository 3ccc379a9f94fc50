"""The reference that bench.py measures against: how the earlier course project loads and trains.

Every file is opened with Pillow, divided by 255 in float64, transformed on its own (ToTensor,
Normalize), and stacked as float32 in memory; batches are fixed once, the network ends in a sigmoid,
the loss is BCELoss. Same network, pictures and number of steps as ours. Nothing else uses this.

    python code/reference.py train LIST EPOCHS WEIGHTS     LIST: a file of "label path" lines
    python code/reference.py test LIST WEIGHTS

The last line printed is the result, as JSON.
"""
import json
import random
import time

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from files import Parser, command_line, user_path, whole_number
from sources import require_readable

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


def load_batches(list_file: str, batch_size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with open(list_file) as file:
        items = [line.rstrip("\n").split(" ", 1) for line in file]
    random.Random(11).shuffle(items)
    batches = []
    for start in range(0, len(items), batch_size):
        part = items[start:start + batch_size]
        pictures = [TRANSFORM(np.array(Image.open(path)) / 255).float() for _, path in part]
        labels = torch.tensor([float(label) for label, _ in part])
        batches.append((torch.stack(pictures), labels))
    return batches


def train(list_file: str, epochs: int, weights: str) -> dict:
    start = time.perf_counter()
    batches = load_batches(list_file)
    loaded = time.perf_counter()
    network = ReferenceNet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    criterion, total = nn.BCELoss(), 0.0
    for _ in range(epochs):
        random.shuffle(batches)
        total = 0.0
        for pictures, labels in batches:
            optimizer.zero_grad()
            loss = criterion(network(pictures).squeeze(1), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    torch.save(network.state_dict(), weights)
    return {"load": loaded - start, "seconds": time.perf_counter() - start, "loss": total / len(batches)}


def test(list_file: str, weights: str) -> dict:
    start = time.perf_counter()
    batches = load_batches(list_file)
    network = ReferenceNet()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    scores, labels = [], []
    with torch.no_grad():
        for pictures, truth in batches:
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
        action.add_argument("list", metavar="LIST", help='a file of "label path" lines')
    training.add_argument("epochs", metavar="EPOCHS", type=whole_number(0))
    for action in (training, testing):
        action.add_argument("weights", metavar="WEIGHTS", help="a file of torch.save")
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    require_readable(user_path(args.list))
    if args.action == "train":
        result = train(args.list, args.epochs, args.weights)
    else:
        result = test(args.list, str(require_readable(user_path(args.weights))))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    command_line(main)
