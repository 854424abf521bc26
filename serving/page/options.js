/** How to rank: what a search may be asked for beyond its evidence, as far as this service has it. */

import { requestFields } from "./api.js";
import { make } from "./dom.js";
import { SECOND_LOOK } from "./words.js";

const CHOICES = {
  fuse: ["Together by", { mean: "mean", max: "best picture", rrf: "rank" }],
  rerank: ["Second look", { none: "none", ...SECOND_LOOK }],
  bridge: ["Pictures read into words", { auto: "with words", none: "never", words: "always" }],
  focus: ["Look at", {}],
  ignore: ["Overlook", {}],
};
/** Those that need a dictionary, which has aspects. */
const OF_DICTIONARY = ["focus", "ignore", "bridge"];
/** Values that need an assistant. */
const OF_ASSISTANT = ["judge", "list"];
/** Those that name aspects, and what none of them is called. */
const OF_ASPECTS = { focus: "everything", ignore: "nothing" };

export class Options {
  #box;
  #list;
  #change;

  /** `change` is called with a name and its value, or null for the service's own. */
  constructor(box, list, change) {
    this.#box = box;
    this.#list = list;
    this.#change = change;
  }

  /** Offer what the service has: `aspects` that it can look at or overlook, an `assistant` if it is more than 0. */
  async offer({ aspects, assistant }, chosen) {
    const fields = await requestFields();
    const offers = Object.entries(CHOICES).flatMap(([name, [label, words]]) => {
      const has = fields[name] && (aspects?.length || !OF_DICTIONARY.includes(name));
      const all = has ? valuesOf(fields[name], name in OF_ASPECTS ? aspects : []) : [];
      const values = all.filter((value) => assistant || !OF_ASSISTANT.includes(value));
      return values.length ? [this.#offer(name, label, values, words, fields[name].default)] : [];
    });
    this.#list.replaceChildren(...offers);
    this.#box.hidden = offers.length === 0;
    this.show(chosen);
  }

  show(chosen) {
    for (const select of this.#list.querySelectorAll("select")) {
      const value = chosen[select.name] ?? "";
      if (value && ![...select.options].some((option) => option.value === value)) {
        select.append(new Option(CHOICES[select.name][1][value] ?? value, value));
      }
      select.value = value;
    }
  }

  #offer(name, label, values, words, standard) {
    const own = OF_ASPECTS[name] ?? words[standard] ?? standard ?? "as the service does";
    const select = make("select", { name }, new Option(own, ""));
    for (const value of values) if (value !== standard) select.append(new Option(words[value] ?? value, value));
    select.addEventListener("change", () => this.#change(name, select.value || null));
    return make("label", {}, make("span", {}, label), select);
  }
}

/** The values of a field of strings, also where it may be null; `otherwise` where it does not say them. */
const valuesOf = (field, otherwise) => field.enum ?? field.anyOf?.find((one) => one.enum)?.enum ?? otherwise ?? [];
