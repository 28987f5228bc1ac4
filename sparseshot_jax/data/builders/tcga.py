"""The TCGA images that Kumar and MoNuSeg annotated: which they are, and in which splits. No TFDS here."""

# Of 16 training images 12 train and 4 validate, one an organ; tests of the same organs and of others: Kumar
# and others, IEEE TMI 36(7), 2017 (doi 10.1109/TMI.2017.2677499).
KUMAR_SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "TCGA-A7-A13E-01Z-00-DX1",
        "TCGA-A7-A13F-01Z-00-DX1",
        "TCGA-AR-A1AK-01Z-00-DX1",
        "TCGA-B0-5711-01Z-00-DX1",
        "TCGA-HE-7128-01Z-00-DX1",
        "TCGA-HE-7129-01Z-00-DX1",
        "TCGA-18-5592-01Z-00-DX1",
        "TCGA-38-6178-01Z-00-DX1",
        "TCGA-49-4488-01Z-00-DX1",
        "TCGA-G9-6336-01Z-00-DX1",
        "TCGA-G9-6348-01Z-00-DX1",
        "TCGA-G9-6356-01Z-00-DX1",
    ),
    "validation": (
        "TCGA-AR-A1AS-01Z-00-DX1",
        "TCGA-HE-7130-01Z-00-DX1",
        "TCGA-50-5931-01Z-00-DX1",
        "TCGA-G9-6363-01Z-00-DX1",
    ),
    "test_same_organ": (
        "TCGA-E2-A1B5-01Z-00-DX1",
        "TCGA-E2-A14V-01Z-00-DX1",
        "TCGA-B0-5698-01Z-00-DX1",
        "TCGA-B0-5710-01Z-00-DX1",
        "TCGA-21-5784-01Z-00-DX1",
        "TCGA-21-5786-01Z-00-DX1",
        "TCGA-CH-5767-01Z-00-DX1",
        "TCGA-G9-6362-01Z-00-DX1",
    ),
    "test_other_organ": (
        "TCGA-DK-A2I6-01A-01-TS1",
        "TCGA-G2-A2EK-01A-02-TSB",
        "TCGA-AY-A8YK-01A-01-TS1",
        "TCGA-NH-A8F7-01A-01-TS1",
        "TCGA-KB-A93J-01A-01-TS1",
        "TCGA-RD-A8N9-01A-01-TS1",
    ),
}

KUMAR_IMAGES: tuple[str, ...] = tuple(sorted(image for ids in KUMAR_SPLITS.values() for image in ids))

# The 14 test images of the challenge: Kumar and others, IEEE TMI 39(5), 2020 (doi 10.1109/TMI.2019.2947628).
MONUSEG_TEST: tuple[str, ...] = (
    "TCGA-2Z-A9J9-01A-01-TS1",
    "TCGA-44-2665-01B-06-BS6",
    "TCGA-69-7764-01A-01-TS1",
    "TCGA-A6-6782-01A-01-BS1",
    "TCGA-AC-A2FO-01A-01-TS1",
    "TCGA-AO-A0J2-01A-01-BSA",
    "TCGA-CU-A0YN-01A-02-BSB",
    "TCGA-EJ-A46H-01A-03-TSC",
    "TCGA-FG-A4MU-01B-01-TS1",
    "TCGA-GL-6846-01A-01-BS1",
    "TCGA-HC-7209-01A-01-TS1",
    "TCGA-HT-8564-01Z-00-DX1",
    "TCGA-IZ-8196-01A-01-BS1",
    "TCGA-ZF-A9R5-01A-01-TS1",
)

MONUSEG_SPLITS: dict[str, tuple[str, ...]] = {"train": KUMAR_IMAGES, "test": MONUSEG_TEST}

# (data set, split) pairs that hold the same images under the same names: never train on one side and
# measure on the other.
SAME_IMAGES: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = tuple(
    (("kumar", split), ("monuseg", "train")) for split in KUMAR_SPLITS
)


def patient_of(image_id: str) -> str:
    """The TCGA participant, the first three parts of a barcode.

    >>> patient_of("TCGA-A7-A13E-01Z-00-DX1")
    'TCGA-A7-A13E'
    """
    return "-".join(image_id.split("-")[:3])
