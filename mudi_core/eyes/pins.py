"""The weights of the open models by name: each file is pinned to its SHA-256, and to a commit if its host has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightFile:
    """One file of a model, and how to check it."""

    name: str
    url: str
    sha256: str | None
    """The hash of the whole file, hexadecimal; None: unknown, so the file is never downloaded."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Weights:
    """All files of one model."""

    folder: str
    """The subfolder of the files; "." for a single file without one."""
    page: str
    """The web page about the model and its licence."""
    files: tuple[WeightFile, ...]

    @property
    def megabytes(self) -> int:
        """The size of all files together, in megabytes."""
        return round(sum(file.size for file in self.files) / 1e6)


def _hugging_face(repository: str, commit: str, files: dict[str, tuple[str, int]]) -> Weights:
    base = f"https://huggingface.co/{repository}/resolve/{commit}"
    return Weights(
        folder=repository.split("/")[1],
        page=f"https://huggingface.co/{repository}/tree/{commit}",
        files=tuple(WeightFile(name, f"{base}/{name}", sha256, size) for name, (sha256, size) in files.items()),
    )


def _sam(name: str, sha256: str, size: int) -> Weights:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{name}"
    page = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
    return Weights(".", page, (WeightFile(name, url, sha256, size),))


def _together(folder: str, *parts: Weights) -> Weights:
    """Return models that work together as one; the page is that of the first."""
    return Weights(folder, parts[0].page, tuple(file for part in parts for file in part.files))


# The tokenizer of OWLv2 and CLIP comes with this package, so only config and weights are downloaded.
TABLE: dict[str, Weights] = {
    "owlv2-base": _hugging_face(
        "google/owlv2-base-patch16-ensemble",
        "cfd3195ba4ea9592eec887ded089f4c08eff231d",
        {
            "config.json": ("ba9df8c25a4b8461887dd0a93d9252c9cd84697fe8d49a9d8794ce409af9acb2", 414),
            "model.safetensors": ("e1e130b9e404cf91a75ad45644c1da9d7fa5284085eecc864266a6923efb99e7", 619_918_824),
        },
    ),
    "sam-vit-b": _sam(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375_042_383
    ),
    "sam-vit-l": _sam(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1_249_524_607
    ),
    "sam-vit-h": _sam(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879
    ),
    "dinov2-base": _hugging_face(
        "facebook/dinov2-base",
        "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        {
            "config.json": ("f7ff4cfa73d2f70647dbf6950541ad25d73082d54c2e7e9bded160c7656b2a70", 548),
            "model.safetensors": ("d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841", 346_345_912),
        },
    ),
    # YuNet (MIT) finds the faces that SFace (Apache-2.0) compares.
    "sface": _together(
        "sface",
        _hugging_face(
            "opencv/face_recognition_sface",
            "3d7082438a6e4551e840c9b2bb60b71e8da4b524",
            {
                "face_recognition_sface_2021dec.onnx": (
                    "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
                    38_696_353,
                )
            },
        ),
        _hugging_face(
            "opencv/face_detection_yunet",
            "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
            {
                "face_detection_yunet_2023mar.onnx": (
                    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
                    232_589,
                )
            },
        ),
    ),
    "clip-vit-large": _hugging_face(
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        {
            "config.json": ("8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a", 4519),
            "model.safetensors": ("a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", 1_710_540_580),
        },
    ),
}
