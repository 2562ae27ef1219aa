// The switch of Mini LoRA also switches Train LoRA on and off: it would train with every run, whether or not anything
// takes its model.

import { app } from "../../scripts/app.js"

const NODE = "MudiMiniLora"
const TRAINER = "MudiTrainLora"
const [ALWAYS, NEVER] = [0, 2] // LiteGraph's modes of a node

function trainerOf(node) {
  const origin = node.getInputNode?.(node.inputs.findIndex(input => input.name === "trained"))
  return origin?.comfyClass === TRAINER ? origin : null
}

app.registerExtension({
  name: "mudi.mini_lora",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const train = node.widgets.find(widget => widget.name === "train")
    const callback = train.callback
    train.callback = (...given) => {
      const result = callback?.apply(train, given)
      const trainer = trainerOf(node)
      if (trainer) trainer.mode = train.value ? ALWAYS : NEVER
      node.graph?.setDirtyCanvas(true, true)
      return result
    }
  },
})
