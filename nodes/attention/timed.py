"""Parts that a MODEL wears in its attention from one share of the sampling to another: how they are put on, and off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import comfy.patcher_extension
from torch import Tensor

_APPLY = comfy.patcher_extension.WrappersMP.APPLY_MODEL
_RUN = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


class _Released(Protocol):
    def release(self) -> None:
        """Forget what was copied to the device that computes."""


P = TypeVar("P", bound=_Released)


@dataclass(frozen=True, eq=False)
class Timed(Generic[P]):
    """A part, and from which to which share of the sampling it is on."""

    part: P
    start: float
    end: float

    def is_on(self, sampling: Any, sigma: float) -> bool:
        """Return whether it is on at a noise level, by the MODEL's ``model_sampling``. From 0 to 0 is never."""
        return self.start < self.end and bool(
            sampling.percent_to_sigma(self.end) <= sigma <= sampling.percent_to_sigma(self.start)
        )


@dataclass(frozen=True, eq=False)
class Worn(Generic[P]):
    """All parts of one kind that a MODEL wears. It is called in place of ComfyUI's ``apply_model``."""

    KEY: ClassVar[str]
    """Of the wrappers, among those of a MODEL."""
    parts: tuple[Timed[P], ...]

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, concat: Any, context: Any, control: Any, options: dict[str, Any],
        **named: Any,
    ) -> Any:  # fmt: skip
        raise NotImplementedError

    def run(self, executor: Any, *given: Any, **named: Any) -> Any:
        """Sample, and then free what was copied to the device."""
        try:
            return executor(*given, **named)
        finally:
            for one in self.parts:
                one.part.release()

    @classmethod
    def on(cls, model: Any, part: Timed[P], **more: Any) -> Any:
        """Return a clone of the MODEL that also wears a part; ``more``: what the class has besides its parts."""
        before = [one for one in model.get_wrappers(_APPLY, cls.KEY) if isinstance(one, cls)]
        worn = cls((*(one for worn in before for one in worn.parts), part), **more)
        changed = model.clone()
        for place, wrapper in ((_APPLY, worn), (_RUN, worn.run)):
            changed.remove_wrappers_with_key(place, cls.KEY)
            changed.add_wrapper_with_key(place, cls.KEY, wrapper)
        return changed
