"""What in a picture speaks for FAKE, and what for REAL: picture in, signed map out, seven methods.

    python code/explain.py -mf base_model                          eight pictures of CIFAKE's test half
    python code/explain.py -mf base_model --input ONE.png TWO.jpg  your own, -o where to write the figure

Every method is `method(network, pixels) -> map`: pixels uint8 (3, h, w) or (n, 3, h, w), map float32 (h, w)
or (n, h, w), positive towards FAKE. What the maps have in common: lime_shap.py, which has LIME and SHAP. How
far they can be believed: faithful.py. Pictures of another size are squashed to the network's 32 pixels
here, or their centre taken where it knows larger ones; infer.py and the web page let tiles vote.
"""
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

import checkpoints
from cache import SIZE, read
from classes import CIFAKE_CNN, pick_device
from datasets import SPLITS, ImageSet, banner, load
from decode import DecodeError, decode, resize
from figures import FAKE, REAL, STYLE
from files import Parser, TellError, atomic, command_line, folder, shown, user_path, whole_number
from infer import said_of
from lime_shap import (
    GRID,
    batch_size,
    column_of_fake,
    explanation,
    fake_logits,
    lime,
    mean_colour,
    normalised,
    score_all,
    shap,
)
from natural import held_part

SMALLEST = 7  # side of the smallest map that Grad-CAM is taken from
STEPS = 32    # of the path of integrated gradients
CAM_STEPS = 8  # of HiResCAM's: each a forward and a backward pass


# --- Grad-CAM ----------------------------------------------------------------------------------

class OneView(nn.Module):
    """A network as its logit of FAKE, (n, 3, h, w) -> (n,), without the mirror image."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return column_of_fake(self.network(x).float(), self.network.heads)


def cam_layer(network: nn.Module, size: int) -> nn.Module:
    """The last layer or block with a map of at least SMALLEST x SMALLEST, outside blocks of a coarser one.

    CIFAKE_CNN: conv2 (10 x 10). Compact: the last block of its stage at 8 x 8. ResNet18: body.layer2
    (8 x 8). Backbone: of ResNets and EfficientNets at 224 pixels the last maps (7 x 7), of a vision
    transformer only its patch embedding. TellError where no convolution gives such a map.
    """
    found, coarse = [], []

    def look(name, layer, output):
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] != output.shape[3]:
            return
        if output.shape[2] < SMALLEST and not isinstance(layer, nn.Sequential):  # that is a list, no block
            coarse.append(f"{name}.")
        elif output.shape[2] >= SMALLEST and any(isinstance(part, nn.Conv2d) for part in layer.modules()):
            found.append((name, layer))

    hooks = [layer.register_forward_hook(lambda layer, inputs, output, name=name: look(name, layer, output))
             for name, layer in network.named_modules()]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [layer for name, layer in found if not name.startswith(tuple(coarse))]
    if not fitting:
        raise TellError(f"Grad-CAM needs a convolution with a map of at least {SMALLEST} x {SMALLEST}; "
                        f"{type(network).__name__} has none at {size} pixels")
    return fitting[-1]


def at_layer(cam, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What the hooks of a CAM of the package find: a layer's output, and the logit's gradient in it."""
    # Not cam(x): it leaves gradients in the parameters and drops what speaks for REAL.
    hooked, x = cam.activations_and_grads, x.detach().requires_grad_()
    with torch.enable_grad():
        torch.autograd.grad(hooked(x).sum(), x)
    return hooked.activations[0].numpy(), hooked.gradients[0].numpy()


def raw_cam(network: nn.Module, layer: nn.Module, x: Tensor) -> np.ndarray:
    """Grad-CAM of normalised pictures before ReLU, scaling and enlarging: float32 (n, rows, columns)."""
    from pytorch_grad_cam import GradCAM  # seconds, with OpenCV
    cam = GradCAM(OneView(network), [layer])
    try:
        activations, gradients = at_layer(cam, x)
        if isinstance(network, CIFAKE_CNN):  # its ReLU is no layer; what that cuts off has no effect
            activations = activations.clip(0)
        return cam.get_cam_image(x, layer, None, activations, gradients)
    finally:
        cam.activations_and_grads.release()


def path_cam(network: nn.Module, layer: nn.Module, x: Tensor, start: Tensor) -> np.ndarray:
    """HiResCAM of what a layer gives for x beyond what it gives for `start`: float32 (n, rows, columns).

    The gradient is the mean over the straight path between the two outputs of the layer, so that a map sums
    to logit(x) - logit(start), but for the CAM_STEPS of the path.
    """
    from pytorch_grad_cam import HiResCAM  # seconds, with OpenCV
    shift, gradients = 0.0, []
    hook = layer.register_forward_hook(lambda layer, inputs, output: output + shift)  # before the package's
    cam = HiResCAM(OneView(network), [layer])
    try:
        end, begin = at_layer(cam, x)[0], at_layer(cam, start)[0]
        for step in np.linspace(1, 0, CAM_STEPS, endpoint=False) - 0.5 / CAM_STEPS:
            shift = torch.from_numpy(np.float32(step) * (begin - end)).to(x)
            gradients.append(at_layer(cam, x)[1])
        return cam.get_cam_image(x, layer, None, end - begin, np.mean(gradients, axis=0), False)
    finally:
        cam.activations_and_grads.release()
        hook.remove()


