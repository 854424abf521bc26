/** How an answer came about. */

import { byId, describe } from "./dom.js";
import { duration, SECOND_LOOK } from "./words.js";

const MEMORY = { hit: "imagined before", miss: "imagined now", off: "not used" };
const STAGE = { text: "words", visual: "imagined pictures", fused: "words and imagined pictures" };
const VISUAL = {
  imagined: "imagined pictures",
  nearest: "the pictures of the gallery nearest to the words",
  given: "the pictures that were given",
};

/** Show it; `mixed` says whether pictures were searched with. */
export function showAccount(answer, mixed) {
  const stages = Object.entries(answer.timings_ms).map(([stage, ms]) => `${stage} ${duration(ms)}`);
  describe(byId("account-list"), [
    ["Ranked by", mixed ? "evidence" : STAGE[answer.stage]],
    ...(answer.visual ? [["Looks taken from", VISUAL[answer.visual] ?? answer.visual]] : []),
    ...(answer.reranked ? [["Second look", SECOND_LOOK[answer.reranked] ?? answer.reranked]] : []),
    ["λ", answer.weight.toFixed(3)],
    ["Memory", MEMORY[answer.memory] ?? answer.memory],
    ["Time", stages.join(", ")],
    ["Index version", answer.index_version],
    ["Shards that answered", `${answer.shards.answered} of ${answer.shards.total}`],
    ["Request", answer.request_id],
  ]);
  byId("account").hidden = false;
}
