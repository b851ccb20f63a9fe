/* The search of pages that are opened as files, where browsers allow no Worker: its script runs in a hidden frame. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = `<script>postMessage = data => frameElement.answer(data)</script><script src="${new URL(url, document.baseURI)}"></script>`
      frame.answer = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.loaded = new Promise(resolve => frame.addEventListener("load", resolve))
      this.frame = frame
      document.body.append(frame)
    }

    postMessage(data) {
      this.loaded.then(() => {
        const inside = this.frame.contentWindow
        inside.dispatchEvent(new inside.MessageEvent("message", { data }))
      })
    }

    terminate() {
      this.frame.remove()
    }
  }
}
