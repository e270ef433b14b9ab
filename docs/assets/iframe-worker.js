/* A page that is opened from a file may start no worker, and the theme searches in one. Its script then runs in a
 * hidden frame that speaks as a worker does: messages in, messages out. */
"use strict";

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #ready;

    constructor(url) {
      super();
      this.#frame.hidden = true;
      document.body.append(this.#frame);
      const inside = this.#frame.contentWindow;
      this.#ready = new Promise((resolve) => {
        inside.document.open(); // settles the frame's document before anything is put into it
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        inside.document.close();
        const script = inside.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        inside.document.body.append(script);
      });
    }

    async postMessage(data) {
      await this.#ready;
      this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