def spread(raw: Tensor, network: nn.Module, size: tuple[int, int]) -> Tensor:
    """Maps (n, 1, rows, columns) -> (n, 1, *size) of the same sum, each where its receptive field is."""
    if not isinstance(network, CIFAKE_CNN):
        return F.interpolate(raw, size, mode="bilinear") * (raw[0].numel() / (size[0] * size[1]))
    # Without padding conv2's fields, 14 pixels wide and 2 apart, do not stretch over the picture: each gives
    # its value to the pixels in it, the more the nearer they are to its middle.
    near = torch.minimum(torch.arange(1.0, 15), torch.arange(14.0, 0, -1)) / 56
    return F.conv_transpose2d(raw, torch.outer(near, near)[None, None], stride=2)


def enlarged(raw: Tensor, network: nn.Module, size: tuple[int, int]) -> Tensor:
    """Maps (n, 1, rows, columns) -> (n, 1, *size), each pixel the mean of the fields that it lies in."""
    return spread(raw, network, size) / spread(torch.ones_like(raw), network, size)


def as_pixels(network: nn.Module, pictures: np.ndarray, cam: Callable, over: Callable) -> np.ndarray:
    """cam(network, cam_layer, pictures, mean colours), of both views where it mirrors, `over` the pixels."""
    layer, maps = cam_layer(network, pictures.shape[-1]), []
    x, start = normalised(network, pictures), normalised(network, mean_colour(pictures))
    size = batch_size(network, x)
    for part in zip(x.split(size), start.split(size), strict=True):
        raw = cam(network, layer, *part)
        if getattr(network, "mirror", False):
            raw = (raw + cam(network, layer, *(each.flip(3) for each in part))[..., ::-1]) / 2
        maps.append(over(torch.from_numpy(raw[:, None].copy()), network, x.shape[2:])[:, 0])
    return torch.cat(maps).numpy()


