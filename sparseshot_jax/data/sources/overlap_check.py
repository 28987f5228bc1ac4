"""No image may serve both to train and to measure: by name, by known relation, by its pixels."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sparseshot_jax.data.builders.tcga import SAME_IMAGES
from sparseshot_jax.data.cases import Case, Splits
from sparseshot_jax.data.slides.slide import Slide
from sparseshot_jax.errors import InputError
from sparseshot_jax.types import Window

_HASHED_PX = 1 << 24  # a larger image is compared at its coarsest level
_MAX_COMPARED = 4096  # images whose pixels are compared; decoding more would hold up the start
_SHOWN = 5  # names in a message
_UUID = re.compile(r"\.[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$")
_SUFFIX = re.compile(r"\.(PNG|JPE?G|TIFF?|BMP|SVS|NDPI|MRXS)$")
_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


def check_disjoint(splits: Splits, patients: Mapping[str, str] | None = None) -> list[str]:
    """Refuse an image that is in two of training, validation and test.

    Names are compared as `image_id` makes them alike; then the decoded pixels, since copies go about under
    new names. Images of one colour are passed over.

    Args:
        splits: the cases.
        patients: patient by case name, where it is known; TCGA names tell theirs.

    Returns:
        Sentences on what is doubtful and no error: patients shared by training and measuring.

    Raises:
        InputError: names both images and both splits.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    _refuse_twice(
        ((split, case.name, image_id(case.name)) for split, cases in parts.items() for case in cases),
        "have the same name",
    )
    notes = _compare_pixels(parts)
    known = patients or {}
    return notes + _shared_patients(parts, known)


def check_parts(train: Sequence[tuple[str, str]], measured: Sequence[tuple[str, str]]) -> None:
    """Refuse a data set's part for training whose images are known to be in a part that measures.

    Args:
        train: (data set, split) of every training part.
        measured: of every part for validation and test.

    Raises:
        InputError: names both parts, see `tcga.SAME_IMAGES`.
    """
    for left in train:
        for right in measured:
            for pair in SAME_IMAGES:
                if any(_fits(left, a) and _fits(right, b) for a, b in (pair, pair[::-1])):
                    raise InputError(
                        f"{'/'.join(left)} must not train where {'/'.join(right)} measures: they hold the "
                        "same images (Kumar is MoNuSeg's training part). Take the splits of one of the two, "
                        "or monuseg/test to measure."
                    )


def image_id(name: str) -> str:
    """What two names of one image have in common: upper case, no suffix; a TCGA name from its barcode on.

    >>> image_id("TCGA-18-5592-01Z-00-DX1.tif") == image_id("tcga-18-5592-01z-00-dx1")
    True
    """
    bare = _UUID.sub("", _SUFFIX.sub("", name.strip().upper()))
    found = _PATIENT.search(bare)
    return bare[found.start() :] if found else bare


def patient_of(name: str) -> str | None:
    """The patient that a TCGA name tells, or None.

    >>> patient_of("TCGA-18-5592-01Z-00-DX1"), patient_of("img1")
    ('TCGA-18-5592', None)
    """
    found = _PATIENT.search(name.upper())
    return found.group() if found else None


def _fits(part: tuple[str, str], pattern: tuple[str, str]) -> bool:
    split = part[1].split("[")[0]  # TFDS names a share of a split "train[:80%]"
    return (part[0], split) == pattern


def _refuse_twice(keyed: Iterable[tuple[str, str, str]], alike: str) -> None:
    """keyed: (split, case name, key); a key in two splits is refused."""
    owner: dict[str, tuple[str, str]] = {}
    for split, name, key in keyed:
        first, other = owner.setdefault(key, (split, name))
        if first != split:
            raise InputError(
                f"{name} in data.{split}: an image must be in one split; {other} in data.{first} "
                f"and it {alike}. A score on what was trained on, or chosen by, says nothing: take it out of "
                f"data.{first} or data.{split}."
            )


def _compare_pixels(parts: Mapping[str, Sequence[Case]]) -> list[str]:
    cases = [(split, case) for split, several in parts.items() for case in several]
    sizes: dict[tuple[int, int], set[str]] = {}
    for split, case in cases:
        sizes.setdefault((case.slide.width, case.slide.height), set()).add(split)
    # Only a size that is in two splits can hold one image twice.
    asked = [(s, c) for s, c in cases if len(sizes[c.slide.width, c.slide.height]) > 1]
    if len(asked) > _MAX_COMPARED:
        return [
            f"The pixels of {len(asked)} images in different splits were not compared (more than "
            f"{_MAX_COMPARED}): that none is in two splits was checked by name alone."
        ]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda one: pixel_digest(one[1].slide), asked))
    _refuse_twice(
        ((split, case.name, digest) for (split, case), digest in zip(asked, digests) if digest),
        "have the same pixels",
    )
    return []


def pixel_digest(slide: Slide) -> str | None:
    """Hash of the decoded pixels (of a large slide at low magnification); None for one colour alone."""
    scale = 1.0
    if slide.width * slide.height > _HASHED_PX:
        side = (slide.width * slide.height / _HASHED_PX) ** 0.5
        scale = max(side, *slide.downsamples)
    width, height = max(1, int(slide.width / scale)), max(1, int(slide.height / scale))
    pixels = slide.read(Window(x_px=0.0, y_px=0.0, width=width, height=height, scale=scale))
    if (pixels == pixels[:1, :1]).all():
        return None
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    digest.update(str((slide.width, slide.height)).encode())
    return digest.hexdigest()


def _shared_patients(parts: Mapping[str, Sequence[Case]], known: Mapping[str, str]) -> list[str]:
    found = {
        split: {p for c in cases if (p := known.get(c.name) or patient_of(c.name))}
        for split, cases in parts.items()
    }
    notes = []
    for split in ("validation", "test"):
        shared = sorted(found["train"] & found[split])
        if shared:
            more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
            notes.append(
                f"{len(shared)} of {len(found[split])} patients of data.{split} are in data.train too "
                f"({', '.join(shared[:_SHOWN])}{more}): its scores say less of new patients."
            )
    return notes
