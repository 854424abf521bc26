/** The line above the results: what was found and by what it was ranked, or what is under way. */

import { byId } from "./dom.js";
import { count, duration, plural, rankedBy } from "./words.js";

export function say(text) {
  if (byId("status").textContent !== text.trim()) byId("status").textContent = text.trim();
}

/** How much was found, by what, and how fast. */
export function found({ answer, round, imagined }) {
  if (!answer.results.length) return "Nothing was found.";
  const used = imagined.filter((image) => !round.drop.has(image.index)).length;
  const by = rankedBy(answer, round, used);
  const time = answer.timings_ms.total === undefined ? "" : ` in ${duration(answer.timings_ms.total)}`;
  return `${plural(answer.results.length, "picture")}, ranked ${by}${time}.`;
}

/** What has moved since the ranking by words alone. */
export function moved({ answer, before }) {
  if (!before?.size || answer.stage === "text") return "";
  const fresh = answer.results.filter((result) => !before.has(result.id)).length;
  const risen = answer.results.filter((result, place) => before.get(result.id) > place).length;
  return fresh || risen ? `${count(risen)} moved up, ${count(fresh)} came in.` : "";
}
