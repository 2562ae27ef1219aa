// What our nodes say under their widgets, as every frontend should keep it.
//
// Older ones save the text as if it were a widget's value. It is not there after an undo, the graph then counts as
// changed, and there is nothing to redo any more. Newer ones take it away when the run ends: then we show it ourselves,
// until the next run.

import { app } from "../../scripts/app.js"

const TEXT = "$$node-text-preview"
const OURS = "mudi_text"
const LINE = 16 // pixels

app.registerExtension({
  name: "mudi.shown_text",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Mudi")) return
    let said = ""
    const { addCustomWidget, onExecuted } = node
    node.addCustomWidget = function (widget) {
      if (widget.name === TEXT) {
        widget.serialize = false
        said = "" // of the run before
        hide(this)
        const { onRemove } = widget
        widget.onRemove = function () {
          onRemove?.call(this)
          queueMicrotask(() => show(node, said))
        }
      }
      return addCustomWidget.call(this, widget)
    }
    node.onExecuted = function (output) {
      onExecuted?.call(this, output)
      said = output?.text?.join("\n") ?? ""
    }
  },
})

function show(node, text) {
  const isThere = node.graph && node.graph.getNodeById(node.id) === node
  if (!text || !isThere || node.widgets?.some(widget => [TEXT, OURS].includes(widget.name))) return
  const shown = document.createElement("div")
  shown.textContent = text
  shown.style.cssText = "overflow: auto; white-space: pre-wrap; font-size: 12px; line-height: 16px; user-select: text"
  const height = Math.min(text.split("\n").length + 1, 12) * LINE
  const options = { serialize: false, hideOnZoom: false, getValue: () => text, getMinHeight: () => height }
  node.addDOMWidget(OURS, OURS, shown, options).serialize = false
  node.setDirtyCanvas?.(true, true)
}

function hide(node) {
  const place = node.widgets?.findIndex(widget => widget.name === OURS) ?? -1
  if (place < 0) return
  const [widget] = node.widgets.splice(place, 1)
  widget.onRemove?.()
}
