/** The two buttons on a picture that take it into the search, for and against. */

import { make } from "./dom.js";

/** Make them; `judge` is called with whether the picture is wanted. */
export function judges(judge) {
  const button = (sign, wanted) => {
    const one = make("button", { type: "button", class: wanted ? "more-like" : "less-like" }, sign);
    one.addEventListener("click", () => judge(wanted));
    return one;
  };
  return make("span", { class: "judges", role: "group" }, button("−", false), button("+", true));
}

/** Show whether a picture is searched for (1), against (−1) or not at all (0). */
export function showSign(group, sign, name) {
  const [less, more] = group.children;
  group.setAttribute("aria-label", name);
  for (const [button, of, words] of [[less, -1, "Less like"], [more, 1, "More like"]]) {
    button.setAttribute("aria-pressed", sign === of);
    button.setAttribute("aria-label", `${words} ${name}`);
    button.title = sign === of ? "Take it out of the search" : `${words} this`;
  }
  group.classList.toggle("chosen", sign !== 0);
}
