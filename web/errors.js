// Newer frontends say only that a node failed, and show where in its code, but not its error: a sentence that says what
// to do. Where the page does not show it, a message does.

import { app } from "../../scripts/app.js"

const WAIT = 500 // milliseconds, in which the page shows what it shows
const LIFE = 30000 // milliseconds, long enough to read it twice

app.registerExtension({
  name: "mudi.errors",
  setup() {
    app.api.addEventListener("execution_error", ({ detail }) => {
      const { node_type: type, node_id: id, exception_message: said } = detail ?? {}
      if (!type?.startsWith("Mudi") || !said?.trim()) return
      setTimeout(() => {
        if (isShown(said)) return
        const summary = app.graph.getNodeById?.(id)?.title ?? type
        app.extensionManager?.toast?.add({ severity: "error", summary, detail: said.trim(), life: LIFE })
      }, WAIT)
    })
  },
})

function isShown(said) {
  const words = text => text.replace(/\s+/g, " ").trim()
  return words(document.body.innerText).includes(words(said))
}
