/** The controls that are always there: search box, further words, λ, and the keys of the page as a whole. */

import { byId } from "./dom.js";

/**
 * @param {object} hands called with what was entered: `search` with the words of the search box, `add` with further
 *   ones and whether they are wanted, `weight` with λ or null for the service's own; and `clear` of the evidence,
 *   `anew`, `takeBack` of imagined images, `more` results
 */
export function listen(hands) {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    hands.search(byId("query").value.trim());
  });
  byId("add").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("add-words").value.trim();
    if (!text) return byId("add-words").focus();
    byId("add-words").value = "";
    hands.add(text, event.submitter?.value === "for");
  });
  byId("clear").addEventListener("click", () => {
    hands.clear();
    byId("query").focus();
  });
  byId("weight").addEventListener("input", () => hands.weight(Number(byId("weight").value)));
  byId("weight-reset").addEventListener("click", () => {
    byId("weight").focus();
    hands.weight(null);
  });
  byId("anew").addEventListener("click", hands.anew);
  byId("all").addEventListener("click", () => {
    hands.takeBack();
    byId("imagined").querySelector("button")?.focus();
  });
  byId("more").addEventListener("click", hands.more);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("found").focus();
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName) && document.activeElement.type !== "range";
    if (event.key !== "/" || typing || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    byId("query").select();
    byId("query").focus();
  });
}
