// Older frontends save the text under a node as if it were a widget's value. It is not there after an undo, the graph
// then counts as changed, and there is nothing to redo any more.

import { app } from "../../scripts/app.js"

const TEXT = "$$node-text-preview"

app.registerExtension({
  name: "mudi.shown_text",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Mudi")) return
    const add = node.addCustomWidget
    node.addCustomWidget = function (widget) {
      if (widget.name === TEXT) widget.serialize = false
      return add.call(this, widget)
    }
  },
})
