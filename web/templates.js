// The pack's workflows in the template browser, in the order of their numbers. ComfyUI lists them as the file system
// does: on Linux in no order, on Windows 10 before 2. Their names stay, since people's links hold them.

import { api } from "../../scripts/api.js"

const list = api.getWorkflowTemplates

if (list) {
  api.getWorkflowTemplates = async function () {
    const listed = await list.apply(this, arguments)
    const ours = listed?.[new URL(import.meta.url).pathname.split("/").at(-2)]
    if (Array.isArray(ours)) ours.sort((one, other) => one.localeCompare(other, undefined, { numeric: true }))
    return listed
  }
}
