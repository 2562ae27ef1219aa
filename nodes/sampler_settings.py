"""Sampler Settings: how pictures of a kind of model are usually sampled, for KSampler and Layout."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from . import host
from .convert import BadModel
from .denoiser import name_of, usual_of
from .generate import CATEGORY
from .sockets import ChoiceOutput


class SamplerSettings(io.ComfyNode):  # type: ignore[misc]
    """Give what is usual for the kind of a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        known = comfy.samplers.KSampler
        return host.schema(
            node_id="MudiSamplerSettings",
            display_name="Sampler Settings (MuDI)",
            category=CATEGORY,
            description="Gives the steps, cfg, sampler, scheduler and picture size that are usual for the kind of "
            "model, so that a graph works for any. A Turbo or Lightning model has few steps of its own: set those by "
            "hand.",
            search_aliases=["ksampler config", "steps cfg sampler scheduler", "auto sampler", "picture size"],
            is_output_node=True,
            inputs=[io.Model.Input("model", tooltip="The model whose kind decides; with or without LoRAs.")],
            outputs=[
                io.Int.Output("steps", display_name="steps", tooltip="For KSampler."),
                io.Float.Output("cfg", display_name="cfg", tooltip="For KSampler."),
                ChoiceOutput("sampler_name", "sampler_name", options=known.SAMPLERS, tooltip="For KSampler."),
                ChoiceOutput("scheduler", "scheduler", options=known.SCHEDULERS, tooltip="For KSampler."),
                io.Int.Output(
                    "side",
                    display_name="side",
                    tooltip="Side of a square picture in pixels: for Layout's width and height.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        try:
            usual = usual_of(model).sampling
        except BadModel:
            raise BadModel(
                f"Nothing is usual for this MODEL ({name_of(model)}), which reads more than a noisy picture and a "
                "caption. Remove the links and set steps, cfg, sampler and scheduler of KSampler by hand."
            ) from None
        host.check_sampler(usual.sampler, usual.scheduler)
        told = f"{usual.steps} steps, cfg {usual.cfg:g}, {usual.sampler}, {usual.scheduler}, {usual.side} px"
        return io.NodeOutput(
            usual.steps,
            usual.cfg,
            usual.sampler,
            usual.scheduler,
            usual.side,
            ui=host.preview([], cls, f"{told} ({usual.source})."),
        )
