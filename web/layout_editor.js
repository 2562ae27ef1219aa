// The layout editor on the Layout node. Its state is the node's own widgets, `text` and `mode`, and so lives in the
// workflow; where the subjects stand otherwise, and their cut-outs, come from the node's last run.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { Board } from "./layout/board.js"
import { figuresOf, readPlaces, subjectsOf, writePlaces } from "./layout/figures.js"
import { keyOf } from "./shown_text.js"

const NODE = "MudiLayout"
const OUTPUT = "mudi_layout"
const SCENE = "mudi_layout_scene"
const WATCHED = ["text", "mode", "width", "height"]
const [TEXT, RANDOM] = ["from text", "random"]
const HEIGHT = 340
const REGAIN = 5000
const SETTLED = 10
const FRAMES = 120 // in which a frontend puts an editor into the page

/** By key the editor that is in the page. */
const roots = new Map()
/** The figure that had the keyboard before an undo, which builds the graph, and this editor, anew. */
let held = null

class LayoutEditor {
  constructor(node) {
    this.node = node
    this.board = new Board({
      edited: figures => this.write({ mode: TEXT, text: writePlaces(figures) }),
      putBack: token => this.putBack(token),
      reset: () => this.write({ mode: RANDOM, text: "" }),
      undo: () => app.extensionManager.command.execute("Comfy.Undo"),
      redo: () => app.extensionManager.command.execute("Comfy.Redo"),
      leaving: token => (held = { key: this.key, token }),
      url: file => api.apiURL(`/view?type=temp&filename=${encodeURIComponent(file)}`),
    })
    this.isWriting = false
    for (const name of WATCHED) this.watch(this.widget(name))
  }

  widget(name) {
    return this.node.widgets.find(widget => widget.name === name)
  }

  watch(widget) {
    const callback = widget.callback
    widget.callback = (...given) => {
      const result = callback?.apply(widget, given)
      if (!this.isWriting) this.refresh()
      return result
    }
  }

  isLinked(name) {
    const input = this.node.inputs.find(input => input.name === name)
    return input?.link !== null && input?.link !== undefined
  }

  get key() {
    return keyOf(this.node)
  }

  /** What the node told when it last ran: size, mode, drawn, by_seed. */
  get told() {
    return app.nodeOutputs?.[this.key]?.[OUTPUT]?.[0]
  }

  /** The file of the picture that they stand in, kept like the subjects; undefined on white. */
  get scene() {
    if (!this.isLinked("scene")) return undefined
    return this.told ? this.told.scene : this.node.properties[SCENE]
  }

  /** By token a name and photos, a Map; kept in the workflow, so that they are there after a reload. */
  get subjects() {
    return subjectsOf(this.told?.subjects ?? this.node.properties[OUTPUT])
  }

  get ratio() {
    const side = (name, told) => (this.isLinked(name) && told ? told : this.widget(name).value)
    return side("width", this.told?.size[0]) / side("height", this.told?.size[1])
  }

  ran(output) {
    const told = output?.[OUTPUT]?.[0]
    if (!told) return
    this.node.properties[OUTPUT] = told.subjects
    if (told.scene) this.node.properties[SCENE] = told.scene
    else delete this.node.properties[SCENE]
    this.refresh()
  }

  refresh() {
    if (this.board.root.isConnected) roots.set(this.key, this.board.root)
    const { told, subjects, ratio } = this
    const mode = this.widget("mode").value
    const isOurs = !this.isLinked("text") && !this.isLinked("mode")
    const isWritten = mode === TEXT && !this.isLinked("text")
    const last = mode === RANDOM ? told?.by_seed : told?.mode === mode ? told.drawn : null
    const places = isWritten ? readPlaces(this.widget("text").value) : last
    const figures = figuresOf(places ?? [], subjects, told?.drawn ?? [], ratio)
    const words = this.words(mode, figures, isOurs, isWritten)
    this.board.show({ figures, subjects, ratio, locked: !isOurs, words, scene: this.scene })
  }

  configured() {
    this.refresh()
    this.remount()
    if (held?.key !== this.key || held.token === null) return
    this.board.select(held.token)
    this.regain(held, performance.now() + REGAIN)
  }

  /**
   * The newest frontends leave in the page what the last node of this id had put there, as after an undo. Its edits
   * would go nowhere, so ours takes its place.
   */
  remount(frames = 0) {
    const { root } = this.board
    const last = roots.get(this.key)
    if (root.isConnected || frames === FRAMES) return this.refresh()
    if (frames > 1 && last?.isConnected && window.LiteGraph?.vueNodesMode) last.replaceWith(root)
    requestAnimationFrame(() => this.remount(frames + 1))
  }

  /** Gives the keyboard back to a figure, as soon as the frontend has put it into the page and leaves it there. */
  regain(wanted, until, frames = 0) {
    const figure = this.board.elements.get(wanted.token)
    const active = document.activeElement
    const isTyping = active?.matches("input, textarea, [contenteditable]")
    if (held !== wanted || isTyping || frames === SETTLED || performance.now() > until) {
      if (held === wanted) held = null
      return
    }
    if (figure !== active) figure?.focus({ preventScroll: true })
    const settled = figure && document.activeElement === figure ? frames + 1 : 0
    requestAnimationFrame(() => this.regain(wanted, until, settled))
  }

  words(mode, figures, isOurs, isWritten) {
    if (isWritten && !figures.length) return "The text is no layout: write places, or press reset."
    if (!figures.length) return "Run once to see the cut-outs here."
    if (!isOurs) return "Text or mode is connected: to look at only."
    return isWritten ? "Your places." : "Drag somebody to place them yourself."
  }

  putBack(token) {
    const place = this.told?.by_seed.find(one => one.token === token)
    if (!place) return
    const { figures } = this.board.state
    const [figure] = figuresOf([place], this.subjects, [], this.ratio)
    this.write({ mode: TEXT, text: writePlaces(figures.map(one => (one.token === token ? figure : one))) })
  }

  /** One step of ComfyUI's own undo. */
  write(values) {
    this.isWriting = true
    app.canvas.emitBeforeChange()
    for (const [name, value] of Object.entries(values)) {
      const widget = this.widget(name)
      widget.value = value
      widget.callback?.(value)
    }
    app.canvas.emitAfterChange()
    this.isWriting = false
    this.node.setDirtyCanvas(true, true)
    this.refresh()
  }
}

function chain(object, name, after) {
  const before = object[name]
  object[name] = function (...given) {
    const result = before?.apply(this, given)
    after(...given)
    return result
  }
}

function attach(node) {
  const editor = new LayoutEditor(node)
  const { root } = editor.board
  const widget = node.addDOMWidget("editor", "mudi_layout_editor", root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  })
  widget.serialize = false
  // The editor shows what the preview would.
  node.hideOutputImages = true
  node.onDrawBackground = () => {}
  chain(node, "onConfigure", () => editor.configured())
  chain(node, "onConnectionsChange", () => editor.refresh())
  chain(node, "onExecuted", output => editor.ran(output))
  // Over the editor the wheel still zooms the graph.
  root.addEventListener("wheel", event => {
    if (window.LiteGraph?.vueNodesMode) return
    event.preventDefault()
    app.canvas.processMouseWheel(event)
  })
  const [width, height] = node.computeSize()
  node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])])
  editor.refresh()
}

app.registerExtension({
  name: "mudi.layout_editor",
  setup() {
    const href = new URL("./layout/board.css", import.meta.url).href
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }))
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) attach(node)
  },
})
