// The layout editor's element: figures on a canvas that are dragged, pulled at their corners, turned, and moved by keys.

import { linesOf, moved, photoNumber, photoOf, posed, pulled, scaled, snapped, turnedBy, upright } from "./figures.js"

const STEP = 0.01
const LEAP = 0.05
const REACH = 6
const TURN = 5
const CORNERS = { nw: [0, 1], ne: [2, 1], sw: [0, 3], se: [2, 3] }
const HELP =
  "Arrows move (with Shift further), plus and minus resize, M mirrors, comma and full stop turn, P shows the next " +
  "photo, brackets change the order, Delete puts back, Escape lets go."
const ICONS = {
  mirror: "M8 2v12M6 5 2 11h4zM10 5l4 6h-4z",
  photo: "M2 4h12v9H2zM2 11l4-3 3 2 2-2 3 3M10.5 6.5h.01",
  back: "M6 6h8v8H6zM2 10V2h8",
  front: "M2 2h8v8H2zM14 6v8H6",
  snap: "M4 2v6a4 4 0 0 0 8 0V2M2.5 5h3M10.5 5h3",
  reset: "M3 3v4h4M3.5 7A5 5 0 1 1 3 9.5",
  undo: "M6 3 3 6l3 3M3 6h6a4 4 0 0 1 0 8H6",
  redo: "M10 3l3 3-3 3M13 6H7a4 4 0 0 0 0 8h3",
}

function element(tag, className, attributes = {}, children = []) {
  const made = document.createElement(tag)
  made.className = className
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  made.append(...children)
  return made
}

export class Board {
  /**
   * `on`: edited(figures), putBack(token), reset(), undo(), redo(), leaving(token) before the latter two, by button or
   * key, and url(file), the address of a cut-out.
   */
  constructor(on) {
    this.on = on
    this.state = { figures: [], subjects: new Map(), ratio: 1, words: "", locked: true }
    this.selected = null
    this.snaps = true
    this.elements = new Map()
    this.canvas = element("div", "mudi-canvas", { role: "listbox", "aria-label": "Subjects on the canvas" })
    this.guides = element("div", "mudi-guides")
    this.empty = element("p", "mudi-empty")
    this.canvas.append(this.guides, this.empty)
    this.status = element("p", "mudi-status", { role: "status" })
    this.buttons = {
      mirror: this.button("mirror", "Mirror (M)", () => this.pose(one => ({ mirror: !one.mirror }))),
      photo: this.button("photo", "Next photo (P)", () => this.nextPhoto()),
      back: this.button("back", "Further back ([)", () => this.reorder(-1)),
      front: this.button("front", "Further to the front (])", () => this.reorder(1)),
      snap: this.button("snap", "Snap to edges and middles (Alt: not now)", () => {
        this.snaps = !this.snaps
        this.draw()
      }),
      undo: this.button("undo", "Undo (Ctrl+Z)", () => this.travel("undo")),
      redo: this.button("redo", "Redo (Ctrl+Y)", () => this.travel("redo")),
      reset: this.button("reset", "Reset: places by the seed again", () => this.on.reset()),
    }
    const tools = element("div", "mudi-tools", { role: "toolbar", "aria-label": "Layout" }, Object.values(this.buttons))
    this.root = element("div", "mudi-layout", { role: "group", "aria-label": "Layout editor", "aria-description": HELP }, [
      tools,
      element("div", "mudi-stage", {}, [this.canvas]),
      this.status,
    ])
    // What happens in here is not the graph's: neither dragging a node nor its shortcuts.
    for (const kind of ["pointerdown", "pointermove", "pointerup", "dblclick", "contextmenu"])
      this.root.addEventListener(kind, event => event.stopPropagation())
    this.root.addEventListener("keydown", event => this.key(event))
    this.canvas.addEventListener("pointerdown", event => event.target === this.canvas && this.select(null))
  }

