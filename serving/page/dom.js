/** Helpers to make and find elements. What comes from the server enters the page as text and never as HTML. */

export const byId = (id) => document.getElementById(id);

/**
 * An element with properties and children. Strings among the children become text nodes.
 * @param {string} tag
 * @param {Record<string, unknown>} [properties] `class` and names with a dash are attributes, the others properties.
 * @param {...(Node | string)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class" || name.includes("-")) element.setAttribute(name, String(value));
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** One of the page's own symbols, by its name. */
export function icon(name) {
  const [svg, use] = ["svg", "use"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** The terms and values of a description list. */
export function describe(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
}

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Whether things may move. */
export const mayMove = () => !calm.matches;
