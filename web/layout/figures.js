// Where the subjects stand, as the Layout node reads and draws it. Boxes are [left, top, right, bottom] in fractions of
// the canvas, figures are listed back to front, rotations are degrees clockwise. `ratio` is the canvas's width / height.

const SMALLEST = 0.06

/** Return width divided by height of the box around a box of this aspect, rotated by these degrees. */
export function turnedAspect(aspect, rotation) {
  const [cos, sin] = cosSin(rotation)
  return (aspect * cos + sin) / (aspect * sin + cos)
}

/** The unturned figure inside the box around it: width and height as shares of the box's. */
export function upright(aspect, rotation) {
  const [cos, sin] = cosSin(rotation)
  const width = 1 / (cos + sin / aspect)
  return [width, (width / aspect) * turnedAspect(aspect, rotation)]
}

function cosSin(rotation) {
  const angle = (rotation * Math.PI) / 180
  return [Math.abs(Math.cos(angle)), Math.abs(Math.sin(angle))]
}

/** The places in the node's text, as it would read them; null where it would refuse them. */
export function readPlaces(text) {
  let read
  try {
    read = JSON.parse(text.match(/^\s*```(?:json)?\s*\n([^]*)\n\s*```\s*$/)?.[1] ?? text)
  } catch {
    return null
  }
  if (typeof read !== "object" || read === null || Array.isArray(read)) return null
  const places = Object.entries(read).map(([name, said]) => placeOf(name, Array.isArray(said) ? { box: said } : said))
  const isBox = box => Array.isArray(box) && box.length === 4 && box.every(x => typeof x === "number" && x >= 0)
  if (!places.length || !places.every(place => isBox(place.box) && isPose(place))) return null
  const whole = places.some(place => place.box.some(x => x > 1)) ? 1000 : 1
  for (const place of places) {
    const [x0, y0, x1, y1] = (place.box = place.box.map(x => x / whole))
    if (!(x0 < x1 && x1 <= 1 && y0 < y1 && y1 <= 1)) return null
  }
  return places
}

/** What a text says of a place; nothing else of it is taken over. */
function placeOf(name, said) {
  const { box, photo, mirror, rotation, depth } = said ?? {}
  return { name, box, photo: photoIndex(photo), mirror, rotation, depth }
}

/** Return how a user reads and types a photo index: "#1" is the first. */
export function photoNumber(index) {
  return `#${index + 1}`
}

