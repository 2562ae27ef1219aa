"""The nodes: the only place that knows ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MudiExtension(ComfyExtension):  # type: ignore[misc]
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        from . import (  # fmt: skip
            best_pictures,
            compare,
            dataset,
            detail,
            find,
            found_subject,
            from_loras,
            fuse_loras,
            generate,
            init_latent,
            layout_guidance,
            layout_parts,
            lora_subject,
            mini,
            mini_lora,
            photos,
            preview,
            priors,
            reference_adapter,
            regional_prompts,
            residual_token,
            sampler_settings,
            samplers,
            search,
            seeds,
            separate_loras,
            settings,
            subject,
            subject_sets,
            train,
            train_residual,
            watermark,
            words,
        )
        from .ranges import checked

        nodes = [
            found_subject.FindSubject, photos.LoadPhotos, find.DetectSubjects, find.SamMask, subject.MakeSubject,
            subject_sets.LoadSubjectSet, subject_sets.SaveSubjectSet, priors.MakePriors, dataset.SegMixDataset,
            train.TrainLora, train_residual.TrainResidual, settings.MakeTrainSettings, preview.MakeTrainPreview,
            words.SubjectPrompt,
            generate.MakeLayout, words.AskLayout, detail.DetailSubjects, layout_parts.LayoutParts,
            init_latent.InitLatent, sampler_settings.SamplerSettings, samplers.StartNoise,
            lora_subject.LoraSubject, fuse_loras.FuseLoras,
            from_loras.SubjectsFromLoras, best_pictures.BestPictures,
            separate_loras.SeparateLoras, regional_prompts.RegionalPrompts,
            layout_guidance.LayoutGuidance, residual_token.ResidualToken, reference_adapter.ReferenceAdapter,
            compare.CompareSubjects, search.FindSeed, seeds.MakeSeeds, watermark.AddWatermark,
            watermark.FindWatermark, mini.MiniCheckpoint, mini.MiniPhotos, mini_lora.MiniLora,
        ]  # fmt: skip
        return [checked(node) for node in nodes]
