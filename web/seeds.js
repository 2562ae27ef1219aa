// Seeds of what takes long, or goes on where it was stopped, start fixed: with another seed it would be another one.
// Frontends start all seeds on "randomize"; a workflow's own choice comes later and stays.

import { app } from "../../scripts/app.js"

const FIXED = ["MudiTrainLora", "MudiTrainPreview", "MudiMakePriors", "MudiMiniPhotos", "MudiInitLatent",
  "MudiSubjectsFromLoras", "MudiBestPictures", "MudiTrainResidual"]

app.registerExtension({
  name: "mudi.seeds",
  nodeCreated(node) {
    if (!FIXED.includes(node.comfyClass)) return
    const seed = node.widgets.find(widget => widget.name === "seed")
    for (const control of seed?.linkedWidgets ?? []) {
      if (control.options?.values?.includes("fixed")) control.value = "fixed"
    }
  },
})
