"""The nodes: the only place that knows ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MudiExtension(ComfyExtension):  # type: ignore[misc]
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        from .compare import CompareSubjects
        from .dataset import SegMixDataset
        from .detail import DetailSubjects
        from .find import DetectSubjects, SamMask
        from .found_subject import FindSubject
        from .fuse_loras import FuseLoras
        from .generate import MakeLayout
        from .init_latent import InitLatent
        from .layout_guidance import LayoutGuidance
        from .layout_parts import LayoutParts
        from .lora_subject import LoraSubject
        from .mini import MiniCheckpoint, MiniPhotos
        from .photos import LoadPhotos
        from .preview import MakeTrainPreview
        from .priors import MakePriors
        from .ranges import checked
        from .regional_prompts import RegionalPrompts
        from .samplers import StartNoise
        from .search import FindSeed
        from .separate_loras import SeparateLoras
        from .settings import MakeTrainSettings
        from .subject import MakeSubject
        from .subject_sets import LoadSubjectSet, SaveSubjectSet
        from .train import TrainLora
        from .watermark import AddWatermark, FindWatermark
        from .words import AskLayout, SubjectPrompt

        nodes = [
            FindSubject,
            LoadPhotos,
            DetectSubjects,
            SamMask,
            MakeSubject,
            LoadSubjectSet,
            SaveSubjectSet,
            MakePriors,
            SegMixDataset,
            TrainLora,
            MakeTrainSettings,
            MakeTrainPreview,
            SubjectPrompt,
            MakeLayout,
            AskLayout,
            DetailSubjects,
            LayoutParts,
            InitLatent,
            StartNoise,
            LoraSubject,
            FuseLoras,
            SeparateLoras,
            RegionalPrompts,
            LayoutGuidance,
            CompareSubjects,
            FindSeed,
            AddWatermark,
            FindWatermark,
            MiniCheckpoint,
            MiniPhotos,
        ]
        return [checked(node) for node in nodes]
