/** What the service serves, said at the foot of the page, and searches to begin with. */

import { byId, make } from "./dom.js";
import { plural } from "./words.js";

const EXAMPLES = 6;

/** Show it; `search` is called with the example that is taken. */
export function introduce({ examples, rows, index_version, version }, search) {
  const buttons = examples.slice(0, EXAMPLES).map((text) => {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => search(text));
    return button;
  });
  byId("examples").replaceChildren(...buttons);
  byId("examples").hidden = buttons.length === 0;
  byId("foot").textContent = [plural(rows, "picture"), `index version ${index_version}`, `mindseye ${version}`].join(" · ");
}
