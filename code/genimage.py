"""GenImage's tree (Zhu et al., NeurIPS 2023): labels, generators and ImageNet classes from its names.

GENERATOR/{train,val}/{ai,nature}/FILE, one generator or many, whatever stands before.

    python code/genimage.py vqa.tar.xz FOLDER    the pictures of a question-answering set on GenImage, sorted
                                                 into FOLDER/{real,fake}/GENERATOR/
"""
import json
import re
from pathlib import Path

import sources
from datasets import find_set
from files import Parser, TellError, atomic, command_line, user_path

GENERATORS = ("nature", "adm", "biggan", "glide", "midjourney", "sd14", "sd15", "vqdm", "wukong")
SPELLINGS = dict(zip(GENERATORS, range(9), strict=True)) | {"real": 0, "midjourneyv5": 4, "vqdiffusion": 7}
GENIMAGE_LABELS = {"ai": "FAKE", "nature": "REAL"}


def name_of(path: Path, parts: tuple[str, ...]) -> str | None:
    """"split/LABEL/rest" of a picture of the source `path` by its path's parts; None for any other file.

    GenImage's GENERATOR/{train,val}/{ai,nature}/rest becomes split/LABEL/GENERATOR/rest, its "val", on
    which it tests, "test". An unknown generator keeps its folder's name.
    """
    parts = tuple(part for part in parts if part not in ("", "."))
    folders = [part.casefold() for part in parts[:-1]]
    at = max((i for i, name in enumerate(folders) if name in GENIMAGE_LABELS), default=None)
    if at is None or sources.canonical(parts):
        return sources.canonical(parts)
    source = re.sub(r"\.(zip|tar(\.\w+)?|tgz)$", "", path.name, flags=re.IGNORECASE)
    above = [name for name in (source, *parts[:at]) if name.casefold() not in sources.SPLITS] or [source]
    known = [GENERATORS[index] for name in above if (index := generator_of(name)) > 0]
    return sources.canonical((*parts[:at], "train" if "train" in folders[:at] else "test",
                              GENIMAGE_LABELS[folders[at]], (known or above)[-1], *parts[at + 1:]))


def generator_of(text: str) -> int:
    """The generator that a folder or a manifest names: index into GENERATORS, -1 for any other.

    Case, spaces, punctuation and the "imagenet_ai_0419_" of GenImage's archives do not count; "sdv4" is
    GenImage for Stable Diffusion 1.4. All else has to agree: a later or fine-tuned model is another.
    """
    plain = re.sub(r"^imagenet(ai(\d{4})?)?", "", re.sub(r"[^a-z0-9]", "", text.casefold()))
    return SPELLINGS.get(re.sub(r"^(sdv|sdv?1|stablediffusionv?1)(?=[45]$)", "sd1", plain), -1)


def imagenet_class(file_name: str, wnids: dict[str, int]) -> int:
    """The ImageNet class 0..999 in GenImage's file names, -1 where there is none.

    "n01440764_1.JPEG" has a WordNet id, whose line in library/imagenet_wnids.txt, from 0, is the class;
    "GLIDE_1000_200_05_510_glide_08.png" class, generator, number; "ILSVRC2012_val_744.JPEG" nothing.
    """
    if match := re.fullmatch(r"(n\d{8})(_.*)?\.\w+", file_name, re.ASCII):
        return wnids.get(match[1], -1)
    match = re.fullmatch(r"(?:.*_)?(\d{1,3})_([a-z]\w*)_\d+\.\w+", file_name, re.ASCII | re.IGNORECASE)
    return int(match[1]) if match and generator_of(match[2]) > 0 else -1


# --- pictures of a question-answering set -------------------------------------------------------

def sort_questions(source: Path, target: Path) -> dict[str, int]:
    """Sort the pictures of a question-answering set by their generators; returns {generator: pictures}.

    source: folder or archive with JSON lists of {"image": FILE, "metadata": {"generator": NAME}} beside the
    pictures. Writes target/{real,fake}/GENERATOR/FOLDER_FILE. TellError for an unknown generator.
    """
    files, generators = {}, {}
    for name, content in sources.files_of(sources.require_readable(source), last_two):
        if name in files:
            raise TellError(f"{source}: two files are called {name}; rename one of the folders")
        files[name] = content if isinstance(content, bytes) else Path(content).read_bytes()
    for name, content in files.items():
        if name.endswith(".json"):
            generators |= generators_of(name, content)
    counts = dict.fromkeys(GENERATORS, 0)
    for place, index in sorted(generators.items()):
        if place in files:  # lists of answers name pictures that stand in another folder
            counts[GENERATORS[index]] += 1
            path = target / ("fake" if index else "real") / GENERATORS[index] / place.replace("/", "_")
            if not path.exists() or path.read_bytes() != files[place]:
                with atomic(path) as file:
                    file.write(files[place])
    if not any(counts.values()):
        raise TellError(f"{source}: no list of questions with pictures beside it")
    return counts


def last_two(parts: tuple[str, ...]) -> str:
    return "/".join(parts[-2:])


def generators_of(name: str, content: bytes) -> dict[str, int]:
    """{folder/image: index of its generator} of one list of questions."""
    try:
        items = [(item["image"], item["metadata"]["generator"]) for item in json.loads(content)]
    except (ValueError, KeyError, TypeError) as error:
        raise TellError(f"{name}: not a list of questions, each with an image and its generator "
                        f"({type(error).__name__}: {error})") from error
    found = {}
    for image, text in items:
        index = 0 if text == "natural" else generator_of(text)
        if index < 0:
            raise TellError(f"{name}: {image} is by {text!r}, which is no generator of GenImage")
        found[f"{name.split('/')[0]}/{image}"] = index
    return found


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("source")
    flags.add_argument("target")
    args = flags.parse_args(argv)
    counts = sort_questions(find_set(args.source), user_path(args.target))
    print(", ".join(f"{name} {n}" for name, n in counts.items()))
    return counts


if __name__ == "__main__":
    command_line(main)
