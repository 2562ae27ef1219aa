"""SFace (Zhong et al., arXiv 2205.12010) says whether two pictures show one face; YuNet finds it. Both run in OpenCV.

No other model here looks at faces alone: DINOv2 and DreamSim see clothes and hair before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..levels import to_bytes
from ..tensor_file import BadWeights
from ..types import VerdictLimits

FINDER, RECOGNIZER = "face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"
WIDTH = 128
SURE = 0.9
"""Least confidence of a face, as in the demo of SFace's authors."""
LOOKS = (320, 640, 1280)
"""Longer sides in pixels at which a picture is searched, until a face is found: YuNet knows faces of 10 to 300 px."""
FACE = 224
"""Pixels to which a wider face is made smaller before it is laid on SFace's 112 px."""
SAME_PERSON = 0.363
"""The cosine from which on two faces are one person's, by SFace's authors."""


class SFaceEmbedder:
    """An `Embedder` of the largest face in each picture; zeros for a picture without a face. It runs on the CPU."""

    def __init__(self, finder: Any, recognizer: Any) -> None:
        self.finder, self.recognizer = finder, recognizer
        self.verdict_limits = VerdictLimits(cosine=SAME_PERSON)

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        vectors = torch.zeros(len(images), WIDTH)
        for vector, image in zip(vectors, images, strict=True):
            pixels = to_bytes(image)[..., ::-1]  # OpenCV's models take blue, green, red
            if (face := self._largest(pixels)) is not None:
                vector[:] = torch.from_numpy(self.recognizer.feature(self._aligned(pixels, face)))[0]
        return functional.normalize(vectors, dim=1)

    def _largest(self, pixels: Any) -> Any:
        """Return the largest face of bytes ``[h, w, 3]`` as OpenCV has it, in their pixels, or None."""
        longest = max(pixels.shape[:2])
        for side in LOOKS:
            scale = min(1.0, side / longest)
            seen = _resized(pixels, scale)
            self.finder.setInputSize((seen.shape[1], seen.shape[0]))
            _, faces = self.finder.detect(seen)
            if faces is not None:
                face = max(faces, key=lambda one: one[2] * one[3]).copy()
                face[:14] /= scale  # left, top, width, height and five points; then comes the confidence
                return face
            if scale == 1.0:
                break
        return None

    def _aligned(self, pixels: Any, face: Any) -> Any:
        """Return a face on 112 x 112 px, its eyes, nose and mouth where SFace expects them."""
        scale = min(1.0, FACE / float(face[2]))
        face = face.copy()
        face[:14] *= scale
        return self.recognizer.alignCrop(_resized(pixels, scale), face[None])


def _resized(pixels: Any, scale: float) -> Any:
    import cv2
    import numpy as np

    if scale == 1.0:
        return np.ascontiguousarray(pixels)
    size = tuple(max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def load(path: Path, device: torch.device) -> SFaceEmbedder:
    """Read YuNet and SFace from a folder that holds OpenCV's two files; the device does not matter.

    Raise `BadWeights` when one is missing or is something else, or OpenCV is older than 4.8.
    """
    import cv2
    import numpy as np

    for name in (FINDER, RECOGNIZER):
        if not (path / name).is_file():
            raise BadWeights(f"There is no {name} in {path}: name the folder with {FINDER} and {RECOGNIZER}.")
    try:
        finder = cv2.FaceDetectorYN.create(str(path / FINDER), "", (64, 64), SURE)
        recognizer = cv2.FaceRecognizerSF.create(str(path / RECOGNIZER), "")
        finder.detect(np.zeros((64, 64, 3), np.uint8))
        length = recognizer.feature(np.zeros((112, 112, 3), np.uint8)).size
    except (cv2.error, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadWeights(
            f"{path} could not be read as YuNet and SFace by OpenCV {cv2.__version__} ({reason}). Download both files "
            "again; OpenCV has to be 4.8 or newer."
        ) from error
    if length != WIDTH:
        raise BadWeights(f"{path / RECOGNIZER} is no SFace: it gives {length} numbers, not {WIDTH}.")
    return SFaceEmbedder(finder, recognizer)