  button(icon, label, act) {
    const made = element("button", `mudi-tool mudi-${icon}`, { type: "button", title: label, "aria-label": label })
    made.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`
    made.addEventListener("click", act)
    return made
  }

  /**
   * Shows `figures` of `subjects` on a canvas of a ratio, before the file `scene`, or some words where there are none;
   * `locked`: to look at.
   */
  show(state) {
    this.state = state
    if (!state.figures.some(one => one.token === this.selected)) this.selected = null
    // A picture that was not there may be now.
    for (const picture of this.canvas.querySelectorAll(".mudi-blank img")) picture.removeAttribute("src")
    this.draw()
  }

  get figure() {
    return this.state.figures.find(one => one.token === this.selected)
  }

  select(token) {
    this.selected = token
    if (token === null && this.root.contains(document.activeElement)) document.activeElement.blur()
    this.draw()
  }

  draw() {
    const { figures, subjects, ratio, words, locked, scene } = this.state
    this.canvas.style.backgroundImage = scene ? `url("${this.on.url(scene)}")` : ""
    this.canvas.style.setProperty("--ratio", ratio)
    this.root.classList.toggle("mudi-locked", locked)
    for (const [token, made] of this.elements) {
      if (figures.some(one => one.token === token)) continue
      made.remove()
      this.elements.delete(token)
    }
    figures.forEach((figure, i) => this.drawFigure(figure, i))
    this.empty.textContent = figures.length ? "" : words
    const chosen = this.figure
    const photos = chosen ? (subjects.get(chosen.token)?.photos.length ?? 0) : 0
    for (const [name, button] of Object.entries(this.buttons)) {
      const one = ["mirror", "photo", "back", "front"].includes(name)
      button.disabled = locked || (one && !chosen) || (name === "photo" && photos < 2)
    }
    this.buttons.snap.setAttribute("aria-pressed", this.snaps)
    this.buttons.mirror.setAttribute("aria-pressed", chosen?.mirror ?? false)
    const said = chosen ? this.described(chosen) : figures.length ? words : ""
    if (this.status.textContent !== said) this.status.textContent = said
  }

  drawFigure(figure, order) {
    const { token, box, mirror, rotation } = figure
    const { subjects, locked } = this.state
    const made = this.elements.get(token) ?? this.makeFigure(token)
    const isSelected = token === this.selected && !locked
    const photo = photoOf(figure, subjects)
    Object.assign(made.style, {
      left: `${box[0] * 100}%`,
      top: `${box[1] * 100}%`,
      width: `${(box[2] - box[0]) * 100}%`,
      height: `${(box[3] - box[1]) * 100}%`,
      zIndex: order + 1,
    })
    made.classList.toggle("mudi-selected", isSelected)
    made.setAttribute("aria-selected", isSelected)
    made.setAttribute("aria-label", this.described(figure))
    made.querySelector(".mudi-name").textContent = subjects.get(token)?.name ?? token
    const picture = made.querySelector("img")
    const url = photo ? this.on.url(photo.file) : ""
    if (picture.getAttribute("src") !== url) {
      made.classList.toggle("mudi-blank", !url)
      picture.setAttribute("src", url)
    }
    if (photo) {
      const [width, height] = upright(photo.aspect, rotation)
      Object.assign(picture.style, { width: `${width * 100}%`, height: `${height * 100}%` })
      picture.style.transform = `translate(-50%, -50%) rotate(${rotation}deg)${mirror ? " scaleX(-1)" : ""}`
    }
  }

  makeFigure(token) {
    const picture = element("img", "", { alt: "", draggable: "false" })
    const made = element("div", "mudi-figure mudi-blank", { role: "option", tabindex: "0" }, [
      picture,
      element("span", "mudi-name", { "aria-hidden": "true" }),
      ...Object.keys(CORNERS).map(corner => element("i", `mudi-handle mudi-${corner}`, { "data-corner": corner })),
      element("i", "mudi-handle mudi-turn", { "data-turn": "" }),
    ])
    made.dataset.token = token
    // A file of an earlier server is gone: the box stands for it until the next run.
    picture.addEventListener("error", () => made.classList.add("mudi-blank"))
    made.addEventListener("pointerdown", event => event.button === 0 && this.grab(event, token))
    made.addEventListener("focus", () => this.selected !== token && this.select(token))
    this.elements.set(token, made)
    this.canvas.append(made)
    return made
  }

  described({ token, box, photo, mirror, rotation }) {
    const percent = x => Math.round(x * 100)
    const subject = this.state.subjects.get(token)
    const facts = [
      subject?.name ?? token,
      `${percent(box[2] - box[0])} × ${percent(box[3] - box[1])} % at ${percent(box[0])}, ${percent(box[1])} %`,
    ]
    if (subject?.photos.length > 1) facts.push(`photo ${photoNumber(photo)}`)
    if (mirror) facts.push("mirrored")
    if (rotation) facts.push(`turned ${Math.round(rotation)}°`)
    return facts.join(" · ")
  }

  /** Shows a figure otherwise, without telling anybody yet. */
  preview(next, guides = { x: [], y: [] }) {
    this.state = { ...this.state, figures: this.state.figures.map(one => (one.token === next.token ? next : one)) }
    const line = (axis, at) => {
      const made = element("i", `mudi-guide-${axis}`)
      made.style[axis === "x" ? "left" : "top"] = `${at * 100}%`
      return made
    }
    this.guides.replaceChildren(...guides.x.map(at => line("x", at)), ...guides.y.map(at => line("y", at)))
    this.draw()
  }

  change(next) {
    this.preview(next)
    this.on.edited(this.state.figures)
  }

  pose(how) {
    const { subjects, ratio } = this.state
    if (this.figure) this.change(posed(this.figure, how(this.figure), subjects, ratio))
  }

  nextPhoto() {
    this.pose(one => ({ photo: (one.photo + 1) % Math.max(this.state.subjects.get(one.token)?.photos.length ?? 1, 1) }))
  }

  reorder(by) {
    const figures = [...this.state.figures]
    const from = figures.indexOf(this.figure)
    const to = from + by
    if (from < 0 || to < 0 || to >= figures.length) return
    figures.splice(to, 0, ...figures.splice(from, 1))
    this.state = { ...this.state, figures }
    this.draw()
    this.on.edited(figures)
  }

  travel(way) {
    this.on.leaving(this.selected)
    this.on[way]()
  }

  grab(event, token) {
    const made = this.elements.get(token)
    event.preventDefault()
    made.focus({ preventScroll: true })
    this.select(token)
    if (this.state.locked) return
    const { corner, turn } = event.target.dataset
    const area = this.canvas.getBoundingClientRect()
    const at = ({ clientX, clientY }) => [(clientX - area.left) / area.width, (clientY - area.top) / area.height]
    const [before, start] = [this.figure, at(event)]
    const lines = linesOf(this.state.figures, token)

    const follow = moving => {
      const [x, y] = at(moving)
      const most = this.snaps && !moving.altKey ? REACH : 0
      const reach = { x: most / area.width, y: most / area.height }
      if (corner) {
        const { box, guides } = pulled(before.box, CORNERS[corner], [x, y], lines, reach)
        this.preview({ ...before, box }, guides)
      } else if (turn !== undefined) {
        const by = this.angle(before.box, [x, y], area) - this.angle(before.box, start, area)
        const rotation = turnedBy(before.rotation, by, most > 0)
        this.preview(posed(before, { rotation }, this.state.subjects, this.state.ratio))
      } else {
        const { box, guides } = snapped(moved(before.box, x - start[0], y - start[1]), lines, reach)
        this.preview({ ...before, box }, guides)
      }
    }
    const end = isKept => {
      const after = this.figure
      this.letGo = null
      for (const [kind, listener] of Object.entries(listeners)) made.removeEventListener(kind, listener)
      if (!isKept || !after) this.preview(before)
      else if (String(after.box) === String(before.box) && after.rotation === before.rotation) this.preview(after)
      else this.change(after)
    }
    const listeners = {
      pointermove: follow,
      pointerup: () => end(true),
      pointercancel: () => end(false),
    }
    this.letGo?.()
    this.letGo = () => end(false)
    for (const [kind, listener] of Object.entries(listeners)) made.addEventListener(kind, listener)
    made.setPointerCapture(event.pointerId)
  }

  /** Degrees clockwise from upright of the line from a box's middle to a point. */
  angle([x0, y0, x1, y1], [x, y], area) {
    const [right, down] = [(x - (x0 + x1) / 2) * area.width, (y - (y0 + y1) / 2) * area.height]
    return (Math.atan2(right, -down) * 180) / Math.PI
  }

  key(event) {
    const figure = this.figure
    const isFigure = event.target.classList.contains("mudi-figure")
    if (!figure || !isFigure || this.state.locked) return
    if (event.ctrlKey || event.metaKey) {
      if (["z", "y"].includes(event.key.toLowerCase())) this.on.leaving(figure.token)
      return
    }
    const by = event.shiftKey ? LEAP : STEP
    const move = (dx, dy) => () => this.change({ ...figure, box: moved(figure.box, dx, dy) })
    const size = factor => () => this.change({ ...figure, box: scaled(figure.box, factor) })
    const turn = degrees => () => this.pose(one => ({ rotation: turnedBy(one.rotation, degrees) }))
    const act = {
      ArrowLeft: move(-by, 0),
      ArrowRight: move(by, 0),
      ArrowUp: move(0, -by),
      ArrowDown: move(0, by),
      "+": size(1 + by),
      "=": size(1 + by),
      "-": size(1 / (1 + by)),
      m: () => this.pose(one => ({ mirror: !one.mirror })),
      p: () => this.nextPhoto(),
      ",": turn(-TURN),
      ".": turn(TURN),
      "[": () => this.reorder(-1),
      "]": () => this.reorder(1),
      Delete: () => this.on.putBack(figure.token),
      Backspace: () => this.on.putBack(figure.token),
      Escape: () => (this.letGo ? this.letGo() : this.select(null)),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key]
    if (!act) return
    event.preventDefault()
    event.stopPropagation()
    act()
  }
}
