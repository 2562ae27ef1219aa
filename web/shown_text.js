// What our nodes say under their widgets, as every frontend should keep it.
//
// Older ones save the text as if it were a widget's value. It is not there after an undo, the graph then counts as
// changed, and there is nothing to redo any more. Newer ones take it away when the run ends. None has it for what came
// from the cache, or for a node that an undo or another tab has built anew, whose pictures they do show: in all these
// cases we show it ourselves, until the next run.

import { app } from "../../scripts/app.js"

const TEXT = "$$node-text-preview"
const OURS = "mudi_text"
const PREVIEW = "$$canvas-image-preview"
const [LINE, LETTER, EDGE, PICTURES] = [16, 6.2, 30, 220] // pixels
const MOST = 12 // lines, of which a longer text scrolls
const FRAMES = 60 // in which a frontend gives a node that was built anew its outputs of before

/** A node's name among the outputs of all graphs. */
export function keyOf({ graph, id }) {
  return !graph || graph.isRootGraph ? String(id) : `${graph.id}:${id}`
}

app.registerExtension({
  name: "mudi.shown_text",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Mudi")) return
    let said = ""
    const { addCustomWidget, onConfigure, onExecuted } = node
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
      said = wordsOf(output)
      hide(this)
      queueMicrotask(() => show(node, said) && makeRoom(node, output.images?.length > 0))
    }
    node.onConfigure = function (...given) {
      onConfigure?.apply(this, given)
      recall(node)
    }
  },
})

function wordsOf(output) {
  return output?.text?.join("\n") ?? ""
}

function recall(node, frames = 0) {
  const words = wordsOf(app.nodeOutputs?.[keyOf(node)])
  if (words) show(node, words)
  else if (frames < FRAMES) requestAnimationFrame(() => recall(node, frames + 1))
}

/** Whether it was not there before. */
function show(node, text) {
  const isThere = node.graph && node.graph.getNodeById(node.id) === node
  if (!text || !isThere || node.widgets?.some(widget => [TEXT, OURS].includes(widget.name))) return false
  const shown = document.createElement("div")
  shown.textContent = text
  shown.style.cssText = "overflow: auto; white-space: pre-wrap; font-size: 12px; line-height: 16px; user-select: text"
  const getMinHeight = () => LINE * Math.min(MOST, 1 + linesOf(text, node.size[0] - EDGE))
  const options = { serialize: false, hideOnZoom: false, getValue: () => text, getMinHeight }
  node.addDOMWidget(OURS, OURS, shown, options).serialize = false
  node.setDirtyCanvas?.(true, true)
  return true
}

function linesOf(text, width) {
  const wrapped = line => Math.max(1, Math.ceil((line.length * LETTER) / width))
  return text.split("\n").reduce((lines, line) => lines + wrapped(line), 0)
}

/** For the text, and below it for pictures. After a run alone: a node that an undo made larger would count as changed. */
function makeRoom(node, hasPictures) {
  if (window.LiteGraph?.vueNodesMode) return // it takes its room
  const isCounted = !hasPictures || node.hideOutputImages || node.widgets.some(widget => widget.name === PREVIEW)
  const [width, height] = node.size
  node.setSize([width, Math.max(height, node.computeSize()[1] + (isCounted ? 0 : PICTURES))])
}

function hide(node) {
  const place = node.widgets?.findIndex(widget => widget.name === OURS) ?? -1
  if (place < 0) return
  const [widget] = node.widgets.splice(place, 1)
  widget.onRemove?.()
}
