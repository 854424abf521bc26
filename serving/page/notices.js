/** Messages above the results, and beside what they are about. */

import { byId, make } from "./dom.js";

export const clearNotices = () => byId("notices").replaceChildren();

/** Show a message and return its element: `kind` is error or hint; `again` is a button's words and what it does. */
export function notice(kind, title, text, again = null, requestId = null) {
  const body = make("p", {}, make("strong", {}, title), ` ${text} `);
  if (requestId) body.append(make("small", {}, `Request ${requestId}`));
  const box = make("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "note" }, body);
  if (again) {
    const button = make("button", { type: "button", class: "link" }, again[0]);
    button.addEventListener("click", () => {
      box.remove();
      again[1]();
    });
    box.append(button);
  }
  byId("notices").append(box);
  return box;
}

/** Say something at a place, or nothing; `again` is a button's words and what it does. */
export function tell(place, text, again = null) {
  place.hidden = !text;
  place.replaceChildren(text ?? "");
  if (!again) return;
  const button = make("button", { type: "button", class: "link" }, again[0]);
  button.addEventListener("click", again[1]);
  place.append(" ", button);
}
