/** Messages above the results. */

import { byId, make } from "./dom.js";

export const clearNotices = () => byId("notices").replaceChildren();

/** Show a message and return its element: `kind` is error or hint; `retry` puts a button beside it. */
export function notice(kind, title, text, retry = null, requestId = null) {
  const body = make("p", {}, make("strong", {}, title), ` ${text} `);
  if (requestId) body.append(make("small", {}, `Request ${requestId}`));
  const box = make("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "note" }, body);
  if (retry) {
    const button = make("button", { type: "button", class: "link" }, "Try again");
    button.addEventListener("click", () => {
      box.remove();
      retry();
    });
    box.append(button);
  }
  byId("notices").append(box);
  return box;
}
