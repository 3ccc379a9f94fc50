"""GenImage's tree (Zhu et al., NeurIPS 2023): labels, generators and ImageNet classes from its names.

GENERATOR/{train,val}/{ai,nature}/FILE, one generator or many, whatever stands before.
"""
import re
from pathlib import Path

import sources

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