@explanation
def grad_cam(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Signed Grad-CAM: the maps of cam_layer, each weighted by the mean of its gradient, summed.

    Relative units. R. R. Selvaraju et al., "Grad-CAM", ICCV 2017, without the ReLU at its end. The map is
    coarse (see cam_layer) and enlarged: it tells a region, never a pixel. Its zero means little: of
    `compact` it is positive nearly everywhere where the verdict is REAL. hirescam has that mended.
    """
    return as_pixels(network, pictures, lambda network, layer, x, start: raw_cam(network, layer, x), enlarged)


@explanation
def hirescam(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """HiResCAM against the mean colour: sum over channels of gradient x (A(picture) - A(mean colour)).

    A: the maps of cam_layer. Logits: a map sums to logit(picture) - logit(mean colour), but for CAM_STEPS.
    Coarse and enlarged, like grad_cam, from which it differs in two things: what an empty picture gives is
    taken off, and the gradient stays where it is (R. Draelos, L. Carin, arXiv:2011.08891), its mean over a
    path, as in "Integrated Grad-CAM" (S. Sattarzadeh et al., ICASSP 2021).
    """
    return as_pixels(network, pictures, path_cam, spread)


# --- methods of captum -------------------------------------------------------------------------

@explanation
def integrated_gradients(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Gradients along the straight path from the mean colour to the picture, summed over the channels.

    Logits: a map sums to logit(picture) - logit(mean colour), but for the STEPS of the path.
    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    from captum.attr import IntegratedGradients
    method = IntegratedGradients(lambda x: fake_logits(network, x))
    x, start = normalised(network, pictures), normalised(network, mean_colour(pictures))
    size = -(-batch_size(network, x) // STEPS)
    with torch.enable_grad():
        maps = [method.attribute(*part, n_steps=STEPS).sum(dim=1).detach()
                for part in zip(x.split(size), start.split(size), strict=True)]
    return torch.cat(maps).cpu().numpy()


@explanation
@torch.inference_mode()
def occlusion(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """How far the logit falls when a window takes the picture's mean colour: the mean over a pixel's windows.

    Logits a window. Windows of 1/GRID of the picture's sides, overlapping by half. M. D. Zeiler,
    R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    from captum.attr import Occlusion
    method = Occlusion(lambda x: fake_logits(network, x))
    x, fill = normalised(network, pictures), normalised(network, mean_colour(pictures))
    window, size = [-(-n // GRID) for n in x.shape[2:]], batch_size(network, x)
    strides, at_once = (3, *(-(-n // 2) for n in window)), max(1, size // len(x))
    maps = [method.attribute(one, (3, *window), strides, hidden, perturbations_per_eval=at_once)[:, 0]
            for one, hidden in zip(x.split(size), fill.split(size), strict=True)]
    return torch.cat(maps).cpu().numpy()


METHODS = {"grad-cam": grad_cam, "hirescam": hirescam, "lime": lime,
           "lime, mean colour": partial(lime, fill="picture"), "shap": shap,
           "integrated gradients": integrated_gradients, "occlusion": occlusion}


# --- figure and command line -------------------------------------------------------------------

def plot_maps(pictures: np.ndarray, captions: list[str], maps: dict[str, np.ndarray]) -> Figure:
    """A row a picture, a column a method; blue towards REAL, orange towards FAKE, white nothing.

    pictures uint8 (n, 3, h, w), maps {name: (n, h, w)}. Methods have different units, so each map is shown
    relative to its own largest absolute value. Pixels stay squares, however small the picture.
    """
    colours = LinearSegmentedColormap.from_list("sides", [REAL, "white", FAKE])
    n, columns = len(pictures), len(maps) + 1
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(n, columns, figsize=(1.5 * columns + 0.7, 1.62 * n + 0.4),
                                    squeeze=False, layout="constrained")
        for i, picture in enumerate(pictures):
            axes[i, 0].imshow(picture.transpose(1, 2, 0), interpolation="nearest")
            axes[i, 0].set_xlabel(captions[i], fontsize=7)
            for ax, each in zip(axes[i, 1:], maps.values(), strict=True):
                shade = ax.imshow(each[i] / (abs(each[i]).max() or 1), cmap=colours, vmin=-1, vmax=1,
                                  interpolation="nearest")
        for ax, name in zip(axes[0], ["picture", *maps], strict=True):
            ax.set_title(name, fontsize=9)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
        bar = figure.colorbar(shade, ax=axes, fraction=0.02, pad=0.01, ticks=[-1, 0, 1])
        bar.ax.set_yticklabels(["towards\nREAL", "0", "towards\nFAKE"], fontsize=8)
    return figure


def pictures_of(data, network: nn.Module) -> np.ndarray:
    """The pixels of an ImageSet or a PictureSet as `network` takes them: uint8 (n, 3, h, w)."""
    if isinstance(data, ImageSet):
        return data.pixels[data.rows]
    return np.stack([as_taken(data.pixels(i), network) for i in range(len(data))])


def as_taken(pixels: np.ndarray, network: nn.Module) -> np.ndarray:
    """uint8 (h, w, 3) of any size -> (3, size, size): squashed to 32, or the centre at the network's size."""
    if not hasattr(network, "size"):
        return resize(pixels, SIZE).transpose(2, 0, 1)
    fitted = ImageOps.fit(Image.fromarray(pixels), (network.size, network.size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1)


def from_files(names: list[str], network: nn.Module) -> tuple[np.ndarray, list[str]]:
    """The readable pictures, uint8 (n, 3, h, w), and what they are called; the others are named."""
    pictures, captions = [], []
    for name in names:
        try:
            pictures.append(as_taken(decode(read(str(user_path(name))))[0], network))
            captions.append(Path(name).name)
        except (OSError, DecodeError) as error:
            print(f"unreadable: {name}: {getattr(error, 'strerror', None) or error}")
    if not pictures:
        raise TellError(f"none of the {len(names)} files of --input is a readable picture")
    return np.stack(pictures), captions


def from_set(args, network: nn.Module, facts: dict) -> tuple[np.ndarray, list[str]]:
    """Pictures of a split, drawn by lot, uint8 (n, 3, h, w), and their true labels."""
    whole = load(args.data, hasattr(network, "size"))
    banner(whole)
    data = held_part(whole, facts, args.split).head(args.pictures)
    return pictures_of(data, network), [("real", "fake")[label] for label in data.labels]


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("-mf", "--modelfile", dest="mf", default="base_model", metavar="NAME", help="checkpoint (base_model)")
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--input", nargs="+", metavar="FILE", help="pictures of any format and size")
    source.add_argument("--data", default="auto", metavar="SET",
                        help="cifake, sample, a folder or an archive; auto: CIFAKE or else the sample (auto)")
    add("--split", choices=SPLITS, default="test", help="which part of the data (test)")
    add("--pictures", type=whole_number(1, 100), default=8, metavar="N", help="drawn by lot (8)")
    add("-o", "--output", metavar="FILE.png", help="the figure (paper/figures/explain-NAME.png)")
    flags.add_device()
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    network, facts = checkpoints.load(args.mf, pick_device(args.device))
    pictures, names = from_files(args.input, network) if args.input else from_set(args, network, facts)
    maps = {name: method(network, pictures) for name, method in METHODS.items()}
    logits = score_all(network, normalised(network, pictures))
    verdicts, scores, _ = said_of(logits, facts["threshold"], facts.get("calibration"))
    captions = [f"{name}\n{verdict}, P(fake) {score:.3f}"
                for name, verdict, score in zip(names, verdicts, scores, strict=True)]
    default = folder("figures") / f"explain-{checkpoints.model_name(args.mf)}.png"
    path = user_path(args.output) if args.output else default
    figure = plot_maps(pictures, captions, maps)
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=200)
    plt.close(figure)
    print(f"figure: {shown(path)}")
    return {"figure": str(path), "names": names, "scores": scores, "maps": maps}


if __name__ == "__main__":
    command_line(main)