/** Return the index that "#3" names, counted from 1; a plain 2 is the index itself, as in older workflows. */
function photoIndex(written) {
  const number = typeof written === "string" && written.match(/^#([1-9][0-9]{0,8})$/)?.[1]
  return number ? Number(number) - 1 : written
}

function isPose({ photo, mirror, rotation, depth }) {
  const isNumber = value => Number.isFinite(value ?? 0)
  const isFlag = typeof (mirror ?? false) === "boolean"
  return Number.isInteger(photo ?? 0) && (photo ?? 0) >= 0 && isFlag && [rotation, depth].every(isNumber)
}

/**
 * The subjects that the node told, by token: a Map, since any word may be a token, such as those that every object has
 * ("constructor", "__proto__").
 */
export function subjectsOf(told) {
  const isSubject = ([, one]) => typeof one?.name === "string" && Array.isArray(one.photos)
  return new Map(Object.entries(told ?? {}).filter(isSubject))
}

/** What the node reads as these figures, a line for each. */
export function writePlaces(figures) {
  const lines = figures.map(({ token, box, photo, mirror, rotation }, i) => {
    const place = { box: box.map(x => rounded(x, 4)), photo: photoNumber(photo), mirror, rotation: rounded(rotation, 2) }
    return `${JSON.stringify(token)}: ${JSON.stringify({ ...place, depth: figures.length - 1 - i })}`
  })
  return `{${lines.join(",\n ")}}`
}

function rounded(x, digits) {
  return Number(x.toFixed(digits))
}

/**
 * Figures of places. `subjects`: a Map by token of its name and photos {file, aspect}, as far as the node has told them;
 * `drawn`: placements of its last run, which say how a figure is posed where its place does not.
 */
export function figuresOf(places, subjects, drawn, ratio) {
  const figures = places.map(place => {
    const token = place.token ?? tokenOf(place.name, subjects)
    const last = drawn.find(one => one.token === token)
    const said = key => place[key] ?? last?.[key]
    const figure = { token, photo: said("photo") ?? 0, mirror: said("mirror") ?? false, rotation: said("rotation") ?? 0 }
    return { ...figure, depth: place.depth ?? 0, box: fitted(place.box, aspectOf(figure, subjects), figure.rotation, ratio) }
  })
  if (places.some(place => place.token)) return figures
  const area = ({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0)
  return figures.sort((a, b) => b.depth - a.depth || area(b) - area(a))
}

function tokenOf(name, subjects) {
  const tokens = [...subjects.keys()]
  if (tokens.includes(name)) return name
  const named = tokens.filter(token => subjects.get(token).name === name)
  const alike = named.length ? named : tokens.filter(token => subjects.get(token).name === `${token} ${name}`)
  return alike.length === 1 ? alike[0] : name
}

export function photoOf(figure, subjects) {
  return subjects.get(figure.token)?.photos[figure.photo]
}

/** Width over height of the figure's photo; null where it is not known. */
export function aspectOf(figure, subjects) {
  return photoOf(figure, subjects)?.aspect ?? null
}

/** The largest box of the turned figure's shape in the middle of another. */
function fitted([x0, y0, x1, y1], aspect, rotation, ratio) {
  if (aspect === null) return [x0, y0, x1, y1]
  const shape = turnedAspect(aspect, rotation) / ratio
  const width = Math.min(x1 - x0, (y1 - y0) * shape)
  return around([(x0 + x1) / 2, (y0 + y1) / 2], width, width / shape)
}

function around([x, y], width, height) {
  return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
}

/** A box pushed, and where it must be made smaller, into the canvas. */
function inside([x0, y0, x1, y1]) {
  const shrink = Math.min(1, 1 / (x1 - x0), 1 / (y1 - y0))
  const [width, height] = [(x1 - x0) * shrink, (y1 - y0) * shrink]
  const pushed = (middle, size) => Math.min(Math.max(middle - size / 2, 0), 1 - size)
  const [left, top] = [pushed((x0 + x1) / 2, width), pushed((y0 + y1) / 2, height)]
  return [left, top, left + width, top + height]
}

export function moved(box, dx, dy) {
  return inside([box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy])
}

/** A rotation after a turn from where it is, -180 to 180; drawn to the nearest 15 degrees where it snaps. */
export function turnedBy(rotation, by, isSnapped = false) {
  const whole = ((((rotation + by + 180) % 360) + 360) % 360) - 180
  if (!by) return whole
  const near = Math.round(whole / 15) * 15
  return isSnapped && Math.abs(whole - near) < 4 ? near : Math.round(whole)
}

/** A box scaled about its middle, not below the smallest size. */
export function scaled([x0, y0, x1, y1], factor) {
  const most = Math.max(factor, SMALLEST / Math.max(x1 - x0, y1 - y0))
  return inside(around([(x0 + x1) / 2, (y0 + y1) / 2], (x1 - x0) * most, (y1 - y0) * most))
}

/** The figure by another photo, or turned otherwise: of the same size, about the same middle. */
export function posed(figure, change, subjects, ratio) {
  const next = { ...figure, ...change }
  const [before, after] = [aspectOf(figure, subjects), aspectOf(next, subjects)]
  const [x0, y0, x1, y1] = figure.box
  if (before === null || after === null) return next
  // The upright figure's height is kept, in canvas heights.
  const height = (y1 - y0) * upright(before, figure.rotation)[1]
  const turned = height / upright(after, next.rotation)[1]
  const width = (turned * turnedAspect(after, next.rotation)) / ratio
  return { ...next, box: inside(around([(x0 + x1) / 2, (y0 + y1) / 2], width, turned)) }
}

/** A box whose corner (left: 0 or 2, top: 1 or 3) is pulled to a point; the opposite corner and its shape stay. */
export function pulled(box, [i, j], point, lines, reach) {
  const [fixedX, fixedY] = [box[2 - i], box[4 - j]]
  const [signX, signY] = [i ? 1 : -1, j > 1 ? 1 : -1]
  const [width, height] = [box[2] - box[0], box[3] - box[1]]
  const grown = Math.max(((point[0] - fixedX) * signX) / width, ((point[1] - fixedY) * signY) / height)
  const most = Math.min((i ? 1 - fixedX : fixedX) / width, (j > 1 ? 1 - fixedY : fixedY) / height)
  let factor = Math.max(Math.min(grown, most), SMALLEST / Math.max(width, height))
  const near = (line, fixed, sign, size) => ({ line, factor: ((line - fixed) * sign) / size, size })
  const [snap] = [
    ...lines.x.map(x => ({ axis: "x", ...near(x, fixedX, signX, width) })),
    ...lines.y.map(y => ({ axis: "y", ...near(y, fixedY, signY, height) })),
  ]
    .filter(one => one.factor > 0 && one.factor <= most && Math.abs(one.factor - factor) * one.size <= reach[one.axis])
    .sort((a, b) => Math.abs(a.factor - factor) * a.size - Math.abs(b.factor - factor) * b.size)
  if (snap) factor = snap.factor
  const [x, y] = [fixedX + signX * width * factor, fixedY + signY * height * factor]
  const next = [Math.min(x, fixedX), Math.min(y, fixedY), Math.max(x, fixedX), Math.max(y, fixedY)]
  return { box: next, guides: { x: snap?.axis === "x" ? [snap.line] : [], y: snap?.axis === "y" ? [snap.line] : [] } }
}

/** What edges and middles are drawn to: those of the canvas and of all other figures. */
export function linesOf(figures, token) {
  const boxes = [[0, 0, 1, 1], ...figures.filter(figure => figure.token !== token).map(figure => figure.box)]
  const along = (low, high) => boxes.flatMap(box => [box[low], (box[low] + box[high]) / 2, box[high]])
  return { x: along(0, 2), y: along(1, 3) }
}

/** A box moved to the nearest lines within reach, and those lines. */
export function snapped(box, lines, reach) {
  const nearest = (edges, candidates, most) => {
    const shifts = edges.flatMap(edge => candidates.map(line => ({ line, by: line - edge })))
    const close = shifts.filter(one => Math.abs(one.by) <= most).sort((a, b) => Math.abs(a.by) - Math.abs(b.by))
    return close[0]
  }
  const edges = (low, high) => [box[low], (box[low] + box[high]) / 2, box[high]]
  const [x, y] = [nearest(edges(0, 2), lines.x, reach.x), nearest(edges(1, 3), lines.y, reach.y)]
  return { box: moved(box, x?.by ?? 0, y?.by ?? 0), guides: { x: x ? [x.line] : [], y: y ? [y.line] : [] } }
}
