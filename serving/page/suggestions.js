/** Words that the service offers: those that split the results best, and those read from a picture. */

import { make } from "./dom.js";

/** Show words as buttons; `add` is called with the one taken and whether it is wanted. Without words: nothing. */
export function suggest(row, title, words, add) {
  row.hidden = !words?.length;
  row.replaceChildren(
    make("span", { class: "soft" }, title),
    ...(words ?? []).map((text) => {
      const [more, less] = [
        make("button", { type: "button", "aria-label": `With ${text}` }, text),
        make("button", { type: "button", class: "less", "aria-label": `Without ${text}`, title: `Without ${text}` }, "−"),
      ];
      more.addEventListener("click", () => add(text, true));
      less.addEventListener("click", () => add(text, false));
      return make("span", { class: "offer" }, more, less);
    }),
  );
}
